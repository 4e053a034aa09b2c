"""Laws of GRAPES: forward untouched, errors scaled as published, nothing left behind."""

from __future__ import annotations

import copy
import gc
import io
import math
import os
import pickle
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    register_optimizer_step_post_hook,
)

from spikebridge.crossbar import pcm
from spikebridge.crossbar.network import to_crossbar
from spikebridge.learning import feedback, grapes, grapes_hooks
from spikebridge.learning.grapes_factors import Bank, absolute_sums
from spikebridge.nn.gradients import modulate
from spikebridge.nn.kernels import native
from spikebridge.nn.layers import Baseline, Layer, Plain
from spikebridge.nn.network import build
from spikebridge.nn.rnn import SNU
from spikebridge.nn.synapses import (
    Conv2d,
    Dense,
    Embedding,
    Normalised,
    noisy_weights,
    round_weights,
)
from spikebridge.nn.units import KINDS, State, make_unit
from spikebridge.settings.crossbar import CrossbarConfig
from spikebridge.settings.model import ModelConfig

# Another recording in the same format can be put in its place.
RECORDING = Path(
    os.environ.get(
        "SPIKEBRIDGE_GRAPES_VECTORS", Path(__file__).parents[1] / "data" / "grapes_authors.npz"
    )
)
T, B, I, N = 4, 3, 6, 5  # noqa: E741
# What torch.compile says of autograd functions, to itself.
DYNAMO = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def published(*weights: Tensor, clip: tuple[float, float] | None = (1.0, 2.0)) -> Tensor:
    """M by the formula, from matrices whose rows come into the neurons."""
    total = sum(w.detach().abs().flatten(1).sum(1) for w in weights)
    m = 2 * total / total.max()
    return m if clip is None else m.clamp(*clip)


# The authors' own numbers.


def recorded(rule: str) -> list[str]:
    cases = {name.split("/")[0] for name in np.load(RECORDING).files}
    return sorted(case for case in cases if case.split("_")[0] == rule)


@pytest.mark.parametrize("case", recorded("BP") + recorded("BPgrapes"))
def test_errors_and_gradients_equal_the_recording(case: str) -> None:
    with np.load(RECORDING) as file:
        record = {
            name.split("/")[1]: torch.from_numpy(file[name])
            for name in file.files
            if name.startswith(f"{case}/")
        }
    depth = sum(name.startswith("w") for name in record)
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[case.split("_")[1]]
    parts: list[nn.Module] = []
    for k in range(depth):
        out, into = record[f"w{k}"].shape
        parts += [nn.Linear(into, out, bias=False).double(), activation()]
        parts[-2].weight.data.copy_(record[f"w{k}"])
    model = nn.Sequential(*parts[:-1])
    deltas: dict[nn.Module, Tensor] = {}

    def keep(part: nn.Module, _: Any, out: Tensor) -> None:
        out.register_hook(lambda grad: deltas.update({part: grad}))

    handle = grapes.attach(model) if "grapes" in case else None
    for part in parts[:-1:2]:  # after attaching, so that it sees what the factor has left
        part.register_forward_hook(keep)
    logits = model(record["x"].unsqueeze(0))
    torch.testing.assert_close(logits.softmax(-1)[0], record["output"], rtol=1e-12, atol=0)
    F.cross_entropy(logits, record["target"].unsqueeze(0)).backward()
    for k in range(depth):
        bound = {"rtol": 1e-12, "atol": 1e-15}
        torch.testing.assert_close(deltas[parts[2 * k]][0], record[f"delta{k}"], **bound)
        torch.testing.assert_close(parts[2 * k].weight.grad, record[f"grad{k}"], **bound)
    if handle is not None:
        handle.detach()


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


def fixed_batch(model: nn.Module) -> nn.Module:
    """Running statistics that do not follow what a test does."""
    for module in model.modules():
        if isinstance(module, Normalised):
            module.momentum = 0.0
    return model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["propagated", "local"])
def test_the_forward_pass_is_untouched_and_detaching_leaves_nothing(name: str, form: Any) -> None:
    model, x, _ = made(name)
    fixed_batch(model)
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    out, plain = model.hidden(x), gradients(model, x)
    with grapes.attach(model, form=form) as handle:
        seen = model.hidden(x)
        gradients(model, x)
    flat = [out] if isinstance(out, Tensor) else _flat(out)
    for a, b in zip(flat, [seen] if isinstance(seen, Tensor) else _flat(seen), strict=True):
        assert torch.equal(a, b)
    assert type(out) is type(seen)
    again = gradients(model, x)
    assert all(torch.equal(plain[n], again[n]) for n in plain)
    assert hooks == [len(m._forward_pre_hooks) for m in model.modules()]
    assert bare(model) or name == "pruned"
    handle.detach()  # a second time does nothing
    handle.refresh()


