"""SNU and SoftSNU with the contract of torch.nn.LSTM.

One call for the whole sequence, `(output, state)` back, num_layers, batch_first, dropout,
bidirectional, unbatched input and PackedSequence; nothing is remembered between calls.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from spikebridge.nn.fresh import Fresh
from spikebridge.nn.layers import Dropout, Layer, handed_on, joined, leaf
from spikebridge.nn.norms import normalised
from spikebridge.nn.scan import Backend
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import State, make_unit, state_dtype, whole
from spikebridge.settings.model import ModelConfig, norm_of
from spikebridge.settings.names import OF_MEMBERS, USUAL

UNIT_OPTIONS = (
    "g", "slope", "reset", "amount", "subtract", "surrogate",
    "decay", "train_decay", "per_unit", "threshold", "memoryless",
    *USUAL, *OF_MEMBERS,
)  # fmt: skip

__all__ = ["SNU", "SoftSNU"]


def _under_name(cls: type, body: Callable[..., None]) -> Any:
    """A method under the name of a class of users, which Python shows where arguments lack."""
    code, closure = body.__code__, body.__closure__
    made = types.FunctionType(code, body.__globals__, body.__name__, body.__defaults__, closure)
    made.__kwdefaults__, made.__annotations__ = body.__kwdefaults__, body.__annotations__
    made.__qualname__, made.__module__ = f"{cls.__name__}.{body.__name__}", body.__module__
    return made


class _Recurrent(Fresh):
    """The shared body; `SNU` and `SoftSNU` only say which unit it is.

    As torch.nn.LSTM returns `output, (h_n, c_n)`, these return `output, (y_n, s_n)`: y, the output,
    stands where h does, and s, the membrane, where c does.  `state[0][-1]` is the top layer's last
    output, and zeros (num_layers * directions, B, N) are what to begin with, as there.

    Args:
        input_size: I.
        hidden_size: N, units per layer and direction.
        num_layers: layers stacked, each on the outputs of the one below.
        bias: train the thresholds, the parameters `layers.k.unit.threshold`; False keeps them where
            they start, as buffers.
        batch_first: x and output are (B, T, ...) rather than (T, B, ...).
        dropout: probability of dropping an output between two layers, in training.
        bidirectional: a second unit reads each sequence backwards; outputs are (..., 2 N).
        proj_size: 0; other values are refused, put a torch.nn.Linear behind instead.
        recurrent: feed each layer's outputs back into it, as an LSTM does.  The SNU of the paper is
            feed-forward by default: its memory is the membrane.
        recurrent_gates: those outputs reach the gate or the modulation too, not the drive alone.
        memory, modulation, rho, beta, slow_decay, periods, kick: see
            `spikebridge.nn.dynamics.DynamicUnit`.
        norm: "none", "batch", "layer" or "step": how drives are normalised; see
            `spikebridge.nn.norms`.
        delays: most steps that an output may take to the next layer, or out, which is trained; 0 is
            none, see `spikebridge.nn.delays`.  The s of a state is then (1 + delays) N wide, and
            output[-1] is not y_n[-1], which has no delay.
        skip: what goes into a layer goes on into the next, added to its outputs, where it is as
            wide: between layers, and into the second one if input_size is the outputs' width.
        g, slope, reset, amount, subtract, surrogate: see `spikebridge.nn.units.Rule`; the surrogate
            may be a name such as "triangle".
        decay, train_decay, per_unit, threshold, memoryless: see `spikebridge.nn.units.Unit`.
            Decays are part of the state dict: loading one puts its decays in force.
        backend: see `spikebridge.nn.scan.scan`.
        recompute: k > 0 keeps every k-th state only; see `spikebridge.nn.layers.Layer`.
        device, dtype: of the parameters.

    Call:
        output, (y_n, s_n) = layer(x, state=None), or layer(input=x, hx=state) in torch's words
        x: (T, B, I), with batch_first (B, T, I), one sequence (T, I), or a PackedSequence.
        state: (y, s), each (num_layers * directions, B, N), (.., N) for one sequence; None is
            silence.  A neuron that keeps k numbers has s (.., B, k N).  The order of layers and
            directions is that of torch.nn.LSTM.
        output: as x with N (2 N if bidirectional) in place of I.
        What comes back as (y_n, s_n) is a State of the same shapes: a pair of tensors, to be passed
        in again; `.detach()` cuts it off from the graph.

    A NaN stays in the membrane; a spiking neuron is then silent, so that none comes out.  Look for
    it in the last state, `state.s.isnan().any()`, or in the gradients.

    Raises ValueError for shapes, dtypes and settings that do not fit, TypeError for things of
    another kind and for arguments that there are not.

    Source: Woźniak et al. 2020.
    """

    kind: str
    # What code for torch's layers looks at to learn that a state is a pair of tensors.
    mode = "LSTM"
    proj_size = 0
    # Of layers pickled before there was a choice.
    norm: str | bool = "none"
    skip = False

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "kind" in cls.__dict__ and "__init__" not in cls.__dict__:
            cls.__init__ = _under_name(cls, _Recurrent.__init__)  # type: ignore[method-assign]

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
        proj_size: int = 0,
        recurrent: bool = ModelConfig.recurrent,
        recurrent_gates: bool = ModelConfig.recurrent_gates,
        norm: str | bool = ModelConfig.norm,
        skip: bool = ModelConfig.skip,
        delays: int = ModelConfig.delays,
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
        name = type(self).__name__
        if proj_size:
            raise ValueError(
                f"proj_size={proj_size}: {name} has no projection; leave it out and put "
                f"torch.nn.Linear({hidden_size}, {proj_size}) behind"
            )
        input_size, hidden_size = whole(input_size=input_size), whole(hidden_size=hidden_size)
        num_layers = whole(num_layers=num_layers)
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias = _switch(bias=bias)
        self.batch_first, self.bidirectional = (
            _switch(batch_first=batch_first),
            _switch(bidirectional=bidirectional),
        )
        recurrent = _switch(recurrent=recurrent)
        self.norm = norm_of(norm)
        self.directions = 2 if bidirectional else 1
        self.skip = _checked_skip(skip, num_layers, input_size, hidden_size * self.directions)
        self.dropout = _checked_dropout(dropout, num_layers)
        self.between = Dropout(self.dropout)
        self.layers = nn.ModuleList()
        made_as: dict[str, Any] = {"device": device, "dtype": dtype}
        for depth in range(num_layers):
            features = input_size if depth == 0 else hidden_size * self.directions
            for _ in range(self.directions):
                made = make_unit(self.kind, hidden_size, bias=self.bias, **made_as, **unit)
                rows = made.drives * hidden_size
                array = normalised(norm, Dense(features, rows, made, **made_as), made)
                layer = Layer(
                    array, made, recurrent=recurrent, recurrent_gates=recurrent_gates,
                    backend=backend, recompute=recompute,
                    delays=whole(delays=delays),
                )  # fmt: skip
                self.layers.append(layer)
        self.state_size = layer.state_size

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction."""
        return [list(layer.parameters()) for layer in self.layers]

    def flatten_parameters(self) -> None:
        """Nothing: there is no buffer of all weights, as cuDNN wants for torch.nn.LSTM."""

    def forward(
        self,
        x: Tensor | PackedSequence | None = None,
        state: State | tuple[Tensor, Tensor] | None = None,
        input: Tensor | PackedSequence | None = None,
        hx: State | tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Any, State]:
        """The whole sequence; see the class.  `input` and `hx` are torch's names of x and state."""
        if isinstance(x, fx.Proxy):
            return leaf(self, x, state)
        if input is not None or hx is not None:
            x, state = _either("x", x, "input", input), _either("state", state, "hx", hx)
        # Read as attributes, parts of a module take longer than a step of the kernel.
        layers: Any = list(self._modules["layers"]._modules.values())  # type: ignore[union-attr]
        own = layers[0]._modules["unit"].threshold.dtype
        if type(x) is not Tensor or x.layout is not torch.strided or x.is_nested:
            _check_kind(x)
            if isinstance(x, PackedSequence):
                _check_dtype(x.data, own)
                return self._packed(layers, x, state, own)
        assert isinstance(x, Tensor)
        if x.dtype is not own:
            _check_dtype(x, own)
        if x.dim() not in (2, 3):
            raise ValueError(
                f"x must be (T, B, {self.input_size}), or (T, {self.input_size}) for one sequence, "
                f"got {tuple(x.shape)}"
            )
        single = x.dim() == 2
        if single:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        if state is not None:
            state = self._checked(state, None if single else x.shape[1], own)
        y, last = self._stack(layers, x, state, _run)
        if single:
            return y.squeeze(1), State(*(part.squeeze(1) for part in last))
        return (y.transpose(0, 1) if self.batch_first else y), last

    def _packed(
        self, layers: list[Layer], x: PackedSequence, state: Any, own: torch.dtype
    ) -> tuple[PackedSequence, State]:
        sizes = _checked_sizes(x)
        if self.training and sizes[0] != sizes[-1] and self.norm == "batch":
            raise ValueError(
                'norm="batch" in training is over all real steps of a batch, and a PackedSequence '
                'of several lengths runs piece by piece; use norm="layer" or "step", or sequences '
                "of one length"
            )
        state = self._checked(state, sizes[0], own)
        if state is not None and x.sorted_indices is not None:
            state = State(*(part[:, x.sorted_indices] for part in state))

        def run(layer: Layer, data: Tensor, start: State | None, backwards: bool) -> Any:
            return _run_packed(layer, data, sizes, start, backwards)

        y, last = self._stack(layers, x.data, state, run)
        if x.unsorted_indices is not None:
            last = State(*(part[:, x.unsorted_indices] for part in last))
        return PackedSequence(y, x.batch_sizes, x.sorted_indices, x.unsorted_indices), last

    def _stack(
        self, layers: list[Layer], x: Tensor, state: State | None, run: Any
    ) -> tuple[Tensor, State]:
        """All layers and directions; `run` carries one of them over x."""
        after, entered = [], x
        if len(layers) == 1:
            start = None if state is None else State._make((state.y[0], state.s[0]))
            y, (last, s) = run(layers[0], x, start, False)
            return y, State._make((last.unsqueeze(0), s.unsqueeze(0)))
        for depth in range(self.num_layers):
            if depth:
                x = self.between(x)
                x = joined(x, entered) if self.skip else x
            entered, outputs = x, []
            for direction in range(self.directions):
                k = depth * self.directions + direction
                start = None if state is None else State(state.y[k], state.s[k])
                y, last = run(layers[k], x, start, direction == 1)
                outputs.append(y)
                after.append(last)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
            if len(outputs) == 1 and depth + 1 < self.num_layers:
                handed_on(x, self.layers[depth], self.between, self.layers[depth + 1])
        return x, State(torch.stack([a.y for a in after]), torch.stack([a.s for a in after]))

    def _checked(self, state: Any, batch: int | None, own: torch.dtype) -> State | None:
        """The state of a batch; of one sequence, batch None, with a batch of 1."""
        if state is None:
            return None
        kept, count = state_dtype(own), self.num_layers * self.directions
        rows = (count,) if batch is None else (count, batch)
        shapes = [(*rows, self.hidden_size), (*rows, self.state_size)]
        if batch is not None and type(state) is State and not torch.jit.is_tracing():
            y, s = state
            tensors = isinstance(y, Tensor) and isinstance(s, Tensor)
            if tensors and [y.shape, s.shape] == shapes and y.dtype == s.dtype == kept:
                return state  # as a call has returned it
        pair = f"state must be (y, s), each {shapes[0]}"
        if shapes[0] != shapes[1]:
            pair = f"state must be (y, s), {shapes[0]} and {shapes[1]}"
        if not isinstance(state, tuple | list):
            what = f"of shape {tuple(state.shape)}" if isinstance(state, Tensor) else repr(state)
            raise TypeError(
                f"{pair}, got one {type(state).__name__} {what[:200]}; give the pair that a call "
                "has returned, or None for silence"
            )
        result = [tuple(part.shape) if isinstance(part, Tensor) else part for part in state]
        if not torch.jit.is_tracing() and result != shapes:
            raise ValueError(
                f"{pair}, got {result}; give what a call has returned, or None for silence"
            )
        # Zeros of the input's dtype are what code for torch.nn.LSTM begins with.
        parts = [p.to(state_dtype(p.dtype)) if p.is_floating_point() else p for p in state]
        if any(part.dtype != kept for part in parts):
            raise ValueError(
                f"state is {' and '.join(str(p.dtype) for p in state)}, and the layer keeps "
                f"{kept}; give tuple(part.to({kept}) for part in state)"
            )
        return State(*(part.unsqueeze(1) for part in parts) if batch is None else parts)

    def __prepare_scriptable__(self) -> Any:
        raise NotImplementedError(
            f"torch.jit.script cannot compile a {type(self).__name__}; use torch.jit.trace, which "
            "keeps length and batch free, or torch.export"
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


def _switch(**given: Any) -> bool:
    ((name, value),) = given.items()
    if not isinstance(value, bool) and value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _checked_dropout(p: Any, num_layers: int) -> float:
    number = isinstance(p, int | float) and not isinstance(p, bool)
    if not (number and 0 <= p <= 1):
        raise ValueError(f"dropout must be a number in [0, 1], got {p!r}")
    if p and num_layers == 1:
        warnings.warn(
            f"dropout={p} falls between layers, and num_layers=1 has nothing between; use 2 layers "
            "or more, or a torch.nn.Dropout behind",
            stacklevel=3,
        )
    return float(p)


def _checked_skip(skip: Any, num_layers: int, input_size: int, width: int) -> bool:
    skip = _switch(skip=skip)
    if skip and (num_layers < 2 or (num_layers == 2 and input_size != width)):
        raise ValueError(
            f"skip=True: nothing to connect with num_layers={num_layers}, {input_size} inputs and "
            f"{width} outputs of a layer; use 3 layers, or 2 on inputs as wide as the outputs"
        )
    return skip


def _either(name: str, value: Any, torchs: str, other: Any) -> Any:
    """An argument by our name or by torch's."""
    if other is None:
        return value
    if value is not None:
        raise TypeError(f"{name} and {torchs} are one argument; give one of them")
    return other


def _check_kind(x: Any) -> None:
    """TypeError for what is no tensor, ValueError for tensors that are not laid out densely."""
    if isinstance(x, PackedSequence):
        return
    if not isinstance(x, Tensor):
        remedy = (
            "torch.from_numpy(x)" if hasattr(x, "__array_interface__") else "torch.as_tensor(x)"
        )
        kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
        raise TypeError(f"x must be a tensor or a PackedSequence, got a {kind}; give {remedy}")
    if x.is_nested:
        raise ValueError("x is nested; give torch.nn.utils.rnn.pack_sequence(list(x.unbind()))")
    if x.layout != torch.strided:
        raise ValueError(f"x is laid out as {x.layout}; give x.to_dense()")


def _check_dtype(x: Tensor, own: torch.dtype) -> None:
    if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"x is {x.dtype} and the layer {own}; give x.to({own}), or use autocast")


