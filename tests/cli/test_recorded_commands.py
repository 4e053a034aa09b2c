"""Every command that a file of docs/results names can be given today, or leads to one that can."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spikebridge.cli import flags
from spikebridge.cli import main as cli
from spikebridge.studies.catalog import CATALOG

ROOT = Path(cli.__file__).parents[2]
RESULTS = sorted((ROOT / "docs/results").glob("*.json"))
ENTRIES = {entry.name for entry in CATALOG}


def commands(content: Any) -> Iterator[str]:
    """All that stands in fields "command" and "commands": a line, words of one, or lines."""
    if isinstance(content, list):
        for value in content:
            yield from commands(value)
    if not isinstance(content, dict):
        return
    for name, value in content.items():
        if name not in ("command", "commands"):
            yield from commands(value)
        elif isinstance(value, str):
            yield value
        elif " " in value[0]:
            yield from value
        else:
            yield shlex.join(value)


def understood(line: str) -> list[str]:
    """The words of the command of today; SystemExit or UsageError where there is none."""
    words = shlex.split(line)
    try:
        cli.parse(words)
    except flags.OldSpelling as renamed:
        cli.parse(renamed.argv)
        return renamed.argv
    return words


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_the_commands_of_a_record_are_understood(file: Path) -> None:
    lines = list(commands(json.loads(file.read_text(encoding="utf-8"))))
    assert lines or file.stem == "mnist-binary"  # which holds settings, no command
    for line in lines:
        quoted = re.findall(r"`([^`]+)`", line)  # within a sentence
        for text in quoted or [line.partition(", as the catalog was")[0]]:
            program, *rest = shlex.split(text)
            if program == "spikebridge":
                words = understood(shlex.join(rest))
                assert words[0] != "reproduce" or words[1] in ENTRIES
            elif program == "make":
                makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
                assert re.search(rf"^{rest[0]}:", makefile, re.MULTILINE)
            else:
                script = rest[0] if program == "python" else f"benchmarks/{program}"
                assert (ROOT / script).exists(), text
