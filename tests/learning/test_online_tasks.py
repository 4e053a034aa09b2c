"""Online rules on tasks: losses, training, memory, refusals."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import peaks
from helpers.online_networks import (
    INPUTS,
    OUTPUTS,
    B,
    T,
    assert_equal,
    data,
    layer_of,
    made,
    network_of,
    stack,
    taken,
)
from helpers.toy_music import toy_songs, write_mat
from torch import Tensor, nn

from spikebridge import build
from spikebridge.data.music import Music
from spikebridge.data.task import Batch, Task
from spikebridge.learning.online import Online
from spikebridge.learning.online_derived import refused
from spikebridge.learning.online_eligibility import unsupported
from spikebridge.nn.layers import Baseline, Layer, Readout
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import (
    Conv2d,
    Dense,
    Embedding,
    Normalised,
)
from spikebridge.nn.units import (
    KINDS,
    LateralUnit,
    Params,
    Rule,
    SNUnit,
    State,
    Unit,
    make_unit,
)
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import MusicConfig

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: made("li-snu"), "lateral inhibition"),
        (lambda: made("adaptive-snu", reset="lateral"), "lateral inhibition"),
        (lambda: made(array=Conv2d((1, 2, 4), 1, 1)), "synapses are a Conv2d; use Dense"),
        (lambda: made(array=Embedding(INPUTS, 8)), "synapses are a Embedding"),
        (lambda: made(array=Normalised(Dense(INPUTS, 8))), "synapses are a Normalised"),
        (lambda: Baseline("gru", INPUTS, 8), "it is a Baseline"),
        (lambda: named(made(), "norm", nn.LayerNorm(8)), "no eligibilities are known for its norm"),
    ],
)
def test_what_it_cannot_train_is_said(layer: Any, reason: str) -> None:
    network = Network([layer()], Readout(8, OUTPUTS, "each"))
    with pytest.raises(ValueError, match=rf"layer 1: .*{reason}"):
        Online(network)


def named(layer: Layer, name: str, part: nn.Module) -> Layer:
    setattr(layer, name, part)
    return layer


class Own(SNUnit):
    """A unit of one's own, whose step is an SNU's but for one thing."""

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        return super().step(state, drive, params)


class Crowded(Own):
    """A neuron hears of its neighbour's last spike, where that has a high membrane too."""

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        loud = ((state.y > 0.5) & (state.s > 1.5)).to(drive.dtype)
        return super().step(state, drive + loud.roll(1, -1), params)


class Even(Own):
    def step(self, state: State, drive: Tensor, params: Params) -> State:
        return super().step(state, drive - drive.mean(0), params)


class Lent(Own):
    """A neuron's threshold is its neighbour's."""

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        return super().step(state, drive, params._replace(bias=params.bias.roll(1, -1)))


class Noisy(Own):
    def step(self, state: State, drive: Tensor, params: Params) -> State:
        return super().step(state, drive + torch.randn_like(drive), params)


class Reading(Own):
    def __init__(self, size: int, rule: Rule, **settings: Any) -> None:
        super().__init__(size, rule, **settings)
        self.gain_in = nn.Parameter(torch.ones(size))

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        return super().step(state, self.gain_in * drive, params)


class Hard(Own):
    def step(self, state: State, drive: Tensor, params: Params) -> State:
        after = super().step(state, drive, params)
        return after._replace(y=(after.s + params.bias > 0).to(drive.dtype))


class Odd(Own):
    @property
    def state_size(self) -> int:
        return self.size + 1


class Square(Own):
    def params(self, dtype: torch.dtype) -> Params:
        return super().params(dtype)._replace(amount=torch.ones(self.size, self.size))


class InPlace(Own):
    def step(self, state: State, drive: Tensor, params: Params) -> State:
        return super().step(state, drive.detach().add_(0.1), params)


class Narrow(Own):
    def step(self, state: State, drive: Tensor, params: Params) -> State:
        after = super().step(state, drive, params)
        return after._replace(s=after.s[:, :-1])


class Shaped(Own):
    def step(self, state: State, drive: Tensor, params: Params) -> State:
        return super().step(state, drive, params._replace(bias=params.bias.view(self.size)))


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Own, None),
        (LateralUnit, "neurons act on one another"),
        (Crowded, "neurons act on one another"),
        (Lent, "neurons act on one another"),
        (Even, "samples of a batch act on one another"),
        (Noisy, "the step is not pure"),
        (InPlace, "it changes its arguments, where it must be pure"),
        (Reading, "reads trained parameters past its arguments"),
        (Hard, "the outputs have no gradient"),
        (Odd, r"\d states of . neurons are not as many"),
        (Square, r"a parameter is \(., .\) in place of \(\) or \(.,\)"),
        (Shaped, r"the step fails for parameters of \(B, N\): shape"),
        (Narrow, r"states and an output of .* in place of \(16, .\) each"),
    ],
)
def test_a_step_that_has_no_eligibilities_is_refused(
    kind: type[Unit], reason: str | None, size: int
) -> None:
    state = torch.get_rng_state()
    unit = kind.make(size)
    found = refused(unit)
    assert torch.equal(torch.get_rng_state(), state) == (kind is not Noisy)
    if reason is None:
        assert found is None
    else:
        assert re.match(rf"{kind.__name__}: .*{reason}", str(found))
    if kind is not LateralUnit:  # which is known by its rule
        layer = Layer(Dense(INPUTS, size), unit)
        assert unsupported(layer) == found


@pytest.mark.parametrize("kind", KINDS)
def test_every_unit_is_served_or_refused_by_name(kind: str) -> None:
    reason = unsupported(made(kind))
    couples = kind == "li-snu"
    assert (reason is not None) == couples
    assert (refused(make_unit(kind, 8)) is not None) == couples


def test_the_example_of_a_unit_of_ones_own_learns_online() -> None:
    spec = importlib.util.spec_from_file_location("own_unit", ROOT / "examples" / "own_unit.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    unit = example.SynapticUnit(7, Rule())
    network = network_of(Layer(Dense(INPUTS, 7, unit), unit, recurrent=True, backend="loop"))
    x, target = data()
    (network(x)[0] - target).square().sum().backward()
    expected = taken(network)
    online = Online(network)
    online.sequence(x, lambda output, t: (output - target[t]).square().sum())
    assert_equal(taken(network), expected)


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
