"""From a file to the MLJob that is submitted: checked here, so that a wrong file costs nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.errors import SpecError
from jobs.spec import JobSpec, parse
from jobs.spec.document import read
from jobs.spec.job import override

Object = dict[str, Any]

API_VERSION, KIND = "daskyard.dev/v1alpha1", "MLJob"
# Names of Services begin with it: these begin with a letter and have 63 characters at most.
NAME = r"[a-z]([-a-z0-9]{0,47}[a-z0-9])?"
_NAME_RULE = "lower case letters, digits and -, a letter first, 49 at most"
# The operator makes a group of this name itself.
_OPERATORS_GROUP, _INSTEAD = "default", "workers"


def manifest(
    source: str,
    *,
    sets: Sequence[str] = (),
    name: str | None = None,
    runtime: str | None = None,
    workers: str | None = None,
    hardware: str | None = None,
) -> Object:
    """Return the MLJob of a file, which is one, or is a job file.

    Parameters
    ----------
    source : str
        The file's path, or ``-`` for standard input.
    sets : sequence of str
        Overrides of the job file's keys, or of the MLJob's spec.
    name : str, optional
        Of the MLJob; by default its own, or what follows from the file's name.
    runtime, workers, hardware : str, optional
        Override the spec: an MLRuntime, MIN-MAX, and a hardware class of the runtime.

    Raises
    ------
    SpecError
        When it is neither, or the pipeline's models refuse it.
    """
    content, place = read(source)
    if not isinstance(content, dict) or not content.keys() & {"kind", "pipeline"}:
        raise SpecError(f"{place}: neither an MLJob (kind: {KIND}) nor a job file (pipeline: …); name one of these")
    is_manifest = "kind" in content or "apiVersion" in content
    made = _checked_kind(content, place) if is_manifest else {"spec": content}
    for item in sets:
        override(made["spec"], item)
    metadata = dict(made.get("metadata") or {})
    metadata["name"] = _checked_name(name or metadata.get("name") or _name_of(source), place)
    if is_manifest:
        spec = dict(made["spec"])
        _check(spec, metadata["name"], f"{place}: spec")
    else:
        parse(content, place)
        spec = {{"run_id": "runId"}.get(key, key): value for key, value in content.items() if value is not None}
    if runtime is not None:
        spec["runtime"] = runtime
    if workers is not None or hardware is not None:
        spec["workers"] = _groups(spec.get("workers") or {"cpu": {}}, workers, hardware)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def _checked_kind(content: Object, place: str) -> Object:
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if content.get(key) != wanted:
            raise SpecError(f"{place}: {key}: {content.get(key)!r} is not {wanted}; correct it, or name another file")
    for key in ("metadata", "spec"):
        if not isinstance(content.get(key, {}), dict):
            raise SpecError(f"{place}: {key}: not a mapping; write one, see examples/mljobs")
    if not content.get("spec"):
        raise SpecError(f"{place}: spec: missing; add it")
    return content


def _check(spec: Object, name: str, place: str) -> None:
    """Check the part of an MLJob's spec that is a job file; the API server checks the rest."""
    keys = (key for key in JobSpec.model_fields if key != "run_id")
    parse({key: spec[key] for key in keys if spec.get(key) is not None} | {"run_id": spec.get("runId") or name}, place)


def _name_of(source: str) -> str:
    if source == "-":
        raise SpecError("standard input: it gives the job no name; add --name")
    return re.sub(r"[^a-z0-9]+", "-", Path(source).stem.lower()).strip("-")


def _checked_name(name: object, place: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise SpecError(f"{place}: {name!r} is no name for a job: {_NAME_RULE}; give another with --name")
    return name


def _groups(groups: object, workers: str | None, hardware: str | None) -> Object:
    """Return the one group of workers with other numbers, or of another class."""
    if not isinstance(groups, dict) or len(groups) != 1:
        raise SpecError(
            "--workers and --hardware: the MLJob has several groups of workers; say which, for example "
            "--set workers.cpu.max=4"
        )
    [(name, group)] = groups.items()
    group = dict(group or {})
    if workers is not None:
        group |= _range(workers)
    if hardware is not None:
        name = _INSTEAD if hardware == _OPERATORS_GROUP else hardware
        group["hardware"] = hardware
    return {name: group}


def _range(workers: str) -> dict[str, int]:
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", workers)
    if match is None:
        raise SpecError(f"--workers: {workers!r} is not MIN-MAX; write for example 2-8")
    fewest, most = int(match[1]), int(match[2] or match[1])
    if fewest > most or most == 0:
        raise SpecError(f"--workers: {workers} leaves no choice; write the smaller number first, and more than 0")
    return {"min": fewest, "max": most}
