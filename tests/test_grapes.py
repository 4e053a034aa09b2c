"""Laws of GRAPES: forward untouched, errors scaled as published, nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from spikebridge.gradients import modulate
from spikebridge.layers import Baseline, Layer, Plain
from spikebridge.learning import grapes
from spikebridge.rnn import SNU
from spikebridge.synapses import Conv2d, Dense, Embedding, Normalised, round_weights
from spikebridge.units import KINDS, make_unit

# Another recording in the same format can be put in its place.
RECORDING = Path(
    os.environ.get(
        "SPIKEBRIDGE_GRAPES_VECTORS", Path(__file__).parent / "data" / "grapes_authors.npz"
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


# --- the authors' own numbers -------------------------------------------------------------------


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


# --- every kind of layer ------------------------------------------------------------------------


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


# --- stacks that hold several layers --------------------------------------------------------------


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


# --- states -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", CARRIED)
def test_the_error_at_a_state_that_is_used_is_scaled_too(kind: str, batched: bool) -> None:
    layer = carried(kind).double()
    if not batched and isinstance(layer, Layer):
        pytest.skip("a Layer takes (T, B, I)")
    x = torch.randn(T, B, I).double() * 2
    x = x if batched else x[:, 0]
    head = nn.Linear(N, 2).double()
    model = nn.ModuleList([layer, head])

    def loss(factor: Tensor | None) -> Tensor:
        _, state = layer(x)
        total = torch.zeros(())
        for number, part in enumerate(_flat(state), start=2):
            total = total + (part if factor is None else modulate(part, factor)).sum() * number
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
