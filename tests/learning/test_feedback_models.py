"""Feedback beside time, states, compilers, heads and checkpoints."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.feedback_models import (
    EXACT,
    SENDING,
    equal,
    gradients,
    hooks_of,
    inputs_of,
    linear_stack,
    loss_of,
    mlp,
    network,
    output,
    weights_of,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from spikebridge.crossbar.network import to_crossbar
from spikebridge.crossbar.pcm import ideal
from spikebridge.learning import feedback
from spikebridge.learning.angles import angle_deg, gradients_of
from spikebridge.learning.model_layers import nodes
from spikebridge.nn.network import build
from spikebridge.nn.synapses import round_weights
from spikebridge.settings.crossbar import CrossbarConfig
from spikebridge.settings.model import ModelConfig


class OverTime(nn.Module):
    """Layers over a whole sequence (T, B, 6), or called step by step."""

    def __init__(self, by_step: bool, batch_first: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear_stack(3))
        self.by_step, self.batch_first = by_step, batch_first

    def forward(self, x: Tensor) -> Tensor:
        first, second, out = self.layers
        if self.by_step:
            return out(torch.stack([second(first(step)) for step in x]).mean(0))
        if self.batch_first:
            return out(second(first(x.transpose(0, 1))).mean(1))
        return out(second(first(x)).mean(0))


@pytest.mark.parametrize("how", [(True, False), (False, False), (False, True)])
def test_where_nothing_says_how_time_is_taken_every_step_gets_its_share(how: tuple) -> None:
    model = OverTime(*how)
    x = torch.randn(5, 2, 6, dtype=torch.float64)
    exact = gradients(model, x)
    _, second, out = (m.weight.detach() for m in model.layers)
    with feedback.attach(model, "dfa", matrices={"layers.0": out @ second, "layers.1": out}) as h:
        equal(gradients(model, x, h), exact)


def test_time_that_could_be_either_dimension_is_an_error() -> None:
    model, x = OverTime(False), torch.randn(5, 5, 6, dtype=torch.float64)
    with (
        feedback.attach(model, "dfa"),
        pytest.raises(ValueError, match="use a batch of another size"),
    ):
        model(x)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
def test_several_forward_passes_before_one_backward_pass(rule: str) -> None:
    model, classes = mlp().eval(), torch.tensor([0, 1, 2])
    one, other = torch.randn(2, 3, 64, dtype=torch.float64)

    def both() -> Tensor:
        parts = [F.cross_entropy(model(x), classes) for x in (one, other)]
        return parts[0] + parts[1]

    with feedback.attach(model, rule) as handle:
        if rule == "drtp":
            handle.target(classes)
        together = gradients_of(model, both)
        for x in (one, other):
            if rule == "drtp":
                handle.target(classes)
            F.cross_entropy(model(x), classes).backward()
        equal({name: p.grad for name, p in model.named_parameters()}, together)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_a_forward_pass_that_breaks_off_leaves_nothing(rule: str) -> None:
    model, x = mlp().eval(), inputs_of("mlp")
    with feedback.attach(model, rule) as handle:
        clean = gradients(model, x, handle)
        model[3].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(x)
        model[3]._forward_pre_hooks.clear()
        model[:3](x)  # never gets to the output
        equal(gradients(model, x, handle), clean, rtol=0, atol=0)


def test_steps_with_a_state_each_learn_from_their_own_error() -> None:
    """Stepping through time equals one call: a layer's state carries, nothing else does."""
    model = network("softsnu", "each", recurrent=True)
    x = inputs_of("each")
    target = torch.randn(5, 3, 4, dtype=torch.float64)

    def stepping() -> Tensor:
        state, total = None, torch.zeros((), dtype=torch.float64)
        for t in range(5):
            y, state = model(x[t : t + 1], state)
            total = total + (y[0] * target[t]).sum()
        return total

    with feedback.attach(model, "dfa"):
        whole = gradients_of(model, lambda: (model(x)[0] * target).sum())
        equal(gradients_of(model, stepping), whole)


