"""What a network is stacked from: `(x, state) -> (y, state)` layers, dropout, readouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook as has_any_hook
from torch.nn.utils import parametrize

from spikebridge.base.chance import kept
from spikebridge.nn.delays import Delays
from spikebridge.nn.fresh import GRU, LSTM, RNN, Fresh, Linear, redraw
from spikebridge.nn.kernels.product import goes_on, traced
from spikebridge.nn.recompute import recomputed
from spikebridge.nn.scan import BACKENDS, Backend, Trace, loop, scan
from spikebridge.nn.units import ACTIVATIONS, State, Unit, state_dtype

__all__ = [
    "Baseline",
    "Dropout",
    "Layer",
    "Plain",
    "Readout",
    "Reduction",
    "dropped",
    "handed_on",
    "joined",
    "leaf",
]

_NOTED = 1 << 16  # numbers of an output
Reduction = Literal["last", "mean", "each"]


class Layer(Fresh):
    """A synapse array that drives a unit over time, with optional recurrence.

    Args:
        array: x (T, B, ...) to drive (T, B, N); see `spikebridge.nn.synapses.Array`.
        unit: N neurons.
        recurrent: add a trained (N, N) matrix from the layer's last outputs to its drive.
        recurrent_gates: that matrix has (d N, N) and reaches all d currents of the unit, those of
            a gate or a modulation too.
        dropout_recurrent: probability of dropping a weight of that matrix in training, once for
            all of a call's batch and time (DropConnect, Wan et al. 2013).
        backend: "auto", "loop", "native" or "triton"; see `spikebridge.nn.scan.scan`.
        delays: most steps that a neuron's output may take to where the layer's outputs go, which is
            trained; 0 is none.  See `spikebridge.nn.delays`.  Its own recurrence has no delay.  The
            outputs still on their way lie behind the unit's state, in s: (B, state_size).
        recompute: k > 0 keeps every k-th state for the backward pass and computes the others
            twice; see `spikebridge.nn.recompute.recomputed`.  Not under torch.compile or
            torch.func, where everything is kept.
    """

    def __init__(
        self,
        array: nn.Module,
        unit: Unit,
        *,
        recurrent: bool = False,
        recurrent_gates: bool = False,
        dropout_recurrent: float = 0.0,
        backend: Backend = "auto",
        recompute: int = 0,
        delays: int = 0,
    ) -> None:
        super().__init__()
        if array.out_features != unit.size * unit.drives:
            wants = f"{unit.size}" if unit.drives == 1 else f"{unit.drives} x {unit.size}"
            raise ValueError(
                f"the array drives {array.out_features} neurons, the unit has {wants}; "
                "make them equal"
            )
        if recurrent_gates and (unit.drives == 1 or not recurrent):
            raise ValueError(
                f"recurrent_gates=True: {type(unit).__name__} takes {unit.drives} current per "
                f"neuron, recurrent={recurrent}; it needs a unit with a gate or a modulation and "
                "recurrent=True"
            )
        self.array, self.unit, self.backend = array, unit, backend
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r} is not known; choose one of {list(BACKENDS)}")
        if not isinstance(recompute, int) or recompute < 0:
            raise ValueError(f"recompute must be a number of steps, or 0 for off, got {recompute}")
        if recompute and dropout_recurrent:  # what is computed twice would be drawn twice
            raise ValueError(
                f"recompute={recompute} does not go with dropout_recurrent={dropout_recurrent}; "
                "leave one of them out"
            )
        self.recompute, self.dropout_recurrent = recompute, _probability(dropout_recurrent)
        self.spiking = unit.spiking
        kind: dict[str, Any] = {"device": unit.threshold.device, "dtype": unit.threshold.dtype}
        self.delays = Delays(unit.size, delays, **kind) if delays else None
        if recurrent:
            fed = unit.drives if recurrent_gates else 1
            self.recurrent = nn.Parameter(unit.threshold.new_empty(fed * unit.size, unit.size))
        else:
            self.register_parameter("recurrent", None)
        self.draw()

    def draw(self) -> None:
        """The recurrent matrix, for each current by itself."""
        if self.recurrent is not None:
            redraw(self, "recurrent", self._orthogonal)

    def _orthogonal(self, matrix: Tensor) -> None:
        for part in matrix.split(self.unit.size):
            nn.init.orthogonal_(part, gain=0.5)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x (T, B, I) to y (T, B, N), and the state after the last step."""
        if isinstance(x, fx.Proxy):
            return leaf(self, x, state)
        if not (self.recompute and torch.is_grad_enabled()) or traced():
            return self._run(x, state)
        if state is None:
            state = self.initial_state(x.shape[1], self.unit.threshold.dtype, x.device)
        parameters = tuple(p for p in self.parameters() if p.requires_grad)
        with parametrize.cached():  # a weight that is read off memory cells is read once
            return recomputed(self._again(), x, state, parameters, self.recompute)

    def _again(self) -> Callable[[Tensor, State], tuple[Tensor, State]]:
        """`_run` with the tensors that the layer has now, whatever it has by then.

        torch.func.functional_call lends a module other tensors for one forward pass.
        """
        lent = dict(chain(self.named_parameters(), self.named_buffers()))

        def run(x: Tensor, state: State) -> tuple[Tensor, State]:
            now = dict(chain(self.named_parameters(), self.named_buffers()))
            if all(now.get(name) is tensor for name, tensor in lent.items()):
                return self._run(x, state)
            given = {f"layer.{name}": tensor for name, tensor in lent.items()}
            return torch.func.functional_call(_Run(self), given, (x, state))

        return run

    def _run(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        parts: Any = self._modules  # read as attributes they take longer than a step of the kernel
        drive, delays = parts["array"](x), parts.get("delays")
        if delays is None:
            return scan(parts["unit"], drive, self.connections(), state, backend=self.backend)
        state, past = self._parted(state, drive)
        y, last = scan(parts["unit"], drive, self.connections(), state, backend=self.backend)
        y, past = delays(y, past)
        return y, State(last.y, torch.cat([last.s, past], -1))

    @property
    def state_size(self) -> int:
        """Numbers per sample in a state's s: the unit's, and those of outputs on their way."""
        delays: Any = self._modules.get("delays")
        return self.unit.state_size + (delays.max_delay * self.unit.size if delays else 0)

    def initial_state(
        self, batch: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> State:
        """Silence: all zero, for a drive of the given dtype."""
        y, s = self.unit.initial_state(batch, dtype, device)
        return State(
            y, s if s.shape[-1] == self.state_size else s.new_zeros(batch, self.state_size)
        )

    def _parted(self, state: State | None, drive: Tensor) -> tuple[State | None, Tensor]:
        """The unit's state, and the outputs that are on their way, (B, D N)."""
        own = self.unit.state_size
        if state is None:
            kind = state_dtype(drive.dtype)
            return None, drive.new_zeros(drive.shape[1], self.state_size - own, dtype=kind)
        if state.s.shape[-1] != self.state_size:
            raise ValueError(
                f"state.s must be (B, {self.state_size}), {own} of the unit and what is under way, "
                f"got {tuple(state.s.shape)}; start from layer.initial_state(batch, dtype), or None"
            )
        return State(state.y, state.s[..., :own].contiguous()), state.s[..., own:]

    def connections(self) -> Tensor | None:
        """The recurrent matrix, in training with some weights dropped; None without one."""
        matrix: Tensor | None = self.recurrent
        if matrix is None or not (self.training and self.dropout_recurrent):
            return matrix
        return dropped(matrix, self.dropout_recurrent, matrix.shape)

    def trace(self, x: Tensor, state: State | None = None) -> Trace:
        """Outputs and membrane states of every step, (T, B, N) each, and the last state."""
        drive = self.array(x)
        delays: Any = self._modules.get("delays")
        if delays is None:
            return loop(self.unit, drive, self.recurrent, state)
        own, past = self._parted(state, drive)
        y, s, last = loop(self.unit, drive, self.recurrent, own)
        late, past = delays(y, past)
        return Trace(late, s, State(last.y, torch.cat([last.s, past], -1)))


def joined(y: Tensor, x: Tensor) -> Tensor:
    """What a skip connection sends on: y, outputs of a layer, plus its inputs where they are as
    wide; else y alone.  Of spikes, counts: numbers from 0 to the layers that are summed.
    """
    if not x.is_floating_point() or x.dim() != y.dim() or x.shape[-1] != y.shape[-1]:
        return y
    return y + x.to(y.dtype)


def handed_on(y: Tensor, layer: nn.Module, *behind: nn.Module) -> None:
    """Notes on y, output of a layer, that its gradient is seen by that layer only.

    The product behind it may then leave out places where the layer's surrogate is 0.  Nothing is
    noted where a hook could look at y, or where y is too small for it to matter.
    """
    if not y.requires_grad or y.numel() < _NOTED or traced() or has_any_hook():
        return
    parts = [part for module in (layer, *behind) for part in module.modules()]
    if not any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in parts
    ):
        goes_on(y)


def leaf(module: nn.Module, x: fx.Proxy, state: Any) -> Any:
    """A call of a module in a graph of torch.fx, which takes torch's own layers whole too.

    What a layer does depends on shapes, which symbolic tracing does not know.

    Raises TypeError where the module is all that is traced.
    """
    tracer: Any = x.tracer
    path = tracer.path_of_module(module)
    if not path:
        kind = type(module).__name__
        raise TypeError(
            f"torch.fx takes a {kind} whole, so there is nothing in it to trace; trace the module "
            "that holds it, or use torch.export"
        )
    return tracer.create_proxy("call_module", path, (x, state), {})


class _Run(nn.Module):
    """A layer's `_run` as the forward pass of a module, which is what functional_call calls."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.layer._run(x, state)


class Baseline(Fresh):
    """One layer of torch's RNN (tanh), GRU or LSTM behind the interface of `Layer`.

    Args:
        kind: "rnn", "gru" or "lstm".
        in_features, size: I and N.
        dropout_recurrent: as in `Layer`: probability of dropping a weight of `weight_hh`, of all
            gates alike, in training (the weight-dropped LSTM of Merity et al. 2017).
    """

    KINDS: ClassVar[dict[str, Any]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}
    spiking = False

    def __init__(
        self, kind: str, in_features: int, size: int, *, dropout_recurrent: float = 0.0
    ) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"baseline {kind!r} is not known; choose one of {list(self.KINDS)}")
        self.dropout_recurrent = _probability(dropout_recurrent)
        self.core = self.KINDS[kind](in_features, size)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """x (T, B, I) to y (T, B, N), and torch's own state."""
        if not (self.training and self.dropout_recurrent):
            return self.core(x, state)
        matrix = self.core.weight_hh_l0
        thinned = dropped(matrix, self.dropout_recurrent, matrix.shape)
        return torch.func.functional_call(self.core, {"weight_hh_l0": thinned}, (x, state))


class Plain(Fresh):
    """A layer without memory behind the interface of `Layer`: y = f(W x), at each step by itself.

    Args:
        array: x (T, B, ...) to drive (T, B, N); see `spikebridge.nn.synapses.Array`.
        activation: f, "relu" or "tanh".

    Raises ValueError for another activation.
    """

    spiking = False

    def __init__(self, array: nn.Module, activation: str) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {activation!r} is not known; choose one of {list(ACTIVATIONS)}"
            )
        self.array, self.activation = array, activation

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """x (T, B, I) to y (T, B, N); there is no state, what is given comes back."""
        return ACTIVATIONS[self.activation].function(self.array(x)), state

    def extra_repr(self) -> str:
        return self.activation


