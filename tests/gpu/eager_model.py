"""A model in a module that uses CUDA as soon as it is imported."""

from __future__ import annotations

import torch

from tests.integration.counted import Counts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ONES = torch.ones(1, device=DEVICE)


class Eager(Counts):
    """The counting model."""
