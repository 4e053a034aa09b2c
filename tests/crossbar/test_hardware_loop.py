"""Hardware in the loop: updates as pulses, an optimiser as torch has them."""

from __future__ import annotations

import copy
import io
import math
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spikebridge.base.records import UsageError
from spikebridge.crossbar.cells import CellArray, SimulatedArray
from spikebridge.crossbar.network import CrossbarNetwork, from_crossbar, to_crossbar
from spikebridge.crossbar.optimizer import InMemory
from spikebridge.crossbar.pcm import ACCUMULATION, ITERATIVE, ideal
from spikebridge.nn.layers import Layer
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import make_unit
from spikebridge.settings.crossbar import CrossbarConfig

BIG_STEPS = ideal(pulse_uS=1.0, g_max_uS=1000.0)


def watched(shape: tuple[int, ...]) -> Any:
    """An array that writes down what is asked of it."""
    array = SimulatedArray(shape, BIG_STEPS)
    return Mock(wraps=array, shape=shape, g_max_uS=1000.0, pulse_curve_uS=(0.0, 1.0))


def perceptron() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def in_memory(chip: CrossbarNetwork, **more: Any) -> InMemory:
    return InMemory(torch.optim.SGD(chip.network.parameters(), 1.0), chip, **more)


def pushed(pairs: int, **more: Any) -> tuple[InMemory, Any]:
    """Plain descent on a 2 x 2 matrix, and its cells."""
    chip = to_crossbar(nn.Linear(2, 2), BIG_STEPS, CrossbarConfig(pairs=pairs, w_max=10.0))
    return in_memory(chip, **more), chip.crossbars["weight"].cell_array


def push(optimizer: InMemory, change: list[float]) -> None:
    optimizer.originals["weight"].grad = -torch.tensor(change).view(2, 2)
    optimizer.step()


# --- updates as pulses ---

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.5, fused=True),
}


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_on_an_ideal_cell_it_is_the_optimiser_up_to_pulses(name: str, pairs: int) -> None:
    x = torch.randn(50, 5)
    for epsilon in (2**-7, 2**-11):
        cell = ideal(pulse_uS=12.5 * pairs * epsilon)
        chip = to_crossbar(soft := perceptron(), cell, CrossbarConfig(w_max=2.0, pairs=pairs))
        plain = OPTIMISERS[name](soft.parameters())
        optimizer = InMemory(OPTIMISERS[name](chip.network.parameters()), chip, epsilon=epsilon)
        for _ in range(15):
            for network, stepping in ((soft, plain), (chip.network, optimizer)):
                stepping.zero_grad()
                (network(x) - x[:, :3].tanh()).square().mean().backward()
                stepping.step()
        found = from_crossbar(chip).state_dict()
        gaps = [float((found[key] - value).abs().max()) for key, value in soft.state_dict().items()]
        # A weight lacks less than a pulse; that changes gradients, and these what follows.
        assert 0 < max(gaps) < 4 * epsilon
    assert optimizer.taken()["pulses"] > 100
    assert optimizer.taken() == {"pulses": 0, "refreshed": 0}


@settings(max_examples=25, deadline=None)
@given(
    changes=st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=1, max_size=6),
    epsilon=st.floats(0.05, 2.0),
    pairs=st.integers(1, 3),
)
def test_no_update_is_lost(changes: list[list[float]], epsilon: float, pairs: int) -> None:
    optimizer, array = pushed(pairs, epsilon=epsilon, step_s=2.0)
    for number, change in enumerate(changes, start=1):
        push(optimizer, change)
        chi = optimizer.optimizer.state[optimizer.originals["weight"]]["chi"]
        assert float(chi.abs().max()) <= epsilon * (1 + 1e-5)
        net = (array.pulses[0] - array.pulses[1]).sum(0)
        wanted = torch.tensor(changes[:number]).sum(0).view(2, 2)
        torch.testing.assert_close(net * epsilon + chi, wanted, rtol=0, atol=1e-4)
        both = array.pulses.sum(0)
        assert int((both.amax(0) - both.amin(0)).max()) <= 1  # pairs take turns
        assert array.clock_s == 2.0 * number
    assert (optimizer.pulses, optimizer.updates) == (int(array.pulses.sum()), len(changes))


