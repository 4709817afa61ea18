"""Params of the kmeans pipeline."""

from jobs.spec.base import Params


class KMeansParams(Params):
    """Placeholder until the pipeline's author writes it."""
