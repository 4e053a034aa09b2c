"""The README's Python examples run as they stand; its commands, and those of the results, parse."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from spikebridge.cli import main as cli
from spikebridge.nn.network import build, save_network
from spikebridge.runs import rundir
from spikebridge.settings.config import Config, ModelConfig
from spikebridge.studies.catalog import CATALOG

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path = README) -> list[str]:
    """All command lines of a page: in blocks by themselves, and between backticks.

    A single word between backticks is a command's name.
    """
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^    spikebridge (.+)$", text, re.MULTILINE)
    found += re.findall(r"`spikebridge ([^`\s]+ [^`]+)`", text)
    return [line.partition("  #")[0].strip() for line in found]


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page)}))
def test_the_commands_are_understood(line: str) -> None:
    assert cli.parse(shlex.split(line)) is not None


def test_each_run_that_the_readme_names_is_made_by_one_of_its_commands() -> None:
    made, named = set(), set()
    for line in commands():
        words = shlex.split(line)
        if words[0] == "train":
            parsed = cli.parse(words)
            parts = {f.name for f in dataclasses.fields(Config)} & vars(parsed).keys()
            config = Config(**{name: getattr(parsed, name) for name in parts})
            made.add(str(parsed.options.output.out or rundir.default_folder(config)))
        else:
            named |= {word for word in words if re.fullmatch(r"runs/[\w-]+-\d+", word)}
    assert named
    assert named <= made


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    model, run = ModelConfig(hidden=(6, 5)), tmp_path / "runs/digits8x8-snu-0"
    run.mkdir(parents=True)
    save_network(build(model, 64, 10, "mean"), run / "model.safetensors")
    found = []
    for block in blocks:  # each by itself, as a newcomer copies it
        names: dict = {}
        exec(block, names)
        found.append(names)
    layers, rules, cells = found
    assert layers["output"].shape == (100, 32, 150)
    assert all(p.grad is not None for p in rules["model"].parameters())
    assert cells["output"].shape == (32, 10)


PROSE = [page for page in PAGES if page.name != "log.md"]
WORDS, ROWS = 80, 110


@pytest.mark.parametrize("page", [*PROSE, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_paragraphs_are_short(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=\s*[-*] |\s*\d+\. )", text)
    prose = [block for block in blocks if not block.lstrip("\n").startswith(("    ", "|", "#"))]
    assert not [block for block in prose if len(block.split()) > WORDS]


def test_the_readme_is_a_screen_and_a_half() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= ROWS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith("http")]
    for target in targets:
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in slugs, target


def test_the_results_name_entries_of_the_catalog() -> None:
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`reproduce ([\w-]+)`", text))
    assert len(named) > 15
    assert named <= {entry.name for entry in CATALOG}
