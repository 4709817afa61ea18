"""What micro-batches yield, added up so that neither their order nor their place matters.

Gradients, buffers such as BatchNorm's statistics, loss and metric are added as integers in one float64 buffer, in units
of 2^-46. Sums of integers below 2^53 are exact in any order, so every number of ranks takes the same step, bit for bit
where the hardware is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Unit of the sums: far below what float32 gradients resolve, and exact up to magnitudes of 2^53 / 2^46 = 128.
_UNITS = 2.0**46
# Behind the sums: how many ranks failed, and how many want the generation to end.
_N_SIGNS = 2


class Sums:
    """One flat float64 buffer: gradients, float and integer buffers, loss, metric, failed, to be changed."""

    def __init__(self, parameters: list[nn.Parameter], buffers: list[Tensor], device: torch.device) -> None:
        self.parameters, self.buffers = parameters, buffers
        n = sum(t.numel() for t in [*parameters, *buffers])
        self._training, self._validation = (
            torch.zeros(size + 2 + _N_SIGNS, dtype=torch.float64, device=device) for size in (n, 0)
        )
        self.flat = self._training

    def begin(self, is_training: bool) -> None:
        """Begin a step: all sums are 0; validation sums loss and metric only."""
        self.flat = self._training if is_training else self._validation
        self.flat.zero_()

    def add(self, loss: Tensor, metric: Tensor | None, share: float) -> None:
        """Add what one micro-batch yielded, weighted by its share (1 on average)."""
        parts: list[Tensor] = []
        if self.flat is self._training:
            parts += [(p.grad if p.grad is not None else torch.zeros_like(p)) for p in self.parameters]
            parts += self.buffers
        parts += [loss, metric if metric is not None else torch.zeros_like(loss)]
        flat = torch.cat([part.detach().reshape(-1).double() for part in parts])
        self.flat[:-_N_SIGNS] += flat.mul_(share * _UNITS).round_()

    def sign(self, is_failed: bool, is_change_wanted: bool) -> None:
        """Say how this rank fares."""
        self.flat[-2], self.flat[-1] = float(is_failed), float(is_change_wanted)

    def signs(self) -> tuple[bool, bool]:
        """Return whether a rank failed, and whether the generation is to end; of all ranks, once summed."""
        n_failed, n_changes = self.flat[-_N_SIGNS:].tolist()
        return n_failed > 0, n_changes > 0

    def unpack(self, n_micro_batches: int) -> tuple[float, float]:
        """Set gradients and buffers to the means over the step's micro-batches; return mean loss and metric."""
        means = self.flat[:-_N_SIGNS] / (n_micro_batches * _UNITS)
        if self.flat is self._training:
            self._set(means)
        loss, metric = means[-2:].tolist()
        return loss, metric

    def _set(self, means: Tensor) -> None:
        offset = 0
        with torch.no_grad():
            for p in self.parameters:
                p.grad = means[offset : offset + p.numel()].view(p.shape).to(p.dtype)
                offset += p.numel()
            for buffer in self.buffers:
                value = means[offset : offset + buffer.numel()].view(buffer.shape)
                buffer.copy_(value if buffer.is_floating_point() else value.round())
                offset += buffer.numel()