def test_which_cells_get_how_many_pulses() -> None:
    optimizer, array = pushed(2, epsilon=1.0)
    push(optimizer, [2.7, -2.7, -0.9, 5.2])
    assert array.pulses[0].tolist() == [[[1, 0], [0, 3]], [[1, 0], [0, 2]]]
    assert array.pulses[1].tolist() == [[[0, 1], [0, 0]], [[0, 1], [0, 0]]]
    push(optimizer, [0.2, 0.8, -0.2, -1.5])
    assert array.pulses[0].sum(0).tolist() == [[2, 0], [0, 5]]
    assert array.pulses[1].tolist() == [[[0, 1], [1, 0]], [[0, 1], [0, 1]]]


def test_nothing_is_read_to_verify_a_pulse() -> None:
    chip = to_crossbar(perceptron(), watched, CrossbarConfig(w_max=10.0))
    arrays: list[Any] = [crossbar.cell_array for crossbar in chip.crossbars.values()]
    assert isinstance(arrays[0], CellArray)
    network: Any = chip.network
    optimizer = in_memory(chip, epsilon=0.5, refresh_every=3)
    for number in range(1, 7):
        optimizer.zero_grad()
        network[:2](torch.ones(1, 5)).sum().backward()  # the last matrix has no gradient
        for array in arrays:
            array.reset_mock()
        optimizer.step()
        first, last = ([call[0] for call in array.method_calls] for array in arrays)
        assert first[:2] == ["pulse", "wait"]
        assert ("read" in first) == ("read" in last) == (number % 3 == 0)
        assert "pulse" not in last
    before = perceptron().state_dict()
    torch.testing.assert_close(chip.crossbars["2.weight"].weights(), before["2.weight"])
    assert torch.equal(network[2].bias, before["2.bias"])
    assert not torch.equal(network[0].bias, before["0.bias"])


def test_worn_pairs_are_written_anew() -> None:
    config = CrossbarConfig(w_max=2.0, pairs=2)
    chip = to_crossbar(nn.Linear(3, 4), ideal(pulse_uS=0.5), config)
    crossbar = chip.crossbars["weight"]
    assert crossbar.refresh() == 0
    worn = torch.zeros(4, 3, dtype=torch.int64)
    worn[1, 2] = worn[3, 0] = 86  # of 25 uS, above 3/4 on one side and 1/4 on the other
    crossbar.pulse(worn)
    crossbar.pulse(-worn // 2)
    before, weights, fresh = crossbar.cell_array.read(), crossbar.weights(), worn > 0
    assert crossbar.refresh() == 4
    after = crossbar.cell_array.read()
    torch.testing.assert_close(crossbar.weights(), weights)
    assert not after.amin(0)[:, fresh].any()
    assert torch.equal(after[..., ~fresh], before[..., ~fresh])
    assert crossbar.refresh() == 0


def test_the_change_that_a_pulse_stands_for() -> None:
    g, memory = [0.1], 1.0
    for _ in range(64):
        memory *= math.exp(-1 / 2.6)
        g.append(min(g[-1] - 0.084 * g[-1] + 0.88 + 1.4 * memory, 12.0))
    count = sum(value <= (g[0] + max(g)) / 2 for value in g) - 1
    wanted = (g[count] - g[0]) / count * 0.5 / 12 / 3
    network = nn.Sequential(nn.Linear(2, 2))
    chip = to_crossbar(network, ACCUMULATION, CrossbarConfig(w_max=0.5, pairs=3))
    assert in_memory(chip).epsilons == {"0.weight": pytest.approx(wanted, rel=1e-4)}
    for wrong in ({"epsilon": 0.0}, {"epsilon": -1.0}, {"refresh_every": -1}, {"step_s": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            in_memory(chip, **wrong)
    with pytest.raises(ValueError, match=r"\['0.weight'\]; make it from chip.network.parameters"):
        InMemory(torch.optim.SGD(network.parameters(), 0.1), chip)
    with pytest.raises(UsageError, match=r"no single pulses.*; pass --cells accumulation"):
        in_memory(to_crossbar(network, ITERATIVE))


# --- as torch users treat an optimiser ---

INPUTS = torch.randn(12, 7, 5, generator=torch.Generator().manual_seed(1))
SCHEDULERS: dict[str, Any] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 2),
    "restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        [3],
    ),
}  # fmt: skip


