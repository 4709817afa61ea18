"""Params of the text_mining pipeline."""

from jobs.spec.base import Params


class TextMiningParams(Params):
    """Placeholder until the pipeline's author writes it."""
