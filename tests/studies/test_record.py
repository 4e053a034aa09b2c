"""Records of tables: whole, or not written; and those of the documents."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spikebridge.base.records import UsageError, to_plain
from spikebridge.runs import rundir
from spikebridge.studies import record
from spikebridge.studies.comparison import RowResult, Summary
from spikebridge.studies.contrasts import Contrast, corrected
from spikebridge.studies.tune import TUNING

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
FILES = sorted(RESULTS.glob("*.json"))
MARK = "*Incomplete record:"
ENVIRONMENT = dict.fromkeys((*record.VERSIONS, *record.MACHINE), "1") | {"cores": 2, "threads": 1}
ENVIRONMENT |= {"commit": "ab" * 20}


def content(seeds: tuple[int, ...] = (0, 1), **changed: Any) -> Summary:
    row = RowResult(
        unit="snu",
        label="SNU",
        n=2,
        tests=(0.5, 0.7),
        test_mean=0.6,
        test_std=None,
        valid_mean=0.6,
        parameters=9,
        seconds_median=1.0,
        spikes_mean=None,
        runs=("snu-0", "snu-1"),
        seeds=seeds,
        settings={"train": {"lr": 0.1}},
    )
    head = {"task": "music", "data": "jsb", "metric": "nll", "higher_is_better": False}
    whole = Summary(**head, rows=(row,), environment=ENVIRONMENT)
    changed["rows"] = tuple(replace(row, **row_) for row_ in changed.pop("rows", [{}]))
    return replace(whole, **changed)


def listed() -> set[str]:
    """The names that docs/results.md gives as incomplete."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = text.split("## Incomplete records", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"`([a-z0-9-]+)`", section))


def lacking_in(content: dict[str, Any]) -> list[str]:
    """What a file of the documents lacks: a table, searches (`units`), or measurements."""
    if "units" in content and "command" in content:  # searches, one for each unit
        more = content["wider"]["units"] if "wider" in content else {}
        searches = [*content["units"].values(), *more.values()]
        result = [lack for search in searches for lack in environment_lacks(search)]
        result += ["settings" for search in searches if "base" not in search]
        return list(dict.fromkeys(result))
    if "comparison" in content:  # the demo
        return record.lacks(content.get("environment") or {}, content["comparison"]["rows"])
    rows = content.get("rows")
    tested = isinstance(rows, list) and any("tests" in row or "measures" in row for row in rows)
    missing = record.lacks(content.get("environment") or {}, rows if tested else [])
    named = {"command", "commands"} & {*content, *(content.get("environment") or {})}
    return missing if named else [*missing, "command"]


def environment_lacks(content: dict[str, Any]) -> list[str]:
    return record.lacks(content.get("environment") or {}, [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_file_is_whole_or_marked(path: Path) -> None:
    lacking = lacking_in(json.loads(path.read_text(encoding="utf-8")))
    assert bool(lacking) == (path.stem in listed()), lacking
    table = path.with_suffix(".md")
    if table.exists():
        assert (MARK in table.read_text(encoding="utf-8")) == bool(lacking), lacking


def test_whole_records_name_commits_of_this_history() -> None:
    def git(*line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(ROOT), *line], capture_output=True, text=True)

    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("there is no history here: not a git clone, or a shallow one")
    for path in FILES:
        if path.stem not in listed():
            for commit in re.findall(r'"commit": "([0-9a-f]{40})"', path.read_text()):
                assert git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0, path.name


@pytest.mark.parametrize(
    ("changed", "lack"),
    [
        ({"environment": ENVIRONMENT | {"commit": "ab" * 20 + "-dirty"}}, "clean commit"),
        ({"environment": ENVIRONMENT | {"commit": ["ab" * 20, "cd" * 20]}}, "one commit"),
        ({"environment": ENVIRONMENT | {"commit": None}}, "one commit"),
        ({"environment": ENVIRONMENT | {"torch": None}}, "versions"),
        ({"environment": ENVIRONMENT | {"cpu": None}}, "machine"),
        ({"environment": {}}, "versions"),
        ({"rows": [{"settings": {}}]}, "settings"),
        ({"rows": [{"seeds": ()}]}, "seeds"),
    ],
)
def test_what_is_not_whole_is_refused(changed: dict, lack: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"it lacks .*{lack}.*--overwrite"):
        record.write("jsb", content(**changed), tmp_path / "runs", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_record_holds_the_command_and_the_files_of_its_table(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("a table")
    (tmp_path / "plot.png").write_bytes(b"a picture")
    trial = {"row": "a", "settings": {"lr": 0.1}, "seed": 1000, "valid": 0.5}
    rundir.write_json(
        tmp_path / TUNING, {"trials": [trial | {"config": {}}], "chosen": {"a": {"lr": 0.1}}}
    )
    written = record.write("jsb", content(), tmp_path, tmp_path / "to")
    assert [path.name for path in written] == ["jsb.json", "jsb.md", "jsb.png"]
    kept = json.loads(written[0].read_text())
    tuning = {"trials": [trial], "chosen": {"a": {"lr": 0.1}}}
    command = {"command": "spikebridge reproduce jsb --count 2"}
    assert kept == command | to_plain(content()) | {"tuning": tuning}
    assert lacking_in(kept) == []
    assert [path.read_bytes() for path in written[1:]] == [b"a table", b"a picture"]
    for seeds, quick, command in (
        ((3, 5), False, "spikebridge reproduce jsb --seeds 3 5"),
        ((0,), True, "spikebridge reproduce jsb --quick --count 1"),
    ):
        record.write("jsb", content(seeds), tmp_path, tmp_path / "to", quick=quick)
        assert json.loads(written[0].read_text())["command"] == command


def test_the_environment_of_runs_tells_where_they_differ(tmp_path: Path) -> None:
    for name, commit in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        rundir.write_json(tmp_path / name / rundir.ENVIRONMENT, ENVIRONMENT | {"commit": commit})
    same = record.environment_of([tmp_path / "a", tmp_path / "b"])
    assert {name: same[name] for name in ENVIRONMENT} == ENVIRONMENT | {"commit": "1"}
    assert record.environment_of([tmp_path / name for name in "abc"])["commit"] == ["1", "2"]
    assert record.environment_of([tmp_path / "a", tmp_path / "none"])["commit"] == ["1", None]


def test_what_the_documents_say_of_all_contrasts_together() -> None:
    """docs/results.md, "Many comparisons": how many leave out 0, and how many after correction."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in FILES]
    found = [
        Contrast(*(contrast[name] for name in ("mean", "low", "high", "n")))
        for content in files
        for contrast in content.get("contrasts") or []
    ]
    corrected_p = [p for p in corrected(found) if p is not None]
    clear, kept = sum(contrast.clear for contrast in found), sum(p <= 0.05 for p in corrected_p)
    text = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    said = f"hold {len(found)} intervals of 95 %; {clear} leave out 0, where chance alone"
    assert said in text
    assert kept == 0
    assert f"(Holm 1979) none of the {len(found)} is left" in text
