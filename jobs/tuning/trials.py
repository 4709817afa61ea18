"""Makes the trials of a search, one after the other, each on all workers, and keeps a record of each.

A trial goes through the stages of a run but for writing, on rows that the run's own test set does not hold; its files
are removed. Its record stays until the run is committed, so that a run which was killed goes on where it was. Called by
the runner.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from distributed import Client
from pydantic import ValidationError

from jobs import storage
from jobs.artifacts import Attempt, TrialRecord, TuningRecord, remove_leftovers
from jobs.errors import InputError, SpecError, StorageError, StorageMissingError
from jobs.job import Evaluation, Job, Pipeline, workers_lost
from jobs.listener import Listener
from jobs.plain import plain_tree
from jobs.sharing import defer_release
from jobs.spec import JobSpec
from jobs.spec.tune import Tune
from jobs.trial import Trial
from jobs.tuning.search import Place, Plan, best_trial, next_trial, rungs
from jobs.tuning.space import candidates

_log = logging.getLogger("daskyard.tuning")


def tuned(spec: JobSpec, client: Client, run_url: str, listener: Listener) -> tuple[JobSpec, TuningRecord]:
    """Search, or go on with a search that was interrupted; return the job with the best params, and what was found.

    Parameters
    ----------
    spec : JobSpec
        With a section `tune`.
    client : distributed.Client
        Whose workers make the trials.
    run_url : str
        Folder of the run; trials have one in it.
    listener : Listener
        Is told how many trials are done.

    Raises
    ------
    SpecError
        When all trials failed, or the metric is none of the pipeline's.
    """
    search = _Search(spec, client, run_url)
    n_reused = len(search.records)
    while (place := next_trial(search.plan, search.found)) is not None:
        listener.progress("tune", len(search.records), search.plan.n_trials, "trials")
        listener.message(search.record(place))
    search.discard()
    best = best_trial(search.plan, search.found)
    if best is None:
        first = min(search.records.values(), key=lambda record: (record.rung, record.number))
        raise SpecError(f"tune: all {len(search.records)} trials failed, the first with: {first.error}")
    record = search.records[best]
    return spec.with_params(record.params), TuningRecord(
        metric=search.metric,
        is_more_better=search.plan.is_more_better,
        params=record.params,
        value=record.value or 0.0,
        n_reused=n_reused,
        trials=[search.records[each] for each in sorted(search.records)],
    )


def remove_records(run_url: str) -> None:
    """Remove what a search left: after the commit, the manifest has it all."""
    remove_leftovers(run_url, "trials", lambda: [storage.join(run_url, "trials")])


class _Search:
    """A search and its records."""

    def __init__(self, spec: JobSpec, client: Client, run_url: str) -> None:
        assert spec.tune is not None
        self._spec, self._tune, self._client, self._run_url = spec, spec.tune, client, run_url
        # Records of another spec under the same run id are not ours.
        folder = storage.join(run_url, "trials", spec.digest[:12])
        self._records_url, self._scratch_url = storage.join(folder, "records"), storage.join(folder, "scratch")
        self._candidates = candidates(spec.tune.space, type(spec.params), spec.params.seed, spec.tune.n_trials)
        self._prepared: tuple[Any, ...] = ()
        self._damaged: set[str] = set()
        self.records = self._read()
        self.metric = next((record.metric for record in self.records.values() if record.metric), spec.tune.metric or "")
        self.plan = _plan(spec, spec.tune, len(self._candidates), self._is_more_better() if self.metric else True)

    @property
    def found(self) -> Mapping[Place, float | None]:
        """What each trial reached."""
        return {place: record.value for place, record in self.records.items()}

    @defer_release()
    def record(self, place: Place) -> str:
        """Make a trial and keep its record; return a line about it."""
        params, resource = self._candidates[place.number], self.plan.resources[place.rung]
        start = time.perf_counter()
        metrics: dict[str, float] = {}
        error: str | None = None
        name = _name(place)
        attempt = Attempt(storage.join(self._scratch_url, name))
        try:
            evaluation = self._evaluated(params, resource, attempt)
            metrics = {name: float(value) for name, value in evaluation.metrics.items() if _is_finite(value)}
            self._judge(evaluation)
        except (SpecError, InputError, ValueError, ArithmeticError) as failure:
            lost = workers_lost(failure, self._client)
            if lost is not None:
                raise lost from failure
            error = " ".join(str(failure).split())
        finally:
            attempt.discard()
        record = TrialRecord(
            rung=place.rung,
            number=place.number,
            params=params,
            resource=resource,
            metric=self.metric,
            value=metrics.get(self.metric),
            metrics=metrics,
            seconds=time.perf_counter() - start,
            error=error,
        )
        self._keep(name, record)
        self.records[place] = record
        reached = f"failed: {error}" if error else f"{self.metric} {record.value:.6g}"
        return f"trial {len(self.records)}: {_text(params)}: {reached}"

    def discard(self) -> None:
        """Remove what trials left but their records, those that were killed among them."""
        self._prepared = ()
        remove_leftovers(self._run_url, "trials", lambda: [self._scratch_url])

    def _evaluated(self, params: Mapping[str, Any], resource: float, attempt: Attempt) -> Evaluation:
        tune = self._tune
        share = 1.0 if tune.resource is not None else resource
        drawn = dict(params) | ({tune.resource: max(1, round(resource))} if tune.resource is not None else {})
        try:
            spec = self._spec.with_params(drawn)
        except ValidationError as error:
            raise SpecError(f"params: {error.errors(include_url=False)[0]['msg']}") from error
        job = Job(spec, self._client, attempt, Listener(), Trial(tune.validation_fraction, share))
        pipeline: Pipeline = importlib.import_module(f"jobs.pipelines.{spec.pipeline}")
        job.prepared_in = storage.join(self._scratch_url, "prepared")
        prepared = self._prepare(job, pipeline, drawn, share)
        return pipeline.evaluate(job, prepared, pipeline.fit(job, prepared))

    def _prepare(self, job: Job, pipeline: Pipeline, drawn: Mapping[str, Any], share: float) -> Any:
        """Load and prepare, unless the trial before did it with the same params and rows."""
        before_fit = {name: value for name, value in drawn.items() if name not in type(job.params).of_fit}
        key = json.dumps([before_fit, share], sort_keys=True)
        if not self._prepared or self._prepared[0] != key:
            self._prepared = ()  # first let go of the old one: workers need not hold both
            prepared = pipeline.prepare(job, pipeline.load(job))
            self._prepared = (key, prepared, job.n_rows)
        job.n_rows = self._prepared[2]
        return self._prepared[1]

    def _judge(self, evaluation: Evaluation) -> None:
        """Settle which metric the search goes by, once there are any, and see that a trial has it."""
        if not self.metric:
            self.metric = evaluation.headline
            self.plan = _plan(self._spec, self._tune, len(self._candidates), self._is_more_better())
        if self.metric not in evaluation.metrics:
            known = ", ".join(name for name, value in evaluation.metrics.items() if _is_finite(value))
            raise SpecError(f"tune.metric: no metric {self.metric!r}; there are {known}")
        if not _is_finite(evaluation.metrics[self.metric]):
            raise ValueError(f"{self.metric} is {evaluation.metrics[self.metric]}")

    def _is_more_better(self) -> bool:
        if self._tune.mode != "auto":
            return self._tune.mode == "max"
        return type(self._spec.params).directions[self.metric.partition("@")[0]] == "max"

    def _keep(self, name: str, record: TrialRecord) -> None:
        url = storage.join(self._records_url, f"{name}.json")
        content = record.model_dump_json(indent=1).encode()
        if storage.create(url, content) or name not in self._damaged:
            return
        try:
            storage.write_bytes(url, content)
        except StorageError as error:
            _log.warning("%s; the record there stays damaged", error)

    def _read(self) -> dict[Place, TrialRecord]:
        """Return the records of an earlier try at the run; one that is not what it should be counts as none."""
        try:
            files = storage.list_files(self._records_url)
        except StorageMissingError:
            return {}
        records = {}
        for file in files:
            name = file.url.rsplit("/", 1)[-1].removesuffix(".json")
            try:
                record = TrialRecord.model_validate_json(storage.read_bytes(file.url))
            except ValidationError:
                record = None
            place = Place(record.rung, record.number) if record is not None else None
            if record is None or place is None or name != _name(place) or not self._is_ours(record):
                _log.warning("%s: not the record of this trial, it is made again", file.url)
                self._damaged.add(name)
            else:
                records[place] = record
        return records

    def _is_ours(self, record: TrialRecord) -> bool:
        """Whether a record is of this search: of one of its candidates, with a value that its metrics have."""
        candidates = self._candidates
        is_candidate = 0 <= record.number < len(candidates) and plain_tree(candidates[record.number]) == record.params
        return is_candidate and (record.error is not None or record.value == record.metrics.get(record.metric))


def _name(place: Place) -> str:
    return f"{place.rung}-{place.number:05d}"


def _plan(spec: JobSpec, tune: Tune, n: int, is_more_better: bool) -> Plan:
    if tune.strategy == "random":
        resources: tuple[float, ...] = (1.0,)
    else:
        full = float(getattr(spec.params, tune.resource)) if tune.resource else 1.0
        resources = rungs(n, full, tune.min_resource, tune.reduction_factor)
    return Plan(n, resources, tune.reduction_factor, is_more_better, tune.patience, tune.stop_at)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(params: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )
