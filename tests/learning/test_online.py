"""Gradients that go forward in time against those that go back through it."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import peaks
from helpers.toy_music import toy_songs, write_mat
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikebridge import build
from spikebridge.data.music import Music
from spikebridge.data.task import Batch, Task
from spikebridge.learning.angles import angle_deg
from spikebridge.learning.online import Online
from spikebridge.learning.online_eligibility import G_SLOPES
from spikebridge.nn.gradients import FORMULAS, Surrogate
from spikebridge.nn.layers import Baseline, Layer, Readout
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import (
    Conv2d,
    Dense,
    Embedding,
    Normalised,
    noisy_weights,
    round_weights,
)
from spikebridge.nn.units import G_FUNCTIONS, State, make_unit
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import MusicConfig

BOUND = 1e-10
INPUTS, OUTPUTS, B, T = 5, 3, 4, 12


def layer_of(
    unit: str,
    inputs: int,
    size: int,
    *,
    recurrent: bool = False,
    bias: bool = False,
    **params: Any,
) -> Layer:
    made = make_unit(unit, size, **params)
    layer = Layer(Dense(inputs, size, made, bias=bias), made, recurrent=recurrent, backend="loop")
    if bias:
        nn.init.normal_(layer.array.bias, std=0.1)
    return layer.double()


def network_of(
    *layers: Layer, reduce: str = "each", read: int = 1, out: int = OUTPUTS, **dropouts: Any
) -> Network:
    width = sum(layer.unit.size for layer in layers[-read:])
    return Network(layers, Readout(width, out, reduce), read=read, **dropouts).double()


def stack(depth: int, *, recurrent: bool = False, unit: str = "snu", **params: Any) -> Network:
    read, reduce = params.pop("read", 1), params.pop("reduce", "each")
    sizes = [INPUTS, *(7, 6, 8)[:depth]]
    layers = [layer_of(unit, a, b, recurrent=recurrent, **params) for a, b in pairwise(sizes)]
    return network_of(*layers, read=read, reduce=reduce)


def data(steps: int = T, batch: int = B) -> tuple[Tensor, Tensor]:
    """Inputs (T, B, INPUTS) and what makes outputs a loss, (T, B, OUTPUTS)."""
    noise = torch.Generator().manual_seed(7)
    x = torch.rand(steps, batch, INPUTS, generator=noise, dtype=torch.float64)
    return x, torch.randn(steps, batch, OUTPUTS, generator=noise, dtype=torch.float64)


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum()


def taken(network: nn.Module) -> dict[str, Tensor]:
    """The gradients, taken away."""
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    for parameter in network.parameters():
        parameter.grad = None
    return found


def back(network: Network, x: Tensor, target: Tensor, state: Any = None) -> dict[str, Tensor]:
    """Gradients of backpropagation through time."""
    squared(network(x, state)[0], target).backward()
    return taken(network)


def forth(
    network: Network, x: Tensor, target: Tensor, rule: Any = "ostl", state: Any = None
) -> dict[str, Tensor]:
    Online(network, rule).sequence(x, lambda output, t: squared(output, target[t]), state)
    return taken(network)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], bound: float = BOUND) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = max(1.0, float(other[name].abs().max()))
        torch.testing.assert_close(
            value, other[name], rtol=0, atol=bound * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


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
}
DECAYS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "fixed-per-unit": {"decay": torch.linspace(0.2, 0.9, 7)},
    "shared": {"train_decay": True},
    "per-unit": {"train_decay": True, "per_unit": True},
}


@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
@pytest.mark.parametrize(
    ("kind", "decay"),  # binary units have no decay to choose
    [(k, d) for k in KINDS for d in DECAYS if d == "fixed" or not k.startswith("binary")],
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
    assert_equal(forth(network, x, target), back(network, x, target))


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


def test_gradients_of_a_smooth_unit_are_numerical_ones() -> None:
    """Against differences of the loss itself, with no autograd in between."""
    network = network_of(layer_of("softsnu", INPUTS, 4, recurrent=True, train_decay=True))
    x, target = data()
    found = forth(network, x, target)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            flat, step = parameter.view(-1), 1e-5
            for place in range(0, flat.numel(), 5):
                losses = []
                for sign in (1, -2):
                    flat[place] += sign * step
                    losses.append(float(squared(network(x)[0], target)))
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
            drive = layer.array(now)
            if layer.recurrent is not None:
                heard = before.y.detach() if rule == "eprop" else before.y
                drive = drive + F.linear(heard, layer.recurrent)
            states[number] = layer.unit.step(before, drive, layer.unit.params(x.dtype))
            now = states[number].y
            sent.append(now)
        now = torch.cat(sent[-network.read :], -1)
        total = total + squared(network.readout.linear(now), wanted)
    total.backward()
    prefix = f"layers.{place}."
    return {n: g for n, g in taken(network).items() if n.startswith(prefix)}


@pytest.mark.parametrize("read", [1, 2, 3])
@pytest.mark.parametrize("rule", ["ostl", "eprop"])
@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
@pytest.mark.parametrize("unit", ["snu", "softsnu"])
def test_a_stack_leaves_out_what_the_rule_says(
    unit: str, recurrent: bool, rule: str, read: int
) -> None:
    network = stack(3, unit=unit, recurrent=recurrent, read=read, train_decay=True, g="elu")
    x, target = data()
    state = [part.detach() for part in network(x[:2])[1]]
    found, through = forth(network, x, target, rule, state), back(network, x, target, state)
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


class Frames(Task):
    """Answers at every step, at the last, or in the mean."""

    input_size, output_size = INPUTS, OUTPUTS

    def __init__(self, readout: Any) -> None:
        self.readout = readout


@pytest.mark.parametrize("numbers", [False, True], ids=["classes", "numbers"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("block", [1, 5, T])
def test_the_loss_of_a_task_at_each_step(block: int, padded: bool, numbers: bool) -> None:
    network, task = stack(1, recurrent=True), Frames("each")
    x, target = data()
    # The longest is shorter than T: the last steps count for nobody.
    mask = (torch.arange(T).unsqueeze(1) < torch.tensor([9, 3, 7, 1])) if padded else None
    batch = Batch(x, target if numbers else target.argmax(-1), mask)
    loss = task.loss(network(x)[0], batch)
    loss.backward()
    expected = taken(network)
    if mask is not None:  # what stands at padding must not matter
        batch = batch._replace(x=torch.where(mask.unsqueeze(2), x, torch.tensor(3.0)))
    learned = Online(network).learn(batch, task.loss, block=block)
    assert learned.loss == pytest.approx(loss.item(), abs=1e-12)
    assert_equal(taken(network), expected)


@pytest.mark.parametrize("numbers", [False, True], ids=["classes", "numbers"])
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("block", [1, 5, T])
def test_the_loss_of_a_task_of_whole_samples(block: int, readout: str, numbers: bool) -> None:
    network, task = stack(1, recurrent=True, reduce=readout), Frames(readout)
    x, target = data()
    batch = Batch(x, target[0] if numbers else target[0].argmax(-1), None)
    loss = whole = task.loss(network(x)[0], batch)
    if readout == "mean":
        network.readout.reduce = "each"
        loss = torch.stack([task.loss(output, batch) for output in network(x)[0]]).mean()
        network.readout.reduce = "mean"
        assert loss > whole  # Jensen's inequality
    loss.backward()
    expected = taken(network)
    learned = Online(network).learn(batch, task.loss, block=block)
    assert learned.loss == pytest.approx(loss.item(), abs=1e-12)
    assert_equal(taken(network), expected)


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Music:
    path = tmp_path_factory.mktemp("music") / "toy.mat"
    return Music(MusicConfig(), write_mat(path, toy_songs()))


def trained(music: Music, rule: str | None, hidden: tuple[int, ...], **model: Any) -> float:
    """The loss on the training songs after some epochs, by a rule or by backpropagation."""
    torch.manual_seed(1)
    network = build(ModelConfig(hidden=hidden, **model), 88, 88, "each")
    network.readout.start_at(music.prior)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    online = None if rule is None else Online(network, rule)
    data = torch.Generator().manual_seed(2)
    for _ in range(25):
        for batch in music.batches("train", 4, data):
            optimizer.zero_grad()
            if online is None:
                music.loss(network(batch.x)[0], batch).backward()
            else:
                online.learn(batch, music.loss)
            optimizer.step()
    (batch,) = music.batches("train", 7, data)
    with torch.no_grad():
        return float(music.loss(network(batch.x)[0], batch))


@pytest.mark.parametrize(
    ("rule", "hidden", "model"),
    [
        ("ostl", (30,), {}),
        ("ostl", (20, 20), {}),
        ("ostl", (16,), {"recurrent": True}),
        ("eprop", (30, 30), {"recurrent": True}),
    ],
)
def test_trains_as_far_as_backpropagation(
    music: Music, rule: str, hidden: tuple[int, ...], model: Any
) -> None:
    start = trained_start(music)
    reached, usual = trained(music, rule, hidden, **model), trained(music, None, hidden, **model)
    assert usual < 0.8 * start
    assert reached < usual + 0.15 * (start - usual)
    if rule == "ostl" and len(hidden) == 1:  # the same gradients, but for rounding
        assert reached == pytest.approx(usual, rel=0.02)


def trained_start(music: Music) -> float:
    """The loss of what notes do on average."""
    (batch,) = music.batches("train", 7, torch.Generator())
    assert music.prior is not None
    return float(music.loss(music.prior.expand_as(batch.target), batch))


MEASURE = """
import json, sys, torch
from measure import peak_bytes
from spikebridge.nn.layers import Layer, Readout
from spikebridge.learning.online import Online
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import make_unit
rule, steps = sys.argv[1], int(sys.argv[2])
def layer(i, n):
    unit = make_unit("snu", n)
    return Layer(Dense(i, n, unit), unit, recurrent=True)
