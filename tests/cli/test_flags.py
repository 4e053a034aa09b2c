"""Flags mean the same everywhere, misspelled and older words lead to the right ones."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from spikebridge.cli import flags
from spikebridge.cli import main as cli
from spikebridge.runs import evaluation, rundir
from spikebridge.settings.config import flatten, preset

TINY = "--hidden 8 --steps 4 --epochs 2 --batch-size 256 --threads 1"


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go where the test ends."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian digits", "trian: there is no such command (did you mean train?); the commands are"),
        (
            "train digit",
            "digit: there is no such task (did you mean digits?); the tasks are digits",
        ),
        ("search musik", "musik: there is no such task (did you mean music?); the tasks are"),
        (
            "--verison",
            "--verison: unknown option (did you mean --version?); run spikebridge --help",
        ),
        (
            "train digits --unit lstmm",
            "--unit: invalid choice 'lstmm' (did you mean lstm?); choose one of snu, softsnu, ",
        ),
        ("train digits --data=mnits", "--data: invalid choice 'mnits' (did you mean mnist?); cho"),
        ("compare digits --units snu gruu", "'gruu' (did you mean gru?); choose from snu, soft"),
        ("program run --cells pmc", "--cells: invalid choice 'pmc' (did you mean pcm?); choose"),
        ("continual --unit=relu", "now spikebridge train digits --protocol permuted (or split)"),
        (
            "train digits --epocs 3",
            "--epocs: unknown option (did you mean --epochs?); run spikebridge train digits --help",
        ),
        ("export run --weigth-bits 3", "did you mean --weight-bits"),
        ("train digits --lr abc", "spikebridge train digits --help"),
        ("train --lr 1 digits", "flags come after the task"),
        ("train digits --unit recurrent-snu --no-recurrent", "contradicts recurrent-snu"),
    ],
)
def test_misspelled_words(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge(line) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert "None" not in said.err
    if not line.startswith("train digits --lr "):  # tyro frames what it says itself
        assert said.err.count("\n") == 1


def test_suggestions_are_flags_of_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("info --levell") == 2  # `program` has --levels, `train text` --level
    assert capsys.readouterr().err == (
        "spikebridge: --levell: unknown option; run spikebridge info --help\n"
    )


@pytest.mark.parametrize(
    ("line", "message", "now"),
    [
        (
            "reproduce grapes-mnist --seeds 10",
            "--seeds 10: it is now --count",
            "reproduce grapes-mnist --count 10",
        ),
        (
            "train music --device pcm --epochs 3",
            "--device pcm: it is now --cells",
            "train music --cells pcm --epochs 3",
        ),
        (
            "program run --device_table=own.csv",
            "--device_table own.csv: it is now --cell-table",
            "program run --cell-table=own.csv",
        ),
        (
            "bench serve --device=lab:connect --cell ideal --shape 4",
            "--device lab:connect: it is now --instrument; --cell ideal: it is now --cells",
            "bench serve --instrument=lab:connect --cells ideal --shape 4",
        ),
    ],
)
def test_spellings_of_before_name_the_command_of_today(
    line: str, message: str, now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spikebridge(line) == 2
    assert capsys.readouterr().err == f"spikebridge: {message}; run spikebridge {now}\n"
    cli.parse(shlex.split(now))


def test_devices_of_torch_are_no_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("train music --device cuda") == 2
    assert "cells" not in capsys.readouterr().err.partition("; run ")[0]


def test_seeds_are_a_list_and_their_number_is_a_count() -> None:
    seeds = {}
    for words in ("", "--count 2", "--seeds 3 5", "--seeds 3 --count 1", "--quick"):
        asked = cli.parse(["reproduce", "jsb", *words.split()])
        seeds[words] = list(asked.all_seeds(10))
    assert seeds[""] == list(range(10))
    assert seeds["--count 2"] == [0, 1]
    assert seeds["--seeds 3 5"] == [3, 5]
    assert seeds["--seeds 3 --count 1"] == [3]
    assert seeds["--quick"] == [0]
    assert spikebridge("reproduce jsb --seeds 3 5 --count 3") == 2


WRITES = [
    "train digits",
    "compare digits",
    "search digits",
    "reproduce jsb",
    "demo",
    "evaluate RUN",
    "predict RUN",
    "compose RUN",
    "program RUN",
    "export RUN",
    "complexity RUN",
]


@pytest.mark.parametrize("line", WRITES)
def test_every_command_that_writes_takes_the_same_flags(line: str) -> None:
    words = [*line.split(), "--out", "there", "--overwrite", "--json", "--no-report"]
    parsed = cli.parse(words)
    options = parsed[0] if isinstance(parsed, tuple) else getattr(parsed, "options", parsed)
    assert options.output == flags.Output(Path("there"), overwrite=True, json=True, no_report=True)
    assert cli.record_of(words[0]).__dataclass_fields__["output"]


def test_results_of_a_run_go_elsewhere_and_leave_it_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(2):
        line = f"train digits {TINY} --out run{number} --seed {number} --no-report"
        assert spikebridge(line) == 0
    files = {path: path.read_bytes() for path in Path("run0").iterdir()}
    assert spikebridge("evaluate run0 --steps 2 4 --out there") == 0
    assert {path: path.read_bytes() for path in Path("run0").iterdir()} == files
    for name in (rundir.STEPS, rundir.REPORT, rundir.RESULT):
        assert (Path("there") / name).exists()
    capsys.readouterr()
    assert spikebridge("complexity run0 --out there --json") == 0
    assert json.loads(capsys.readouterr().out)["parameter_count"]
    assert (Path("there") / rundir.STEPS).exists()
    assert spikebridge("complexity run1 --out there") == 2
    assert "there: another run lies there; pass another --out, or --o" in capsys.readouterr().err
    assert spikebridge("complexity run1 --out there --overwrite") == 0
    assert not (Path("there") / rundir.STEPS).exists()
    assert rundir.read_config(Path("there")).train.seed == 1


def test_an_evaluation_is_kept_until_it_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spikebridge(f"train digits {TINY} --out run --no-report") == 0
    assert spikebridge("evaluate run --steps 2 4") == 0
    monkeypatch.setattr(evaluation, "observe", None)  # nothing is to be tested again
    assert spikebridge("evaluate run --steps 4 2") == 0
    with pytest.raises(TypeError):
        spikebridge("evaluate run --steps 2 4 --overwrite")


def test_verbose_says_all_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge(f"train digits {TINY} --out run --no-report --verbose") == 0
    said = capsys.readouterr().err
    for name in flatten(preset("digits")):
        assert f"{name}=" in said


def test_networks_on_cells_are_kept_until_they_are_overwritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spikebridge(f"train digits {TINY} --out run --no-report") == 0
    line = "program run --chips 2 --times 20 --samples 256 --json"
    capsys.readouterr()
    assert spikebridge(line) == 0
    said = json.loads(capsys.readouterr().out)
    assert spikebridge(line) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) == said
    assert "chip 1/2" not in again.err
    for other in ("--overwrite", "--dac-bits 8", "--seed 1"):
        assert spikebridge(f"{line} {other}") == 0
        assert "chip 1/2" in capsys.readouterr().err
    (Path("run") / rundir.MEMORY).write_text("{")  # damaged: done anew
    assert spikebridge(line) == 0
    assert json.loads(capsys.readouterr().out) == said