def _checked_sizes(x: PackedSequence) -> list[int]:
    """The batch sizes of a packed sequence; ValueError for one that no packing makes."""
    sizes, data = x.batch_sizes.tolist(), x.data
    wrong = None
    if x.batch_sizes.dim() != 1 or not sizes or min(sizes) < 1:
        wrong = f"batch_sizes must be numbers of at least 1, got {sizes}"
    elif any(above < below for above, below in pairwise(sizes)):
        wrong = f"batch_sizes must not rise, got {sizes}"
    elif data.dim() != 2 or len(data) != sum(sizes):
        wrong = f"data must be ({sum(sizes)}, I) for these batch_sizes, got {tuple(data.shape)}"
    else:
        order, back = x.sorted_indices, x.unsorted_indices
        if (order is None) != (back is None):
            wrong = "it has one of sorted_indices and unsorted_indices, and needs both or neither"
        elif order is not None and not _inverse(order, back, sizes[0]):
            wrong = (
                f"sorted_indices and unsorted_indices must undo each other on {sizes[0]} sequences"
            )
    if wrong:
        raise ValueError(
            f"x is a PackedSequence that no packing makes: {wrong}; make it with "
            "torch.nn.utils.rnn.pack_sequence or pack_padded_sequence"
        )
    return sizes


