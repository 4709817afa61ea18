"""The command line, `daskyard`. What is heavy (Dask, PyTorch, pandas) is imported only where a job runs."""


def main() -> None:
    """Run the command line."""
    from jobs.cli import app

    app.main()
