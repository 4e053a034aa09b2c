"""`--help` on one screen: an example, the flags that matter, and texts that are wrapped once."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise

import pytest

from spikebridge.cli import COMMANDS
from spikebridge.cli import main as cli
from spikebridge.settings.tasks import TASKS

WITH_TASKS = [name for name in COMMANDS if hasattr(cli.record_of(name), "PER_TASK")]
LINES = [
    *(f"{name} {task}" for name in WITH_TASKS for task in TASKS),
    *(name for name in COMMANDS if name not in WITH_TASKS),
]


def shown(line: str, capsys: pytest.CaptureFixture[str], flag: str = "--help") -> str:
    assert cli.main([*line.split(), flag]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("line", LINES)
def test_help_is_one_screen_with_an_example_that_works(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    said = shown(line, capsys)
    assert len(said.splitlines()) < 50
    (example,) = re.findall(r"^example: spikebridge (.+)$", said, re.MULTILINE)
    assert example.startswith(line)
    assert cli.parse(shlex.split(example)) is not None
    main = getattr(cli.record_of(line.split()[0]), "MAIN", ())
    flags = re.findall(r"^[│ ] --([a-z][\w-]*)", said, re.MULTILINE)
    if main:
        assert len(flags) in (4, 5)
        assert f"{' '.join(['spikebridge', line])} --help-all" in said
    assert len(set(flags)) == len(flags)


@pytest.mark.parametrize("line", LINES)
def test_help_all_shows_every_flag_once(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(line, capsys, "--help-all")
    flags = re.findall(r"^[│ ] --([a-z][\w-]*)", said, re.MULTILINE)
    assert len(set(flags)) == len(flags)
    main = getattr(cli.record_of(line.split()[0]), "MAIN", ())
    if main:
        number = re.search(r"all (\d+): spikebridge", shown(line, capsys))
        assert number is not None
        assert len(flags) == int(number[1])


@pytest.mark.parametrize("columns", [72, 100])
def test_texts_are_wrapped_once(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    said = shown("train digits", capsys, "--help-all").partition(" options")[2]
    lines = [line.replace("│", " ").rstrip() for line in said.splitlines()]
    checked = 0
    for line, after in pairwise(lines):
        indent = len(after) - len(after.lstrip())
        if indent < 10 or len(line) - len(line.lstrip()) != indent:  # no text that goes on
            continue
        assert len(line) + 1 + len(after.split()[0]) > columns - 4, line
        checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("train digits --epochs many", "train digits"),
        ("train digits --unit ltsm", "train digits"),
        ("export RUN --lane 3", "export"),
        ("reproduce jsb --job 2", "reproduce"),
        ("train digit", "train"),
    ],
)
def test_errors_name_the_help_of_the_command_itself(
    line: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split()) == 2
    assert f"spikebridge {command} --help" in capsys.readouterr().err
