"""The targets that take the place of the error in direct random target projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Targets"]


class Targets:
    """Targets told for one backward pass, and forgotten after it."""

    def __init__(self) -> None:
        self._told: Tensor | None = None
        self._in_use = False

    def tell(self, targets: Tensor) -> None:
        """Whole numbers (B,) or (T, B), or one number per output (..., O)."""
        self._told, self._in_use = targets.detach(), False

    def error(self, g: Tensor) -> Tensor:
        """-t / n, shaped as the gradient g (B, O) or (T, B, O) at the outputs.

        All outputs of one backward pass share the targets.  To be called within one.
        """
        if self._told is None:
            raise RuntimeError(
                "direct random target projection needs the targets of every backward pass; call "
                "target(classes) on the handle before backward()"
            )
        hot = self._per_output(self._told.to(g.device), g)
        if not self._in_use:
            self._in_use = True
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._forget)
        return (hot / -max(g.shape[:-1].numel(), 1)).expand_as(g)

    def _forget(self) -> None:
        if self._in_use:
            self._told, self._in_use = None, False

    def _per_output(self, targets: Tensor, g: Tensor) -> Tensor:
        samples, outputs = g.shape[:-1], g.shape[-1]
        whole = not (targets.is_floating_point() or targets.dtype == torch.bool)
        timed = int(len(samples) > 1)  # without time of their own they hold at every step
        classes = whole and targets.shape in (samples, samples[timed:])
        if not classes and targets.shape not in (g.shape, g.shape[timed:]):
            raise ValueError(
                f"targets {tuple(targets.shape)} do not fit outputs {tuple(g.shape)}; give whole "
                f"numbers {tuple(samples)}, or one number per output {tuple(g.shape)}"
            )
        if not classes:
            return targets.to(g.dtype)
        low, high = (int(targets.min()), int(targets.max())) if targets.numel() else (0, 0)
        if low < 0 or high >= outputs:
            raise ValueError(
                f"targets must be classes from 0 to {outputs - 1}, got {low} to {high}; tell rows "
                "of 0 and 1 for samples without one"
            )
        return F.one_hot(targets.long(), outputs).to(g.dtype)
