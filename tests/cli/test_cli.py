"""The command line: exit codes, what goes to stdout, defaults per unit, help at once, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spikebridge.base.records import RunError
from spikebridge.cli import demo, progress, train
from spikebridge.cli import main as cli
from spikebridge.crossbar.measured import COLUMNS
from spikebridge.runs import rundir, training
from spikebridge.runs.environment import Environment
from spikebridge.runs.results import Epoch
from spikebridge.runs.rundir import Result
from spikebridge.settings.config import PRESETS, Config, flatten, override, preset, to_dict
from spikebridge.settings.published import Published
from spikebridge.settings.tasks import TASKS
from spikebridge.studies import compare, plan

TINY = "--hidden 8 --steps 4 --epochs 2 --batch-size 256 --threads 1"
ROOT = Path(cli.__file__).parents[2]
SPIKEBRIDGE = [sys.executable, "-m", "spikebridge"]


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go where the test ends, help is as wide as it is tested for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def test_train_prints_the_result_and_writes_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge(f"train digits {TINY} --seed 3") == 0
    said = capsys.readouterr()
    (run,) = Path("runs").glob("digits8x8-snu-??????-3")  # it is not the preset
    result = rundir.read_result(run)
    assert f"test accuracy: {100 * result.test:.2f} %" in said.out
    assert f"run: {run}" in said.out
    assert f"page: {run}/report.html" in said.out
    assert (run / "report.html").exists()
    assert "SNU, seed 3 on digits8x8: the preset but for\n  " in said.err
    assert "hidden=8" in said.err
    assert "threshold=" not in said.err
    assert "snu-3  epoch 2/2  loss" in said.err
    assert flatten(rundir.read_config(run))["batch_size"] == 256


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"train digits {TINY} --out run --no-report --json"
    assert spikebridge(line) == 0
    said = json.loads(capsys.readouterr().out)
    stored = json.loads((Path("run") / rundir.RESULT).read_text())
    assert said == stored | {"directory": "run", "report": None}
    for again in (line, f"{line} --resume"):  # it is complete
        assert spikebridge(again) == 0
        assert json.loads(capsys.readouterr().out) == said
    assert spikebridge(f"{line} --lr 0.5") == 2
    assert capsys.readouterr().out == ""


def test_existing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"train digits {TINY} --out run --no-report"
    assert spikebridge(line) == 0
    assert spikebridge(line) == 0  # it is shown again
    for resume in ("", " --resume"):
        assert spikebridge(f"{line}{resume} --lr 0.5") == 2
        said = capsys.readouterr().err
        assert "run: the run there has other settings: lr (" in said
        assert "or --overwrite to start anew" in said
    assert spikebridge("train digits --out run --resume --no-report") == 0  # its own settings hold
    assert spikebridge(f"train digits {TINY} --recurrent --seed 4 --no-report") == 0
    again = "train digits --recurrent --seed 4 --resume --no-report"  # its folder has to be found
    assert spikebridge(again) == 0
    assert spikebridge(f"{again} --hidden 9") == 2
    assert "hidden ((8,) there, (9,) asked for)" in capsys.readouterr().err
    assert spikebridge(line + " --overwrite --lr 0.5") == 0
    assert rundir.read_config(Path("run")).train.lr == 0.5
    assert spikebridge(line + " --overwrite --resume") == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train digits --steps 0", "spikebridge: steps=0: it must be at least 1; pass --steps 20"),
        ("train digits --unit ssnu", "invalid choice 'ssnu'"),
        ("train digits --epochs many", "many"),
        ("train digits --learning-rate 1", "--learning-rate"),
        ("train shapes", "shapes"),
        ("train", "digits"),
        ("", "train"),
        ("fly", "fly"),
        ("train digits --config nowhere.json", "nowhere.json: it cannot be read"),
        ("train digits --config bad.json", "bad.json: model: unknown key 'units'; the known ones"),
        ("train digits --config music.json", "its task is not digits"),
        ("train music --data mnist", "--data: invalid choice 'mnist'; choose one of jsb"),
        ("report nowhere", "nowhere: neither a run"),
        ("report", "no folder is given"),
        ("compare digits --unit lstm", "pass --units snu lstm"),
        ("compare digits --seed 3", "--seeds 0 1 2"),
        ("compare digits --units lstm lstm", "unit lstm is given twice"),
        ("compare digits --jobs 0", "jobs=0"),
        ("compare digits --units recurrent-snu --no-recurrent", "contradicts recurrent-snu"),
        ("compare digits --units", "at least one unit"),
        ("demo --jobs 0", "jobs=0"),
        ("program run --seed -1", "seed=-1: it must lie in [0, 2**63); pass --seed 0"),
        (
            "program run --cells ideal --levels 1",
            "levels=1: it must be 0 or at least 2; pass --levels",
        ),
        ("program run --levels 4", "levels=4: only ideal cells have levels; pass --cells ideal"),
        ("program run --cells pcm --cell-table t.csv", "cell_table='t.csv': give one of them"),
        (
            "program run --cells iterative --cell-table t.csv",
            "cells='iterative', cell_table=",
        ),
    ],
)
def test_wrong_usage(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.json").write_text('{"model": {"units": "snu"}}')
    Path("music.json").write_text('{"task": {"name": "music"}}')
    assert spikebridge(line) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert "Traceback" not in said.err
    assert not Path("runs").exists()


def test_missing_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPIKEBRIDGE_DATA", "/nowhere/at/all")
    assert spikebridge("train music") == 2
    assert "spikebridge: /nowhere/at/all: expected" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_failed_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise RunError("the loss became nan")

    monkeypatch.setattr(training, "run", run)
    assert spikebridge("train digits") == 1
    assert capsys.readouterr().err.endswith("spikebridge: the loss became nan\n")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(training, "run", run)
    with pytest.raises(ZeroDivisionError):
        spikebridge("train digits")


def parsed(line: str) -> Config:
    command = cli.parse(shlex.split(line))
    return Config(command.task, command.model, command.train)


def test_flags_win_over_the_preset_of_the_unit_and_of_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {("mnist", "lstm"): {"lr": 0.25, "epochs": 7}, ("jsb", "recurrent-snu"): {"lr": 0.125}}
    for name, row in rows.items():
        monkeypatch.setitem(PRESETS, name, row)
    assert parsed("train digits") == preset("digits")
    lstm = parsed("train digits --unit lstm --data mnist --lr 0.5")
    assert lstm == override(preset("digits", "lstm", "mnist"), lr=0.5)
    assert lstm.train.epochs == 7
    assert parsed("train music --unit snu --recurrent").train.lr == 0.125
    assert parsed("train music --unit snu").train.lr != 0.125
    assert parsed("train music --hidden 3 4 --recurrent --unit gru").model.hidden == (3, 4)
    _, configs, _ = cli.parse(
        shlex.split("compare digits --data mnist --units snu lstm --batch-size 9")
    )
    assert [config.train.batch_size for config in configs] == [9, 9]
    assert [config.train.lr for config in configs] == [
        preset("digits", "snu", "mnist").train.lr,
        0.25,
    ]


def test_the_level_of_a_text_decides_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("train text --level char --unit lstm") == preset("text", "lstm", level="char")
    assert parsed("train text --unit lstm --level word") == preset("text", "lstm")
    own = parsed("train text --data-dir mine --level char --recurrent --unit softsnu --lr 0.5")
    tuned = preset("text", "recurrent-softsnu", "files", data_dir="mine", level="char", lr=0.5)
    assert own == tuned
    _, configs, _ = cli.parse(shlex.split("compare text --units snu lstm --level char"))
    assert configs == [preset("text", unit, level="char") for unit in ("snu", "lstm")]
    assert spikebridge("train text --level sentence") == 2
    assert (
        "--level: invalid choice 'sentence'; choose one of word, char; run"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("unit", ["relu", "tanh"])
def test_a_network_without_memory_is_shown_an_image_once(unit: str) -> None:
    config = parsed(f"train digits --unit {unit} --data mnist")
    assert config == preset("digits", unit, "mnist")
    assert (config.task.coding, config.task.steps, config.task.steps_test) == ("current", 1, 0)
    assert (config.model.hidden, config.model.dropout) == ((256, 256), 0)
    train = config.train
    assert (train.optimizer, train.lr, train.batch_size, train.clip_norm) == ("sgd", 0.1, 64, 0)
    assert train.momentum == 0
    assert (train.schedule, train.ema, train.weight_decay) == ("constant", 0, 0)
    assert parsed(f"train digits --unit {unit} --steps 3").task.steps == 3


def test_help_shows_the_preset_of_the_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, ("mnist", "lstm"), {"lr": 0.015625, "epochs": 77})
    assert spikebridge("train digits --help") == 0
    assert "(default: 77)" not in capsys.readouterr().out
    assert spikebridge("train digits --unit lstm --data mnist --help-all") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: 77)" in said
    assert "0.015625" in said


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("train digits --help-all") == 0
    said = capsys.readouterr().out
    for name in flatten(preset("digits")):
        assert f"--{name.replace('_', '-')}" in said


@pytest.mark.parametrize("task", TASKS)
def test_help_has_the_whole_sentence_of_a_task(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = (TASKS[task].__doc__ or "").splitlines()[0]
    for command in ("train", "compare"):
        assert spikebridge(f"{command} {task} --help") == 0
        about = capsys.readouterr().out.splitlines()[2]
        assert about.endswith(f": {sentence[0].lower()}{sentence[1:]}")


@pytest.mark.parametrize(
    "line",
    ["train digits", "compare digits", "evaluate run", "compose run", "program run", "export run"],
)
def test_what_leaves_the_page_out_says_so(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge(f"{line} --help-all") == 0
    said = " ".join(capsys.readouterr().out.replace("│", "").split()).partition("--no-report Do")[2]
    assert said.startswith(" not write the ")
    assert "report.html" in said[:60]
    assert "(default: False)" in said[:140]


def test_the_columns_of_a_table_of_a_device_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("program --help-all") == 0
    said = capsys.readouterr().out
    page = (ROOT / "docs" / "crossbar.md").read_text(encoding="utf-8")
    (told,) = (part for part in page.split("\n\n") if "--cell-table" in part)
    for name in COLUMNS:
        assert name in said
        assert f"`{name}`" in told


def test_a_config_file_stands_in_for_the_preset() -> None:
    config = override(preset("digits", "softsnu"), lr=0.5, epochs=3)
    rundir.write_json(Path("mine.json"), to_dict(config))
    assert parsed("train digits --config mine.json") == config
    assert parsed("train digits --config mine.json --epochs 4") == override(config, epochs=4)


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"compare digits --units snu gru --seeds 0 1 {TINY}"
    assert spikebridge(line) == 0
    said = capsys.readouterr()
    assert "SNU" in said.out
    assert "±" in said.out
    (out,) = Path("runs").glob("compare-digits8x8-??????")  # these are not the presets
    assert f"page: {out}/report.html" in said.out
    assert "gru on digits8x8: the preset but for\n  " in said.err
    assert spikebridge(line + " --json --no-report") == 0
    content = json.loads(capsys.readouterr().out)
    stored = json.loads((out / compare.COMPARE).read_text())
    assert content == stored
    assert spikebridge(f"report {out} {out}/gru-1 --json") == 0
    pages = json.loads(capsys.readouterr().out)["pages"]
    assert all(Path(page).exists() for page in pages)


def test_demo_is_shown_again_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"hidden": (8,), "steps": 4, "epochs": 1, "batch_size": 256, "threads": 1}
    contenders = [
        replace(one, config=override(one.config, **small)) for one in plan.demo_contenders()
    ]
    monkeypatch.setattr(plan, "demo_contenders", lambda: contenders)
    monkeypatch.setattr(demo, "SIMULATORS", ())  # tests/cli/test_chip_commands.py has one
    assert spikebridge("demo --jobs 1") == 0
    first = capsys.readouterr()
    assert "page: runs/demo/report.html" in first.out
    for label in ("SNU", "soft SNU", "LSTM"):
        assert label in first.out
    monkeypatch.setattr(training, "run", None)  # nothing is to be run again
    assert spikebridge("demo --jobs 1") == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "complete already; --overwrite starts it anew" in again.err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("info --json") == 0
    facts = json.loads(capsys.readouterr().out)
    for name in ("spikebridge", "python", "torch", "numpy", "cpu", "instruction_set", "threads"):
        assert facts[name]
    assert facts["kernels"]
    assert facts["data"]["digits8x8"]
    assert spikebridge("info") == 0
    assert facts["torch"] in capsys.readouterr().out


def test_info_finds_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "JSB_Chorales.mat").write_bytes(b"")
    monkeypatch.setenv("SPIKEBRIDGE_DATA", str(tmp_path))
    assert spikebridge("info --json") == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["jsb"] == f"in {tmp_path}"
    assert "not there" in data["mnist"] or "in " in data["mnist"]
    monkeypatch.setenv("SPIKEBRIDGE_DATA", str(tmp_path / "nowhere"))
    assert spikebridge("info --json") == 0
    assert "no such folder" in json.loads(capsys.readouterr().out)["data"]["$SPIKEBRIDGE_DATA"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("--version") == 0
    assert capsys.readouterr().out.startswith("spikebridge ")


@pytest.mark.parametrize("line", ["--help", "train music --help", "compare digits --help"])
def test_help_comes_at_once_and_without_torch(line: str) -> None:
    code = (
        "import sys; from spikebridge.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'plotly', 'sklearn', 'scipy', 'numpy'} & set(sys.modules); "
        "sys.exit(repr(heavy) if heavy else code)"
    )
    seconds = []  # of the processor, whatever else it does
    for _ in range(2):  # the first start may have to compile
        before = os.times()
        subprocess.run(
            [sys.executable, "-c", code, *line.split()],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(seconds) < 1


def test_ctrl_c_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    line = f"train digits {TINY} --epochs 60 --out run --no-report"
    child = subprocess.Popen(
        [*SPIKEBRIDGE, *line.split()],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert child.stderr is not None
    for heard in child.stderr:
        if "epoch 2/60" in heard:
            child.send_signal(signal.SIGINT)
            break
    rest = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 130
    assert "Traceback" not in rest
    last = rest.strip().splitlines()[-1]
    command = last.removeprefix("spikebridge: interrupted; go on with: spikebridge ")
    assert command == line
    assert not rundir.is_complete(Path("run"))
    assert spikebridge(command + " --json") == 0
    assert rundir.read_result(Path("run")).epochs == 60


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("compare digits", "go on with: spikebridge compare digits\n"),
        ("compare digits --overwrite", "start again with: spikebridge compare digits --overwrite"),
        ("train digits --overwrite", "go on with: spikebridge train digits\n"),
        ("search music", "go on with: spikebridge search music\n"),
        ("demo", "go on with: spikebridge demo\n"),
        ("reproduce jsb --count 2", "go on with: spikebridge reproduce jsb --count 2\n"),
        ("train digits --out 'a b'", "spikebridge train digits --out 'a b'\n"),
        ("info", "nothing was begun"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    line: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        if line.startswith("train"):
            rundir.begin(tmp_path, Config(), Environment())
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for name in ("compare", "train", "info", "reproduce", "search", "demo"):
        monkeypatch.setattr(cli.record_of(name), "run", interrupted)
    assert spikebridge(line) == 130
    assert message in capsys.readouterr().err


def test_bars_in_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress.display(stream) as display:
        told = display("snu-0")
        told.begin(preset("digits"), 0)
        for run in (told, display("snu-1")):
            run.remarks(["read [t].csv"])
        told.batch(1, 0.5)
        told.epoch(Epoch(epoch=1, train_loss=1.5, valid=0.25, best=True, seconds=1.0))
        told.end()
    assert "snu-0" in stream.getvalue()
    assert "valid 0.2500 *" in stream.getvalue()
    assert stream.getvalue().count("read [t].csv") == 1, "runs of a comparison have the same data"


def test_what_is_told_of_a_result() -> None:
    result = Result(
        task="music",
        data="jsb",
        unit="snu",
        label="SNU",
        metric="nll",
        higher_is_better=False,
        test=8.7712,
        test_loss=8.7712,
        valid=8.8,
        best_epoch=12,
        epochs=20,
        parameters=26638,
        operations_per_step=26400,
        seconds=31.2,
        spikes_per_inference=812.44,
        firing_rates={"layer1": 0.08},
        mean_activity={},
        seed=0,
        published=Published(8.72, "a paper"),
        directory=Path("runs/x"),
    )
    assert train.text_of(result) == [
        "SNU on jsb: 26,638 parameters, 20 epochs in 31.2 s",
        "test nll: 8.771 nats per frame (weights of epoch 12, validation 8.800)",
        "spikes per inference: 812.4",
        "published: 8.720 nats per frame (a paper)",
        "run: runs/x",
    ]


def test_the_package_itself_is_the_command() -> None:
    command = [sys.executable, "-m", "spikebridge", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("spikebridge ")


WITHOUT_TYRO = "import sys; sys.modules['tyro'] = None; "


def test_without_tyro_the_module_is_an_import_error_and_the_command_says_what_it_needs() -> None:
    code = "import spikebridge.cli.main"  # as a collector of tests or documentation imports it
    command = [sys.executable, "-c", WITHOUT_TYRO + code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ModuleNotFoundError: the command line needs tyro; pip install" in done.stderr
    code = "from spikebridge.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TYRO + code], capture_output=True, text=True
    )
    assert done.returncode == 1
    needs = "spikebridge: the command line needs tyro; pip install 'spikebridge[app]'\n"
    assert done.stderr == needs


@pytest.mark.parametrize("form", ["--unit recurrent-softsnu", "--unit=recurrent-softsnu"])
def test_a_unit_is_named_with_its_recurrence(form: str) -> None:
    expected = preset("music", "recurrent-softsnu", hidden=(9,))
    assert parsed(f"train music {form} --hidden 9") == expected
    assert parsed("train music --recurrent --hidden 9 --unit softsnu") == expected
    one = cli.parse(shlex.split(f"train digits --protocol split {form}"))
    expected = preset("digits", "recurrent-softsnu", protocol="split")
    assert (one.task, one.model, one.train) == (expected.task, expected.model, expected.train)
    assert one.sequence == expected.sequence


def test_the_demo_says_what_to_do_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bin_ = tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    for name in ("activate", "python", "spikebridge"):
        (bin_ / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(bin_ / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    said = demo.what_next(Path("runs/demo"))
    assert said[:2] == ["next:", "  source .venv/bin/activate"]
    for line in said[2:]:
        words = shlex.split(line.partition("  #")[0])
        assert words[0] == "spikebridge"
        cli.parse(words[1:])
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin")  # it is active already
    assert not any("activate" in line for line in demo.what_next(Path("runs/demo")))
