"""`search` on data of one's own, and what its result is good for."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_data import write_npz

from spikebridge.base.records import UsageError, from_content
from spikebridge.cli import main as cli
from spikebridge.nn.network import build
from spikebridge.runs import rundir, training
from spikebridge.runs.results import Epoch, SearchResult
from spikebridge.settings.config import flatten, from_dict, override, preset
from spikebridge.settings.names import BASELINES, BINARY, PLAIN, VARIANTS
from spikebridge.settings.tasks import TASKS
from spikebridge.studies import search

FAST = "--hidden 5 --epochs 2 --threads 1"


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(path: Path, rows: int = 120) -> Path:
    lines = [f"{row},{(row * 7) % 13}" for row in range(rows)]
    path.write_text("level,noise\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["class", "numbers", "numbers at each step"])
def test_npz_is_searched_and_the_result_trains(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(tmp_path / "mine", kind)
    line = f"search npz --data-dir mine --units snu lstm --trials 3 {FAST} --out found"
    assert spikebridge(line) == 0
    said = capsys.readouterr()
    assert "snu  trial 1/3  valid" in said.err
    assert "the preset" in said.err
    command = "spikebridge train npz --config found/snu/search.json"
    assert f"  {command}\n" in said.out

    content = json.loads(Path("found/snu/search.json").read_text())
    assert content["metric"] == ("accuracy" if kind == "class" else "rmse")
    assert content["higher_is_better"] == (kind == "class")
    summary = json.loads(Path("found/best.json").read_text())
    assert list(summary) == ["snu", "lstm"]
    assert summary["snu"]["command"] == command
    values = [trial["valid"] for trial in summary["snu"]["trials"]]
    assert values == sorted(values, reverse=kind == "class")
    best = (max if kind == "class" else min)(trial["valid"] for trial in content["trials"])
    assert values[0] == best

    (tmp_path / "runs").mkdir()
    assert spikebridge(command.removeprefix("spikebridge ") + " --out run --no-report") == 0
    config = rundir.read_config(Path("run"))
    assert config == override(
        from_dict(content["base"]), **from_content(SearchResult, content).ranked[0].settings
    )
    assert rundir.read_result(Path("run")).valid == pytest.approx(best)
    # A flag wins over what was best, as over any other file.
    assert spikebridge(command.removeprefix("spikebridge ") + " --lr 0.5 --out two") == 0
    assert rundir.read_config(Path("two")) == override(config, lr=0.5)


def test_a_table_is_searched(tmp_path: Path) -> None:
    table(tmp_path / "mine.csv")
    line = f"search forecast --file mine.csv --horizon 3 --units snu --trials 2 {FAST} --steps 10"
    assert spikebridge(f"{line} --out found") == 0
    content = json.loads(Path("found/snu/search.json").read_text())
    assert content["base"]["task"]["horizon"] == 3
    assert content["metric"] == "rmse"
    assert not content["higher_is_better"]


def test_what_a_flag_sets_is_not_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = []

    def validate(config: Any) -> list[Epoch]:
        tried.append(config)
        return [Epoch(epoch=1, best=True, valid=0.5, seconds=1.0)]

    monkeypatch.setattr(training, "validate", validate)
    lr = flatten(preset("digits", "snu"))["lr"]  # equal to the preset, and yet fixed
    line = f"search digits --units snu --trials 4 --lr {lr} --no-train-decay --out found"
    assert spikebridge(line) == 0
    assert {one.train.lr for one in tried} == {lr}
    assert {one.model.train_decay for one in tried} == {False}
    assert len({one.model.dropout for one in tried}) > 1
    content = json.loads(Path("found/snu/search.json").read_text())
    assert not {"lr", "train_decay"} & set(content["space"])


@pytest.mark.parametrize("task", [name for name, kind in TASKS.items() if kind.OWN_ONLY])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_setting_of_a_space_makes_a_network(task: str, variant: str) -> None:
    base = preset(task, variant)
    drawn = search.space(task, variant, base)
    unit = base.model.unit
    assert {"lr", "schedule", "batch_size", "dropout"} <= set(drawn)
    membranes = {"decay", "decay_to", "train_decay", "g", "norm"}
    assert (membranes <= set(drawn)) == (unit not in (*BASELINES, *PLAIN, *BINARY))
    assert ("reset" in drawn) == (membranes <= set(drawn) and unit != "li-snu")
    for name, options in drawn.items():
        for value in options:
            config = override(base, hidden=(3,), **{name: value})
            build(config.model, 2, 3, "mean")
    second = search._second(drawn)
    assert set(second) <= set(drawn)
    for name, value in second.items():
        options = drawn[name]
        inside = isinstance(options, tuple) and options[0] <= value <= options[1]
        assert inside or value in options, name
    override(base, **second)


def test_the_second_trial_of_own_data_is_what_suited_others(tmp_path: Path) -> None:
    write_npz(tmp_path / "mine", "class")
    assert spikebridge(f"search npz --data-dir mine --units snu --trials 2 {FAST} --out found") == 0
    content = json.loads(Path("found/snu/search.json").read_text())
    drawn = search.space("npz", "snu")
    assert content["trials"][0]["settings"] == {}
    settings = content["trials"][1]["settings"]
    assert search._second(drawn).items() <= settings.items()
    assert set(settings) == set(drawn)


def test_a_search_with_norms_as_switches_goes_on(tmp_path: Path) -> None:
    write_npz(tmp_path / "mine", "class")
    line = f"search npz --data-dir mine --units snu {FAST} --out found --trials"
    assert spikebridge(f"{line} 2") == 0
    journal = Path("found/snu") / search.JOURNAL
    choices = re.sub(r'(\\?")none\1, ?\1batch\1', "false, true", journal.read_text())
    text = re.sub(
        r'"norm": ?"(none|batch)"', lambda m: f'"norm":{json.dumps(m[1] == "batch")}', choices
    )
    assert '"batch"' not in text
    journal.write_text(text)
    assert spikebridge(f"{line} 4") == 0
    trials = json.loads(Path("found/snu/search.json").read_text())["trials"]
    assert len(trials) == 4
    assert {trial["settings"]["norm"] for trial in trials[2:]} <= {"none", "batch"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base": {}, "trials": [], "higher_is_better": True}, "every trial of the search failed"),
        ({"base": {}, "trials": [{"settings": {}}]}, "its trials are not those of a search"),
        ({"base": {}, "trials": 3}, "its trials are not those of a search"),
        ({"base": {"units": 1}, "trials": [{"valid": 1.0, "settings": {}}]}, "unknown key 'units'"),
    ],
)
def test_files_that_are_no_search(
    content: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message):
        rundir.load_config(tmp_path / "search.json")
    assert spikebridge("train digits --config search.json") == 2
    assert message in capsys.readouterr().err


def test_missing_data_leave_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge("search npz --data-dir nowhere --units snu --out found") == 2
    assert "nowhere" in capsys.readouterr().err
    assert not Path("found").exists()
    assert spikebridge("search npz --units snu --unit lstm") == 2
    assert "--unit: several units are searched; pass --units snu lstm" in capsys.readouterr().err
