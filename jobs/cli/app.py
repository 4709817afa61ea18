"""The commands. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import jobs
from jobs import artifacts, datasets, retries, spec
from jobs.cli import outcome, tables
from jobs.cli import params as model_params
from jobs.cli.progress import watching
from jobs.errors import DaskyardError, SpecError, StoppedError

app = typer.Typer(
    name="daskyard",
    help="Machine-learning jobs on Dask: from S3 to S3, committed exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Public data sets.", no_args_is_help=True)
app.add_typer(data, name="data")

File = Annotated[str, typer.Argument(metavar="FILE", help="A job file in YAML; - reads standard input.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, e.g. params.epochs=1; repeatable."),
]
RunId = Annotated[str | None, typer.Option("--run-id", metavar="ID", help="Name of the run's folder.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, metavar="N", help="Workers of the local cluster.")]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Memory of each local worker, e.g. 2GiB; the rest goes to disk."),
]
Result = Annotated[
    Path | None,
    typer.Option("--result", metavar="FILE", help="Write how it ended to FILE, as JSON of 4 KiB at most."),
]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Retries = Annotated[
    int,
    typer.Option(
        "--retries",
        min=0,
        max=retries.MAX_RETRIES,
        metavar="N",
        help="Run again up to N times after errors that are worth it (exit code 75).",
    ),
]


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into one line and the exit code of their class."""

    @functools.wraps(function)
    def wrapper(**arguments: Any) -> None:
        try:
            function(**arguments)
        except (typer.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            _error("interrupted")
            raise typer.Exit(outcome.exit_code(error)) from None
        except DaskyardError as error:
            _show(error, str(error), arguments.get("debug", False))
            raise typer.Exit(outcome.exit_code(error)) from None
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            _show(error, f"{text}; run again with --debug to see where", arguments.get("debug", False))
            raise typer.Exit(outcome.exit_code(error)) from None

    return wrapper


def _show(error: Exception, text: str, is_debug: bool) -> None:
    if is_debug:
        _traceback(error)
    _error(text)


def _traceback(error: Exception) -> None:
    import traceback

    traceback.print_exception(error)


def _error(text: str) -> None:
    line = Text.assemble(("error: ", "bold red"), " ".join(text.split()))
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"daskyard {jobs.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
@_command
def run(
    file: File,
    sets: Sets = None,
    workers: Workers = None,
    memory: Memory = None,
    run_id: RunId = None,
    n_retries: Retries = 0,
    result_file: Result = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a job to its commit; a run id that was committed before changes nothing."""
    with outcome.told_in(result_file) as tell:
        job = spec.load(file, sets or (), run_id)
        from jobs import runner

        with watching(Console(stderr=True)) as listener:

            def attempt() -> runner.RunResult:
                return runner.run(job, n_workers=workers, memory=memory, listener=listener)

            result = retries.with_retries(attempt, n_retries, listener)
        tell(result.run_url, result.was_committed, result.manifest)
    if as_json:
        document = {"run_url": result.run_url, "was_committed": result.was_committed}
        _print_json({**document, "manifest": result.manifest.model_dump(mode="json")})
    else:
        tables.run_summary(Console(), result.run_url, result.manifest)


@app.command()
@_command
def validate(file: File, sets: Sets = None, run_id: RunId = None, as_json: Json = False, debug: Debug = False) -> None:
    """Check a job file without running it."""
    job = spec.load(file, sets or (), run_id)
    if as_json:
        _print_json(job.model_dump(mode="json"))
    else:
        tables.line(Console(), f"{file}: valid, {job.pipeline} from {job.input.url} to {job.output}/{job.name}")


@app.command()
@_command
def pipelines(
    name: Annotated[str | None, typer.Argument(help="Show the params of this one.")] = None, as_json: Json = False
) -> None:
    """List the pipelines, or the params of one."""
    if name is not None and name not in spec.PIPELINES:
        raise SpecError(f"no pipeline {name!r}; known: {', '.join(spec.PIPELINES)}")
    if as_json:
        chosen = {name: spec.PIPELINES[name]} if name else spec.PIPELINES
        _print_json([_pipeline_document(each, model) for each, model in chosen.items()])
    elif name:
        tables.pipeline(Console(), name, spec.PIPELINES[name])
    else:
        tables.pipelines(Console(), spec.PIPELINES)


def _pipeline_document(name: str, model: type[spec.Params]) -> dict[str, Any]:
    listed = [vars(param) for param in model_params.params(model)]
    return {"name": name, "description": model_params.summary(model), "params": listed}


@app.command()
@_command
def schema() -> None:
    """Write the JSON Schema of job files."""
    _print_json(spec.json_schema())


@app.command()
@_command
def show(
    run_url: Annotated[str, typer.Argument(metavar="RUN_URL", help="URL of a committed run.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show metrics, stages and files of a committed run."""
    manifest = artifacts.read_manifest(run_url)
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
    else:
        tables.run_summary(Console(), run_url, manifest)
        tables.run_details(Console(), manifest)


@data.command("fetch")
@_command
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See: daskyard data list.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="The folder that gets the files; any storage URL.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Bring a public data set to a storage URL."""
    with watching(Console(stderr=True)) as listener:
        files = datasets.fetch(name, url, listener)
    if as_json:
        _print_json({"name": name, "files": [vars(file) for file in files]})
        return
    for file in files:
        tables.line(Console(), f"{file.url}  {file.size:,} bytes")
    tables.line(Console(stderr=True), f"Terms: {datasets.find(name).licence}")


@data.command("list")
@_command
def data_list(as_json: Json = False) -> None:
    """List the public data sets that can be fetched."""
    if as_json:
        fields = ("name", "title", "licence", "rows", "files")
        _print_json([{field: getattr(each, field) for field in fields} for each in datasets.DATASETS.values()])
    else:
        tables.datasets(Console(), datasets.DATASETS)


@app.command()
@_command
def demo(
    workers: Workers = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep data and runs in this folder.")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="PIPELINE", help="Run this pipeline only.")] = None,
    debug: Debug = False,
) -> None:
    """Run every pipeline on real data, through an S3 server of its own on this machine."""
    if only is not None and only not in spec.PIPELINES:
        raise SpecError(f"--only: no pipeline {only!r}; known: {', '.join(spec.PIPELINES)}")
    from jobs import demo as the_demo

    with watching(Console(stderr=True)) as listener:
        outcome = the_demo.run(listener, n_workers=workers, keep=keep, only=only)
    for row in outcome.rows:
        if debug and row.cause:
            _traceback(row.cause)
    tables.demo(Console(), outcome)
    raise typer.Exit(outcome.exit_code)


def _stop(number: int, frame: object) -> None:
    raise StoppedError("told to stop by SIGTERM; run the job again")


def main() -> None:
    """Run the command line."""
    # The default would end the process at once and leave the attempt's files behind.
    signal.signal(signal.SIGTERM, _stop)
    os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PRELOAD", "jobs.cli.uninterrupted")
    if sys.stderr.isatty() and "--debug" not in sys.argv:
        # Who watches bars has no use for Dask's warnings, of which Ctrl-C makes many; logs elsewhere keep them.
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    app()
