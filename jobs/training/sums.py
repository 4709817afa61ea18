"""What micro-batches yield, added up so that neither their order nor their place matters.

Gradients, buffers such as BatchNorm's statistics and the loss are added as integers in one float64 buffer, in units of
2^-46. Sums of integers below 2^53 are exact in any order, so every number of ranks takes the same step, bit for bit
where the hardware is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Unit of the sums: far below what float32 gradients resolve, and exact up to magnitudes of 2^53 / 2^46 = 128.
_UNITS = 2.0**46


class Sums:
    """One flat float64 buffer: gradients, float and integer buffers, loss, failed, cancelled."""

    def __init__(self, parameters: list[nn.Parameter], buffers: list[Tensor], device: torch.device) -> None:
        self.parameters, self.buffers = parameters, buffers
        n = sum(t.numel() for t in [*parameters, *buffers])
        self.flat = torch.zeros(n + 3, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, share: float) -> None:
        """Add what one micro-batch yielded, weighted by its share (1 on average)."""
        parts = [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1).double() for p in self.parameters]
        parts += [buffer.reshape(-1).double() for buffer in self.buffers]
        parts.append(loss.reshape(1).double())
        self.flat[:-2] += torch.cat(parts).mul_(share * _UNITS).round_()

    def unpack(self, n_micro_batches: int) -> float:
        """Set gradients and buffers to the means over the step's micro-batches; return the mean loss."""
        means = self.flat[:-2] / (n_micro_batches * _UNITS)
        offset = 0
        with torch.no_grad():
            for p in self.parameters:
                p.grad = means[offset : offset + p.numel()].view(p.shape).to(p.dtype)
                offset += p.numel()
            for buffer in self.buffers:
                value = means[offset : offset + buffer.numel()].view(buffer.shape)
                buffer.copy_(value if buffer.is_floating_point() else value.round())
                offset += buffer.numel()
        return float(means[-1])
