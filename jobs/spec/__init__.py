"""The job spec: YAML parsed once into a typed, frozen object. Called by the command line and by the runner."""

from jobs.spec.base import Input, Params, StrictModel
from jobs.spec.job import PIPELINES, JobSpec, json_schema, load, parse

__all__ = ["PIPELINES", "Input", "JobSpec", "Params", "StrictModel", "json_schema", "load", "parse"]