def _flat(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [] if out is None else [t for part in out for t in _flat(part)]


@pytest.mark.parametrize("name", CASES)
def test_propagated_multiplies_the_error_that_arrives(name: str) -> None:
    model, x, m = made(name)
    fixed_batch(model)
    expected = gradients(model, x, m.view(-1, *[1] * CASES[name].pixels))
    with grapes.attach(model) as handle:
        assert handle.layers == ["hidden"]
        torch.testing.assert_close(handle.factors()["hidden"], m, rtol=1e-12, atol=0)
        ours = gradients(model, x)
    same(ours, expected)
    plain = gradients(model, x)
    if x.is_floating_point():
        assert not torch.equal(plain["scale"], ours["scale"])  # upstream feels it


@pytest.mark.parametrize("name", CASES)
def test_local_multiplies_rows_of_the_layers_own_updates_only(name: str) -> None:
    model, x, m = made(name)
    fixed_batch(model)
    plain = gradients(model, x)
    with grapes.attach(model, form="local"):
        ours = gradients(model, x)
    expected = {}
    for own, gradient in plain.items():
        if not own.startswith("hidden.") or not gradient.dim():
            expected[own] = gradient
        elif name == "embedding" and own == "hidden.array.weight":
            expected[own] = gradient * m
        else:
            rows = gradient.shape[0]
            factor = m.repeat(rows // len(m)) if rows >= len(m) else m[:: len(m) // rows]
            expected[own] = gradient * factor.view(-1, *[1] * (gradient.dim() - 1))
    same(ours, expected)


@pytest.mark.parametrize("form", ["propagated", "local"])
@pytest.mark.parametrize("name", ["linear", "conv snu", "gru", "snu recurrent"])
def test_the_control_is_one_hand_made_gain(name: str, form: Any) -> None:
    model, x, m = made(name)
    plain = gradients(model, x)
    with grapes.attach(model, form=form, control="gain"):
        ours = gradients(model, x)
    scaled = ("hidden.", "scale") if form == "propagated" else ("hidden.",)
    expected = {n: g * m.mean() if n.startswith(scaled) else g for n, g in plain.items()}
    same(ours, expected)


@pytest.mark.parametrize(("clip", "gain"), [((1.0, 2.0), 2.0), ((0.5, 1.5), 1.5), (None, 2.0)])
def test_equal_weights_are_a_plain_gain(clip: Any, gain: float) -> None:
    model = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)).double()
    x = torch.randn(B, I).double()
    with torch.no_grad():  # rows of equal sum, whatever the signs
        model[0].weight.copy_(model[0].weight.sign())
    plain = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    with grapes.attach(model, clip=clip):
        ours = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    torch.testing.assert_close(ours, plain * gain, rtol=1e-14, atol=0)


# Stacks that hold several layers.


def rows_of(core: nn.RNNBase, end: str, count: int) -> Tensor:
    pair = (getattr(core, f"weight_{kind}_{end}") for kind in ("ih", "hh"))
    return published(*(gates(weight, count) for weight in pair))


