"""Layers of every kind with the factors of GRAPES by the formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.own_units import OWN, Stepping, own_layer
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from spikebridge.nn.gradients import modulate
from spikebridge.nn.layers import Baseline, Layer, Plain
from spikebridge.nn.synapses import (
    Conv2d,
    Dense,
    Embedding,
    Normalised,
    round_weights,
)
from spikebridge.nn.units import KINDS, make_unit

T, B, I, N = 4, 3, 6, 5  # noqa: E741
# What torch.compile says of autograd functions, to itself.
DYNAMO = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def published(*weights: Tensor, clip: tuple[float, float] | None = (1.0, 2.0)) -> Tensor:
    """M by the formula, from matrices whose rows come into the neurons."""
    total = sum(w.detach().abs().flatten(1).sum(1) for w in weights)
    m = 2 * total / total.max()
    return m if clip is None else m.clamp(*clip)


# Every kind of layer.


@dataclass(frozen=True)
class Case:
    """A hidden layer, its input, and the matrices whose rows come into its neurons."""

    make: Callable[[], nn.Module]
    x: Callable[[], Tensor]
    incoming: Callable[[Any], list[Tensor]]
    pixels: int = 0  # axes behind the channels of an output
    repeat: int = 1  # neurons of a channel


def gates(weight: Tensor, count: int) -> Tensor:
    """(G N, I) to (N, G I)."""
    return weight.unflatten(0, (count, -1)).transpose(0, 1).flatten(1)


def recurrent_case(kind: type, count: int, **options: Any) -> Case:
    return Case(
        lambda: kind(I, N, **options),
        lambda: torch.randn(T, B, I),
        lambda core: [gates(core.weight_ih_l0, count), gates(core.weight_hh_l0, count)],
    )


def snu_case(kind: str, recurrent: bool, **unit: Any) -> Case:
    def make() -> Layer:
        made = make_unit(kind, N, **unit)
        return Layer(Dense(I, N, made), made, recurrent=recurrent)

    def incoming(layer: Layer) -> list[Tensor]:
        return [layer.array.weight] + ([layer.recurrent] if recurrent else [])

    return Case(make, lambda: torch.randn(T, B, I) * 2, incoming)


def own_case(name: str, recurrent: bool) -> Case:
    """Units of several drives: a neuron has a row of each channel."""

    def incoming(layer: Any) -> list[Tensor]:
        parts = [layer.array.weight] + ([layer.recurrent] if recurrent else [])
        return [gates(part, len(part) // N) for part in parts]

    return Case(
        lambda: own_layer(name, I, N, recurrent=recurrent, of=Stepping).float(), steps, incoming
    )


def conv_gated() -> Layer:
    array = Conv2d((2, 5, 5), 2 * 3, 3, bias=True)
    own = own_layer("gated-by-outputs", 50, 27, recurrent=True, array=array, of=Stepping)
    return own.float()


def conv_snu(recurrent: bool) -> Layer:
    unit = make_unit("snu", 3 * 3 * 3)
    array = Conv2d((2, 5, 5), 3, 3, unit=unit, bias=True)
    return Layer(array, unit, recurrent=recurrent)


def normalised(centre: bool) -> Layer:
    unit = make_unit("snu", N)
    return Layer(Normalised(Dense(I, N, unit), unit, centre=centre), unit)


def rounded() -> Layer:
    unit = make_unit("snu", N)
    layer = Layer(Dense(I, N, unit), unit, recurrent=True)
    round_weights(layer, 3)
    return layer


def embedding() -> Layer:
    unit = make_unit("softsnu", N)
    return Layer(Embedding(N, N, unit), unit)


def steps() -> Tensor:
    return torch.randn(T, B, I) * 2


def images() -> Tensor:
    return torch.randn(T, B, 2 * 5 * 5) * 2


def normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(I, N))


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(I, N), "weight", 0.5)


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(I, N), lambda: torch.randn(B, I), lambda m: [m.weight]),
    "conv1d": Case(
        lambda: nn.Conv1d(2, N, 3), lambda: torch.randn(B, 2, 6), lambda m: [m.weight], pixels=1
    ),
    "conv2d": Case(
        lambda: nn.Conv2d(2, 4, 3, groups=2),
        lambda: torch.randn(B, 2, 5, 5),
        lambda m: [m.weight],
        pixels=2,
    ),
    "conv3d": Case(
        lambda: nn.Conv3d(1, 2, 2), lambda: torch.randn(B, 1, 3, 3, 3), lambda m: [m.weight],
        pixels=3,
    ),
    "weight norm": Case(normed, lambda: torch.randn(B, I), lambda m: [m.weight]),
    "pruned": Case(
        pruned, lambda: torch.randn(B, I), lambda m: [m.weight_orig * m.weight_mask]
    ),
    "rnn": recurrent_case(nn.RNN, 1),
    "gru": recurrent_case(nn.GRU, 3),
    "lstm": recurrent_case(nn.LSTM, 4),
    "lstm without bias": recurrent_case(nn.LSTM, 4, bias=False, batch_first=True),
    "baseline": Case(
        lambda: Baseline("gru", I, N),
        steps,
        lambda m: [gates(m.core.weight_ih_l0, 3), gates(m.core.weight_hh_l0, 3)],
    ),
    **{f"{kind}": snu_case(kind, False) for kind in KINDS},
    **{f"{kind} recurrent": snu_case(kind, True) for kind in KINDS},
    "trained decay": snu_case("snu", True, train_decay=True, per_unit=True),
    "shared decay": snu_case("snu", True, train_decay=True),
    **{f"{own}": own_case(own, False) for own in OWN},
    **{f"{own} recurrent": own_case(own, True) for own in OWN},
    "conv gated": Case(
        conv_gated,
        images,
        lambda m: [
            gates(m.array.weight.flatten(1), 2).repeat_interleave(9, 0),
            gates(m.recurrent, 2),
        ],
    ),
    "conv snu": Case(lambda: conv_snu(False), images, lambda m: [m.array.weight], repeat=9),
    "conv snu recurrent": Case(
        lambda: conv_snu(True),
        images,
        lambda m: [m.array.weight.flatten(1).repeat_interleave(9, 0), m.recurrent],
    ),
    "normalised": Case(lambda: normalised(False), steps, lambda m: [m.array.array.weight]),
    "centred": Case(lambda: normalised(True), steps, lambda m: [m.array.array.weight]),
    "rounded": Case(rounded, steps, lambda m: [m.array.weight, m.recurrent]),
    "embedding": Case(
        embedding, lambda: torch.randint(N, (T, B)), lambda m: [m.array.weight.T.contiguous()]
    ),
    "plain": Case(lambda: Plain(Dense(I, N), "tanh"), steps, lambda m: [m.array.weight]),
    "plain conv": Case(
        lambda: Plain(Conv2d((2, 5, 5), 3, 3, pool=1), "relu"),
        images,
        lambda m: [m.array.weight],
        repeat=9,
    ),
}  # fmt: skip


class Model(nn.Module):
    """An affine map, the hidden layer of a case, and a readout that is never modulated."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.hidden = case.make()
        with torch.no_grad():
            y = self.outputs(self.hidden(case.x()))
        self.head = nn.Linear(y[0].numel(), 2)
        self.double()

    @staticmethod
    def outputs(out: Any) -> Tensor:
        return out if isinstance(out, Tensor) else out[0]

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """The loss; with a factor it is the slow, explicit form of the propagated rule."""
        if x.is_floating_point():
            x = x * self.scale
        y = self.outputs(self.hidden(x))
        if factor is not None:
            y = modulate(y, factor)
        return self.head(y.flatten(1)).square().sum()


