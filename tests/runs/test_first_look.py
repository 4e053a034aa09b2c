"""What is said of inputs with which no network can work, before it is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spikebridge.cli import main as cli
from spikebridge.data.images import Digits
from spikebridge.nn.network import build
from spikebridge.nn.synapses import Normalised
from spikebridge.runs import rundir
from spikebridge.runs.first_look import remarks
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import DigitsConfig


def notes(tmp_path: Path, scale: float, *flags: str, ragged: bool = False) -> list[str]:
    random = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 10)):
        x = random.normal(size=(count, 12, 3)) * scale
        more = {"lengths": random.integers(1, 13, count)} if ragged else {}
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(count) % 2, **more)
    words = f"train npz --data-dir {tmp_path} --hidden 16 --epochs 1 --threads 1 --no-report"
    assert cli.main([*words.split(), "--out", str(tmp_path / "run"), *flags]) == 0
    found = rundir.read_result(tmp_path / "run").notes
    return [note for note in found if "inputs" in note and not note.startswith("read")]


@pytest.mark.parametrize("ragged", [True, False])
def test_volts_that_make_no_neuron_fire_are_named(tmp_path: Path, ragged: bool) -> None:
    (small, silent) = notes(tmp_path, 1e-5, ragged=ragged)
    assert small.startswith("inputs are small, ")
    assert "e-0" in small
    assert "divide inputs by their standard deviation" in small
    assert silent.startswith("no spike in the first batch: no neuron of layer1 fires; scale the")
    assert "or lower --threshold below 0.1 (now 1)" in silent


def test_inputs_that_are_far_too_large_are_named(tmp_path: Path) -> None:
    (large,) = notes(tmp_path, 1e4)
    assert large.startswith("inputs are large, ")
    assert large.endswith("or pass --norm")


@pytest.mark.parametrize(
    ("scale", "remedy"), [(1e-5, ["--threshold", "1e-7"]), (1.0, []), (2e-3, ["--norm"])]
)
def test_the_remedies_help(tmp_path: Path, scale: float, remedy: list[str]) -> None:
    assert not [note for note in notes(tmp_path, scale, *remedy) if note.startswith("no spike")]


@pytest.mark.parametrize("flags", [["--unit", "snu"], ["--unit", "lstm"], ["--unit", "softsnu"]])
def test_inputs_of_a_usual_size_are_not_remarked_on(tmp_path: Path, flags: list[str]) -> None:
    assert notes(tmp_path, 1.0, *flags) == []


def test_it_is_said_before_the_first_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes(tmp_path, 1e-5)
    before, _ = capsys.readouterr().err.split("epoch 1/1")
    assert "no spike in the first batch" in before


@pytest.mark.parametrize("norm", [True, False])
def test_a_look_changes_nothing(norm: bool) -> None:
    model = ModelConfig(hidden=(6, 4), norm=norm, centre=norm, dropout=0.5)
    task = Digits(DigitsConfig(steps=3))
    network = build(model, task.input_size, task.output_size, "mean")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn = torch.get_rng_state()
    assert remarks(network, task, model, 16) == []
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {part.momentum for part in network.modules() if isinstance(part, Normalised)} <= {0.05}
    assert all(part.training for part in network.modules())
