"""Online rules: the gradient of backpropagation where they are exact."""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from helpers.online_networks import (
    INPUTS,
    OUTPUTS,
    B,
    assert_equal,
    data,
    layer_of,
    network_of,
    stack,
    stepped,
    taken,
)
from helpers.own_units import OWN, driven, own_layer
from helpers.turns import in_turn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spikebridge.data.task import Batch
from spikebridge.learning.angles import angle_deg
from spikebridge.learning.online import RULES, Eligibilities, Online, attach
from spikebridge.learning.online_derived import Ran
from spikebridge.learning.online_one_state import G_SLOPES, by_hand, derived, family, follows
from spikebridge.nn.dynamics import drives_of
from spikebridge.nn.gradients import FORMULAS, Surrogate
from spikebridge.nn.layers import Layer
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import (
    Dense,
    noisy_weights,
    round_weights,
)
from spikebridge.nn.units import G_FUNCTIONS, State, make_unit
from spikebridge.settings.names import MEMORIES, MODULATIONS


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum()


def back(network: Network, x: Tensor, target: Tensor, state: Any = None) -> dict[str, Tensor]:
    """Gradients of backpropagation through time."""
    squared(network(x, state)[0], target).backward()
    return taken(network)


def forth(
    network: Network,
    x: Tensor,
    target: Tensor,
    rule: Any = "ostl",
    state: Any = None,
    eligibilities: Any = "auto",
) -> dict[str, Tensor]:
    online = attach(network, rule, eligibilities=eligibilities)
    online.sequence(x, lambda output, t: squared(output, target[t]), state)
    return taken(network)


KINDS: dict[str, dict[str, Any]] = {
    "snu": {"unit": "snu"},
    "snu-subtract": {"unit": "snu", "reset": "subtract", "amount": 0.7},
    "snu-trained": {"unit": "snu", "reset": "subtract", "subtract": "trained"},
    "snu-none": {"unit": "snu", "reset": "none"},
    "relaxed": {"unit": "snu", "surrogate": Surrogate(relaxed=True)},
    "softsnu": {"unit": "softsnu"},
    "softsnu-subtract": {"unit": "softsnu", "reset": "subtract"},
    "softsnu-trained": {"unit": "softsnu", "reset": "subtract", "subtract": "trained"},
    "softsnu-none": {"unit": "softsnu", "reset": "none"},
    "binary-di": {"unit": "binary-di"},
    "binary-ci": {"unit": "binary-ci", "bias": True},
    "adaptive-snu": {"unit": "adaptive-snu", "rho": 0.7, "threshold": 0.4},
    "adaptive-trained": {"unit": "adaptive-snu", "reset": "subtract", "subtract": "trained"},
}
WRITTEN = [kind for kind in KINDS if not kind.startswith("adaptive")]
DECAYS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "fixed-per-unit": {"decay": torch.linspace(0.2, 0.9, 7)},
    "shared": {"train_decay": True},
    "per-unit": {"train_decay": True, "per_unit": True},
}


@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
@pytest.mark.parametrize(
    ("kind", "decay"),  # binary units have none to choose
    [
        *in_turn([k for k in KINDS if not k.startswith("binary")], last=[*DECAYS], each=2),
        *((kind, "fixed") for kind in KINDS if kind.startswith("binary")),
    ],
)
def test_one_layer_has_the_gradient_of_backpropagation(
    kind: str, decay: str, recurrent: bool
) -> None:
    network = network_of(
        layer_of(inputs=INPUTS, size=7, recurrent=recurrent, **KINDS[kind], **DECAYS[decay])
    )
    x, target = data()
    state = network(x + 0.1)[1]
    for begin in (None, [part.detach() for part in state]):
        expected = back(network, x, target, begin)
        assert any(bool(g.any()) for n, g in expected.items() if n.startswith("layers"))
        assert_equal(forth(network, x, target, "ostl", begin), expected)
        if kind in WRITTEN:
            assert_equal(forth(network, x, target, "ostl", begin, "derived"), expected)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("g", G_FUNCTIONS)
@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
def test_every_g_and_surrogate(g: str, formula: str, recurrent: bool) -> None:
    layer = layer_of(
        "snu", INPUTS, 7, recurrent=recurrent, bias=True, g=g, train_decay=True,
        surrogate=Surrogate(formula, 0.8, 0.9),
    )  # fmt: skip
    network = network_of(layer)
    with torch.no_grad():
        layer.array.weight.sub_(0.2)  # membranes on both sides of 0
    x, target = data()
    expected = back(network, x, target)
    assert_equal(forth(network, x, target), expected)
    assert_equal(forth(network, x, target, eligibilities="derived"), expected)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
