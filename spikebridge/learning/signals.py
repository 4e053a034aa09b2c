"""What takes the place of the error: fixed random matrices, and targets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Matrices", "Targets"]


class Matrices:
    """Matrices by name, given or drawn when first asked for.

    Args:
        rule: for what errors say.
        seed: of those that are drawn, together with their names.
        given: in place of drawn ones.
    """

    def __init__(self, rule: str, seed: int, given: Mapping[str, Tensor]) -> None:
        self.rule, self.seed = rule, seed
        self._given = {name: b.detach().clone() for name, b in given.items()}
        self._drawn: dict[str, Tensor] = {}
        self._ready: dict[str, Tensor] = {}  # the last used, on its device

    def copies(self) -> dict[str, Tensor]:
        """All that there are."""
        return {name: b.clone() for name, b in (self._drawn | self._given).items()}

    def check(self, known: set[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """ValueError for given ones of names that are not known, or of other shapes than these."""
        if unknown := sorted(self._given.keys() - known):
            raise ValueError(
                f"matrices for {unknown} fit no layer; rule={self.rule!r} takes {sorted(known)}"
            )
        for name in self._given.keys() & shapes.keys():
            self._check_shape(name, shapes[name])

    def named(self, name: str, shape: tuple[int, ...], inputs: int) -> Tensor:
        """B by name, of that shape, (N, I) or (O, N).

        Args:
            inputs: of one neuron, for the limits of what is drawn.

        Raises ValueError where there is one of another shape.
        """
        if name in self._given:
            self._check_shape(name, shape)
            return self._given[name]
        if name not in self._drawn:
            self._drawn[name] = _draw(self.seed, name, shape, inputs)
        drawn = self._drawn[name]
        if tuple(drawn.shape) != shape:
            raise ValueError(
                f"{name}: its outputs now need a matrix {shape}, before it was "
                f"{tuple(drawn.shape)}; direct feedback needs inputs of one size"
            )
        return drawn

    def at(self, name: str, shape: tuple[int, ...], inputs: int, like: Tensor) -> Tensor:
        """As `named`, on the device and in the precision of a tensor."""
        matrix = self.named(name, shape, inputs)
        ready = self._ready.get(name)
        if ready is None or ready.device != like.device or ready.dtype != like.dtype:
            self._ready[name] = ready = matrix.to(like.device, like.dtype)
        return ready

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if (given := tuple(self._given[name].shape)) != shape:
            raise ValueError(
                f"matrices[{name!r}] has shape {given}, this model and rule={self.rule!r} need "
                f"{shape}; give one of that shape, or leave it out"
            )


def _draw(seed: int, name: str, shape: tuple[int, ...], inputs: int) -> Tensor:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    limit = math.sqrt(6 / inputs)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return (uniform * 2 - 1) * limit


class Targets:
    """The targets of one backward pass, forgotten after it."""

    def __init__(self) -> None:
        self._given: Tensor | None = None
        self._in_use = False

    def set(self, targets: Tensor) -> None:
        """Whole numbers (B,) or (T, B), or one number per output (..., O)."""
        self._given, self._in_use = targets.detach(), False

    def error(self, g: Tensor) -> Tensor:
        """-t / n, shaped as the gradient g (B, O) or (T, B, O) at the outputs.

        All outputs of one backward pass share the targets.  To be called within one.
        """
        if self._given is None:
            raise RuntimeError(
                "direct random target projection needs the targets of every backward pass; call "
                "target(classes) on the handle before backward()"
            )
        hot = self._per_output(self._given.to(g.device), g)
        if not self._in_use:
            self._in_use = True
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._forget)
        return (hot / -max(g.shape[:-1].numel(), 1)).expand_as(g)

    def _forget(self) -> None:
        if self._in_use:
            self._given, self._in_use = None, False

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
                f"targets must be classes from 0 to {outputs - 1}, got {low} to {high}; give rows "
                "of 0 and 1 for samples without one"
            )
        return F.one_hot(targets.long(), outputs).to(g.dtype)
