"""MLJob and MLRuntime, the custom resources, as typed models: what their definitions are made from.

An MLJob is a job file with the workers it wants: its params are checked by the pipelines' own models
(`MLJobSpec.job_spec`). An MLRuntime is the platform's: whole pods, as charts/platform renders them, into which the
controller puts names and numbers only. Keys are camelCase in Kubernetes and snake_case here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from jobs.spec.job import PIPELINES, RUN_ID, JobSpec, parse

GROUP, VERSION = "daskyard.dev", "v1alpha1"
# <job>-<attempt>-scheduler is the name of a Service, of 63 characters at most; attempts have up to three digits.
NAME_MAX = 49
# <job>-<attempt>-<group> is the name of a worker group, and a label of its pods, of 63 characters at most.
GROUP_NAME_MAX = 20
JOB_AND_GROUP_MAX = 58
# The operator makes a group of this name itself.
OPERATORS_GROUP = "default"
MAX_WORKERS = 1000
MAX_GROUPS = 8
_DAYS = 24 * 3600

# What OpenAPI cannot say without another copy of it: the pipelines' models and Kubernetes' own say it.
Anything = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
LABEL = rf"^[a-z]([-a-z0-9]{{0,{GROUP_NAME_MAX - 2}}}[a-z0-9])?$"
Label = Annotated[str, Field(pattern=LABEL, max_length=GROUP_NAME_MAX)]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class Resource(BaseModel):
    """Part of a resource; unknown keys are refused, as the API server refuses them."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, allow_inf_nan=False
    )


# --- MLJob ----------------------------------------------------------------------------------------------------------


class WorkerGroup(Resource):
    """How many workers of a hardware class a job takes; they come and go with its tasks."""

    hardware: Label | None = Field(
        None, description="A hardware class of the runtime; by default the one that is called as the group is."
    )
    min: int = Field(1, ge=0, le=MAX_WORKERS, description="Fewest workers.")
    max: int = Field(2, ge=1, le=MAX_WORKERS, description="Most workers.")


def _ordered(groups: dict[str, WorkerGroup]) -> dict[str, WorkerGroup]:
    for name, group in groups.items():
        if not re.match(LABEL, name):
            raise ValueError(
                f"{name}: no name for a group; take lower case letters, digits and -, {GROUP_NAME_MAX} at most"
            )
        if name == OPERATORS_GROUP:
            raise ValueError(f"{name}: the operator has a group of that name; take another, such as cpu")
        if group.min > group.max:
            raise ValueError(f"{name}: min {group.min} is above max {group.max}; lower min or raise max")
    if not any(group.min for group in groups.values()):
        raise ValueError("no group has a min above 0: the job could never start; raise one")
    return groups


class MLJobSpec(Resource):
    """A job and the workers that it wants."""

    pipeline: Literal[tuple(PIPELINES)] = Field(description="Which pipeline.")  # type: ignore[valid-type]
    params: Anything = Field({}, description="The pipeline's params; `daskyard pipelines NAME` lists them.")
    input: Annotated[str | dict[str, Any], WithJsonSchema({"x-kubernetes-preserve-unknown-fields": True})] = Field(
        description="Where the data is: a URL, or a mapping with url, test_url and format."
    )
    output: str = Field(min_length=1, description="The URL under which the run's folder is made.")
    run_id: str | None = Field(None, pattern=RUN_ID, description="Name of the run's folder; by default the job's.")
    tune: Anything | None = Field(None, description="A search over params before the run.")
    storage: Anything | None = Field(None, description="How to deal with storage, such as stall_seconds.")
    runtime: Label = Field("default", description="An MLRuntime of this namespace.")
    workers: Annotated[dict[str, WorkerGroup], AfterValidator(_ordered)] = Field(
        {"cpu": WorkerGroup()}, min_length=1, max_length=MAX_GROUPS, description="Worker groups by name."
    )
    backoff_limit: int = Field(3, ge=0, le=20, description="Further attempts after errors that are worth one.")
    active_deadline_seconds: int | None = Field(
        None, ge=1, le=30 * _DAYS, description="The job fails when it has taken so long, over all attempts."
    )
    pending_deadline_seconds: int = Field(
        600,
        ge=10,
        le=7 * _DAYS,
        description="An attempt ends when its scheduler and fewest workers are not there by then.",
    )
    ttl_seconds_after_finished: int | None = Field(
        None, ge=0, le=365 * _DAYS, description="The MLJob is deleted so long after its end; what it wrote stays."
    )
    suspend: bool = Field(False, description="Makes no pods, and takes away those that there are, while it is true.")

    def hardware(self, group: str) -> str:
        """Return the hardware class of a group."""
        return self.workers[group].hardware or group

    def run_url(self, name: str) -> str:
        """Return the URL of the run's folder, of the MLJob of this name."""
        return f"{self.output.rstrip('/')}/{self.run_id or name}"

    def job_spec(self, name: str) -> JobSpec:
        """Return the job file that the runner gets, of the MLJob of this name.

        Raises
        ------
        SpecError
            When the pipeline's models refuse it; the message names key, value and remedy.
        """
        content = {
            "pipeline": self.pipeline,
            "params": self.params,
            "input": self.input,
            "output": self.output,
            "run_id": self.run_id or name,
            **({"tune": self.tune} if self.tune is not None else {}),
            **({"storage": self.storage} if self.storage is not None else {}),
        }
        return parse(content, "spec")


