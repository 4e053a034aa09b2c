"""Runs on the chip: integers beside software for every kind of task, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_runs import tiny
from helpers.toy_data import write_heartbeats, write_npz, write_recordings
from helpers.toy_music import toy_songs, write_mat

from spikebridge.base.records import ConfigError, UsageError, to_plain
from spikebridge.chip.engine import Engine
from spikebridge.chip.files import load_program
from spikebridge.runs import rundir, training
from spikebridge.settings.config import preset
from spikebridge.trained import on_chip

# Enough bits for integers to answer as the network does.
WIDE = {"weight_bits": 13, "decay_bits": 14, "fraction_bits": 6}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "run"
    training.run(tiny("snu", epochs=6, lr=2e-2, hidden=(16,)), folder)
    return folder


def write_text(folder: Path) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, lines in (("train", 60), ("valid", 10), ("test", 12)):
        words = [" ".join(random.choice(["a", "b", "c", "d"], 6)) for _ in range(lines)]
        (folder / f"{name}.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


def other_tasks(folder: Path) -> dict[str, Any]:
    small = {"hidden": (12,), "epochs": 1, "batch_size": 4, "threads": 1, "threshold": 0.02}
    (folder / "music").mkdir()
    write_mat(folder / "music" / "toy.mat", toy_songs())
    music = small | {"data_dir": str(folder / "music")}
    events = small | {"data_dir": str(write_recordings(folder / "events")), "steps": 5}
    events |= {"decay": 0.8, "decay_to": 0.0}  # longer memories need wider membranes than these
    npz = small | {"data_dir": str(write_npz(folder / "npz", "class"))}
    ecg = small | {"data_dir": str(write_heartbeats(folder / "ecg")), "coding": "binary"}
    ecg |= {"memory": "oscillation"}
    text = small | {"embedding": 0, "tied": False, "sampled": 0, "level": "word"}
    text |= {"data_dir": str(write_text(folder / "text"))}
    return {
        "music": preset("music", "snu", "mat", **music),
        "recurrent": preset("music", "recurrent-snu", "mat", **music),
        "events": preset("events", "snu", **events),
        "npz": preset("npz", "snu", **npz),
        "text": preset("text", "snu", "files", **text),
        "ecg": preset("ecg", "recurrent-snu", **ecg),
    }


@pytest.mark.parametrize("name", ["music", "recurrent", "events", "npz", "text", "ecg"])
def test_integers_answer_as_software_does(name: str, tmp_path: Path) -> None:
    config = other_tasks(tmp_path)[name]
    training.run(config, tmp_path / "run")
    content = to_plain(on_chip.export(tmp_path / "run", on_chip.ChipPlan(WIDE)))
    result = rundir.read_result(tmp_path / "run")
    assert content["software"] == pytest.approx(result.test, rel=1e-5)
    assert content["integer"] == pytest.approx(content["software"], rel=2e-2, abs=0.02)
    counts = content["counts"]
    assert counts["steps"] >= counts["samples"] > 0
    assert content["per"] == ("step" if name == "text" else "sample")
    assert content["part"] == ("heartbeat" if content["parts"] else "")
    low, nominal, high = (content["energy"][k]["total_pJ"] for k in ("low", "nominal", "high"))
    assert 0 < low <= nominal <= high
    assert content["layers"][-1]["same_spikes"] is None
    assert content["layers"][0]["same_spikes"] > 0.99
    assert counts["spikes"] > 0.015 * counts["updates"], "a silent network shows nothing"


def test_padding_is_no_time_step(tmp_path: Path) -> None:
    config = other_tasks(tmp_path)["music"]
    training.run(config, tmp_path / "run")
    content = to_plain(on_chip.export(tmp_path / "run"))
    assert content["counts"]["steps"] == sum(n - 1 for n in (2, 8, 5)), (
        "the last frame of a piece is only predicted"
    )


def test_the_file_tells_what_the_engine_does(digits: Path) -> None:
    content = to_plain(on_chip.export(digits, on_chip.ChipPlan({"lanes": 8})))
    written = json.loads((digits / rundir.DIGITAL).read_text())
    assert written == json.loads(json.dumps(content))
    program = load_program(digits / rundir.PROGRAM)
    assert program.chip.lanes == content["chip"]["lanes"] == 8
    assert program.max_steps in (0, 4)
    samples = on_chip.samples_for_rtl(digits, 5)
    engine = Engine(program)
    assert len(samples) == 5
    assert all(len(sample) == 4 for sample in samples)
    for sample in samples:
        for t, events in enumerate(sample):
            engine.step(events, last=t == len(sample) - 1)
    assert engine.counts.samples == 5


def test_what_is_measured_is_not_chosen_by_the_test_set(digits: Path) -> None:
    valid = to_plain(on_chip.measure(digits, on_chip.ChipPlan(split="valid"))[1])
    test = to_plain(on_chip.measure(digits, on_chip.ChipPlan())[1])
    assert (valid["split"], test["split"]) == ("valid", "test")
    assert valid["software"] == pytest.approx(rundir.read_result(digits).valid, abs=1e-9)
    assert not list(digits.glob("*.part"))


def test_more_steps_cost_more(digits: Path) -> None:
    found = [
        to_plain(on_chip.measure(digits, on_chip.ChipPlan(steps=count))[1]) for count in (1, 8)
    ]
    assert [one["steps"] for one in found] == [1, 8]
    energies = [one["energy"]["nominal"]["total_pJ"] for one in found]
    assert energies[1] > 4 * energies[0]
    assert found[1]["program"]["membrane_bits"] >= found[0]["program"]["membrane_bits"]


def test_samples_are_only_some(digits: Path) -> None:
    _, content = on_chip.measure(digits, on_chip.ChipPlan(samples=100))
    assert content.samples == 256  # whole batches


def test_bits_are_those_of_the_training(tmp_path: Path) -> None:
    training.run(tiny("snu", weight_bits=3, epochs=1), tmp_path)
    program, content = on_chip.measure(tmp_path, on_chip.ChipPlan())
    assert program.weight_bits == 3
    assert content.layers[0].weight_error < 1e-6
    assert on_chip.measure(tmp_path, on_chip.ChipPlan({"weight_bits": 6}))[0].weight_bits == 6


def test_numbers_are_no_spikes(tmp_path: Path) -> None:
    training.run(tiny("snu", epochs=1, coding="current"), tmp_path)
    with pytest.raises(UsageError, match=r"takes spikes.*--coding rate"):
        on_chip.export(tmp_path)
    assert not (tmp_path / rundir.DIGITAL).exists()


def test_a_soft_unit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    training.run(tiny("softsnu", epochs=1), tmp_path)
    with pytest.raises(UsageError, match="sends numbers, not spikes"):
        on_chip.export(tmp_path)
    assert not (tmp_path / rundir.PROGRAM).exists()


def test_streams_need_a_leak(tmp_path: Path) -> None:
    config = other_tasks(tmp_path)["text"]
    settings = {"data_dir": config.task.data_dir, "embedding": 0, "tied": False, "sampled": 0}
    settings |= {"hidden": (5,), "epochs": 1, "threads": 1}
    training.run(preset("text", "binary-ci", "files", **settings), tmp_path / "run")
    with pytest.raises(UsageError, match="a stream has no end"):
        on_chip.export(tmp_path / "run")


def test_wrong_plans_are_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no complete run"):
        on_chip.export(tmp_path)
    for wrong, words in (({"samples": -1}, "samples"), ({"split": "train"}, "split")):
        with pytest.raises(UsageError, match=words):
            replace(on_chip.ChipPlan(), **wrong)
    with pytest.raises(UsageError, match="a sample has 4 time steps"):
        on_chip.export(digits, on_chip.ChipPlan({"max_steps": 2}))
    with pytest.raises(ConfigError, match="lanes=3"):
        on_chip.export(digits, on_chip.ChipPlan({"lanes": 3}))


def test_a_run_that_starts_anew_takes_its_program_along(digits: Path) -> None:
    on_chip.export(digits)
    rundir.clear(digits)
    assert not (digits / rundir.PROGRAM).exists()
    assert not (digits / rundir.DIGITAL).exists()