def cells_of(chip: CrossbarNetwork) -> list[Tensor]:
    arrays: list[Any] = [crossbar.cell_array for crossbar in chip.crossbars.values()]
    return [array.conductance() for array in arrays]


class Loop:
    """Twelve batches on noisy cells."""

    def __init__(self, make: Any = lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)) -> None:
        self.chip = to_crossbar(perceptron(), ACCUMULATION, CrossbarConfig(w_max=1.0), seed=4)
        self.inner = make(self.chip.network.parameters())
        self.optimizer = InMemory(self.inner, self.chip, refresh_every=3)

    def backward(self, k: int, forward: Any = None) -> Tensor:
        self.optimizer.zero_grad()
        y = (forward or self.chip.network)(INPUTS[k])
        loss = (y - INPUTS[k, :, :3]).square().mean()
        loss.backward()
        return loss

    def run(self, steps: range) -> list[float]:
        losses = []
        for k in steps:
            losses.append(self.backward(k).item())
            self.optimizer.step()
        return losses


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_may_be_given_either_optimiser(name: str) -> None:
    found = []
    for outer in (False, True):
        loop = Loop()
        assert isinstance(loop.optimizer, torch.optim.Optimizer)
        scheduler = SCHEDULERS[name](loop.optimizer if outer else loop.inner)
        rates = []
        for k in range(10):
            loss = loop.run(range(k, k + 1))[0]
            scheduler.step(*([loss] if name == "plateau" else []))
            rates.append(loop.inner.param_groups[0]["lr"])
            assert loop.optimizer.param_groups[0]["lr"] == rates[-1]
        assert len(set(rates)) > 1
        found.append([rates, *[g.tolist() for g in cells_of(loop.chip)]])
    assert found[0] == found[1]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("order", ["network first", "optimiser first"])
def test_state_dicts_are_all_that_going_on_takes(order: str, optimiser: str) -> None:
    whole, cut = Loop(OPTIMISERS[optimiser]), Loop(OPTIMISERS[optimiser])
    losses = whole.run(range(12))
    assert cut.run(range(5)) == losses[:5]
    file = io.BytesIO()
    torch.save([cut.chip.network.state_dict(), cut.optimizer.state_dict()], file)
    file.seek(0)
    network, state = torch.load(file, weights_only=True)
    new = Loop(OPTIMISERS[optimiser])
    new.run(range(2))  # what it did before is nothing to it
    if order == "network first":
        new.chip.network.load_state_dict(network)
    new.optimizer.load_state_dict(state)
    new.chip.network.load_state_dict(network)
    assert new.optimizer.updates == 5
    assert new.run(range(5, 12)) == losses[5:]
    for one, other in zip(cells_of(new.chip), cells_of(whole.chip), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="changed by pulses"):
        new.chip.compensate()  # what is not known stays so in a file


def test_states_from_before_updates_were_saved_still_load() -> None:
    whole, cut, new = Loop(), Loop(), Loop()
    losses = whole.run(range(12))
    cut.run(range(5))
    new.chip.network.load_state_dict(cut.chip.network.state_dict())
    new.optimizer.load_state_dict(cut.inner.state_dict())
    assert new.optimizer.updates == 0
    new.optimizer.go_on(5)
    assert new.run(range(5, 12)) == losses[5:]