def made(name: str) -> tuple[Model, Tensor, Tensor]:
    """Model, input and M (neurons,)."""
    case = CASES[name]
    model, x = Model(case), case.x()
    m = published(*case.incoming(model.hidden)).repeat_interleave(case.repeat)
    return model, x.double() if x.is_floating_point() else x, m


def gradients(model: nn.Module, x: Tensor, *factor: Tensor) -> dict[str, Tensor]:
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(model(x, *factor), list(parameters.values()), allow_unused=True)
    return {n: g for n, g in zip(parameters, found, strict=True) if g is not None}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-12, atol=1e-14, msg=name)


def bare(model: nn.Module) -> bool:
    return all(
        not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks)
        and not m._load_state_dict_post_hooks
        for m in model.modules()
    ) and all(not p._backward_hooks for p in model.parameters())


# Importance of outgoing weights.


def dense_stack() -> nn.Sequential:
    sizes = [I, 7, 6, 5, 2]
    parts: list[nn.Module] = []
    for into, out in pairwise(sizes):
        parts += [nn.Linear(into, out), nn.Tanh()]
    return nn.Sequential(*parts[:-1]).double()


OPTIMISERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    # The first is abstract; the second takes sparse gradients, which none of these layers has.
    and name not in ("Optimizer", "SparseAdam")
)


# Errors.


def pair() -> nn.Sequential:
    return nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2))
