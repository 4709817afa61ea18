"""What Prometheus is told."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from controller.api import Object

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.5, 1, 5, 20)
_STARTS = (5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """The controller's figures.

    Parameters
    ----------
    jobs
        Returns all MLJobs, which are counted when somebody asks.
    n_waiting
        Returns how many are to be looked at now.
    """

    def __init__(self, jobs: Callable[[], Iterable[Object]], n_waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Jobs(jobs))
        ProcessCollector(registry=self.registry)
        self.calls = Counter(
            "daskyard_api_calls", "Calls to the Kubernetes API", ["verb", "kind", "outcome"], registry=self.registry
        )
        self.rounds = Histogram(
            "daskyard_reconcile_seconds", "Time of a round for a job", buckets=_SECONDS, registry=self.registry
        )
        self.failures = Counter(
            "daskyard_reconcile_failures", "Rounds that ended in an error", ["error"], registry=self.registry
        )
        self.starts = Histogram(
            "daskyard_queue_to_ready_seconds",
            "Time from the making of an MLJob to its first attempt's scheduler and fewest workers",
            buckets=_STARTS,
            registry=self.registry,
        )
        self.workers = Gauge(
            "daskyard_workers",
            "Workers of a group: wanted, ready, idle",
            ["namespace", "group", "state"],
            registry=self.registry,
        )
        waiting = Gauge("daskyard_queue_length", "Jobs that wait to be looked at", registry=self.registry)
        waiting.set_function(n_waiting)

    def on_call(self, verb: str, kind: str, outcome: str) -> None:
        """Count a call to the API server."""
        self.calls.labels(verb, kind, outcome).inc()

    def on_sizes(self, group: Object, wanted: int, ready: int, idle: int) -> None:
        """Take note of a group's sizes."""
        metadata = group["metadata"]
        for state, n in (("wanted", wanted), ("ready", ready), ("idle", idle)):
            self.workers.labels(metadata["namespace"], metadata["name"], state).set(n)

    def forget(self, group: Object) -> None:
        """Drop the figures of a group that has gone."""
        metadata = group["metadata"]
        for state in ("wanted", "ready", "idle"):
            # A group that was never sized has none.
            self.workers.remove_by_labels(
                {"namespace": metadata["namespace"], "group": metadata["name"], "state": state}
            )


class _Jobs(Collector):
    def __init__(self, jobs: Callable[[], Iterable[Object]]) -> None:
        self._jobs = jobs

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Count MLJobs by namespace, phase and reason."""
        family = GaugeMetricFamily("daskyard_mljobs", "MLJobs", labels=["namespace", "phase", "reason"])
        counts = Counts((j["metadata"]["namespace"], *_phase_and_reason(j)) for j in self._jobs())
        for labels, n in sorted(counts.items()):
            family.add_metric(labels, n)
        yield family


def _phase_and_reason(job: Object) -> tuple[str, str]:
    status = job.get("status") or {}
    reasons = [c["reason"] for c in status.get("conditions", []) if c["type"] == "Complete"]
    return status.get("phase", "Pending"), reasons[0] if reasons else ""
