"""JobSpec, how it is read from YAML, and its JSON Schema."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import (
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from jobs.errors import SpecError
from jobs.spec.base import Input, Params, Place, StrictModel
from jobs.spec.document import parsed, plain, read
from jobs.spec.group_by import GroupByParams
from jobs.spec.image_classification import ImageClassificationParams
from jobs.spec.kmeans import KMeansParams
from jobs.spec.linear_regression import LinearRegressionParams
from jobs.spec.neural_network import NeuralNetworkParams
from jobs.spec.recommender import RecommenderParams
from jobs.spec.storage import Storage
from jobs.spec.text_mining import TextMiningParams
from jobs.spec.tune import KINDS, Range, Tune

PIPELINES: dict[str, type[Params]] = {
    "group_by": GroupByParams,
    "image_classification": ImageClassificationParams,
    "kmeans": KMeansParams,
    "linear_regression": LinearRegressionParams,
    "neural_network": NeuralNetworkParams,
    "recommender": RecommenderParams,
    "text_mining": TextMiningParams,
}

# A run id is a folder's name in the storage, part of a Kubernetes name and a label's value: 53 characters at most.
RUN_ID = r"^[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?$"


class JobSpec(StrictModel):
    """One job: a pipeline, its params, what it reads and where it writes."""

    pipeline: str = Field(description="Which pipeline: " + ", ".join(PIPELINES) + ".")
    params: SerializeAsAny[Params] = Field(Params(), validate_default=True, description="The pipeline's params.")
    input: Input = Field(description="Where the data is: a URL, or a mapping with url, test_url and format.")
    output: Place = Field(description="The URL under which the run's folder is made.")
    run_id: str | None = Field(
        None,
        pattern=RUN_ID,
        description="Name of the run's folder; by default derived from the spec: the same spec is the same run.",
    )
    tune: Tune | None = Field(None, description="A search over params before the run, which takes the best ones.")
    storage: Storage = Field(Storage(), description="How to deal with storage; changes no result.")

    @field_validator("pipeline")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in PIPELINES:
            raise ValueError(f"no pipeline {value!r}{_closest(value, PIPELINES)}; known: {', '.join(PIPELINES)}")
        return value

    @field_validator("params", mode="before")
    @classmethod
    def _of_this_pipeline(cls, value: Any, info: ValidationInfo) -> Any:
        model = PIPELINES.get(info.data.get("pipeline", ""))
        if model is None or isinstance(value, model):
            return value
        if isinstance(value, Params):
            value = value.model_dump(exclude_unset=True)
        return model.model_validate_json(json.dumps(value))

    @model_validator(mode="after")
    def _can_be_tuned(self) -> Self:
        if self.tune is None:
            return self
        model = type(self.params)
        if not model.directions:
            raise ValueError(f"tune: {self.pipeline} has no metric to go by; remove it")
        whole_numbers = [name for name in model.model_fields if takes_whole_numbers(model, name)]
        for key, name in [*(("space", name) for name in self.tune.space), ("resource", self.tune.resource)]:
            if name is not None and name not in model.model_fields:
                known = ", ".join(model.model_fields)
                raise ValueError(f"tune.{key}: no param {name!r}{_closest(name, model.model_fields)}; known: {known}")
        if self.tune.resource is not None and self.tune.resource not in whole_numbers:
            raise ValueError(
                f"tune.resource: {self.tune.resource!r} is no whole number; choose one of {', '.join(whole_numbers)}"
            )
        for name, values in self.tune.space.items():
            drawn = (values.low, values.high) if isinstance(values, Range) else values.choices
            for value in drawn:
                self._refuse_unless_it_fits(name, value)
        metric = self.tune.metric
        if metric is not None and self.tune.mode == "auto" and metric.partition("@")[0] not in model.directions:
            raise ValueError(
                f"tune.mode: whether more of {metric!r} is better is not known; set it to max or min, or take a metric "
                f"among {', '.join(model.directions)}"
            )
        if metric in (None, "inertia") and "n_clusters" in self.tune.space:
            raise ValueError("tune.metric: inertia favours many clusters, whatever the data; set it to silhouette")
        return self

    def _refuse_unless_it_fits(self, name: str, value: Any) -> None:
        try:
            self.with_params({name: value})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise ValueError(
                f"tune.space.{name}: {_show(value)}: {problem['msg'].lower()}; correct the value"
            ) from None

    def with_params(self, values: Mapping[str, Any]) -> JobSpec:
        """Return the job with other values of some params, and nothing to tune.

        Raises
        ------
        ValidationError
            When the params do not go together.
        """
        params = type(self.params).model_validate_json(
            json.dumps({**self.params.model_dump(mode="json", exclude_unset=True), **values})
        )
        return self.model_copy(update={"params": params, "tune": None})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what decides the result: everything but the run id and how to deal with storage."""
        left_out = {"run_id", "storage"} if self.tune else {"run_id", "storage", "tune"}
        content = self.model_dump(mode="json", exclude=left_out)
        content["output"] = self.output.rstrip("/") or self.output  # with a slash at its end it is the same folder
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The run id, given or derived."""
        return self.run_id or f"{self.pipeline.replace('_', '-')}-{self.digest[:12]}"


def load(source: str | Path, sets: Sequence[str] = (), run_id: str | None = None) -> JobSpec:
    """Read a job spec from a YAML file, or from standard input for ``-``.

    Parameters
    ----------
    source : str or Path
        The file's path, or ``-``.
    sets : sequence of str
        Overrides such as ``params.n_clusters=8``; the value is YAML.
    run_id : str, optional
        Overrides the spec's own run id.

    Raises
    ------
    SpecError
        When it cannot be read, is no YAML mapping, or does not fit the model.
    """
    content, place = read(source)
    if not isinstance(content, dict):
        raise SpecError(f"{place}: a job spec is a mapping with pipeline, input and output, not {_kind(content)}")
    for item in sets:
        override(content, item)
    if run_id is not None:
        content["run_id"] = run_id
    return parse(content, place)


def parse(content: Mapping[str, Any], place: str = "job spec") -> JobSpec:
    """Turn a mapping into a JobSpec, or raise a SpecError that names key, value and remedy."""
    content = {key: value for key, value in content.items() if not (key == "params" and value is None)}
    try:
        return JobSpec.model_validate_json(json.dumps(plain(content, place)))
    except ValidationError as error:
        raise SpecError(f"{place}: {_first_problem(error, content)}") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of a job file, one branch a pipeline."""
    schema = TypeAdapter(JobSpec).json_schema()
    definitions = schema.pop("$defs", {})
    branches = []
    for name, model in PIPELINES.items():
        params = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(params.pop("$defs", {}))
        definitions[model.__name__] = params
        branch = {"pipeline": {"const": name}, "params": {"$ref": f"#/$defs/{model.__name__}"}}
        required = ["pipeline", "params"] if params.get("required") else ["pipeline"]
        branches.append({"properties": branch, "required": required})
    definitions.pop("Params", None)
    definitions["Input"] = {"anyOf": [{"type": "string", "minLength": 1}, definitions["Input"]]}
    schema["properties"]["params"] = {"type": "object", "description": "The pipeline's params."}
    schema["properties"]["pipeline"]["enum"] = list(PIPELINES)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "oneOf": branches,
        "$defs": dict(sorted(definitions.items())),
    }


