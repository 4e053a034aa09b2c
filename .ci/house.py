"""The shape of the package in numbers: python .ci/house.py [FOLDER of a source tree]"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

WINDOW = 8
"""Lines that must be equal, blank ones and imports left out, to count as repeated."""


def imports(tree: ast.AST, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in modules else node.module)
    return names & modules


def function_lines(tree: ast.AST) -> int:
    """Lines of the longest function, without decorators."""
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return max(((n.end_lineno or n.lineno) - n.lineno + 1 for n in functions), default=0)


def windows(text: str) -> list[tuple[str, ...]]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("from ", "import ", "#"))]
    return [tuple(lines[i : i + WINDOW]) for i in range(len(lines) - WINDOW + 1)]


def shape(root: Path) -> dict[str, float]:
    """Counts over spikebridge/ of a source tree."""
    package = root / "spikebridge"
    files = sorted(package.rglob("*.py"))
    names = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }
    texts = {name: path.read_text(encoding="utf-8") for name, path in names.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    arrows = {(a, b) for a, tree in trees.items() for b in imports(tree, set(names)) if a != b}
    room = {name: ".".join(name.split(".")[:2]) for name in names}
    between = {(room[a], room[b]) for a, b in arrows if room[a] != room[b]}
    seen = Counter(window for text in texts.values() for window in windows(text))
    total = sum(seen.values())
    return {
        "Python files at the root": len(list(package.glob("*.py"))),
        "folders (rooms) at the root": len(list(package.glob("*/__init__.py"))),
        "Python files": len(files),
        "lines of Python": sum(len(text.splitlines()) for text in texts.values()),
        "longest file, lines": max(len(text.splitlines()) for text in texts.values()),
        "longest function, lines": max(map(function_lines, trees.values())),
        "imports between modules": len(arrows),
        "imports between parts of the root": len(between),
        f"repeated windows of {WINDOW} lines, %": round(
            100 * sum(n for n in seen.values() if n > 1) / max(total, 1), 2
        ),
    }


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    for name, value in shape(root).items():
        print(f"{name:40}{value:>10,}")


if __name__ == "__main__":
    main()