def test_frozen_layers_still_pass_the_error_on() -> None:
    for rule in ("fa", "dfa"):
        model, x = mlp().eval(), inputs_of("mlp")
        with feedback.attach(model, rule) as handle:
            free = gradients(model, x, handle)
            model[2].requires_grad_(False)
            model[5].requires_grad_(False)
            found = gradients(model, x, handle)
        assert found.keys() == {"0.weight", "0.bias"}
        equal(found, {name: free[name] for name in found})


def test_branches_and_skips() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.block = nn.Linear(64, 6).double(), nn.Linear(6, 6).double()
            self.out = nn.Linear(12, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            h = self.into(x).tanh()
            return self.out(torch.cat([h + self.block(h).relu(), h], -1))

    model, x = Residual(), inputs_of("mlp")
    exact = gradients(model, x)
    with feedback.attach(model, "fa", matrices=weights_of(model)) as handle:
        equal(gradients(model, x, handle), exact)
    with feedback.attach(model, "dfa") as handle:
        found = gradients(model, x, handle)
        b = {name: m.double() for name, m in handle.matrices().items()}
    h = model.into(x).tanh()
    y = output(model, x)
    e = torch.autograd.grad(F.cross_entropy(y, torch.arange(3)), y)[0]
    wide = e @ b["block"]  # what both halves of the input of `out` receive
    delta = (wide[:, :6] + wide[:, 6:] + e @ b["into"]) * (1 - h**2)
    torch.testing.assert_close(found["into.weight"], delta.T @ x, **EXACT)


def test_an_embedding_before_the_first_layer_receives_too() -> None:
    config = ModelConfig(unit="softsnu", hidden=(6, 5), embedding=7)
    model = build(config, 9, 4, "mean", symbols=True).double()
    x = torch.randint(9, (5, 3))
    exact = gradients(model, x)
    weights = {node.name: node.array.weight for node in nodes(model)}  # type: ignore[union-attr]
    with feedback.attach(model, "fa", matrices=weights) as handle:
        equal(gradients(model, x, handle), exact)
    with feedback.attach(model, "dfa") as handle:
        assert gradients(model, x, handle)["embedding.weight"].ne(0).any()
        assert handle.matrices()["input"].shape == (4, 7)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_weights_that_are_rounded_or_on_a_crossbar(rule: str) -> None:
    model, x = network(hidden=(6, 5)), inputs_of("recurrent")
    round_weights(model, 4)
    before = loss_of(model, x)
    with feedback.attach(model, rule) as handle:
        assert torch.equal(loss_of(model, x, handle), before)
        assert gradients(model, x, handle)["layers.0.array.parametrizations.weight.original"].any()
    for settings in ({}, {"adc_bits": 8, "dac_bits": 8}):
        plain = nn.Sequential(
            nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)
        )
        chip = to_crossbar(plain, ideal(64), CrossbarConfig(**settings))
        dense = x[0].float()
        names = [name for name, p in chip.network.named_parameters() if p.requires_grad]
        exact = gradients(chip.network, dense)
        assert len(nodes(chip.network)) == 3
        matrices = {n.name: n.array.weight for n in nodes(chip.network)[1:]}  # type: ignore[union-attr]
        with feedback.attach(chip.network, rule, matrices=matrices if rule == "fa" else None) as h:
            found = gradients(chip.network, dense, h)
        if rule == "fa":
            equal(found, exact, rtol=1e-4, atol=1e-6)
        assert all(found[name].any() for name in names)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
def test_states_that_are_computed_twice(rule: str) -> None:
    x = inputs_of("recurrent")
    torch.manual_seed(5)
    kept = build(ModelConfig(unit="softsnu", hidden=(6, 5), recurrent=True), 64, 4, "mean")
    twice = build(
        ModelConfig(unit="softsnu", hidden=(6, 5), recurrent=True), 64, 4, "mean", recompute=2
    )
    twice.load_state_dict(kept.state_dict())
    found = []
    for model in (kept.double(), twice.double()):
        with feedback.attach(model, rule) as handle:
            found.append(gradients(model, x, handle))
    equal(*found)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_mixed_precision(rule: str) -> None:
    model, x = network().float(), inputs_of("recurrent").float()
    with feedback.attach(model, rule) as handle:
        full = gradients(model, x, handle)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            handle.detach()
            plain = output(model, x)
            handle = feedback.attach(model, rule)
            assert torch.equal(output(model, x), plain)
            low = gradients(model, x, handle)
    assert angle_deg(full, low) < 5
    assert all(g.dtype == torch.float32 for g in low.values())