def test_eligibilities_by_hand_are_the_derived_ones(kind: str, recurrent: bool) -> None:
    """In float32 too, in blocks, and where no step has an error."""
    layer = layer_of(inputs=INPUTS, size=7, recurrent=recurrent, **KINDS[kind])
    network = network_of(layer).float()
    x, target = (part.float() for part in data())
    batch = Batch(x, target, torch.arange(len(x)).unsqueeze(1) > torch.tensor([2, 5, 3, 7]))
    for rule in RULES:
        found = []
        for eligibilities in get_args(Eligibilities):
            online = attach(network, rule, eligibilities=eligibilities)
            online.learn(batch, lambda output, part: output[part.mask].square().sum(), block=2)
            found.append(taken(network))
        assert_equal(*found, bound=1e-5)


def test_which_eligibilities() -> None:
    with pytest.raises(ValueError, match="eligibilities='own' is not known"):
        Online(stack(1), eligibilities="own")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("g", G_FUNCTIONS)
def test_slopes_by_hand_are_the_derived_ones(kind: str, g: str) -> None:
    chosen = KINDS[kind] | ({"g": g} if "binary" not in kind else {})
    unit = layer_of(inputs=INPUTS, size=7, **chosen).unit
    assert family(unit)
    before = State(torch.rand(3, B, 7).double().round(), torch.randn(3, B, 7).double())
    drive, params = torch.randn(3, B, 7).double(), unit.params(torch.float64)
    ran = Ran(drive, drive, before, unit.step(before, drive, params))
    hand, step = by_hand(unit, ran, params), derived(unit, ran, params)
    # Where a step lets nothing in, what its output would make of that does not matter.
    enters = hand.drives[0] != 0
    pairs = [(hand.h * enters, step.h * enters), *zip(hand.drives, step.drives, strict=True)]
    pairs += [(getattr(hand, n), getattr(step, n)) for n in ("state", "output", "own", "direct")]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "one"), [("gated", True), ("modulated", False), ("oscillating", False)]
)
def test_which_output_follows_from_one_state(name: str, one: bool) -> None:
    assert follows(own_layer(name, INPUTS, 7).unit) == one
    assert follows(own_layer(name, INPUTS, 7, soft=True).unit) == one
    assert not follows(make_unit("adaptive-snu", 7))
    assert all(follows(make_unit(kind, 7)) for kind in ("snu", "softsnu", "binary-di"))


