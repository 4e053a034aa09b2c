"""The plan of docs/architecture.md, kept true."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import spikebridge

ROOT = Path(spikebridge.__file__).parent
# A room may import from those before it.
ROOMS = [
    "base",
    "settings",
    "data",
    "nn",
    "learning",
    "chip",
    "energy",
    "crossbar",
    "runs",
    "trained",
    "studies",
    "report",
    "cli",
]
FORBIDDEN = {"data": {"nn"}, "report": {"nn"}}
AT_THE_ROOT = {"__init__.py", "__main__.py", "py.typed"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imports(path: Path) -> set[str]:
    """Parts of spikebridge that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("spikebridge.")}
    return found - {"_native", "__version__"}


FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT)


def test_nothing_else_stands_at_the_root() -> None:
    files = {p.name for p in ROOT.iterdir() if p.is_file() and not p.name.startswith("_native")}
    assert files == AT_THE_ROOT
    assert {p.parent.name for p in ROOT.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    for other in imports(path) - {room}:
        down = ROOMS.index(other) < ROOMS.index(room)
        assert down, f"{room} imports {other}"
        assert other not in FORBIDDEN.get(room, set()), f"{room} must not know {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = [n for n in node.body if not isinstance(n, ast.Expr | ast.FunctionDef)]
            if body:
                assert node.end_lineno - body[0].lineno < 45, node.name


def test_start_up_costs_little_more_than_torch(tmp_path: Path) -> None:
    code = (
        "import time, torch\n"
        "start = time.process_time()\n"
        "import spikebridge\n"
        "[getattr(spikebridge, name) for name in spikebridge.__all__]\n"
        "print(time.process_time() - start)"
    )
    # As installed packages are: compiled, which the first of these does for the others.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env, times = kept | {"PYTHONPYCACHEPREFIX": str(tmp_path)}, []
    for _ in range(3):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        times.append(float(done.stdout))
    assert min(times) < 0.3
