"""Laws of GRAPES: forward untouched, errors scaled as published, nothing left behind."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.grapes_models import (
    CASES,
    DYNAMO,
    B,
    I,
    N,
    T,
    bare,
    gates,
    gradients,
    made,
    published,
    same,
)
from torch import Tensor, nn

from spikebridge.learning import grapes
from spikebridge.nn.gradients import modulate
from spikebridge.nn.layers import Baseline, Layer
from spikebridge.nn.rnn import SNU
from spikebridge.nn.synapses import (
    Dense,
    Normalised,
)
from spikebridge.nn.units import make_unit


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
            each = m if rows >= len(m) else m[::9]  # channels of 3 by 3 neurons
            factor = each.repeat(rows // len(each))
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


def test_factors_can_be_taken_anew_at_every_third_step_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    both = [torch.optim.SGD(model.parameters(), 0.01) for _ in range(2)]
    handle = grapes.attach(model, refresh_every=3)
    assert "refresh_every=3" in repr(handle)
    factors = []
    for step in range(7):
        model(torch.randn(3, 4)).square().sum().backward()
        if step == 2:  # each optimiser counts its own steps
            both[1].step()
        both[0].step()
        factors.append(handle.factors()["0"])
    anew = [not torch.equal(a, b) for a, b in pairwise(factors)]
    assert anew == [False, True, False, False, True, False]
    handle.refresh()
    torch.testing.assert_close(handle.factors()["0"], grapes.factor(model[0].weight))


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_refresh_every_is_a_number_of_steps(every: Any, error: type[Exception]) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(error, match="refresh_every"):
        grapes.attach(model, refresh_every=every)