@pytest.mark.parametrize("g", G_FUNCTIONS)
def test_slopes_of_g_are_its_derivatives(g: str) -> None:
    u = torch.tensor([-3.0, -0.2, 0.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    s = G_FUNCTIONS[g](u, 0.1)
    (expected,) = torch.autograd.grad(s.sum(), u)
    torch.testing.assert_close(G_SLOPES[g](s.detach(), 0.1), expected)


@settings(deadline=None, max_examples=25)
@given(
    steps=st.integers(1, 9),
    batch=st.integers(1, 4),
    size=st.integers(1, 6),
    inputs=st.integers(1, 5),
    recurrent=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(
    steps: int, batch: int, size: int, inputs: int, recurrent: bool, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    network = network_of(
        layer_of("snu", inputs, size, recurrent=recurrent, bias=bias, train_decay=True)
    )
    x = torch.randn(steps, batch, inputs, dtype=torch.float64)
    target = torch.randn(steps, batch, OUTPUTS, dtype=torch.float64)
    assert_equal(forth(network, x, target), back(network, x, target))


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("soft", [False, True], ids=["spiking", "soft"])
@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
def test_a_unit_of_ones_own_has_the_gradient_of_backpropagation(
    own: str, soft: bool, recurrent: bool
) -> None:
    layer = own_layer(own, INPUTS, 7, recurrent=recurrent, soft=soft)
    network = network_of(layer)
    x, target = data()
    for begin in (None, [part.detach() for part in stepped(network, x + 0.1)[1]]):
        squared(stepped(network, x, begin)[0], target).backward()
        expected = taken(network)
        assert all(bool(g.any()) for g in expected.values())
        assert_equal(forth(network, x, target, "ostl", begin), expected)
        assert_equal(forth(network, x, target, "ostl", begin, "derived"), expected)
        if not recurrent:
            assert_equal(forth(network, x, target, "eprop", begin), expected)


@pytest.mark.parametrize("kind", ["softsnu", *OWN])
def test_gradients_of_a_smooth_unit_are_numerical_ones(kind: str) -> None:
    """Against differences of the loss itself, with no autograd in between."""
    if kind in OWN:
        layer = own_layer(kind, INPUTS, 4, recurrent=True, soft=True)
    else:
        layer = layer_of(kind, INPUTS, 4, recurrent=True, train_decay=True)
    network = network_of(layer)
    x, target = data()
    found = forth(network, x, target)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            flat, step = parameter.view(-1), 1e-5
            for place in range(0, flat.numel(), 5):
                losses = []
                for sign in (1, -2):
                    flat[place] += sign * step
                    losses.append(float(squared(stepped(network, x)[0], target)))
                flat[place] += step
                slope = (losses[0] - losses[1]) / (2 * step)
                assert abs(slope - float(found[name].view(-1)[place])) < 1e-5


def cut(
    network: Network, x: Tensor, target: Tensor, place: int, rule: str, state: Any = None
) -> dict[str, Tensor]:
    """What a rule states for one layer, by a graph that is cut where it says.

    Layers above hand on errors within a step only, and with eprop the layer itself hears the
    others' last outputs as if they were inputs.
    """
    states = [
        layer.unit.initial_state(x.shape[1], x.dtype) if state is None else state[number]
        for number, layer in enumerate(network.layers)
    ]
    total: Any = 0.0
    for now, wanted in zip(x, target, strict=True):
        sent = []
        for number, layer in enumerate(network.layers):
            before = states[number]
            if number != place:
                before = before.detach()
            drive = driven(layer, now, before.y.detach() if rule == "eprop" else before.y)
            states[number] = layer.unit.step(before, drive, layer.unit.params(x.dtype))
            now = states[number].y
            sent.append(now)
        now = torch.cat(sent[-network.read :], -1)
        total = total + squared(network.readout.linear(now), wanted)
    total.backward()
    prefix = f"layers.{place}."
    return {n: g for n, g in taken(network).items() if n.startswith(prefix)}


@pytest.mark.parametrize(
    ("unit", "recurrent", "rule", "read"),
    in_turn(
        ["snu", "softsnu", "adaptive-snu", *OWN],
        [False, True],
        ["ostl", "eprop"],
        last=[1, 2, 3],
    ),
)
def test_a_stack_leaves_out_what_the_rule_says(
    unit: str, recurrent: bool, rule: str, read: int
) -> None:
    if unit in OWN:
        sizes = pairwise([INPUTS, 7, 6, 8])
        made = [own_layer(unit, a, b, recurrent=recurrent) for a, b in sizes]
        network = network_of(*made, read=read)
    else:
        network = stack(3, unit=unit, recurrent=recurrent, read=read, train_decay=True, g="elu")
    x, target = data()
    state = [part.detach() for part in stepped(network, x[:2])[1]]
    squared(stepped(network, x, state)[0], target).backward()
    through, found = taken(network), forth(network, x, target, rule, state)
    for place in range(3):
        prefix = f"layers.{place}."
        own = {n: g for n, g in found.items() if n.startswith(prefix)}
        assert_equal(own, cut(network, x, target, place, rule, state))
    top = {n for n in found if n.startswith("readout")}
    if rule == "ostl" or not recurrent:
        top |= {n for n in found if n.startswith("layers.2.")}
    assert_equal({n: found[n] for n in top}, {n: through[n] for n in top})


def test_without_recurrent_weights_the_rules_are_one() -> None:
    network = stack(2)
    x, target = data()
    assert_equal(forth(network, x, target, "ostl"), forth(network, x, target, "eprop"), 0)


@pytest.mark.parametrize("rule", ["ostl", "eprop"])
@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
def test_what_is_left_out_leaves_a_direction_of_descent(recurrent: bool, rule: str) -> None:
    angles, lower = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        network = stack(3, recurrent=recurrent)
        x, target = data(30)
        one, other = forth(network, x, target, rule), back(network, x, target)
        angles.append(angle_deg(one, other))
        names = [n for n in one if n.startswith("layers.0.")]
        lower.append(angle_deg([one[n] for n in names], [other[n] for n in names]))
    assert sum(angles) / len(angles) < 45
    assert sum(lower) / len(lower) < 90
    assert max(lower) > 1  # something is left out


def test_outputs_states_and_loss_are_those_of_the_network() -> None:
    network = stack(2, recurrent=True)
    x, target = data()
    with torch.no_grad():
        output, state = network(x)
    online, seen = Online(network), []

    def loss(out: Tensor, t: int) -> Tensor:
        seen.append(out.detach())
        return squared(out, target[t])

    learned = online.sequence(iter(x), loss)
    torch.testing.assert_close(torch.stack(seen), output, rtol=0, atol=1e-12)
    assert learned.loss == pytest.approx(float(squared(output, target)))
    for one, other in zip(learned.state, state, strict=True):
        torch.testing.assert_close(one.s, other.s, rtol=0, atol=1e-12)
        torch.testing.assert_close(one.y, other.y, rtol=0, atol=0)


@pytest.mark.parametrize("same_mask", [False, True], ids=["each-step", "same-mask"])
def test_dropout_falls_as_in_the_network(same_mask: bool) -> None:
    layers = layer_of("snu", INPUTS, 7, recurrent=True), layer_of("snu", 7, 6)
    network = network_of(*layers, dropout=0.4, dropout_in=0.3, same_mask=same_mask)
    x, target = data()
    torch.manual_seed(5)
    found = forth(network, x, target)
    torch.manual_seed(5)
    if same_mask:
        expected = back(network, x, target)
    else:  # a step at a time draws in the order in which online learning does
        state, total = None, torch.zeros((), dtype=torch.float64)
        for now, wanted in zip(x, target, strict=True):
            output, state = network(now.unsqueeze(0), state)
            total = total + squared(output[0], wanted)
        total.backward()
        expected = taken(network)
    exact = [n for n in found if not n.startswith("layers.0.")]
    assert_equal({n: found[n] for n in exact}, {n: expected[n] for n in exact})
    one, other = ([g[n] for n in g if n not in exact] for g in (found, expected))
    assert 0 < angle_deg(one, other) < 60
    network.eval()
    output = network(x)[0]
    online = Online(network)
    online.begin(B)
    torch.testing.assert_close(online.step(x[0])[0], output[0], rtol=0, atol=1e-12)


def test_weights_with_a_parametrisation_get_its_gradient() -> None:
    network = stack(1, recurrent=True)
    x, target = data()
    round_weights(network, 4)
    assert_equal(forth(network, x, target), back(network, x, target))
    noisy = stack(1, recurrent=True)
    noisy_weights(noisy, 0.1)
    torch.manual_seed(3)
    found = forth(noisy, x, target)
    assert len(found) == len(list(noisy.parameters()))


def test_dropped_recurrent_weights_get_no_gradient() -> None:
    unit = make_unit("softsnu", 7)
    layer = Layer(
        Dense(INPUTS, 7, unit), unit, recurrent=True, dropout_recurrent=0.5, backend="loop"
    )
    network = network_of(layer)
    x, target = data()
    torch.manual_seed(4)
    found = forth(network, x, target)
    torch.manual_seed(4)
    assert_equal(found, back(network, x, target))
    assert 10 < int((found["layers.0.recurrent"] == 0).sum()) < 40


def test_parameters_that_are_not_trained_get_none() -> None:
    network = stack(2)
    network.layers[0].array.weight.requires_grad_(False)
    network.readout.linear.bias.requires_grad_(False)
    x, target = data()
    expected = back(network, x, target)
    found = forth(network, x, target)
    assert found.keys() == expected.keys()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    assert forth(network, x, target) == {}


def test_gradients_add_up_and_are_collected_at_any_time() -> None:
    network = stack(2, recurrent=True, train_decay=True)
    x, target = data()
    once = forth(network, x, target)
    online = Online(network)
    online.begin(B)
    for t, now in enumerate(x):
        online.step(now, lambda output, t=t: squared(output, target[t]))
        if t % 5 == 0:
            online.collect()
    online.collect()
    online.collect()
    assert_equal(taken(network), once)
    for _ in range(2):
        online.sequence(x, lambda output, t: squared(output, target[t]))
    assert_equal(taken(network), {name: 2 * g for name, g in once.items()})


def test_a_change_of_weights_counts_from_the_next_step() -> None:
    network = stack(1)
    x, target = data()
    online = Online(network)
    online.begin(B)
    online.step(x[0], lambda output: squared(output, target[0]))
    online.collect()
    before = online.state
    with torch.no_grad():
        network.layers[0].array.weight.mul_(0.5)
    online.collect()  # reads the weights
    output, _ = online.step(x[1])
    expected, _ = network(x[1:2], before)
    torch.testing.assert_close(output, expected[0], rtol=0, atol=1e-12)


MEMBERS = [*itertools.product(MEMORIES, MODULATIONS)][1:]


@pytest.mark.parametrize("recurrent", ["forward", "recurrent", "with gates"])
@pytest.mark.parametrize("kind", ["snu", "softsnu"])
@pytest.mark.parametrize(("memory", "modulation"), MEMBERS)
def test_every_member_of_the_family_has_the_gradient_of_backpropagation(
    memory: str, modulation: str, kind: str, recurrent: str
) -> None:
    gates = recurrent == "with gates"
    if gates and drives_of(memory, modulation) == 1:
        recurrent, gates = "recurrent", False
    unit = make_unit(kind, 6, memory=memory, modulation=modulation, reset="gate")
    array = Dense(INPUTS, unit.drives * 6, unit)
    layer = Layer(
        array, unit, recurrent=recurrent != "forward", recurrent_gates=gates, backend="loop"
    )
    network = network_of(layer.double())
    x, target = data()
    assert_equal(forth(network, x, target), back(network, x, target))