def test_both_directions_have_factors_of_their_own() -> None:
    core, head = nn.LSTM(I, N, bidirectional=True).double(), nn.Linear(2 * N, 2).double()
    model, x = nn.ModuleList([core, head]), torch.randn(T, B, I).double()
    m = torch.cat([rows_of(core, "l0", 4), rows_of(core, "l0_reverse", 4)])

    def loss(factor: Tensor | None = None) -> Tensor:
        y = core(x)[0]
        return head(y if factor is None else modulate(y, factor)).square().sum()

    expected = torch.autograd.grad(loss(m), list(core.parameters()))
    plain = torch.autograd.grad(loss(), list(core.parameters()))
    with grapes.attach(model) as handle:
        torch.testing.assert_close(handle.factors()["0"], m, rtol=1e-12, atol=0)
        ours = torch.autograd.grad(loss(), list(core.parameters()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    with grapes.attach(model, form="local"):
        ours = torch.autograd.grad(loss(), list(core.parameters()))
    for (name, _), a, b in zip(core.named_parameters(), ours, plain, strict=True):
        factor = (m[N:] if name.endswith("reverse") else m[:N]).repeat(4)
        torch.testing.assert_close(a, b * factor.view(-1, *[1] * (b.dim() - 1)))


def test_in_a_stack_of_torch_the_lower_layer_is_local() -> None:
    core, head = nn.LSTM(I, N, num_layers=2).double(), nn.Linear(N, 2).double()
    model, x = nn.ModuleList([core, head]), torch.randn(T, B, I).double()
    low, top = rows_of(core, "l0", 4), rows_of(core, "l1", 4)
    names = [n for n, _ in core.named_parameters()]
    explicit = modulate(core(x)[0], top)
    expected = torch.autograd.grad(head(explicit).sum(), list(core.parameters()))
    with grapes.attach(model) as handle:
        ours = torch.autograd.grad(head(core(x)[0]).sum(), list(core.parameters()))
        assert torch.equal(handle.factors()["0"], torch.cat([low, top]))
        assert "lower" in handle.notes[0]
        assert handle.notes[0] in repr(handle)
    for name, a, b in zip(names, ours, expected, strict=True):
        factor = low.repeat(4) if name.endswith("l0") else torch.ones(4 * N).double()
        torch.testing.assert_close(a, b * factor.view(-1, *[1] * (b.dim() - 1)))
    assert not any(p._backward_hooks for p in core.parameters())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_inside_a_stack_of_ours_are_layers(bidirectional: bool) -> None:
    stack = SNU(I, N, num_layers=2, bidirectional=bidirectional, recurrent=True).double()
    head = nn.Linear(N * stack.directions, 2).double()
    model, x = nn.ModuleList([stack, head]), torch.randn(T, B, I).double() * 2
    m = [published(layer.array.weight, layer.recurrent) for layer in stack.layers]

    def by_hand() -> Tensor:
        y = x
        for depth in range(2):
            parts = []
            for k in range(stack.directions):
                layer = stack.layers[depth * stack.directions + k]
                given = y.flip(0) if k else y
                out = modulate(layer(given)[0], m[depth * stack.directions + k])
                parts.append(out.flip(0) if k else out)
            y = torch.cat(parts, -1)
        return head(y).square().sum()

    expected = torch.autograd.grad(by_hand(), list(stack.parameters()))
    with grapes.attach(model) as handle:
        assert handle.layers == [f"0.layers.{k}" for k in range(2 * stack.directions)]
        ours = torch.autograd.grad(head(stack(x)[0]).square().sum(), list(stack.parameters()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# States.


def carried(kind: str) -> nn.Module:
    if kind in ("rnn", "gru", "lstm"):
        return Baseline(kind, I, N)
    if kind == "torch.lstm":
        return nn.LSTM(I, N)
    if kind == "stack":
        return SNU(I, N, num_layers=2, recurrent=True)
    unit = make_unit(kind, N)
    return Layer(Dense(I, N, unit), unit, recurrent=True)


CARRIED = ["rnn", "gru", "lstm", "torch.lstm", "stack", "snu", "adaptive-snu", "softsnu"]


@DYNAMO
@pytest.mark.parametrize(("kind", "compiled"), [*((k, False) for k in CARRIED), ("snu", True)])
def test_many_short_calls_are_one_long_one(kind: str, compiled: bool) -> None:
    layer, head = carried(kind).double(), nn.Linear(N, 2).double()
    length = 2 if compiled else T
    x = torch.randn(length, B, I).double() * 2

    def long() -> Tensor:
        return head(layer(x)[0]).square().sum()

    def short() -> Tensor:
        state, total = None, torch.zeros(())
        for t in range(length):
            y, state = layer(x[t : t + 1], state)
            total = total + head(y).square().sum()
        return total

    run = torch.compile(short, backend="aot_eager", fullgraph=True) if compiled else short
    with grapes.attach(nn.ModuleList([layer, head])):
        one = torch.autograd.grad(long(), list(layer.parameters()))
        many = torch.autograd.grad(run(), list(layer.parameters()))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "batched"),  # torch's RNNs and spikebridge.nn.rnn have an unbatched form (T, I)
    [*((k, True) for k in CARRIED), *((k, False) for k in CARRIED if not k.endswith("snu"))],
)
def test_the_error_at_a_state_that_is_used_is_scaled_too(kind: str, batched: bool) -> None:
    layer = carried(kind).double()
    x = torch.randn(T, B, I).double() * 2
    x = x if batched else x[:, 0]
    head = nn.Linear(N, 2).double()
    model = nn.ModuleList([layer, head])

    def loss(factor: Tensor | None) -> Tensor:
        _, state = layer(x)
        total = torch.zeros(())
        for number, part in enumerate(_flat(state), start=2):
            wide = (
                factor
                if factor is None or factor.dim() > 1
                else factor.repeat(
                    part.shape[-1] // len(factor)  # the adaptive unit keeps two numbers a neuron
                )
            )
            total = total + (part if wide is None else modulate(part, wide)).sum() * number
        return total

    with grapes.attach(model) as handle:
        m = torch.stack(list(handle.factors().values()))
        ours = torch.autograd.grad(loss(None), list(layer.parameters()))
    if kind == "stack":  # the lower layer of the stack is felt through the upper one too
        m = m.unsqueeze(1) if batched else m
        m.requires_grad_(False)
        plain = torch.autograd.grad(loss(m), list(layer.layers[1].parameters()))
        for a, b in zip(ours[-len(plain) :], plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        return
    expected = torch.autograd.grad(loss(m[0]), list(layer.parameters()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_state_from_another_layer_is_an_output_of_that_one() -> None:
    encoder, decoder = nn.LSTM(I, N).double(), nn.LSTM(I, N).double()
    head = nn.Linear(N, 2).double()
    x = torch.randn(T, B, I).double()
    low, top = rows_of(encoder, "l0", 4), rows_of(decoder, "l0", 4)
    state = tuple(modulate(part, low) for part in encoder(x)[1])
    expected = torch.autograd.grad(
        head(modulate(decoder(x, state)[0], top)).sum(), list(encoder.parameters())
    )
    with grapes.attach(nn.ModuleList([encoder, decoder, head])):
        loss = head(decoder(x, encoder(x)[1])[0]).sum()
        ours = torch.autograd.grad(loss, list(encoder.parameters()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# The factor.

matrices = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.randn(
        (7, 9), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
)


@given(weight=matrices, scale=st.floats(1e-3, 1e3), order=st.permutations(range(7)))
@settings(max_examples=30, deadline=None)
def test_factors_are_bounded_and_follow_the_neurons_but_not_the_scale(
    weight: Tensor, scale: float, order: list[int]
) -> None:
    m = grapes.factor(weight)
    assert bool(((m >= 1) & (m <= 2)).all())
    assert m.max() == 2
    torch.testing.assert_close(grapes.factor(weight * -scale), m, rtol=1e-12, atol=0)
    assert torch.equal(grapes.factor(weight[order]), m[order])
    torch.testing.assert_close(m, published(weight), rtol=1e-12, atol=0)
    assert bool((grapes.factor(weight, None) > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4), (70, 3000), (2, 200_000), (5, 4, 3, 3), (4, 0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_in_pieces_are_sums(shape: tuple, dtype: torch.dtype, axis: int) -> None:
    weight = torch.randn(shape).to(dtype)
    weight = weight.to(memory_format=torch.channels_last) if len(shape) == 4 else weight
    over = [d for d in range(len(shape)) if d != axis]
    expected = weight.double().abs().sum(over)
    found = absolute_sums(weight, axis)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


# The kernel, against what torch does where there is none.

SETS = [] if native.missing else native._native.instruction_sets()


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    before = native._native.instruction_set()
    native._native.choose_instruction_set(request.param)
    yield
    native._native.choose_instruction_set(before)


@pytest.mark.parametrize("instruction_set", SETS, indirect=True)
@pytest.mark.usefixtures("instruction_set")
@given(
    rows=st.integers(1, 70),
    columns=st.sampled_from([1, 7, 16, 100, 511, 784, 1030]),
    axis=st.sampled_from([0, 1]),
    double=st.booleans(),
    rule=st.tuples(st.booleans(), st.just(0.5), st.just(1.5), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_the_kernel_gives_sums_and_factors_as_torch(
    rows: int, columns: int, axis: int, double: bool, rule: tuple, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight = weight if double else weight.float()
    sums, m = weight.new_full((2, weight.shape[axis]), math.nan)
    assert native.importance([(weight, axis, 1, 1)], sums, m, rule)
    bound = {"rtol": 1e-12 if double else 1e-6, "atol": 0.0}
    expected = weight.double().abs().sum(1 - axis)
    torch.testing.assert_close(sums.double(), expected, **bound)
    factors = 2 * expected / expected.max()
    factors = factors.clamp(0.5, 1.5) if rule[0] else factors
    factors = factors.mean().expand_as(factors) if rule[3] else factors
    torch.testing.assert_close(m.double(), factors, **bound)


@pytest.mark.parametrize("name", ["gru", "lstm", "conv2d", "conv snu recurrent", "embedding"])
@pytest.mark.parametrize("options", [{}, {"clip": None}, {"control": "gain"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_banks_with_and_without_the_kernel_agree(
    name: str, options: dict, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(name)[0].to(dtype)
    found = []
    for built in (True, False):
        if not built:
            monkeypatch.setattr(native, "_native", None)
        with grapes.attach(model, **options) as handle:
            found.append(handle.factors()["hidden"])
    bound = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(*found, rtol=bound, atol=0)


@pytest.mark.skipif(
    native.missing is not None,
    reason="no native kernel was built: there is none to compare with torch",
)
def test_the_kernel_leaves_what_it_cannot_read() -> None:
    sums = torch.zeros(4)
    for weight in (torch.ones(3, 4).t(), torch.ones(4, 3).double(), torch.ones(4, 3).bfloat16()):
        assert not native.importance([(weight, 0, 1, 1)], sums)
        assert torch.equal(
            absolute_sums(weight),
            torch.full((4,), 3.0, dtype=weight.dtype).to(
                torch.promote_types(weight.dtype, torch.float32)
            ),
        )
    assert not native.importance([(torch.ones(4, 4, 2), 1, 1, 1)], sums)
    assert not native.importance([(torch.ones(0, 4), 1, 1, 1)], sums)
    assert not sums.any()


@pytest.mark.parametrize("built", [True, False])
def test_weights_that_are_no_numbers_are_seen(built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not built:
        monkeypatch.setattr(native, "_native", None)
    model = pair()
    with torch.no_grad():
        model[0].weight[1, 2] = math.nan
    with grapes.attach(model) as handle:
        assert bool(handle.factors()["0"].isnan().all())


@pytest.mark.parametrize(("clip", "value"), [((1.0, 2.0), 1.0), ((0.5, 2.0), 0.5), (None, 1.0)])
@pytest.mark.parametrize("control", ["none", "gain"])
def test_weights_of_zero_have_the_lower_bound(clip: Any, value: float, control: Any) -> None:
    model = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2))
    nn.init.zeros_(model[0].weight)
    with grapes.attach(model, clip=clip, control=control) as handle:
        assert torch.equal(handle.factors()["0"], torch.full((N,), value))


# Importance of outgoing weights.


def dense_stack() -> nn.Sequential:
    sizes = [I, 7, 6, 5, 2]
    parts: list[nn.Module] = []
    for into, out in pairwise(sizes):
        parts += [nn.Linear(into, out), nn.Tanh()]
    return nn.Sequential(*parts[:-1]).double()


@pytest.mark.parametrize("control", ["none", "gain"])
def test_outgoing_importance_multiplies_by_both_ends_of_a_weight(control: Any) -> None:
    model, x = dense_stack(), torch.randn(B, I).double()
    p = {k: published(model[k].weight.T.contiguous(), clip=None) for k in (2, 4)}
    if control == "gain":
        p = {k: v.mean().expand(len(v)) for k, v in p.items()}

    def found() -> dict[str, Tensor]:
        gradients = torch.autograd.grad(model(x).sum(), list(model.parameters()))
        return dict(zip((n for n, _ in model.named_parameters()), gradients, strict=True))

    plain = found()
    with grapes.attach(model, importance="outgoing", control=control) as handle:
        ours = found()
        assert handle.layers == ["2", "4"]
        assert torch.equal(handle.factors()["4"], torch.ones(5).double())
    expected = dict(plain)
    expected["2.weight"] = plain["2.weight"] * p[4][:, None] * p[2]
    expected["2.bias"] = plain["2.bias"] * p[4]
    expected["4.weight"] = plain["4.weight"] * p[2 + 2]  # P' of the output is 1
    same(ours, expected)


def test_outgoing_importance_follows_the_layer_above() -> None:
    model = dense_stack()
    with grapes.attach(model, importance="outgoing") as handle:
        before = handle.factors()["2"]
        optimizer = torch.optim.SGD([model[4].weight], 0.1)
        model(torch.randn(B, I).double()).sum().backward()
        optimizer.step()
        assert not torch.equal(handle.factors()["2"], before)
        expected = published(model[4].weight.T.contiguous(), clip=None)
        torch.testing.assert_close(handle.factors()["2"], expected)


# When factors are taken.


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Every computation of factors."""
    seen: list[list[int]] = []
    real = Bank.update

    def update(self: Bank, which: Any) -> None:
        seen.append(list(which))
        real(self, seen[-1])

    monkeypatch.setattr(Bank, "update", update)
    return seen


OPTIMISERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    # The first is abstract; the second takes sparse gradients, which none of these layers has.
    and name not in ("Optimizer", "SparseAdam")
)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_factors_are_taken_once_in_a_step_of_any_optimiser(name: str, updates: list) -> None:
    model, x = nn.Sequential(nn.Linear(I, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(B, I)
    parameters = [p for p in model.parameters() if p.dim() == 2 or name != "Muon"]
    optimizer = getattr(torch.optim, name)(parameters, lr=0.05)
    with grapes.attach(model) as handle:
        updates.clear()
        for _ in range(3):
            before = model[0].weight.detach().clone()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = model(x).square().sum()
                loss.backward()
                return loss

            if name == "LBFGS":
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            assert not torch.equal(before, model[0].weight)
            torch.testing.assert_close(handle.factors()["0"], published(model[0].weight))
        assert len(updates) == 3
    optimizer.step(closure)
    assert len(updates) == 3


def test_two_models_and_accumulated_gradients_do_not_meddle(updates: list) -> None:
    models = [nn.Sequential(nn.Linear(I, 8), nn.Tanh(), nn.Linear(8, 2)).double() for _ in "ab"]
    halves = torch.randn(2, B, I).double()
    handles = [grapes.attach(model) for model in models]
    whole = torch.autograd.grad(models[0](halves.flatten(0, 1)).sum(), models[0][0].weight)[0]
    other = torch.optim.SGD(models[1].parameters(), 0.1)
    losses = [models[0](half).sum() for half in halves]
    models[1](halves[0]).sum().backward()
    updates.clear()
    for loss in losses:
        loss.backward()
        other.step()
    assert updates == [[0], [0]]  # only those of the second model
    torch.testing.assert_close(models[0][0].weight.grad, whole)
    for handle in handles:
        handle.detach()


def test_each_layer_may_have_an_optimiser_of_its_own(updates: list) -> None:
    model = nn.Sequential(nn.Linear(I, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2)).double()
    x = torch.randn(B, I).double()
    expected = None
    for in_backward in (False, True):
        twin = copy.deepcopy(model)
        with grapes.attach(twin):
            for parameter in twin.parameters():
                optimizer = torch.optim.SGD([parameter], 0.1)
                if in_backward:  # each updates as soon as its gradient is there
                    parameter.register_post_accumulate_grad_hook(
                        lambda _, optimizer=optimizer: optimizer.step()
                    )
            twin(x).square().sum().backward()
            if not in_backward:
                for parameter in twin.parameters():
                    parameter.data -= 0.1 * parameter.grad
                expected = list(twin.parameters())
        updates.clear()
    for a, b in zip(twin.parameters(), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_change_between_forward_and_backward_is_an_error() -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)), torch.randn(B, I)
    handle = grapes.attach(model)
    loss = model(x).sum()
    handle.refresh()
    with pytest.raises(RuntimeError, match="between forward and backward"):
        loss.backward()
    with handle:
        loss = model(x).sum()
    with pytest.raises(RuntimeError, match="between forward and backward"):
        loss.backward()


@pytest.mark.parametrize("form", ["propagated", "local"])
@pytest.mark.parametrize("assign", [False, True])
def test_loading_weights_takes_their_factors(form: Any, assign: bool) -> None:
    model, other = (nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)).double() for _ in "ab")
    x = torch.randn(B, I).double()
    with grapes.attach(other, form=form):
        expected = torch.autograd.grad(other(x).square().sum(), list(other.parameters()))
    with grapes.attach(model, form=form) as handle:
        model.load_state_dict(other.state_dict(), assign=assign)
        torch.testing.assert_close(handle.factors()["0"], published(other[0].weight))
        for p in model.parameters():
            p.requires_grad_(True)
        ours = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert bare(model)


def test_weights_changed_by_hand_need_refresh_and_frozen_ones_may_thaw() -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)).double(), torch.randn(B, I).double()
    model[0].requires_grad_(False)
    with grapes.attach(model, form="local") as handle:
        assert not model[0].weight.requires_grad
        model[0].requires_grad_(True)
        with torch.no_grad():
            model[0].weight[0] *= 3
        handle.refresh()
        m = published(model[0].weight)
        torch.testing.assert_close(handle.factors()["0"], m)
        ours = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    torch.testing.assert_close(
        ours, torch.autograd.grad(model(x).sum(), model[0].weight)[0] * m[:, None]
    )


@pytest.mark.parametrize("form", ["propagated", "local"])
def test_a_model_that_becomes_double_has_double_factors(form: Any) -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)), torch.randn(B, I).double()
    with grapes.attach(model, form=form):
        model.double()
        ours = torch.autograd.grad(model(x).square().sum(), model[0].weight)[0]
    with grapes.attach(model, form=form):
        expected = torch.autograd.grad(model(x).square().sum(), model[0].weight)[0]
    assert torch.equal(ours, expected)


# Weights that are not what is trained.


def test_what_a_crossbar_held_counts_and_nothing_is_read_again() -> None:
    plain = nn.Sequential(nn.Linear(I, N), nn.ReLU(), nn.Linear(N, 2))
    chip = to_crossbar(plain, pcm.ACCUMULATION, CrossbarConfig())
    model, x = chip.network, torch.randn(B, I)
    crossbar = chip.crossbars["0.weight"]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with grapes.attach(model) as handle:
        reads: list[Tensor] = []
        read = crossbar.device.read
        crossbar.device.read = lambda: reads.append(read()) or reads[-1]  # type: ignore[assignment]
        model(x).square().sum().backward()
        held = crossbar.held
        optimizer.step()
        assert len(reads) == 1  # that of the forward pass
        torch.testing.assert_close(handle.factors()["0"], published(held))


def test_converters_in_front_of_a_layer_hide_nothing() -> None:
    plain = nn.Sequential(nn.Linear(I, N), nn.ReLU(), nn.Linear(N, 2))
    chip = to_crossbar(plain, pcm.ITERATIVE, CrossbarConfig(adc_bits=8, dac_bits=8))
    x = torch.randn(B, I)
    name = "0.array.parametrizations.weight.original"
    gradient = []
    for gain in (None, "gain"):
        state = torch.get_rng_state()
        handle = grapes.attach(chip.network, control=gain) if gain else None
        torch.set_rng_state(state)
        chip.network(x).sum().backward()
        gradient.append(dict(chip.network.named_parameters())[name].grad.clone())
        chip.network.zero_grad()
    assert handle is not None
    assert handle.layers == ["0"]
    handle.detach()
    assert float(handle._nodes[0].m.min()) == 1
    assert gradient[0].norm() < gradient[1].norm()


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_the_older_norms_are_read_as_the_next_call_will_have_them(norm: Callable) -> None:
    """Their attribute `weight` is that of the last call until the next one."""
    layers = norm(nn.Linear(I, N).double()), nn.Linear(N, 2).double()
    model, x = nn.Sequential(*layers), torch.randn(B, I).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with grapes.attach(model) as handle:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            buffers = [b.clone() for b in model.buffers()]
            found, old = handle.factors()["0"], published(model[0].weight)
            assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
            model(x)
            torch.testing.assert_close(found, published(model[0].weight), rtol=1e-12, atol=0)
            assert not torch.allclose(found, old)


def test_noise_on_weights_is_drawn_as_without_factors() -> None:
    results = []
    for attached in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2))
        noisy_weights(model, 0.1)
        original = model[0].parametrizations.weight.original
        optimizer = torch.optim.SGD([p for p in model.parameters() if p is not original], 1e-9)
        handle = grapes.attach(model) if attached else None
        outs = []
        for _ in range(2):
            out = model(torch.ones(1, I))
            out.sum().backward()
            optimizer.step()
            if handle is not None:
                handle.refresh()
            outs.append(out.detach())
        results.append(torch.cat(outs))
        if handle is not None:
            torch.testing.assert_close(handle.factors()["0"], published(original))
            assert model[0].parametrizations.weight.training
            handle.detach()
    assert torch.allclose(results[0], results[1], atol=1e-5)


# Other machinery of torch.


def test_in_place_activations_views_and_checkpoints_change_nothing() -> None:
    x = torch.randn(B, I).double().requires_grad_()
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(I, N), nn.ReLU(inplace), nn.Linear(N, 2)).double()
        with grapes.attach(model):
            found.append(torch.autograd.grad(model(x).square().sum(), model[0].weight)[0])
            for reentrant in (False, True):
                y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
                model.zero_grad()
                y.square().sum().backward()
                found.append(model[0].weight.grad.clone())
    assert all(torch.equal(gradient, found[0]) for gradient in found)


class Kept(torch.autograd.Function):
    """Hands the error on, and a place that keeps it."""

    kept: Tensor

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:  # type: ignore[override]
        Kept.kept = error
        return error


def _shared(kind: str, y: Tensor) -> Callable[[], Tensor]:
    """Goes back from y with an error of 3 that somebody else holds too; how that one reads it."""
    leaf = torch.zeros_like(y, requires_grad=True)
    error = torch.full_like(y, 3.0)
    if kind == "given":
        y.backward(error)
        return lambda: error
    if kind == "leaf":  # its gradient is this very memory
        ((y + leaf) * 3).sum().backward()
        return lambda: leaf.grad  # type: ignore[return-value]
    if kind == "retained":
        z = y + 0
        z.retain_grad()
        (z * 3).sum().backward()
        return lambda: z.grad  # type: ignore[return-value]
    if kind == "function":
        (Kept.apply(y) * 3).sum().backward()
        return lambda: Kept.kept
    if kind == "view":
        (Kept.apply(y.view(-1)) * 3).sum().backward()
        return lambda: Kept.kept.view_as(y)
    assert kind == "expanded"
    y.sum().mul(3).backward()  # one number for all of y: there is no room to write in
    return lambda: error


@pytest.mark.parametrize("kind", ["given", "leaf", "retained", "function", "view", "expanded"])
def test_an_error_that_somebody_else_holds_is_left_as_it_is(kind: str) -> None:
    model = nn.Sequential(nn.Linear(I, N), nn.Identity())
    with grapes.attach(model, skip=()) as handle:
        y, seen = model(torch.randn(B, I)), []
        y.register_hook(seen.append)
        held = _shared(kind, y)()
        assert torch.equal(held, torch.full_like(held, 3.0))
        assert torch.equal(seen[0], handle.factors()["0"].expand(B, -1) * 3)


class Traced(torch.autograd.Function):
    """Hands a fresh error on, and tells where in memory it lies."""

    place = 0

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:  # type: ignore[override]
        fresh = error * 1
        Traced.place = fresh.data_ptr()
        return fresh


def test_an_error_that_nobody_else_holds_takes_no_second_array() -> None:
    model, where = nn.Linear(I, N), []
    with grapes.attach(model, skip=()):
        y = model(torch.randn(B, I))
        y.register_hook(lambda error: where.append(error.data_ptr()))
        Traced.apply(y).sum().backward()
    assert where == [Traced.place]


def test_attaching_in_inference_mode_counts_owners_as_elsewhere() -> None:
    expected = grapes_hooks._sole_owners()
    assert expected is not None
    with torch.inference_mode():
        grapes_hooks._sole_owners.cache_clear()
        assert grapes_hooks._sole_owners() == expected


def test_many_errors_at_once_are_scaled_as_one_by_one() -> None:
    model = nn.Linear(I, N)
    with grapes.attach(model, skip=()) as handle:
        y = model(torch.randn(B, I))
        (found,) = torch.autograd.grad(
            y * 1, model.bias, torch.eye(B)[..., None].expand(B, B, N), is_grads_batched=True
        )
        assert torch.equal(found, handle.factors()[""].expand(B, -1))


def test_autocast_keeps_the_dtype_of_gradients() -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)), torch.randn(B, I)
    seen: list[torch.dtype] = []
    gradient = []
    for attached in (False, True):
        handle = grapes.attach(model) if attached else None
        keep = model[0].register_forward_hook(
            lambda _m, _x, out: out.register_hook(lambda g: seen.append(g.dtype)) and None
        )
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().sum()
        gradient.append(torch.autograd.grad(loss, model[0].weight)[0])
        keep.remove()
        if handle is not None:
            handle.detach()
    assert set(seen) == {torch.bfloat16}
    expected = gradient[0] * published(model[0].weight)[:, None]
    torch.testing.assert_close(gradient[1], expected, rtol=3e-2, atol=1e-3)


@DYNAMO
@pytest.mark.parametrize("form", ["propagated", "local"])
@pytest.mark.parametrize("kind", ["mlp", "network"])
def test_one_compiled_graph_follows_updates_and_becomes_plain(kind: str, form: Any) -> None:
    torch.compiler.reset()
    if kind == "mlp":
        model: nn.Module = nn.Sequential(nn.Linear(I, N), nn.ReLU(), nn.Linear(N, 2))
    else:
        model = build(ModelConfig(hidden=(N,), unit="snu"), I, 2, "mean")
    x = torch.randn(T, B, I) * 2
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def run(f: Callable) -> list[Tensor]:
        out = f(x)
        out = out if isinstance(out, Tensor) else out[0]
        return list(torch.autograd.grad(out.square().sum(), list(model.parameters())))

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    plain = run(compiled)  # attaching must reach a model that is compiled already
    handle = grapes.attach(model, form=form)
    for _ in range(2):
        eager = run(model)
        assert not torch.allclose(eager[0], plain[0])
        for a, b in zip(run(compiled), eager, strict=True):
            torch.testing.assert_close(a, b)
        for parameter, gradient in zip(model.parameters(), eager, strict=True):
            parameter.grad = gradient
        optimizer.step()
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(compiled)
    handle.detach()
    for a, b in zip(run(compiled), run(model), strict=True):
        torch.testing.assert_close(a, b)


def test_functional_transforms_see_the_factors() -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)).double(), torch.randn(B, I).double()
    with grapes.attach(model):
        parameters = {n: p.detach() for n, p in model.named_parameters()}
        found = torch.func.grad(
            lambda own: torch.func.functional_call(model, own, (x,)).square().sum()
        )(parameters)
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b)


@DYNAMO
def test_the_local_form_refuses_parameters_that_are_not_the_models() -> None:
    model, x = pair().double(), torch.randn(B, I).double()
    others = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}

    def loss(own: dict[str, Tensor], run: Callable = model) -> Tensor:
        return torch.func.functional_call(run, own, (x,)).square().sum()

    with grapes.attach(model, form="local") as handle:
        message = r'^0: the local form .* weight is another .* use form="propagated"'
        for call in (
            lambda: torch.func.grad(loss)(others),
            lambda: loss({"0.weight": others["0.weight"]}),
            lambda: torch.compile(loss, backend="aot_eager")(others),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()
        with torch.no_grad():  # nothing learns
            loss(others)
        head = {n: p for n, p in others.items() if n.startswith("1")}
        assert torch.func.grad(loss)(head).keys() == head.keys()  # the output is not modulated
        model[0].bias = nn.Parameter(torch.zeros(N).double())
        with pytest.raises(RuntimeError, match=r"bias is another .* call refresh\(\)"):
            model(x)
        handle.refresh()
        ours = torch.autograd.grad(model(x).sum(), model[0].bias)[0]
    expected = torch.autograd.grad(model(x).sum(), model[0].bias)[0] * published(model[0].weight)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("form", ["propagated", "local"])
def test_copies_and_pickles_are_plain_and_can_be_attached(form: Any) -> None:
    model = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)).double()
    x = torch.randn(B, I).double()
    plain = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    with grapes.attach(model, form=form) as handle:
        scaled = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _saved(model)):
            assert torch.equal(torch.autograd.grad(twin(x).sum(), twin[0].weight)[0], plain)
            with grapes.attach(twin, form=form):
                assert torch.equal(torch.autograd.grad(twin(x).sum(), twin[0].weight)[0], scaled)
        assert list(model.state_dict()) == list(nn.Sequential(*model).state_dict())
        assert torch.equal(torch.autograd.grad(model(x).sum(), model[0].weight)[0], scaled)
    assert handle.layers == ["0"]


def _saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_an_empty_batch_and_a_forward_pass_without_gradients() -> None:
    unit = make_unit("snu", N)
    model = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2))
    layer = Layer(Dense(I, N, unit), unit)
    with grapes.attach(nn.ModuleList([layer, model])):
        model(torch.randn(0, I)).sum().backward()
        assert torch.equal(model[0].weight.grad, torch.zeros(N, I))
        layer(torch.randn(T, 0, I))[0].sum().backward()
        with torch.no_grad():
            y, state = layer(torch.randn(T, B, I))
        assert y._backward_hooks is None
        assert isinstance(state, State)
        with torch.inference_mode():
            layer(torch.randn(T, B, I))


def test_factors_come_first_and_feedback_takes_what_they_leave() -> None:
    model, x = dense_stack(), torch.randn(B, I).double()
    found = []
    for first in (True, False):
        makers = [lambda: grapes.attach(model, clip=None), lambda: feedback.attach(model, "fa")]
        handles = [make() for make in (makers if first else makers[::-1])]
        found.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
        for handle in handles:
            handle.detach()
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def _worker(rank: int, path: str, results: Any) -> list[Tensor]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    try:
        model, x = _ddp_model()
        parallel = nn.parallel.DistributedDataParallel(model)
        trained = _trained(parallel, model, x[rank::2])
        results.put([p.tolist() for p in trained])
        # A thread of the group lets go of objects of Python, for which it needs the interpreter:
        # it must have done so before the group waits for it and holds the interpreter.
        del parallel
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    return trained


def _ddp_model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    unit = make_unit("softsnu", N)
    layers = [Layer(Dense(I, N, unit), unit)]
    model = nn.ModuleDict({"a": layers[0], "b": nn.Linear(N, 4), "c": nn.Linear(4, 2)})
    model.forward = lambda x: model["c"](model["b"](model["a"](x)[0].mean(0)).tanh())  # type: ignore
    return model.double(), torch.randn(8, T, I).double()


def _trained(run: nn.Module, model: nn.Module, x: Tensor) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with grapes.attach(run):
        for _ in range(3):
            optimizer.zero_grad()
            run(x.transpose(0, 1)).square().mean().backward()
            optimizer.step()
    return list(model.parameters())


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    path = str(tmp_path / "store")
    other = context.Process(target=_worker, args=(1, path, results))
    other.start()
    _worker(0, path, results)
    other.join()
    model, x = _ddp_model()
    alone = _trained(model, model, x)
    for found in (results.get(), results.get()):
        for ours, parameter in zip(found, alone, strict=True):
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), parameter.detach())


# Errors.


def pair() -> nn.Sequential:
    return nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2))


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(N, N), nn.Linear(N, N), nn.Linear(N, 2))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (pair, {"form": "global"}, "form='global' is not known"),
        (pair, {"importance": "mine"}, "importance='mine' is not known"),
        (pair, {"control": "mean"}, "control='mean' is not known"),
        (pair, {"clip": (2.0, 1.0)}, "0 <= low <= high"),
        (pair, {"clip": (1.0, float("inf"))}, "0 <= low <= high"),
        (pair, {"skip": ["2"]}, r"skip=\['2'\].*its layers are \['0', '1'\]"),
        (pair, {"skip": "01"}, "takes names in a list"),
        (pair, {"skip": ["0", "1"]}, "no layer to modulate"),
        (pair, {"importance": "outgoing"}, "no layer to modulate"),
        (dense_stack, {"importance": "outgoing", "form": "propagated"}, "leave one of them out"),
        (lambda: nn.Linear(I, N), {}, "no layer to modulate"),
        (lambda: nn.ReLU(), {}, "no layer"),
        (tied, {"form": "local"}, "are one parameter"),
        (
            lambda: nn.Sequential(nn.LSTM(I, N, proj_size=2), nn.Linear(2, 2)),
            {},
            "proj_size=2",
        ),
        (lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), {}, "is lazy"),
        (
            lambda: nn.Sequential(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)),
            {"importance": "outgoing"},
            "stacks of dense layers",
        ),
        (
            lambda: nn.ModuleList([nn.Linear(1, 2), nn.Linear(2, 3), nn.Linear(2, 3), pair()]),
            {"importance": "outgoing"},
            "no stack",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_mistakes_are_told(make: Callable, options: dict, message: str) -> None:
    model = make()
    hooks = len(_global_optimizer_post_hooks)
    with pytest.raises(ValueError, match=message):
        grapes.attach(model, **options)
    assert bare(model) or "Lazy" in repr(model)  # those have hooks of their own
    assert len(_global_optimizer_post_hooks) == hooks


def test_an_output_layer_that_is_not_registered_last_is_named() -> None:
    model = nn.ModuleDict({"c": nn.Linear(4, 2), "a": nn.Linear(I, N), "b": nn.Linear(N, 4)})
    for options, layers in (
        ({}, ["c", "a"]),
        ({"output": "c"}, ["a", "b"]),
        ({"output": "c", "skip": ["a"]}, ["b"]),
        ({"output": "c", "importance": "outgoing"}, ["b"]),
    ):
        with grapes.attach(model, **options) as handle:
            assert handle.layers == layers
            assert handle.output == options.get("output", "b")
            assert f"output={handle.output!r}" in repr(handle)
    with pytest.raises(ValueError, match=r"output='d' is no layer.*\['c', 'a', 'b'\]"):
        grapes.attach(model, output="d")


def test_a_model_is_attached_once_and_again_after_detaching() -> None:
    model = pair()
    handle = grapes.attach(model)
    with pytest.raises(RuntimeError, match="detach"):
        grapes.attach(model)
    handle.detach()
    with grapes.attach(model, skip=()) as handle:
        assert handle.layers == ["0", "1"]
        assert "propagated" in repr(handle)
    assert grapes.attach(tied()).layers == ["0", "1"]  # shared weights propagate


def test_a_forgotten_handle_lives_as_long_as_its_model() -> None:
    model = pair()
    grapes.attach(model)
    gc.collect()
    assert len(model[0]._forward_hooks) == 1
    count, gone = len(grapes._attached), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(grapes._attached) == count - 1


def test_a_handle_may_be_collected_in_the_middle_of_a_step() -> None:
    collecting = register_optimizer_step_post_hook(lambda *_: gc.collect())
    try:
        model, gone = pair(), pair()
        grapes.attach(gone).notes.append(gone)  # a cycle: only the collector finds it
        with grapes.attach(model) as handle:
            kept, before = weakref.ref(gone), handle.factors()["0"]
            del gone
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            model(torch.randn(4, model[0].in_features)).square().sum().backward()
            optimizer.step()
            assert kept() is None
            assert not torch.equal(handle.factors()["0"], before)
    finally:
        collecting.remove()
