"""One layer run forward together with its eligibilities: how its outputs depend on its parameters.

They are derived from the unit's step (`spikebridge.learning.online_derived`), and for units of one
state from which their output follows carried as one number (`.online_one_state`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.learning.model_layers import channels
from spikebridge.learning.online_derived import Derived, Ran, Widths, params_of, refused
from spikebridge.learning.online_one_state import OneState, family, follows
from spikebridge.nn.layers import Layer
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import State, state_dtype

__all__ = ["Forward", "unsupported"]


class Forward:
    """One layer run forward with its eligibilities, some steps at a time.

    Args:
        layer: dense synapses and a unit.
        full: carry the influence of neurons on one another, where the layer is recurrent.
        derived: carry an output's eligibility beside those of the states for every unit.
    """

    def __init__(self, layer: Layer, full: bool, derived: bool = False) -> None:
        self.layer: Any = layer
        unit, matrix = layer.unit, layer.recurrent
        array: Any = layer.array
        self.kind: type[Derived | OneState] = OneState
        if derived or not (family(unit) or follows(unit)):
            self.kind = Derived
        self.recurrent = matrix is not None
        self.full = full and self.recurrent
        self.of = Widths(
            size=unit.size,
            states=unit.state_size // unit.size,
            drives=channels(layer),
            fed=0 if matrix is None else len(matrix) // unit.size,
            inputs=array.in_features + (array.bias is not None),
            own=len(params_of(unit.params(unit.threshold.dtype))),
        )

    def bytes(self, batch: int, width: int) -> int:
        """What its eligibilities take."""
        return self.kind.bytes(batch, self.of, self.full, width)

    def begin(self, batch: int, state: State | None) -> None:
        """Eligibilities at zero: the state to begin with depends on no parameter."""
        unit = self.layer.unit
        silence = unit.initial_state(batch, unit.threshold.dtype)
        self.state = silence if state is None else _fitting(state, silence)
        self.eligibility = self.kind(batch, self.of, self.full, unit, silence.s)
        self.read()

    def read(self) -> None:
        """Take the parameters as they are now, with the way back from their values to them."""
        layer, dtype = self.layer, state_dtype(self.layer.unit.threshold.dtype)
        with torch.enable_grad():
            self.synapses = [layer.array.weight, layer.array.bias, layer.connections()]
            self.own = params_of(layer.unit.params(dtype))
        self.weight, self.constant, self.matrix = (
            None if root is None else root.detach().to(dtype) for root in self.synapses
        )
        with torch.no_grad():
            self.params = layer.unit.params(dtype)

    def run(self, x: Tensor) -> Tensor:
        """x (C, B, I) to y (C, B, N); `learn` must follow."""
        assert self.weight is not None
        first, states, drives = self.state, [], []
        for drive in F.linear(x, self.weight, self.constant).unbind():
            if self.matrix is not None:
                heard = F.linear(self.state.y, self.matrix)
                drive = drive + F.pad(heard, (0, drive.shape[1] - heard.shape[1]))
            self.state = self.layer.unit.step(self.state, drive, self.params)
            states.append(self.state)
            drives.append(drive)
        before = [first, *states[:-1]]
        earlier, after = (
            State(*map(torch.stack, zip(*steps, strict=True))) for steps in (before, states)
        )
        if self.constant is not None:
            x = torch.cat([x, torch.ones_like(x[..., :1])], 2)
        self.ran = Ran(x, torch.stack(drives), earlier, after)
        return after.y

    def learn(self, signal: Tensor | None) -> Tensor | None:
        """Eligibilities through the steps of `run`, and gradients of the errors dE_t/dy_t.

        Args:
            signal: (C, B, N); None where there is no error.

        Returns:
            The errors at the drives, (C, B, N) for each channel, side by side.
        """
        return self.eligibility.advance(self.ran, self.params, self.matrix, signal)

    def down(self, errors: Tensor) -> Tensor:
        """The errors at the inputs of the same steps, (C, B, I), of those at the drives."""
        assert self.weight is not None
        return errors @ self.weight

    def collect(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters' values, with the graph behind them, and their gradients; starts anew."""
        synapses, heard, own = self.eligibility.collect()
        inputs = self.layer.array.in_features
        gradients = [synapses[:, :inputs], synapses[:, -1], heard, *own]
        pairs = []
        for root, gradient in zip([*self.synapses, *self.own], gradients, strict=True):
            if root is not None and root.requires_grad:
                # One number for all neurons: theirs add up.
                gradient = gradient.sum() if root.dim() == 0 else gradient
                pairs.append((root, gradient.to(root.dtype, copy=True)))
        return pairs


def _fitting(state: State, silence: State) -> State:
    for name in State._fields:
        value, wanted = getattr(state, name), getattr(silence, name)
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise ValueError(
                f"state.{name} must be {tuple(wanted.shape)} {wanted.dtype} for this layer and "
                f"batch, got {tuple(value.shape)} {value.dtype}; start from "
                "unit.initial_state(batch, dtype), or from None"
            )
    return State(*state).detach()


def unsupported(layer: Any) -> str | None:
    """Why a layer cannot be trained, and what to do; None where it can."""
    if not isinstance(layer, Layer):
        return f"it is a {type(layer).__name__}; use a Layer of spiking or soft units"
    if type(layer).forward is not Layer.forward or type(layer)._run is not Layer._run:
        return f"{type(layer).__name__} has a forward pass of its own; use a plain Layer"
    # A parametrised array, of rounded or noisy weights, is of a class made from Dense.
    if not isinstance(layer.array, Dense):
        return f"its synapses are a {type(layer.array).__name__}; use Dense"
    if layer.unit.rule.reset == "lateral":
        return 'lateral inhibition couples all neurons; use reset="gate"'
    if unknown := {name for name, _ in layer.named_children()} - {"array", "unit", *_PARTS}:
        return f"no eligibilities are known for its {', '.join(sorted(unknown))}; leave it out"
    return None if family(layer.unit) else refused(layer.unit)


_PARTS = ("parametrizations",)  # of a recurrent matrix
