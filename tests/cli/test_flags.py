"""Flags mean the same everywhere, misspelled and older words lead to the right ones."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from spikebridge.chip.files import load_program
from spikebridge.cli import COMMANDS, flags
from spikebridge.cli import main as cli
from spikebridge.runs import rundir
from spikebridge.settings.config import flatten, preset

TINY = "--hidden 8 --steps 4 --epochs 2 --batch-size 256 --threads 1"


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert spikebridge(f"train digits {TINY} --out {run} --no-report") == 0
    return run


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


@pytest.mark.parametrize(
    ("line", "now"),
    [
        ("--norm -h", "--norm batch -h"),
        ("--no-norm -h", "--norm none -h"),
        ("--norm --lr 1", "--norm batch --lr 1"),
        ("--norm", "--norm batch"),
        ("--norm layer", "--norm layer"),
    ],
)
def test_a_choice_that_was_a_switch_may_stand_alone(line: str, now: str) -> None:
    assert flags.switched(line.split()) == now.split()


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


WRITES = {
    "train": "train digits",
    "compare": "compare digits",
    "search": "search digits",
    "report": "report RUN",
    "reproduce": "reproduce jsb",
    "demo": "demo",
    "evaluate": "evaluate RUN",
    "predict": "predict RUN",
    "compose": "compose RUN",
    "program": "program RUN",
    "export": "export RUN",
    "complexity": "complexity RUN",
}
PRINTS = {"info", "sample", "verify", "bench"}
OUTPUT = {"out": ["--out", "there"], "overwrite": [], "json": [], "no_report": []}


def test_a_command_writes_or_prints() -> None:
    assert {*WRITES, *PRINTS} == {*COMMANDS}
    for name in COMMANDS:
        assert ("output" in cli.record_of(name).__dataclass_fields__) == (name in WRITES)


@pytest.mark.parametrize("flag", OUTPUT)
@pytest.mark.parametrize("name", WRITES)
def test_a_command_that_writes_honours_a_flag_of_output_or_says_why_not(
    name: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WRITES[name].split(), *(OUTPUT[flag] or [f"--{flag.replace('_', '-')}"])]
    refused = getattr(cli.record_of(name), "REFUSES", {})
    if flag in refused:
        assert cli.main(words) == 2
        assert capsys.readouterr().err == f"spikebridge: {words[-1]}: {refused[flag]}\n"
        assert refused[flag].endswith("; leave it out")
        assert cli.main([*words[:-1], "--help-all"]) == 0
        assert words[-1] not in capsys.readouterr().out
        return
    parsed = cli.parse(words)
    options = parsed[0] if isinstance(parsed, tuple) else getattr(parsed, "options", parsed)
    value = Path("there") if flag == "out" else True
    assert options.output == replace(flags.Output(), **{flag: value})


ON_A_RUN = {
    "evaluate --steps 2 4": rundir.STEPS,
    "complexity --samples 40": rundir.COMPLEXITY,
    "program --chips 2 --times 20 --samples 64": rundir.MEMORY,
    "export --samples 64": rundir.DIGITAL,
}


@pytest.mark.parametrize("line", ON_A_RUN)
def test_work_on_a_run_is_kept_until_it_is_overwritten(
    line: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, "run")
    file, page = Path("run") / ON_A_RUN[line], Path("run") / rundir.REPORT
    words = [line.split()[0], "run", *line.split()[1:]]

    def written(*more: str) -> int:
        assert cli.main([*words, *more]) == 0
        return file.stat().st_mtime_ns

    first = written("--no-report", "--json")
    content = json.loads(capsys.readouterr().out)
    assert not page.exists()
    assert written("--json") == first
    assert page.exists()
    again = json.loads(capsys.readouterr().out)
    assert again == content | ({"report": "run/report.html"} if "report" in content else {})
    assert written("--overwrite", "--json") != first
    assert json.loads(capsys.readouterr().out) == again
    file.write_text("{")  # damaged: done anew
    assert written() != first
    assert f"page: {page}" in capsys.readouterr().out


def test_work_with_other_settings_is_done(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, "run")
    changes = {
        "complexity run": ("--samples 40", "--samples 41", "--split valid"),
        "export run": ("--samples 64", "--samples 128", "--lanes 32", "--steps 2"),
        "evaluate run": ("--steps 2", "--steps 3"),
    }
    for line, every in changes.items():
        outcomes = []
        for more in (*every, *every):
            assert spikebridge(f"{line} {more} --no-report --json") == 0
            outcomes.append(capsys.readouterr().out)
        assert outcomes[: len(every)] == outcomes[len(every) :]
        assert len({*outcomes}) == len(every)
    (Path("run") / rundir.PROGRAM).write_bytes(b"PK")  # damaged: exported anew
    assert spikebridge("export run --samples 64 --no-report") == 0
    assert load_program(Path("run") / rundir.PROGRAM)


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_of_a_run_go_elsewhere_and_leave_it_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(2):
        line = f"train digits {TINY} --out run{number} --seed {number} --no-report"
        assert spikebridge(line) == 0
    files = _contents(Path("run0"))
    assert spikebridge("evaluate run0 --steps 2 4 --out there") == 0
    assert _contents(Path("run0")) == files
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


def test_verbose_says_all_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge(f"train digits {TINY} --out run --no-report --verbose") == 0
    said = capsys.readouterr().err
    for name in flatten(preset("digits")):
        assert f"{name}=" in said


def test_networks_on_cells_are_programmed_anew_with_other_settings(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, "run")
    line = "program run --chips 2 --times 20 --samples 64"
    for other in ("", "--dac-bits 8", "--seed 1"):
        assert spikebridge(f"{line} {other}") == 0
        assert "chip 1/2" in capsys.readouterr().err
        assert spikebridge(f"{line} {other}") == 0
        assert "chip 1/2" not in capsys.readouterr().err