def _probability(dropout_recurrent: float) -> float:
    if not 0 <= dropout_recurrent < 1:
        raise ValueError(f"dropout_recurrent must be in [0, 1), got {dropout_recurrent}")
    return dropout_recurrent


def dropped(x: Tensor, p: float, shape: Sequence[int]) -> Tensor:
    """x with places of that shape set to 0 with probability p, and the others times 1 / (1 - p)."""
    if x.is_cpu and not traced():
        return x * kept(shape, p, x.dtype)
    mask = torch.rand(shape, dtype=torch.float32, device=x.device) >= p
    return x * mask.to(x.dtype).div_(1 - p)


class Dropout(nn.Module):
    """Dropout on (T, B, N), anew at each step, or with one mask over all of time.

    Args:
        p: probability of dropping, in [0, 1]; on a CPU rounded to a multiple of 2**-15.
        same_mask: drop the same neurons at all steps (Gal and Ghahramani 2016).
    """

    def __init__(self, p: float, *, same_mask: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"the dropout probability must be in [0, 1], got {p}")
        self.p, self.same_mask = p, same_mask

    def forward(self, x: Tensor) -> Tensor:
        """x (T, B, N), in training thinned and scaled up by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return x * 0
        return dropped(x, self.p, (1, *x.shape[1:]) if self.same_mask else x.shape)

    def extra_repr(self) -> str:
        return f"{self.p}, same_mask={self.same_mask}"


class Readout(Fresh):
    """A linear map of the last layer's outputs: at the last step, of their mean, or at each step.

    Args:
        in_features, out_features: N and O.
        reduce: "last" or "mean" give (B, O), "each" gives (T, B, O).
        tied: E > 0 maps to E first and then by a matrix (O, E) that `forward` is given, that of the
            embedding (Press and Wolf 2017); 0 has a matrix of its own.
    """

    def __init__(
        self, in_features: int, out_features: int, reduce: Reduction, *, tied: int = 0
    ) -> None:
        super().__init__()
        if reduce not in ("last", "mean", "each"):
            raise ValueError(f'readout {reduce!r} is not known; choose "last", "mean" or "each"')
        self.linear = Linear(in_features, tied or out_features)
        self.bias = nn.Parameter(torch.zeros(out_features)) if tied else None
        self.reduce = reduce

    def draw(self) -> None:
        """A bias of its own starts at 0."""
        if self.bias is not None:
            redraw(self, "bias", nn.init.zeros_)

    def forward(
        self,
        y: Tensor,
        matrix: Tensor | None = None,
        among: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """y (T, B, N); reduced over time first, which is the same and T times cheaper.

        matrix is (O, E) where tied; among (K,) asks for those K outputs only; mask (T, B) is True
        at real steps: "last" is then the last real one, "mean" the mean of the real ones.
        """
        if self.reduce != "each":
            y = self._reduced(y, mask)
        if self.bias is None:
            if among is None:
                return self.linear(y)
            return F.linear(y, *_rows(self.linear.weight, self.linear.bias, among))
        if matrix is None:
            raise ValueError("a tied readout needs the embedding's matrix; pass it as matrix")
        return F.linear(self.linear(y), *_rows(matrix, self.bias, among))

    def _reduced(self, y: Tensor, mask: Tensor | None) -> Tensor:
        if y.shape[0] == 0:
            raise ValueError('a readout of "last" or "mean" needs at least one time step, got 0')
        if mask is not None:
            if mask.shape != y.shape[:2] or not bool(mask.any(0).all()):
                raise ValueError(
                    f"mask must be {tuple(y.shape[:2])} and True at a step of each sample or more, "
                    f"got {tuple(mask.shape)}"
                )
            if self.reduce == "last":
                steps = torch.arange(len(mask), device=mask.device).unsqueeze(1)
                place = torch.where(mask, steps, 0).amax(0)
                return y[place, torch.arange(y.shape[1], device=y.device)]
            # Left out rather than multiplied by 0, which a nan at padding would outlast.
            real = torch.where(mask.unsqueeze(2), y, y.new_zeros(()))
            return real.sum(0) / mask.sum(0).unsqueeze(1).to(y.dtype)
        if y.shape[0] == 1:
            return y.squeeze(0)
        return y[-1] if self.reduce == "last" else y.mean(0)

    def start_at(self, prior: Tensor) -> None:
        """Set the bias, so that the first outputs are about these, (O,)."""
        bias = self.linear.bias if self.bias is None else self.bias
        with torch.no_grad():
            bias.copy_(prior)


def _rows(weight: Tensor, bias: Tensor, among: Tensor | None) -> tuple[Tensor, Tensor]:
    if among is None:
        return weight, bias
    return F.embedding(among, weight), bias.index_select(0, among)