Phase = Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"]


class Condition(Resource):
    """As all of Kubernetes' conditions."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    last_transition_time: Time
    observed_generation: int | None = None


class AttemptStatus(Resource):
    """One attempt: its cluster and runner bear its number."""

    number: int
    start_time: Time
    ready_time: Time | None = Field(None, description="When its scheduler and fewest workers were there.")
    end_time: Time | None = None
    reason: str | None = Field(None, description="Why it ended.")
    message: str | None = None
    memory_factor: float = Field(1.0, description="On the memory that the runtime gives workers and runner.")
    logs: str | None = Field(None, description="Saved: they lie under logs/ in the run's folder; else why not.")
    objects: dict[str, str] | None = Field(
        None, description="UIDs of what it is made of, by kind and name; nothing else is believed to be of it."
    )


class MLJobStatus(Resource):
    """What the controller says of a job."""

    phase: Phase | None = None
    observed_generation: int | None = None
    conditions: list[Condition] = []
    attempts: list[AttemptStatus] = []
    attempt: int | None = Field(None, description="Number of the last attempt.")
    stage: str | None = Field(None, description="load, prepare, fit, evaluate or write.")
    progress: int | None = Field(None, ge=0, le=100, description="Of the stage, in percent.")
    seconds_left: int | None = Field(None, description="Of the stage, by its pace.")
    metrics: Anything = Field({}, description="The run's, once it is committed.")
    run_url: str | None = Field(None, description="The run's folder, where manifest.json is the commit.")
    start_time: Time | None = None
    completion_time: Time | None = None


# --- MLRuntime ------------------------------------------------------------------------------------------------------

# Where a template needs the name of the cluster, in any string: the name of the MLJob and the attempt's number.
CLUSTER = "$(CLUSTER)"


class PodTemplate(Resource):
    """A pod; its first container is the one that matters."""

    metadata: Anything = Field({}, description="Labels and annotations.")
    spec: Anything = Field(description="The pod's spec.")


class SchedulerTemplate(PodTemplate):
    """The scheduler's pod and Service."""

    service: Anything = Field(description="The Service's spec.")


class HardwareClass(PodTemplate):
    """What workers of a class are: their pod runs `dask worker` with these threads and resources."""

    offers: dict[str, float] = Field({}, description="Dask resources of each worker, e.g. {GPU: 1}.")
    threads: int = Field(1, ge=1, description="Of each worker.")


class NetworkPolicyTemplate(Resource):
    """What the pods of one job's clusters may speak to."""

    suffix: Label = Field(description="What follows the cluster's name in the policy's.")
    spec: Anything = Field(description="The NetworkPolicy's spec.")


class MLRuntimeSpec(Resource):
    """The pods that jobs of this runtime are made of; the platform's, not the user's.

    `$(CLUSTER)` in any string of it stands for the name of the cluster.
    """

    scheduler: SchedulerTemplate
    runner: PodTemplate = Field(description="Its first container gets the command line and the job file.")
    hardware: dict[str, HardwareClass] = Field(
        min_length=1, max_length=MAX_GROUPS, description="Hardware classes by name, e.g. cpu and gpu."
    )
    network_policies: list[NetworkPolicyTemplate] = Field([], max_length=8)
    max_workers: int = Field(100, ge=1, le=MAX_WORKERS, description="Most workers of a job, over its groups.")
