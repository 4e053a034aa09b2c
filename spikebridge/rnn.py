"""SNU and SoftSNU with the contract of torch.nn.LSTM.

One call for the whole sequence, `(output, state)` back, num_layers, batch_first, dropout,
bidirectional, unbatched input and PackedSequence; nothing is remembered between calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from spikebridge.layers import Dropout, Layer
from spikebridge.scan import Backend
from spikebridge.synapses import Dense
from spikebridge.units import State, make_unit, state_dtype

UNIT_OPTIONS = (
    "g", "slope", "reset", "amount", "surrogate",
    "decay", "train_decay", "per_unit", "threshold", "memoryless",
)  # fmt: skip

__all__ = ["SNU", "SoftSNU"]


class _Recurrent(nn.Module):
    """The shared body; `SNU` and `SoftSNU` only say which unit it is.

    Args:
        input_size: I.
        hidden_size: N, units per layer and direction.
        num_layers: layers stacked, each on the outputs of the one below.
        bias: train the threshold (b = -threshold); False keeps it where it starts.
        batch_first: x and output are (B, T, ...) rather than (T, B, ...).
        dropout: probability of dropping an output between two layers, in training.
        bidirectional: a second unit reads each sequence backwards; outputs are (..., 2 N).
        recurrent: feed each layer's outputs back into it.  The SNU of the paper is feed-forward
            by default: its memory is the membrane.
        g, slope, reset, amount, surrogate: see `spikebridge.units.Rule`.
        decay, train_decay, per_unit, threshold, memoryless: see `spikebridge.units.Unit`.
        backend: see `spikebridge.scan.scan`.
        recompute: k > 0 keeps every k-th state only; see `spikebridge.layers.Layer`.
        device, dtype: of the parameters.

    Call:
        output, state = layer(x, state=None)
        x: (T, B, I), with batch_first (B, T, I), one sequence (T, I), or a PackedSequence.
        state: State(y, s), each (num_layers * directions, B, N), (.., N) for one sequence; None is
            silence.  The order of layers and directions is that of torch.nn.LSTM.
        output: as x with N (2 N if bidirectional) in place of I.

    A NaN stays in the membrane; a spiking neuron is then silent, so that none comes out.  Look for
    it in the last state, `state.s.isnan().any()`, or in the gradients.

    Raises ValueError for shapes, dtypes and settings that do not fit, TypeError for arguments that
    there are not.

    Source: Woźniak et al. 2020.
    """

    kind: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        recurrent: bool = False,
        backend: Backend = "auto",
        recompute: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **unit: Any,
    ) -> None:
        super().__init__()
        if unknown := [name for name in unit if name not in UNIT_OPTIONS]:
            raise TypeError(
                f"{type(self).__name__} has no argument {unknown[0]!r}; its neurons have "
                f"{', '.join(UNIT_OPTIONS)}"
            )
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.bidirectional = batch_first, bidirectional
        self.directions = 2 if bidirectional else 1
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList()
        for depth in range(num_layers):
            features = input_size if depth == 0 else hidden_size * self.directions
            for _ in range(self.directions):
                made = make_unit(self.kind, hidden_size, bias=bias, **unit)
                array = Dense(features, hidden_size, made)
                self.layers.append(
                    Layer(array, made, recurrent=recurrent, backend=backend, recompute=recompute)
                )
        self.to(device=device, dtype=dtype)

    def forward(
        self, x: Tensor | PackedSequence, state: State | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, State]:
        """The whole sequence; see the class."""
        self._check_dtype(x.data if isinstance(x, PackedSequence) else x)
        if isinstance(x, PackedSequence):
            return self._packed(x, state)
        if x.dim() not in (2, 3):
            raise ValueError(
                f"x must be (T, B, {self.input_size}), or (T, {self.input_size}) for one sequence, "
                f"got {tuple(x.shape)}"
            )
        single = x.dim() == 2
        if single:
            x = x.unsqueeze(1)
            if state is not None and all(isinstance(part, Tensor) for part in state[:2]):
                state = State(*(part.unsqueeze(1) for part in state[:2]))
        elif self.batch_first:
            x = x.transpose(0, 1)
        y, last = self._stack(x, self._checked(state, x.shape[1]), _run)
        if single:
            return y.squeeze(1), State(*(part.squeeze(1) for part in last[:2]))
        return (y.transpose(0, 1) if self.batch_first else y), last

    def _packed(self, x: PackedSequence, state: Any) -> tuple[PackedSequence, State]:
        sizes = x.batch_sizes.tolist()
        state = self._checked(state, sizes[0])
        if state is not None and x.sorted_indices is not None:
            state = State(*(part[:, x.sorted_indices] for part in state[:2]))

        def run(layer: Layer, data: Tensor, start: State | None, backwards: bool) -> Any:
            return _run_packed(layer, data, sizes, start, backwards)

        y, last = self._stack(x.data, state, run)
        if x.unsorted_indices is not None:
            last = State(*(part[:, x.unsorted_indices] for part in last[:2]))
        return PackedSequence(y, x.batch_sizes, x.sorted_indices, x.unsorted_indices), last

    def _stack(self, x: Tensor, state: State | None, run: Any) -> tuple[Tensor, State]:
        """All layers and directions; `run` carries one of them over x."""
        after = []
        for depth in range(self.num_layers):
            if depth:
                x = self.dropout(x)
            outputs = []
            for direction in range(self.directions):
                k = depth * self.directions + direction
                start = None if state is None else State(state.y[k], state.s[k])
                y, last = run(self.layers[k], x, start, direction == 1)
                outputs.append(y)
                after.append(last)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return x, State(torch.stack([a.y for a in after]), torch.stack([a.s for a in after]))

    def _checked(self, state: Any, batch: int) -> State | None:
        if state is None:
            return None
        shape = (self.num_layers * self.directions, batch, self.hidden_size)
        found = [tuple(part.shape) if isinstance(part, Tensor) else part for part in state]
        if len(state) < 2 or any(part != shape for part in found[:2]):
            raise ValueError(f"state must be (y, s), each {shape}, got {found}")
        # Zeros of the input's dtype are what code for torch.nn.LSTM begins with.
        return State(*(part.to(state_dtype(part.dtype)) for part in state[:2]))

    def _check_dtype(self, x: Tensor) -> None:
        first: Any = self.layers[0]
        own = first.unit.threshold.dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"x is {x.dtype} and the layer {own}; give x.to({own}), or use autocast"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"batch_first={self.batch_first}, bidirectional={self.bidirectional}"
        )


class SNU(_Recurrent):
    __doc__ = f"Spiking neural units in place of torch.nn.LSTM.\n\n{_Recurrent.__doc__}"
    kind = "snu"


class SoftSNU(_Recurrent):
    __doc__ = f"Soft spiking neural units in place of torch.nn.LSTM.\n\n{_Recurrent.__doc__}"
    kind = "softsnu"


def _run(layer: Layer, x: Tensor, state: State | None, backwards: bool) -> tuple[Tensor, State]:
    if not backwards:
        return layer(x, state)
    y, last = layer(x.flip(0), state)
    return y.flip(0), last


def _run_packed(
    layer: Layer, data: Tensor, sizes: list[int], state: State | None, backwards: bool
) -> tuple[Tensor, State]:
    """A layer over packed data: one dense scan for each stretch of equal batch size.

    Sequences are sorted by falling length, so forwards the batch only shrinks: rows that end hand
    in their state.  Backwards it only grows: rows join in with their initial state.
    """
    if state is None:
        state = layer.unit.initial_state(sizes[0], data.dtype, data.device)
    stretches, begin, t = [], 0, 0
    while t < len(sizes):
        end = t
        while end < len(sizes) and sizes[end] == sizes[t]:
            end += 1
        rows = (end - t) * sizes[t]
        stretches.append((begin, begin + rows, sizes[t]))
        begin, t = begin + rows, end
    outputs: list[Tensor] = []
    finished: list[State] = []
    current = State(*(part[:0] for part in state[:2])) if backwards else state
    for begin, end, batch in reversed(stretches) if backwards else stretches:
        x = data[begin:end].reshape(-1, batch, data.shape[-1])
        rows = current.s.shape[0]
        if rows > batch:
            finished.append(State(*(part[batch:] for part in current[:2])))
            current = State(*(part[:batch] for part in current[:2]))
        elif rows < batch:
            joining = (part[rows:batch] for part in state[:2])
            current = State(*map(_append, current[:2], joining))
        y, current = _run(layer, x, current, backwards)
        outputs.append(y.reshape(-1, y.shape[-1]))
    if backwards:
        outputs.reverse()
    else:
        for ended in reversed(finished):
            current = State(*map(_append, current[:2], ended[:2]))
    return torch.cat(outputs), current


def _append(above: Tensor, below: Tensor) -> Tensor:
    return torch.cat([above, below])
