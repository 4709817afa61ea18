"""The commands. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import jobs
from jobs import artifacts, datasets, logs, retries, spec, verify
from jobs import preflight as checks
from jobs.cli import outcome, stops, streams, submit_api, submit_manifest, submit_status, tables
from jobs.cli import params as model_params
from jobs.cli import submit as submitting
from jobs.cli.progress import watching
from jobs.errors import DaskyardError, OutputError, SpecError, StoppedError, StorageError, stop_of
from jobs.storage.tries import stalling_after
from jobs.visible import visible, visible_json, visible_lines

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
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, max=1024, metavar="N", help="Workers of the local cluster.")
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Memory of each local worker, e.g. 2GiB; the rest goes to disk."),
]
Result = Annotated[
    Path | None,
    typer.Option("--result", metavar="FILE", help="Write how it ended to FILE, as JSON of 4 KiB at most."),
]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", metavar="NS", help="Of Kubernetes; by default the context's.")
]
Context = Annotated[
    str | None, typer.Option("--context", metavar="CTX", help="Of the kubeconfig; by default the current one.")
]
Logs = Annotated[bool, typer.Option("--logs", help="Show what the job's runner writes as well.")]
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
            _error(stops.said(error))
            raise typer.Exit(outcome.exit_code(error)) from None
        except (DaskyardError, StoppedError) as error:
            _show(error, str(error), arguments.get("debug", False))
            raise typer.Exit(outcome.exit_code(error)) from None
        except Exception as error:
            stop = stop_of(error)
            defect = f"{type(error).__name__}: {error}; run again with --debug to see where"
            _show(error, defect if stop is None else stops.said(stop), arguments.get("debug", False))
            raise typer.Exit(outcome.exit_code(error)) from None

    return wrapper


def _show(error: BaseException, text: str, is_debug: bool) -> None:
    if is_debug:
        _traceback(error)
    _error(text)


def _traceback(error: BaseException) -> None:
    import traceback

    sys.stderr.write(visible_lines("".join(traceback.format_exception(error))))


def _error(text: str) -> None:
    _line("error", text)


def _line(kind: str, text: str) -> None:
    line = Text.assemble((f"{kind}: ", "bold red"), visible(" ".join(text.split())))
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def _print_json(document: object) -> None:
    text = visible_json(document)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")
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

        known: list[runner.RunResult] = []
        try:
            with watching(Console(stderr=True)) as listener:

                def attempt() -> runner.RunResult:
                    return runner.run(job, n_workers=workers, memory=memory, listener=listener, on_commit=known.append)

                retries.with_retries(attempt, n_retries, listener)
            stops.heed_no_more()
        except (StoppedError, KeyboardInterrupt):
            if not known:
                raise
            stops.heed_no_more()
        result = known[-1]
        tell(outcome.committed(result.run_url, result.was_committed, result.manifest))
    with _after_the_commit():
        if as_json:
            document = {"run_url": result.run_url, "was_committed": result.was_committed}
            _print_json({**document, "manifest": result.manifest.model_dump(mode="json")})
        else:
            tables.run_summary(Console(), result.run_url, result.manifest)


@contextmanager
def _after_the_commit() -> Iterator[None]:
    """Make a warning of what fails as a result is shown: the run is committed, and its exit code says so."""
    try:
        yield
        sys.stdout.flush()
    except (Exception, SystemExit) as error:
        # rich makes a SystemExit of a reader that has gone.
        if not isinstance(error, (BrokenPipeError, SystemExit)):
            _line("warning", f"the run is committed; its summary cannot be shown ({type(error).__name__}: {error})")
        # Python would try once more at its end, and end with another code.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
def preflight(
    file: File,
    sets: Sets = None,
    run_id: RunId = None,
    result_file: Result = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a job file, and that its input can be read and its output written, before any worker is asked for."""
    with outcome.told_in(result_file) as tell:
        job = spec.load(file, sets or (), run_id)
        found = checks.check(job)
        tell(outcome.READY)
    if as_json:
        _print_json({**outcome.READY, **asdict(found)})
        return
    tables.line(Console(), f"{file}: valid, {job.pipeline} from {job.input.url} to {found.run_url}")
    if found.was_committed:
        tables.line(Console(), f"{found.run_url}: committed before, nothing to do")
        return
    for source in found.inputs:
        files = "1 file" if source.n_files == 1 else f"{source.n_files:,} files"
        tables.line(Console(), f"{source.url}: can be read, {files} of {source.size:,} bytes")
    tables.line(Console(), f"{job.output}: can be written")


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
    is_verified: Annotated[
        bool, typer.Option("--verify", help="Read every file and compare it with its size and SHA-256.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show metrics, stages and files of a committed run."""
    manifest = artifacts.read_manifest(run_url)
    found = _verified(manifest, run_url) if is_verified else []
    damaged, unread = ([each for each in found if each.is_proved is is_proved] for is_proved in (True, False))
    if as_json:
        rows = {"damaged": _damage_rows(damaged), "unreadable": _damage_rows(unread)} if is_verified else {}
        _print_json(manifest.model_dump(mode="json") | rows)
    else:
        tables.run_summary(Console(), run_url, manifest)
        tables.run_details(Console(), manifest)
    for each in found:
        _line("damaged" if each.is_proved else "unreadable", str(each))
    n_files = len(manifest.files)
    more = f"{len(unread)} of {n_files} files could not be read"
    if damaged:
        end = f"; {more}, try again" if unread else ""
        raise OutputError(f"{run_url}: {len(damaged)} of {n_files} files are damaged; put them back{end}")
    if unread:
        raise StorageError(f"{run_url}: {more}, the others are what was written; try again")
    if is_verified and not as_json:
        tables.line(Console(), f"verified: {n_files} files are what was written")


def _verified(manifest: artifacts.Manifest, run_url: str) -> list[verify.Damage]:
    with ExitStack() as stack:
        # What another version of Daskyard wrote may be no spec of this one; its files can be read all the same.
        with suppress(SpecError):
            stack.enter_context(stalling_after(spec.parse(manifest.spec).storage.stall_seconds))
        listener = stack.enter_context(watching(Console(stderr=True)))
        return verify.verify(manifest, run_url, lambda done, total: listener.progress("verify", done, total, "bytes"))


def _damage_rows(damage: list[verify.Damage]) -> list[dict[str, str]]:
    return [{"name": each.name, "url": each.url, "problem": each.problem} for each in damage]


@app.command("save-logs", hidden=True)
@_command
def save_logs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of this machine.")],
    run_url: Annotated[str, typer.Argument(metavar="RUN_URL", help="URL of the run, committed or not.")],
    debug: Debug = False,
) -> None:
    """Copy the files below a folder to a run's logs, of long ones the end."""
    saved = logs.save(folder, run_url)
    for url, size in saved.files:
        tables.line(Console(), f"{url}  {size:,} bytes")
    if saved.n_left_out:
        tables.line(Console(stderr=True), f"{folder}: {saved.n_left_out:,} more files, changed before these, left out")


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


@app.command()
@_command
def submit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An MLJob or a job file in YAML; - is standard input.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the MLJob; by default its own, or the file's.")
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    runtime: Annotated[str | None, typer.Option("--runtime", metavar="R", help="The MLRuntime to run on.")] = None,
    workers: Annotated[
        str | None, typer.Option("--workers", metavar="MIN-MAX", help="Fewest and most workers, e.g. 2-8.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", metavar="CLASS", help="Hardware class of the workers, e.g. gpu.")
    ] = None,
    sets: Sets = None,
    is_detached: Annotated[bool, typer.Option("--detach", help="Do not follow it.")] = False,
    has_logs: Logs = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a job on Kubernetes, as an MLJob, and follow it to its end; Ctrl-C leaves it running."""
    made = submit_manifest.manifest(
        file, sets=sets or (), name=name, runtime=runtime, workers=workers, hardware=hardware
    )
    cluster = submit_api.Cluster(context, namespace or made["metadata"].get("namespace"))
    job, was_there = submitting.submitted(cluster, made)
    told = "it exists with this spec" if was_there else "submitted"
    if not is_detached:
        _follow(cluster, job, has_logs, as_json, told)
    elif as_json:
        _print_json(_status_document(job))
    else:
        how = submitting.comeback(cluster, job["metadata"]["name"])
        tables.line(Console(), f"{cluster.place(job['metadata']['name'])}: {told}; follow it: {how}")


@app.command()
@_command
def follow(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the MLJob.")],
    namespace: Namespace = None,
    context: Context = None,
    has_logs: Logs = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Follow a job on Kubernetes to its end; Ctrl-C leaves it running."""
    cluster = submit_api.Cluster(context, namespace)
    _follow(cluster, cluster.get(name), has_logs, as_json)


def _follow(
    cluster: submit_api.Cluster, job: dict[str, Any], has_logs: bool, as_json: bool, told: str = "following"
) -> None:
    try:
        job = submitting.followed(cluster, job, has_logs=has_logs, told=told)
    except submitting.LeftRunning as left:
        tables.line(Console(stderr=True), str(left))
        raise typer.Exit(outcome.INTERRUPTED) from None
    error = submitting.error_of(cluster, job)
    if as_json:
        _print_json(_status_document(job))
    if error is not None:
        raise error
    if not as_json:
        submit_status.summary(Console(), job)


def _status_document(job: dict[str, Any]) -> dict[str, Any]:
    metadata = job["metadata"]
    return {"namespace": metadata["namespace"], "name": metadata["name"], **job.get("status", {})}


def main() -> None:
    """Run the command line."""
    streams.prepare()
    if "--debug" in sys.argv:
        os.environ.setdefault("DASK_DASKYARD__DEBUG", "true")
    elif sys.stderr.isatty():
        # Who watches bars has no use for Dask's warnings, of which Ctrl-C makes many; logs elsewhere keep them.
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        stops.heeded(app, _error, is_quiet="--debug" not in sys.argv)
    finally:
        # An interrupt in code made from text, such as a dataclass at import, counts as unhandled until the next such
        # code begins, and `python -m` would end by the signal, whatever the exit code (CPython's run_eval_code_obj).
        exec("")  # noqa: S102