# The compiler reads it of every tensor, and means to keep quiet about that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    ("kind", "rule", "backend"),
    [("mlp", "dfa", "aot_eager"), ("mlp", "fa", "aot_eager"), ("recurrent", "dfa", "eager")],
)
def test_under_torch_compile(kind: str, rule: str, backend: str) -> None:
    model, x = SENDING[kind]().eval(), inputs_of(kind)
    with feedback.attach(model, rule) as handle:
        eager = gradients(model, x, handle)
        compiled = torch.compile(model, backend=backend)
        for _ in range(2):
            found = gradients_of(model, lambda: loss_of(compiled, x, handle))
            equal(found, eager)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_a_graph_that_was_compiled_before_follows_attaching_and_detaching(rule: str) -> None:
    model, x = mlp().eval(), inputs_of("mlp")
    compiled = torch.compile(model, backend="aot_eager")

    def found() -> dict[str, Tensor]:
        return gradients_of(model, lambda: loss_of(compiled, x))

    plain = found()
    equal(plain, gradients(model, x))
    handle = feedback.attach(model, rule)
    eager = gradients(model, x)
    assert angle_deg(eager, plain) > 1
    equal(found(), eager)
    handle.detach()
    equal(found(), plain)
    torch.compiler.reset()


class Heads(nn.Module):
    """One body under layers that are registered in another order than they are called in."""

    def __init__(self, order: str) -> None:
        super().__init__()
        for name in order.split():
            sizes = {"body": (64, 7), "head": (7, 4), "other": (7, 3)}[name]
            self.add_module(name, nn.Linear(*sizes).double())

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).tanh()
        self.second = self.other(h) if hasattr(self, "other") else h
        return self.head(h)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
@pytest.mark.parametrize("order", ["head body", "body head other"])
def test_an_output_layer_that_is_not_registered_last_is_named(order: str, rule: str) -> None:
    model, x = Heads(order), inputs_of("mlp")
    with feedback.attach(model, rule) as handle:
        assert handle.layers[-1] == order.split()[-1]
        assert f"output={handle.layers[-1]!r}" in repr(handle)
        if rule == "fa":
            found = gradients(model, x, handle)
            b = handle.matrices()["head"].double()
        else:
            with pytest.raises(RuntimeError, match=r"^head: .* attach\(.., output='head'\)"):
                gradients(model, x, handle)
    with feedback.attach(model, rule, output="head") as handle:
        assert handle.layers == (*[name for name in order.split() if name != "head"], "head")
        if rule != "fa":
            found = gradients(model, x, handle)
            b = handle.matrices()[handle.layers[-2]].double()
        equal(gradients(model, x, handle), found)
    h = model.body(x).tanh()
    y = model.head(h)
    classes = torch.arange(3)
    e = torch.autograd.grad(F.cross_entropy(y, classes), y)[0]
    sent = -F.one_hot(classes, 4).double() / 3 if rule == "drtp" else e
    torch.testing.assert_close(found["head.weight"], e.T @ h, **EXACT)
    torch.testing.assert_close(found["body.weight"], ((sent @ b) * (1 - h**2)).T @ x, **EXACT)


