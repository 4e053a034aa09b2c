"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from spikebridge import cli, rundir
from spikebridge.config import Config, ModelConfig
from spikebridge.network import build, save_network

README = Path(__file__).parents[1] / "README.md"


def commands() -> list[str]:
    """All command lines of the README: in blocks by themselves, and between backticks.

    A single word between backticks is a command's name.
    """
    text = README.read_text(encoding="utf-8")
    found = re.findall(r"^    spikebridge (.+)$", text, re.MULTILINE)
    found += re.findall(r"`spikebridge ([^`\s]+ [^`]+)`", text)
    return [line.partition("  #")[0].strip() for line in found]


@pytest.mark.parametrize("line", commands())
def test_the_commands_are_understood(line: str) -> None:
    assert cli.parse(shlex.split(line)) is not None


def test_each_run_that_the_readme_names_is_made_by_one_of_its_commands() -> None:
    made, named = set(), set()
    for line in commands():
        words = shlex.split(line)
        if words[0] == "train":
            parsed = cli.parse(words)
            config = Config(parsed.task, parsed.model, parsed.train, parsed.memory, parsed.learning)
            made.add(str(parsed.run.out or rundir.default_folder(config)))
        else:
            named |= {word for word in words if re.fullmatch(r"runs/[\w-]+-\d+", word)}
    assert named
    assert named <= made


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    model, run = ModelConfig(hidden=(6, 5)), tmp_path / "runs/digits8x8-snu-0"
    run.mkdir(parents=True)
    save_network(build(model, 64, 10, "mean"), run / "model.safetensors")
    names: dict = {}
    for block in blocks[:3]:
        exec(block, names)
    assert names["output"].shape == (100, 32, 150)
    assert names["trace"].s.shape == (100, 32, 150)
    names["x"] = torch.rand(20, 4, 64)
    exec(blocks[3], names)
    assert names["output"].shape == (4, 10)
    assert set(names["optimizer"].epsilons) == set(names["chip"].crossbars)
