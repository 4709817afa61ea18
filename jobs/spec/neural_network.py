"""Params of the neural_network pipeline."""

from jobs.spec.base import Params


class NeuralNetworkParams(Params):
    """Placeholder until the pipeline's author writes it."""
