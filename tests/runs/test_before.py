"""Files of before: thresholds named as their negative, states with the membrane first; runs whole.

`before/run` is a run of the digits on cells that was then programmed, exported, proved, measured
and tested at other numbers of steps; `before/sequence` is one of tasks one after the other.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spikebridge import SNU, load_network
from spikebridge.base.records import UsageError, to_plain
from spikebridge.learning.consolidation import SI
from spikebridge.nn.network import Network, build
from spikebridge.nn.scan import loop
from spikebridge.nn.units import State, make_unit
from spikebridge.report import page
from spikebridge.runs import checkpoint, rundir, training
from spikebridge.runs.hardware_results import (
    load_by_steps,
    load_on_cells,
    load_on_chip,
    load_proof,
)
from spikebridge.runs.load import load_run
from spikebridge.runs.optimizers import make_optimizer
from spikebridge.settings.config import TrainConfig, override
from spikebridge.settings.model import ModelConfig
from spikebridge.trained import by_steps, on_cells, on_chip

BEFORE = Path(__file__).parents[1] / "data" / "before"
MODEL = ModelConfig(
    unit="snu", hidden=(6, 5), threshold=0.7, recurrent=True, train_decay=True, g="leaky_relu"
)


@pytest.fixture(scope="module")
def expected() -> dict:
    return torch.load(BEFORE / "expected.pt")


def go_on(network: Network, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    for _ in range(4):
        optimizer.zero_grad()
        network(x)[0].square().sum().backward()
        optimizer.step()


def test_a_network_file_loads() -> None:
    network = load_network(BEFORE / "model.safetensors")
    thresholds = [layer.unit.threshold for layer in network.layers]
    assert all(torch.equal(t, torch.full_like(t, 0.7)) for t in thresholds)


def test_a_training_goes_on_from_a_checkpoint(expected: dict) -> None:
    """Moments included: the threshold is trained, the earlier version trained its negative."""
    network = build(MODEL, 4, 3, "mean")
    train = TrainConfig(optimizer="adam", lr=1e-2, schedule="constant", weight_decay=0.0)
    optimizer = make_optimizer(train, list(network.parameters()))
    path, data = BEFORE / "checkpoint.safetensors", torch.Generator()
    found = checkpoint.restore(path, network, optimizer, data, {})
    for weights in (found.best, found.average):
        assert weights.keys() == network.state_dict().keys()
        assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())
    go_on(network, optimizer, expected["x"])
    torch.testing.assert_close(network(expected["x"])[0].detach(), expected["output"])
    for name, value in expected["trained"].items():
        now = name.replace("unit.bias", "unit.threshold")
        value = -value if now != name else value
        torch.testing.assert_close(network.state_dict()[now], value, rtol=1e-5, atol=1e-6)


def test_states_and_state_dicts_go_on(expected: dict) -> None:
    states = torch.load(BEFORE / "state.pt")
    assert isinstance(states["state"], State)
    layer = SNU(4, 5, 2, threshold=0.4, recurrent=True, g="identity", decay=0.8, reset="gate")
    layer.load_state_dict(expected["layer"])
    y, last = layer(expected["x"], states["state"])
    torch.testing.assert_close(y, expected["y"])
    torch.testing.assert_close(last.s, expected["s"])
    unit = make_unit("adaptive-snu", 4, threshold=0.4)
    unit.load_state_dict(expected["unit"])
    trace = loop(unit, expected["x"], None, states["adaptive"])
    torch.testing.assert_close(trace.y, expected["adaptive_y"])
    torch.testing.assert_close(trace.s, expected["adaptive_s"])
    torch.testing.assert_close(trace.state.s[:, 4:], expected["adaptive_a"])


def test_states_of_today_are_kept_as_they_are() -> None:
    state = State(torch.zeros(1, 2, 3), torch.ones(1, 2, 3))
    again = pickle.loads(pickle.dumps(state))
    assert torch.equal(again.y, state.y)
    assert torch.equal(again.s, state.s)
    assert State(s=state.s, y=state.y)[0] is state.y


def test_what_holds_weights_back_is_read_by_todays_names() -> None:
    network = build(MODEL, 4, 3, "mean")
    si = SI(network, 0.1)
    si.path["layers.0.unit.threshold"].fill_(0.3)
    old = {k.replace("unit.threshold", "unit.bias"): v for k, v in si.state_dict().items()}
    old["anchor.layers.0.unit.bias"] = torch.full((6,), -0.9)
    si.load_state_dict(old)
    assert si.anchor["layers.0.unit.threshold"].unique().item() == pytest.approx(0.9)
    assert si.path["layers.0.unit.threshold"].unique().item() == pytest.approx(0.3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the whole run."""
    return Path(shutil.copytree(BEFORE / "run", tmp_path / "run"))