def _inverse(order: Tensor, back: Any, count: int) -> bool:
    if any(part.shape != (count,) or part.dtype != torch.int64 for part in (order, back)):
        return False
    if not order.is_cpu:  # its numbers are for a GPU to look at
        return True
    places = torch.arange(count)
    inside = bool(((order >= 0) & (order < count) & (back >= 0) & (back < count)).all())
    return inside and torch.equal(order[back], places)


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
        state = layer.initial_state(sizes[0], data.dtype, data.device)
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
    current = State(*(part[:0] for part in state)) if backwards else state
    for begin, end, batch in reversed(stretches) if backwards else stretches:
        x = data[begin:end].reshape(-1, batch, data.shape[-1])
        rows = current.s.shape[0]
        if rows > batch:
            finished.append(State(*(part[batch:] for part in current)))
            current = State(*(part[:batch] for part in current))
        elif rows < batch:
            joining = (part[rows:batch] for part in state)
            current = State(*map(_append, current, joining))
        y, current = _run(layer, x, current, backwards)
        outputs.append(y.reshape(-1, y.shape[-1]))
    if backwards:
        outputs.reverse()
    else:
        for ended in reversed(finished):
            current = State(*map(_append, current, ended))
    return torch.cat(outputs), current


def _append(above: Tensor, below: Tensor) -> Tensor:
    return torch.cat([above, below])
