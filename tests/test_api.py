"""What stands in documents and examples is the surface of the library, and names mean one thing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import spikebridge
from spikebridge.base.doors import MOVED, moved

ROOT = Path(spikebridge.__file__).parent
HOUSE = ROOT.parent
PAGES = [HOUSE / "README.md", HOUSE / "CONTRIBUTING.md", *sorted((HOUSE / "docs").glob("*.md"))]
EXAMPLES = sorted((HOUSE / "examples").glob("*.py"))


def test_the_public_names_are_exactly_these() -> None:
    assert spikebridge.__all__ == sorted(
        spikebridge.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n)
    )
    assert sorted(" ".join(spikebridge._HOME.values()).split()) == sorted(spikebridge.__all__)
    for name in spikebridge.__all__:
        assert getattr(spikebridge, name).__doc__, name
    assert set(spikebridge.__all__) <= set(dir(spikebridge))
    with pytest.raises(AttributeError, match=r"has no attribute 'LIF'$"):
        _ = spikebridge.LIF


@pytest.mark.parametrize("name", spikebridge.DOORS)
def test_doors_say_what_their_room_is_for(name: str) -> None:
    door = getattr(spikebridge, name)
    assert door.__all__ == sorted(door.__all__)
    assert len(door.__doc__.strip().splitlines()) > 2
    for own in door.__all__:
        assert getattr(door, own).__doc__, own
        assert own in dir(door)
    with pytest.raises(AttributeError, match=f"'spikebridge.{name}' has no attribute 'nothing'"):
        _ = door.nothing


def test_the_package_and_its_doors_load_without_torch() -> None:
    doors = ", ".join(f"spikebridge.{name}" for name in spikebridge.DOORS)
    code = f"import sys, spikebridge.settings.config, {doors}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def imported(code: str) -> Iterator[tuple[str, str]]:
    """Module and name of every import from the package."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


def python_of(page: Path) -> Iterator[str]:
    """The Python of a page: blocks marked as such, and lines of imports elsewhere."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    yield from (line.strip() for line in re.findall(r"^ +from spikebridge.*$", text, re.MULTILINE))


def is_public(module: str, name: str) -> bool:
    """Whether a name may be imported from there: at the root, or from one of the doors."""
    package, _, door = module.partition(".")
    if package != "spikebridge":
        return True
    if not door:
        return not name or name in (*spikebridge.__all__, *spikebridge.DOORS)
    return door in spikebridge.DOORS and (not name or name in import_module(module).__all__)


def test_documents_and_examples_import_the_public_surface_alone() -> None:
    codes = [(page, code) for page in PAGES for code in python_of(page)]
    codes += [(path, path.read_text(encoding="utf-8")) for path in EXAMPLES]
    seen = {(path, *names) for path, code in codes for names in imported(code)}
    assert [names for names in seen if not is_public(*names[1:])] == []
    assert len([path for path, module, _ in seen if module.startswith("spikebridge")]) > 10


def test_names_in_documents_are_public() -> None:
    for page in PAGES:
        if page.name == "log.md":  # of what was, under its names of then
            continue
        for words in re.findall(r"`spikebridge\.([\w.]+)[`(]", page.read_text(encoding="utf-8")):
            door, _, name = words.partition(".")
            module = f"spikebridge.{door}" if door in spikebridge.DOORS else "spikebridge"
            own = name.partition(".")[0] if door in spikebridge.DOORS else door
            assert is_public(module, own), f"{page.name}: {words}"


def test_no_two_public_classes_share_a_name() -> None:
    homes = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        if path.parent.name == "cli":  # its records are named like the commands
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    shared = {name: places for name, places in homes.items() if len(places) > 1}
    assert shared == {}


def error_of(code: str) -> str:
    with pytest.raises((ImportError, AttributeError)) as caught:
        exec(code)
    return str(caught.value)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_names_of_before_say_where_they_are_now(old: str) -> None:
    place = moved(old)
    assert place is not None
    for code in (f"import spikebridge.{old}", f"from spikebridge.{old} import something"):
        assert re.match(
            r"spikebridge\.[\w.]+ is spikebridge\.[\w.]+ now|.*CellConfig", error_of(code)
        )
    if "." not in old:
        for code in (f"from spikebridge import {old}", f"spikebridge.{old}"):
            assert old in spikebridge.__all__ or place in error_of(code)
    home = place.split(" is ")[1].split(" ")[0]
    assert old == "MemoryConfig" or import_module(home)


def test_examples_of_moves() -> None:
    assert moved("memory.pcm") == "spikebridge.memory.pcm is spikebridge.crossbar.pcm now"
    assert moved("tasks.base") == "spikebridge.tasks.base is spikebridge.data.task now"
    assert moved("nonsense") is None
    assert error_of("import spikebridge.nonsense") == "No module named 'spikebridge.nonsense'"
