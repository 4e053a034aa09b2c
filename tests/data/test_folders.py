"""Default folders: what differs from a preset is in their names; older ones stay."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from spikebridge.base.storage import write_json
from spikebridge.cli import main as cli
from spikebridge.runs import rundir
from spikebridge.settings.config import Config, to_dict
from spikebridge.studies import compare, plan


def config_of(line: str) -> Config:
    parsed = cli.parse(shlex.split(line))
    parts = {f.name for f in dataclasses.fields(Config)} & vars(parsed).keys()
    return Config(**{name: getattr(parsed, name) for name in parts})


def folder(line: str) -> str:
    return str(rundir.default_folder(config_of(line)))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("train digits", "digits8x8-snu-0"),
        ("train digits --seed 7", "digits8x8-snu-7"),
        ("train digits --unit lstm --data mnist", "mnist-lstm-0"),
        ("train music --unit softsnu --recurrent", "jsb-recurrent-softsnu-0"),
        ("train text --level char", "ptb-char-snu-0"),
        ("train npz --data-dir some/mine", "mine-snu-0"),
        ("train music --rule ostl", "jsb-snu-ostl-0"),
        ("train digits --grapes propagated", "digits8x8-snu-grapes-0"),
        ("train digits --grapes propagated --grapes-control gain", "digits8x8-snu-grapes-gain-0"),
        ("train digits --rule dfa --grapes outgoing", "digits8x8-snu-dfa-grapes-outgoing-0"),
        ("train music --cells pcm --seed 2", "jsb-snu-pcm-2"),
        ("train digits --start runs/digits8x8-snu-0", "digits8x8-snu-from-digits8x8-snu-0-0"),
    ],
)
def test_names_say_what_a_run_is(line: str, name: str) -> None:
    assert folder(line) == f"runs/{name}"


LINES = [
    "",
    "--lr 0.5",
    "--lr 0.25",
    "--epochs 3",
    "--hidden 9",
    "--grapes propagated",
    "--grapes propagated --no-grapes-clip",
    "--grapes local",
    "--rule fa",
    "--rule fa --feedback-seed 1",
    "--cells pcm",
    "--cells pcm --w-max 0.5",
    "--start runs/a",
    "--start other/a",
    "--start runs/a --lr 0.5",
    f"--start runs/{'a' * 200}",
    f"--start runs/{'a' * 201}",
    "--start 'runs/a b'",
    "--start 'runs/a+b'",
    "--threads 2",
    "--eval-seed 5",
]


def test_runs_that_differ_have_folders_that_differ() -> None:
    names = [folder(f"train digits {more}") for more in LINES]
    assert len(set(names)) == len(names)
    assert names == [folder(f"train digits {more}") for more in LINES]
    assert all(len(Path(name).name) < 120 and " " not in name for name in names)


def test_a_run_that_starts_from_another_goes_elsewhere() -> None:
    for start in ("runs/digits8x8-snu-0", "runs/digits8x8-snu-0/", "./runs/digits8x8-snu-0"):
        there = Path(folder(f"train digits --start {start}"))
        assert there.name.startswith("digits8x8-snu-from-digits8x8-snu-0-")


def test_older_runs_stay_where_they_are() -> None:
    there = Path("runs/digits8x8-snu-0")
    write_config(there, "train digits --lr 0.5")
    assert folder("train digits --lr 0.5") == str(there)
    assert folder("train digits --lr 0.25") != str(there)
    write_config(Path("runs/compare-digits8x8/snu-0"), "train digits --epochs 3")
    assert compared("compare digits --epochs 3 --units snu") == "runs/compare-digits8x8"
    assert compared("compare digits --epochs 4 --units snu") != "runs/compare-digits8x8"


def write_config(place: Path, line: str) -> None:
    place.mkdir(parents=True)
    write_json(place / rundir.CONFIG, to_dict(config_of(line)))


def compared(line: str) -> str:
    configs = cli.parse(shlex.split(line))[1]
    return str(compare.default_folder([plan.of_unit(c) for c in configs], [0], 1))


def test_comparisons_are_told_apart_too() -> None:
    assert compared("compare digits") == "runs/compare-digits8x8"
    assert compared("compare digits --units lstm snu") == "runs/compare-digits8x8"
    assert compared("compare digits --grapes propagated --units snu") == (
        "runs/compare-digits8x8-grapes"
    )
    one, other = compared("compare digits --lr 0.5"), compared("compare digits --lr 0.25")
    assert len({one, other, "runs/compare-digits8x8"}) == 3
    assert compared("compare digits --lr 0.5 --units lstm gru") == one


def test_tasks_one_after_the_other_are_told_apart_too() -> None:
    def name(line: str) -> str:
        return folder(f"train digits --unit relu --protocol permuted {line}")

    assert name("") == "runs/digits8x8-permuted-relu-0"
    assert name("--data mnist --method ewc --seed 3") == "runs/mnist-permuted-relu-ewc-3"
    lines = ["", "--method ewc", "--method ewc --strength 5", "--tasks 4", "--lr 0.5"]
    assert len({name(line) for line in lines}) == len(lines)


def test_resume_alone_finds_the_run_that_is_meant() -> None:
    write_config(Path(folder("train digits --lr 0.5")), "train digits --lr 0.5")
    assert config_of("train digits --resume").train.lr == 0.5
    write_config(Path(folder("train digits --lr 0.25")), "train digits --lr 0.25")
    preset = config_of("train digits").train.lr
    assert config_of("train digits --resume").train.lr == preset  # two are not complete
    (Path(folder("train digits --lr 0.25")) / rundir.RESULT).write_text("{}")
    assert config_of("train digits --resume").train.lr == 0.5
    write_config(Path("runs/digits8x8-snu-0"), "train digits")
    assert config_of("train digits --resume").train.lr == preset
