"""Online rules on tasks: losses, training, memory, refusals."""

from __future__ import annotations

from functools import cache
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

from spikebridge import build
from spikebridge.data.music import Music
from spikebridge.data.task import Batch, Task
from spikebridge.learning.online import Online
from spikebridge.nn.layers import Baseline, Readout
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import (
    Conv2d,
    Dense,
    Embedding,
    Normalised,
)
from spikebridge.nn.units import State
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import MusicConfig


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