network = Network([layer(1600, 3), layer(3, 3)], Readout(3, 20, "each"))
online = Online(network, rule)
def stream(n):
    for _ in range(n):
        yield torch.rand(8, 1600)
loss = lambda output, t: output.square().sum()
online.sequence(stream(50), loss)
before = peak_bytes()
online.sequence(stream(steps), loss)
finite = all(bool(p.grad.isfinite().all()) for p in network.parameters())
print(json.dumps({"grown": peak_bytes() - before, "finite": finite}))
"""


@cache
def measured(rule: str, steps: int) -> dict[str, Any]:
    return peaks.run(MEASURE, rule, steps)


def test_memory_does_not_grow_with_the_length() -> None:
    found = measured("ostl", 1_000)
    assert found["finite"]
    # The inputs of so many steps alone would be 51 MB.
    assert found["grown"] < 8e6


def test_eligibilities_that_are_too_large_are_refused() -> None:
    wide = network_of(layer_of("snu", 88, 150, recurrent=True)).float()
    online = Online(wide, "ostl")
    expected = 2 * 8 * 150 * 150 * (88 + 150 + 2) * 4 / 2**20
    assert online.eligibility_MiB(8) == pytest.approx(expected)
    with pytest.raises(MemoryError, match=r'take 330 MiB.*use rule="eprop", a smaller batch'):
        online.begin(8)
    assert Online(wide, "eprop").eligibility_MiB(8) == pytest.approx(expected / 150)
    Online(wide, "eprop").begin(8)
    forward = network_of(layer_of("snu", 88, 150))
    with pytest.raises(MemoryError, match="use a smaller batch"):
        Online(forward, max_eligibility_MiB=1).begin(8)


def made(unit: str = "snu", array: Any = None, **params: Any) -> Layer:
    own = make_unit(unit, 8, **params)
    return Layer(Dense(INPUTS, 8, own) if array is None else array, own)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: made("li-snu"), "lateral inhibition"),
        (lambda: made("adaptive-snu"), "AdaptiveUnit has no eligibilities"),
        (lambda: made(array=Conv2d((1, 2, 4), 1, 1)), "synapses are a Conv2d; use Dense"),
        (lambda: made(array=Embedding(INPUTS, 8)), "synapses are a Embedding"),
        (lambda: made(array=Normalised(Dense(INPUTS, 8))), "synapses are a Normalised"),
        (lambda: Baseline("gru", INPUTS, 8), "it is a Baseline"),
    ],
)
def test_what_it_cannot_train_is_said(layer: Any, reason: str) -> None:
    network = Network([layer()], Readout(8, OUTPUTS, "each"))
    with pytest.raises(ValueError, match=rf"layer 1: .*{reason}"):
        Online(network)


def test_other_refusals() -> None:
    network = stack(1)
    with pytest.raises(ValueError, match="rule='bptt' is not known"):
        Online(network, "bptt")  # type: ignore[arg-type]
    symbols = build(ModelConfig(hidden=(8,), embedding=4), 9, 9, "each", symbols=True)
    with pytest.raises(ValueError, match="embeds symbols"):
        Online(symbols)
    online = Online(network)
    with pytest.raises(RuntimeError, match=r"call begin\(batch\) first"):
        online.step(torch.zeros(B, INPUTS))
    with pytest.raises(ValueError, match="at least one step"):
        online.sequence([], lambda output, t: None)
    empty = Batch(torch.zeros(0, B, INPUTS), torch.zeros(0, B, OUTPUTS), None)
    with pytest.raises(ValueError, match="got 0 and block=32"):
        online.learn(empty, Frames("each").loss)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        online.begin(0)
    with pytest.raises(ValueError, match="one entry for each of 1 layers, got 2"):
        online.begin(B, [None, None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"state.y must be \(4, 7\)"):
        online.begin(B, [State(torch.zeros(B, 6), torch.zeros(B, 6))])
    online.begin(B)
    with pytest.raises(ValueError, match=r"x must be \(4, 5\) here"):
        online.step(torch.zeros(B, INPUTS + 1))
    handle = network.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"layers\.0 has hooks"):
        Online(network)
    handle.remove()
    Online(network)