def test_an_error_past_the_output_layer_is_refused_only_where_it_would_be_lost() -> None:
    model, x = Heads("body other head"), inputs_of("mlp")
    with feedback.attach(model, "dfa"):
        loss = model(x).sum()
        with pytest.raises(RuntimeError, match=r"^other: .* none from the output layer 'head'"):
            (loss + model.second.sum()).backward()
        model.body(x).square().sum().backward()  # there is nothing before the first layer
        model.requires_grad_(False)
        model.other.requires_grad_(True)
        model(x)
        model.second.sum().backward()  # nor anything that learns
    with pytest.raises(
        ValueError, match=r"output='heads' is no layer.*\['body', 'other', 'head'\]"
    ):
        feedback.attach(model, output="heads")
    assert hooks_of(model) == 0


class Echo(nn.RNN):
    """Its state is a part of its very outputs."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y, _ = super().forward(x, state)
        return y, y[-1:]


class Echoes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Echo(64, 6), Echo(6, 5), nn.Linear(5, 4)]).double()

    def forward(self, x: Tensor, states: Any = (None, None)) -> tuple[Tensor, Any]:
        first, second, out = self.layers
        y, low = first(x, states[0])
        y, high = second(y, states[1])
        return out(y), (low, high)


@pytest.mark.parametrize("kind", ["network", "echoes"])
def test_errors_that_a_state_brings_back_are_no_outsiders(kind: str) -> None:
    """Of a loss at the last step: what earlier steps handed out has led to no output."""
    model = Echoes() if kind == "echoes" else network("softsnu", "each", recurrent=True)
    x = inputs_of("each")

    def stepping() -> Tensor:
        y, state = model(x[:1])
        for t in range(1, 5):
            y, state = model(x[t : t + 1], state)
        return y.square().sum()

    with feedback.attach(model, "dfa"):
        whole = gradients_of(model, lambda: model(x)[0][-1].square().sum())
        equal(gradients_of(model, stepping), whole)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
def test_checkpoints_give_the_same_or_are_refused(rule: str) -> None:
    model, classes = mlp().eval(), torch.tensor([0, 2, 1])
    x = inputs_of("mlp").requires_grad_()

    def found(cuts: list[int], reentrant: bool) -> dict[str, Tensor]:
        if rule == "drtp":
            handle.target(classes)

        def loss() -> Tensor:
            y = x
            for part in (model[a:b] for a, b in pairwise(cuts)):
                y = torch.utils.checkpoint.checkpoint(part, y, use_reentrant=reentrant)
            return F.cross_entropy(model[cuts[-1] :](y), classes)

        return gradients_of(model, loss)

    with feedback.attach(model, rule) as handle:
        plain = found([0], reentrant=False)
        equal(found([0, 2, 5], reentrant=False), plain)
        equal(found([0, 6], reentrant=True), plain)  # the error of the output is sent inside
        if rule == "fa":
            equal(found([0, 2, 5], reentrant=True), plain)
            return
        with pytest.raises(RuntimeError, match=r"^2: a reentrant .* pass use_reentrant=False"):
            found([0, 2, 5], reentrant=True)
        with pytest.raises(RuntimeError, match=r"^0: a reentrant .* pass use_reentrant=False"):
            found([0, 2], reentrant=True)


def test_gradients_of_single_samples_by_torch_func() -> None:
    model, x, classes = mlp().eval(), inputs_of("mlp"), torch.tensor([0, 2, 1])
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), t[None])

    single = vmap(grad(loss), (None, 0, 0))
    with feedback.attach(model, "fa"):
        found = single(parameters, x, classes)
        batch = gradients_of(model, lambda: F.cross_entropy(model(x), classes))
        equal({name: g.mean(0) for name, g in found.items()}, batch)
    with (
        feedback.attach(model, "dfa"),
        pytest.raises(RuntimeError, match=r'call backward\(\), or use rule="fa"'),
    ):
        single(parameters, x, classes)


def test_a_copy_of_the_model_is_plain() -> None:
    model, x = mlp().eval(), inputs_of("mlp")
    exact = gradients(model, x)
    for rule in ("fa", "dfa"):
        with feedback.attach(model, rule) as handle:
            assert angle_deg(gradients(model, x, handle), exact) > 1
            equal(gradients(pickle.loads(pickle.dumps(model)), x), exact)
            equal(gradients(copy.deepcopy(model), x), exact)
