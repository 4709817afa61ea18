"""What a worker's Prometheus endpoint says of the rank that it keeps. Called by keeper."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import Counter, Gauge

_samples = Counter("daskyard_training_samples", "Training samples that this worker's rank has seen, with its peers.")
_rate = Gauge("daskyard_training_samples_per_second", "Training samples per second over all ranks.")
_generation = Gauge("daskyard_training_generation", "Generation of ranks that this worker's rank is in; 0: none.")
_lost = Counter("daskyard_training_generations_lost", "Generations that ended because a rank was lost.")
_seconds = Counter("daskyard_training_seconds", "Seconds of this worker's rank by what it did.", ["part"])


class Metrics:
    """Turns a rank's messages into metrics of this process."""

    def __init__(self) -> None:
        self._n_seen, self._at = 0, time.monotonic()
        self._timings: dict[str, float] = {}

    def take(self, message: dict[str, Any]) -> None:
        """Count what a message tells."""
        kind = message["kind"]
        if kind == "formed":
            _generation.set(message["generation"])
        elif kind == "broken":
            _lost.inc()
        elif kind == "progress":
            self._progress(message["n_seen"], message["timings"])

    def end(self) -> None:
        """Say that there is no rank any more."""
        _generation.set(0)
        _rate.set(0)

    def _progress(self, n_seen: int, timings: dict[str, float]) -> None:
        now = time.monotonic()
        # The first message of a rank that joined tells of others' work.
        if 0 < self._n_seen < n_seen and now > self._at:
            _samples.inc(n_seen - self._n_seen)
            _rate.set((n_seen - self._n_seen) / (now - self._at))
        self._n_seen, self._at = n_seen, now
        for name, seconds in timings.items():
            if name not in ("total_s", "open_s"):
                _seconds.labels(name.removesuffix("_s")).inc(max(seconds - self._timings.get(name, 0.0), 0.0))
        self._timings = timings