def takes_whole_numbers(model: type[Params], name: str) -> bool:
    """Return whether a param takes whole numbers and no others."""
    kinds = _kinds(model.model_fields[name].annotation)
    return int in kinds and float not in kinds


def _kinds(annotation: Any) -> set[Any]:
    """Return a type, or those that it is made of."""
    return {annotation}.union(*map(_kinds, typing.get_args(annotation)))


def override(content: dict[str, Any], item: str) -> None:
    """Set a key of a spec in place, given as ``key.key=value``.

    Raises
    ------
    SpecError
        When it is not of that form, or a key before the last has a value of its own.
    """
    path, equals, text = item.partition("=")
    if not equals or not all(path.split(".")):
        raise SpecError(f"--set {item[:200]}: not of the form key=value; write for example --set params.seed=1")
    value = parsed(text, f"--set {path[:200]}")
    *parents, last = path.split(".")
    target = content
    for key in parents:
        if isinstance(target.get(key), str) and key == "input":
            target[key] = {"url": target[key]}
        inner = target.setdefault(key, {})
        if inner is None:
            inner = target[key] = {}
        if not isinstance(inner, dict):
            raise SpecError(f"--set {item[:200]}: {key} is {_kind(inner)}, not a mapping; set {key} itself")
        target = inner
    target[last] = value


def _first_problem(error: ValidationError, content: Mapping[str, Any]) -> str:
    problems = error.errors(include_url=False)
    # An unknown pipeline makes every other complaint noise.
    # A mistyped key comes back as unknown and as missing: the first says more.
    problem = next(
        (p for p in problems if p["loc"] == ("pipeline",)),
        next((p for p in problems if p["type"] == "extra_forbidden"), problems[0]),
    )
    # In a search space the kind of values is part of the place, which nobody wrote.
    written = [str(part) for at, part in enumerate(problem["loc"]) if not (at == 3 and part in KINDS)]
    where, parent = ".".join(written), ".".join(written[:-1])
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        known = _keys(problem["loc"][:-1], content)
        place = f"{parent}: " if parent else ""
        return f"{place}unknown key {key!r}{_closest(key, known)}; known keys: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where}: missing; add it"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}" if where else str(problem["ctx"]["error"])
    message = re.sub(r"^\w+ should", "should", problem["msg"])
    message = message[0].lower() + message[1:]
    return f"{where}: {_show(problem['input'])} {message}; correct the value"


def _keys(path: tuple[int | str, ...], content: Mapping[str, Any]) -> list[str]:
    if path[:1] == ("params",):
        return list(PIPELINES[str(content["pipeline"])].model_fields)
    if path[:1] == ("storage",):
        return list(Storage.model_fields)
    if path[:1] == ("tune",):
        return list(KINDS.get(str(path[-1]), Tune).model_fields)
    return list((Input if path[:1] == ("input",) else JobSpec).model_fields)


def _closest(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _show(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")
