"""Training with the hardware in the loop, noise instead of it, and deployment of what came out."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers.tiny_runs import left
from helpers.toy_data import write_npz
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spikebridge.base.records import ConfigError, UsageError, to_plain
from spikebridge.cli import main as cli
from spikebridge.crossbar.cells import Device, SimulatedArray
from spikebridge.crossbar.network import CrossbarNetwork, from_crossbar, to_crossbar
from spikebridge.crossbar.optimizer import InMemory
from spikebridge.crossbar.pcm import ACCUMULATION, ITERATIVE, ideal
from spikebridge.crossbar.traffic import counts, listening
from spikebridge.energy.costs import Counts
from spikebridge.nn.layers import Layer
from spikebridge.nn.network import build, load_network
from spikebridge.nn.synapses import Dense, noisy_weights, plain_weights
from spikebridge.nn.units import make_unit
from spikebridge.runs import rundir, training
from spikebridge.settings.config import Config, override
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import NpzConfig
from spikebridge.trained import on_cells as deployment
from spikebridge.trained.on_cells import Plan, deploy

ON_PAPER = Plan(CellConfig("ideal"), chips=2, times_s=(0.0, 20.0, 3600.0))
BIG_STEPS = ideal(pulse_uS=1.0, g_max_uS=1000.0)


def watched(shape: tuple[int, ...]) -> Any:
    """A device that writes down what is asked of it."""
    array = SimulatedArray(shape, BIG_STEPS)
    return Mock(wraps=array, shape=shape, g_max_uS=1000.0, pulse_curve_uS=(0.0, 1.0))


def perceptron() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def in_memory(chip: CrossbarNetwork, **more: Any) -> InMemory:
    return InMemory(torch.optim.SGD(chip.network.parameters(), 1.0), chip, **more)


def pushed(pairs: int, **more: Any) -> tuple[InMemory, Any]:
    """Plain descent on a 2 x 2 matrix, and its device."""
    chip = to_crossbar(nn.Linear(2, 2), BIG_STEPS, CrossbarConfig(pairs=pairs, w_max=10.0))
    return in_memory(chip, **more), chip.crossbars["weight"].device


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
def test_on_an_ideal_device_it_is_the_optimiser_up_to_pulses(name: str, pairs: int) -> None:
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
    optimizer, device = pushed(pairs, epsilon=epsilon, step_s=2.0)
    for number, change in enumerate(changes, start=1):
        push(optimizer, change)
        chi = optimizer.optimizer.state[optimizer.originals["weight"]]["chi"]
        assert float(chi.abs().max()) <= epsilon * (1 + 1e-5)
        net = (device.pulses[0] - device.pulses[1]).sum(0)
        wanted = torch.tensor(changes[:number]).sum(0).view(2, 2)
        torch.testing.assert_close(net * epsilon + chi, wanted, rtol=0, atol=1e-4)
        both = device.pulses.sum(0)
        assert int((both.amax(0) - both.amin(0)).max()) <= 1  # pairs take turns
        assert device.clock_s == 2.0 * number
    assert (optimizer.pulses, optimizer.updates) == (int(device.pulses.sum()), len(changes))


def test_which_cells_get_how_many_pulses() -> None:
    optimizer, device = pushed(2, epsilon=1.0)
    push(optimizer, [2.7, -2.7, -0.9, 5.2])
    assert device.pulses[0].tolist() == [[[1, 0], [0, 3]], [[1, 0], [0, 2]]]
    assert device.pulses[1].tolist() == [[[0, 1], [0, 0]], [[0, 1], [0, 0]]]
    push(optimizer, [0.2, 0.8, -0.2, -1.5])
    assert device.pulses[0].sum(0).tolist() == [[2, 0], [0, 5]]
    assert device.pulses[1].tolist() == [[[0, 1], [1, 0]], [[0, 1], [0, 1]]]


def test_nothing_is_read_to_verify_a_pulse() -> None:
    chip = to_crossbar(perceptron(), watched, CrossbarConfig(w_max=10.0))
    devices: list[Any] = [crossbar.device for crossbar in chip.crossbars.values()]
    assert isinstance(devices[0], Device)
    network: Any = chip.network
    optimizer = in_memory(chip, epsilon=0.5, refresh_every=3)
    for number in range(1, 7):
        optimizer.zero_grad()
        network[:2](torch.ones(1, 5)).sum().backward()  # the last matrix has no gradient
        for device in devices:
            device.reset_mock()
        optimizer.step()
        first, last = ([call[0] for call in device.method_calls] for device in devices)
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
    before, weights, fresh = crossbar.device.read(), crossbar.weights(), worn > 0
    assert crossbar.refresh() == 4
    after = crossbar.device.read()
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
    devices: list[Any] = [crossbar.device for crossbar in chip.crossbars.values()]
    return [device.conductance() for device in devices]


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
    clock: Any = next(iter(loop.chip.crossbars.values())).device
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


# --- runs ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data"), "class", valid=True)


def tiny(folder: Path, **more: Any) -> Config:
    small = {"hidden": (6,), "epochs": 3, "batch_size": 8, "threads": 1, "lr": 0.02}
    return override(Config(task=NpzConfig(data_dir=str(folder))), **(small | more))


def on_cells(folder: Path, **more: Any) -> Config:
    cells = {"cells": "accumulation", "w_max": 2.0, "epsilon": 0.03, "refresh_every": 2}
    return tiny(folder, **(cells | more))


def all_left(directory: Path) -> dict[str, Any]:
    cells = {k: v.numpy().tobytes() for k, v in load_file(directory / rundir.CHIP).items()}
    return left(directory) | {"chip": cells}


SETTINGS: list[dict[str, Any]] = [
    {"recurrent": True},
    {"unit": "softsnu", "optimizer": "adamw", "weight_decay": 0.1, "pairs": 2, "dead": 0.05},
    {"optimizer": "sgd", "lr": 0.3, "cells": "accumulation-2020", "dropout": 0.2, "tile": 4},
    {"unit": "relu", "drive_bias": True},
]


def cut_and_resumed(config: Config, directory: Path) -> dict[str, Any]:
    stopping = Mock(epoch=Mock(side_effect=KeyboardInterrupt))  # after the first epoch
    with pytest.raises(KeyboardInterrupt):
        training.run(config, directory, progress=stopping)
    training.run(config, directory, resume=True)
    return all_left(directory)


@pytest.mark.parametrize("more", SETTINGS, ids=str)
def test_runs_on_cells(tmp_path: Path, folder: Path, more: dict[str, Any]) -> None:
    config = on_cells(folder, **more)
    training.run(config, tmp_path / "whole")
    whole = all_left(tmp_path / "whole")
    assert cut_and_resumed(config, tmp_path / "cut") == whole
    assert all(epoch["best"] and epoch["pulses"] > 0 for epoch in whole["epochs"])
    assert whole["result"]["best_epoch"] == 3
    plain = load_network(tmp_path / "whole" / rundir.MODEL)
    assert not [key for key in plain.state_dict() if "parametrizations" in key]
    training.run(override(config, seed=1), tmp_path / "other")
    assert all_left(tmp_path / "other")["chip"] != whole["chip"]


def test_a_run_with_an_update_left_out_resumes_too(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = training._Run._clip

    def overflowing(run: Any) -> Tensor:
        return torch.tensor(math.inf) if run.state.step == 1 else clip(run)

    monkeypatch.setattr(training._Run, "_clip", overflowing)
    config = on_cells(folder)
    training.run(config, tmp_path / "whole")
    assert cut_and_resumed(config, tmp_path / "cut") == all_left(tmp_path / "whole")


@pytest.mark.parametrize("more", [{"dac_bits": 8, "adc_bits": 8}], ids=str)
def test_settings_that_go_with_cells(tmp_path: Path, folder: Path, more: dict[str, Any]) -> None:
    training.run(on_cells(folder, epochs=1, **more), tmp_path)
    load_network(tmp_path / rundir.MODEL)


EXCLUDED: list[tuple[dict[str, Any], str]] = [
    ({"ema": 0.9}, "ema=0.9: cells hold the weights"),
    ({"unit": "lstm"}, "unit=lstm: .*; train a spiking unit"),
    ({"weight_noise": 0.1}, "each read draws"),
    ({"weight_bits": 4}, "cells hold what they hold"),
    ({"cells": "", "recompute": 2, "weight_noise": 0.1}, "recompute"),
]


@pytest.mark.parametrize(("more", "message"), EXCLUDED)
def test_settings_that_exclude_each_other(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        on_cells(Path(), **more)


def test_noise_is_for_training_only(tmp_path: Path, folder: Path) -> None:
    network: Any = nn.Sequential(nn.Linear(200, 200))
    weight = network[0].weight.detach().clone()
    noisy_weights(network, 0.1)
    gap = (network[0].weight - weight).detach() / weight.abs().max()
    assert (float(gap.std()), float(gap.mean())) == pytest.approx((0.1, 0), rel=0.02, abs=0.002)
    network[0].weight.sum().backward()
    assert bool((network[0].parametrizations.weight.original.grad == 1).all())
    assert torch.equal(network.eval()[0].weight, weight)
    plain_weights(network)
    assert list(network.state_dict()) == ["0.bias", "0.weight"]
    without = training.run(tiny(folder), tmp_path / "without")
    noisy = training.run(tiny(folder, weight_noise=0.3), tmp_path / "noisy")
    assert noisy.test_loss != without.test_loss
    assert deploy(tmp_path / "noisy", ON_PAPER).software == noisy.test


# --- fine-tuning and deployment ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    done = training.run(tiny(folder, recurrent=True), tmp_path_factory.mktemp("finished"))
    return done.directory


@pytest.mark.parametrize("more", [{}, {"cells": "ideal"}, {"weight_noise": 0.1}], ids=str)
def test_a_run_starts_from_the_weights_of_another(
    tmp_path: Path, folder: Path, run: Path, more: dict[str, Any]
) -> None:
    small = {"recurrent": True, "lr": 1e-9, "epochs": 1, "start": str(run)}
    training.run(tiny(folder, **(small | more)), tmp_path / "tuned")
    after, before = (load_file(d / rundir.MODEL) for d in (tmp_path / "tuned", run))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    for wrong in ({"start": str(tmp_path)}, {"hidden": (7,)}, {"unit": "li-snu"}):
        with pytest.raises(UsageError, match=r"(?s)start=.*; give the folder of"):
            training.run(tiny(folder, **(small | more | wrong)), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_on_an_ideal_device_it_stays_as_in_software(run: Path) -> None:
    told: list[tuple[int, float, float]] = []
    found = to_plain(deploy(run, ON_PAPER, lambda *test: told.append(test)))
    assert found == json.loads((run / rundir.MEMORY).read_text())
    assert found["software"] == (test := rundir.read_result(run).test)
    assert found["plain"] == found["compensated"] == [[test] * 3] * 2
    assert told == [(chip, time_s, test) for chip in range(2) for time_s in ON_PAPER.times_s]
    assert [layer["cells"] for layer in found["layers"]] == [2 * 36, 2 * 18, 2 * 18]
    assert max(layer["error"] for layer in found["layers"]) < 1e-6
    for entry in found["histograms"]["at"]:
        assert sum(entry["cells"]) == found["cells"] == 144
    for hardware in found["energy"]["hardware"].values():
        rows = [row["count"] * row["unit_pJ"] for row in hardware["rows"]]
        assert [row["energy_pJ"] for row in hardware["rows"]] == pytest.approx(rows)
        assert hardware["total_pJ"] == pytest.approx(math.fsum(rows))


def test_a_deployment_repeats_with_its_seed(run: Path) -> None:
    plan = Plan(chips=2, times_s=(20.0, deployment.YEAR_S), samples=8)
    found = to_plain(deploy(run, plan))
    assert to_plain(deploy(run, plan)) == found
    assert found["layers"] != to_plain(deploy(run, dataclasses.replace(plan, seed=5)))["layers"]
    for curve in found["drift"]["curves"]:
        assert curve["mean_uS"][-1] < 0.8 * curve["mean_uS"][0]


def test_plans_that_cannot_be() -> None:
    wrong: list[dict[str, Any]] = [{"chips": 0}, {"samples": -1}, {"cells": CellConfig()}]
    wrong += [{"seed": -1}, {"seed": 2**63}]
    wrong += [{"times_s": times} for times in ((), (5.0, 5.0), (-1.0, 5.0))]
    for more in wrong:
        with pytest.raises(UsageError, match=r"pass --(chips|times|samples|seed|cells)"):
            Plan(**more)


@pytest.mark.parametrize(
    ("flags", "device"),
    [("--cell-table TABLE", "mine"), ("", "iterative"), ("--cells ideal", "ideal")],
)
def test_the_command_takes_a_device_or_a_table_of_one(
    run: Path, tmp_path: Path, flags: str, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("g_uS,write_sd_uS,drift_nu\n0.1,0.2,0.05\n20,0.3,0.04\n")
    words = f"program {run} {flags} --chips 1 --times 20 --no-report --json"
    assert cli.main(words.replace("TABLE", str(table)).split()) == 0
    content = json.loads(capsys.readouterr().out)[str(run)]
    assert content["device"]["name"].startswith(device)
    memory = content["memory"]
    assert (memory["cells"], memory["cell_table"]) == (
        ("", str(table)) if device == "mine" else (device, "")
    )


def test_what_cannot_be_deployed(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match="no complete run in it; name a finished run"):
        deploy(tmp_path, Plan())
    deploy(run, dataclasses.replace(ON_PAPER, crossbar=CrossbarConfig(adc_bits=14)))


# --- events ---


@pytest.mark.parametrize("symbols", [False, True])
@torch.no_grad()
def test_events_of_an_inference(symbols: bool) -> None:
    network = build(ModelConfig(hidden=(12, 9), recurrent=True), 20, 4, "each", symbols=symbols)
    x = torch.randint(20, (5, 3)) if symbols else torch.randint(2, (5, 3, 20)).float()
    chip = to_crossbar(network, ideal(), CrossbarConfig(tile=6, pairs=2, adc_bits=8))
    with listening(chip.network) as (traffic, updates):
        chip.network(x)
    sparse, dense = counts(traffic, updates, chip, 3)
    seen = traffic.values()
    events, macs = sum(t.events for t in seen), sum(t.macs for t in seen)
    wanted = Counts(
        macs=macs,
        weights_fetched=macs,
        accumulates=events,
        neuron_updates=15 * 21,
        cell_reads=4 * events,
        read_uS=3 * sparse.read_uS,
        adc_conversions=sum(t.vectors * t.columns * math.ceil(t.rows / 6) for t in seen),
        row_events=sum(t.active * math.ceil(t.columns / 6) for t in seen),
        tile_reads=15 * len(traffic),
    )
    assert dense == Counts()
    # Fails with symbols: Crossbar.tiles of an Embedding, whose matrix is (inputs, outputs), are
    # taken for those of a matrix (outputs, inputs).
    assert dataclasses.asdict(3 * sparse) == pytest.approx(dataclasses.asdict(wanted))


@torch.no_grad()
def test_a_state_that_is_carried_over_counts() -> None:
    network = build(ModelConfig(hidden=(12, 9), recurrent=True), 10, 4, "each")
    x = (torch.rand(5, 3, 10) < 0.5).float()
    with listening(network) as (whole, _):
        network(x)
    with listening(network) as (parts, _):
        network(x[3:], network(x[:3])[1])
    assert parts == whole
