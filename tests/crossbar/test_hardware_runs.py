"""Runs that are trained on cells, and their deployment."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers.tiny_runs import left
from helpers.toy_data import write_npz
from safetensors.torch import load_file
from torch import Tensor, nn

from spikebridge.base.records import ConfigError, UsageError, to_plain
from spikebridge.cli import main as cli
from spikebridge.crossbar.network import to_crossbar
from spikebridge.crossbar.pcm import ideal
from spikebridge.crossbar.traffic import counts, listening
from spikebridge.energy.costs import Counts
from spikebridge.nn.network import build, load_network
from spikebridge.nn.synapses import noisy_weights, plain_weights
from spikebridge.runs import rundir, training
from spikebridge.settings.config import Config, override
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import NpzConfig
from spikebridge.trained import on_cells as deployment
from spikebridge.trained.on_cells import CellPlan, deploy

ON_PAPER = CellPlan(CellConfig("ideal"), chips=2, times_s=(0.0, 20.0, 3600.0))


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


def test_on_an_ideal_cell_it_stays_as_in_software(run: Path) -> None:
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
    plan = CellPlan(chips=2, times_s=(20.0, deployment.YEAR_S), samples=8)
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
            CellPlan(**more)


@pytest.mark.parametrize(
    ("flags", "cells"),
    [("--cell-table TABLE", "mine"), ("", "iterative"), ("--cells ideal", "ideal")],
)
def test_the_command_takes_a_cell_model_or_a_table(
    run: Path, tmp_path: Path, flags: str, cells: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("g_uS,write_sd_uS,drift_nu\n0.1,0.2,0.05\n20,0.3,0.04\n")
    words = f"program {run} {flags} --chips 1 --times 20 --no-report --json"
    assert cli.main(words.replace("TABLE", str(table)).split()) == 0
    content = json.loads(capsys.readouterr().out)[str(run)]
    assert content["device"]["name"].startswith(cells)
    memory = content["memory"]
    assert (memory["cells"], memory["cell_table"]) == (
        ("", str(table)) if cells == "mine" else (cells, "")
    )


def test_what_cannot_be_deployed(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match="no complete run in it; name a finished run"):
        deploy(tmp_path, CellPlan())
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
