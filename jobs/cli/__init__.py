"""The command line, `daskyard`. What is heavy (Dask, PyTorch, pandas) is imported only where a job runs."""

import signal


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command begins there is nothing to clean up, and an interrupt shows no traceback of imports.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jobs.cli import app

    app.main()