def content(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


def test_a_run_is_read_with_all_that_was_made_of_it(run: Path) -> None:
    loaded = load_run(run)
    assert (loaded.task, loaded.data, loaded.unit, loaded.metric) == (
        "digits", "digits8x8", "snu", "accuracy",
    )  # fmt: skip
    assert [epoch.epoch for epoch in loaded.epochs] == [1, 2]
    assert rundir.read_result(run).test == content(run, "result.json")["test"]
    assert rundir.read_config(run).pulses.refresh_every == 20
    assert loaded.examples is not None
    assert to_plain(load_by_steps(run)) == content(run, "steps.json")
    cells = load_on_cells(run)
    assert cells is not None
    assert cells.plain.tolist() == content(run, "memory.json")["plain"]
    assert cells.training is not None
    digital, proof = load_on_chip(run), load_proof(run)
    assert digital is not None
    assert digital.integer == content(run, "digital.json")["integer"]
    assert proof is not None
    assert (proof.samples, proof.simulators, proof.equal) == (20, ("icarus",), True)


def test_a_run_has_its_page(run: Path) -> None:
    text = page.write(run).read_text()
    for heading in (
        "On the digital chip",
        "RTL equal to the integer model",
        "In memory",
        "Hardware in the loop",
    ):
        assert heading in text


def test_a_complete_run_is_gone_on_with_where_settings_agree(run: Path) -> None:
    config, result = rundir.read_config(run), rundir.read_result(run)
    assert training.run(config, run, resume=True) == result
    with pytest.raises(UsageError, match="a complete run lies there"):
        training.run(config, run)
    with pytest.raises(UsageError, match=r"lr \(0\.02 there, 0\.5 asked for\)"):
        training.run(override(config, lr=0.5), run, resume=True)


def test_an_incomplete_run_comes_to_the_same_end(run: Path) -> None:
    config, old = rundir.read_config(run), content(run, "result.json")
    model = load_file(run / rundir.MODEL)
    (run / rundir.RESULT).unlink()
    new = json.loads(json.dumps(to_plain(training.run(config, run, resume=True))))
    assert new.keys() == old.keys() | {"baselines"}
    named = new["notes"].pop()
    assert named.startswith("for comparison, test accuracy: largest class")
    for name, value in old.items():
        assert new[name] == (pytest.approx(value) if isinstance(value, float | dict) else value)
    again = load_file(run / rundir.MODEL)  # its description names settings that came since
    assert {name: x.shape for name, x in again.items()} == {n: x.shape for n, x in model.items()}


def test_a_run_is_asked_the_same_again(run: Path) -> None:
    """In software, in integers and on cells."""
    steps, digital = content(run, "steps.json"), content(run, "digital.json")
    assert by_steps.by_steps(run, steps["steps"]).test == pytest.approx(steps["test"])
    on_chip.export(run, on_chip.ChipPlan(samples=64))
    again = content(run, "digital.json")
    for name in ("integer", "software", "counts", "area_mm2", "program", "chip"):
        now = again[name]
        if isinstance(now, dict):  # of what was not known then there is nothing
            new = {key: value for key, value in now.items() if key not in digital[name]}
            assert not any(new.values()) or name == "chip", new
            # Where nobody sets them, bits of decays are chosen by the network now: here 8, as then.
            now |= {"decay_bits": 8} if now.get("decay_bits") == -1 else {}
            now = {key: value for key, value in now.items() if key in digital[name]}
        assert now == pytest.approx(digital[name])
    plan = on_cells.CellPlan(
        cells=on_cells.CellConfig("iterative"), chips=1, times_s=(20.0,), samples=64
    )
    on_cells.deploy(run, plan)
    assert (
        content(run, "memory.json")["software"]
        == content(BEFORE / "run", "memory.json")["software"]
    )


def test_a_run_of_tasks_one_after_the_other_is_read(tmp_path: Path) -> None:
    run = Path(shutil.copytree(BEFORE / "sequence", tmp_path / "sequence"))
    before, config = content(run, "continual.json"), rundir.read_config(run)
    assert config.sequence.used
    forgetting = f"{100 * before['measures']['forgetting']:.2f}"
    assert forgetting in page.write(run).read_text()
    result = training.run(config, run, resume=True)
    sequence = to_plain(result)["sequence"]
    assert {name: before[name] for name in sequence} == json.loads(json.dumps(sequence))
    assert (result.label, result.parameters) == (before["label"], before["parameters"])
    assert forgetting in page.write(run).read_text()


def test_a_run_of_tasks_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """With the bits of one that was not."""
    run = Path(shutil.copytree(BEFORE / "sequence-stopped", tmp_path / "run"))
    config = rundir.read_config(run)
    assert (config.sequence.method, config.sequence.strength) == ("si", 1.0)
    whole = training.run(config, tmp_path / "whole").sequence
    assert training.run(config, run, resume=True).sequence == whole