def test_a_closure_is_computed_once_and_its_loss_returned() -> None:
    plain, closed = Loop(), Loop()
    losses = plain.run(range(6))
    calls = []

    def closure(k: int) -> Tensor:
        calls.append(k)
        return closed.backward(k)

    found = [closed.optimizer.step(partial(closure, k)) for k in range(6)]
    assert [loss.item() for loss in found] == losses
    assert calls == [*range(6)]
    with pytest.raises(ValueError, match="LBFGS"):
        InMemory(torch.optim.LBFGS(closed.chip.network.parameters()), closed.chip)
    with pytest.raises(ValueError, match="already; wrap the one of torch"):
        InMemory(closed.optimizer, closed.chip)


def test_a_scaler_leaves_out_what_overflows() -> None:
    loop = Loop()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k, factor in enumerate((1.0, math.inf, 1.0)):
        loop.optimizer.zero_grad()
        scaler.scale(loop.chip.network(INPUTS[k]).mean() * factor).backward()
        scaler.unscale_(loop.optimizer)
        scaler.step(loop.optimizer)
        scaler.update()
    assert loop.optimizer.updates == 2
    assert scaler.get_scale() == 2.0**9
    clock: Any = next(iter(loop.chip.crossbars.values())).cell_array
    assert clock.clock_s == 2.0


def test_hooks_groups_and_copies() -> None:
    loop = Loop()
    seen: list[str] = []
    removable = loop.optimizer.register_step_post_hook(lambda *_: seen.append("step"))
    loop.optimizer.register_state_dict_post_hook(lambda o, s: {**s, "mine": 1})
    loop.optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append("load"))
    loop.run(range(2))
    assert loop.optimizer.state_dict()["mine"] == 1
    loop.optimizer.load_state_dict(loop.optimizer.state_dict())
    assert seen == ["step", "step", "load"]
    removable.remove()
    more = nn.Parameter(torch.ones(3))
    loop.optimizer.add_param_group({"params": [more], "lr": 0.5})
    more.grad = torch.ones(3)
    loop.optimizer.step()
    assert torch.equal(more, torch.full((3,), 0.5))
    twin = copy.deepcopy(loop.optimizer)
    for optimizer in (loop.optimizer, twin):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
    for one, other in zip(cells_of(loop.chip), cells_of(twin.chip), strict=True):
        assert torch.equal(one, other)
    assert twin.updates == loop.optimizer.updates == 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_computes_the_same_pass_again(reentrant: bool) -> None:
    plain, saving = Loop(), Loop()

    def forward(x: Tensor) -> Tensor:
        network: Any = saving.chip.network
        x = x.clone().requires_grad_()
        return checkpoint(network[1:], checkpoint(network[:1], x, use_reentrant=reentrant),
                          use_reentrant=reentrant)  # fmt: skip

    for k in range(6):
        losses = plain.backward(k), saving.backward(k, forward)
        torch.testing.assert_close(*losses)
        pairs = zip(plain.chip.network.parameters(), saving.chip.network.parameters(), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one.grad, other.grad)
        plain.optimizer.step()
        saving.optimizer.step()


@pytest.mark.parametrize("recurrent", [False, True])
def test_states_computed_twice_see_one_read(recurrent: bool) -> None:
    found = []
    for recompute in (0, 2):
        torch.manual_seed(2)
        unit = make_unit("softsnu", 5)
        layer = Layer(Dense(5, 5), unit, recurrent=recurrent, recompute=recompute)
        chip = to_crossbar(layer, ACCUMULATION, seed=3)
        for k in range(3):
            y, _ = chip.network(INPUTS[k : k + 6])
            y.square().sum().backward()
            found.append(y.detach())
            found += [p.grad.clone() for p in chip.network.parameters() if p.grad is not None]
    for one, other in zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True):
        torch.testing.assert_close(one, other)
