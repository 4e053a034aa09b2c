"""Records: a table of the catalog as files for documents, with all that it takes to make it again.

A record is whole when a stranger can repeat it: the command, the settings and seeds of every row,
and the environment of its runs with the commit of a clean source tree.  What is not whole is not
written.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from spikebridge.base.records import UsageError, to_plain
from spikebridge.runs import rundir
from spikebridge.runs.environment import Environment
from spikebridge.runs.load import ReportError, load_environment
from spikebridge.studies.comparison import Summary
from spikebridge.studies.tune import Tuning

VERSIONS = ("spikebridge", "python", "torch", "numpy")
MACHINE = ("cpu", "cores", "threads", "kernels", "system", "machine")
FILES = {"table.md": ".md", "plot.png": ".png", "contrasts.png": "-contrasts.png"}
FILES |= {"steps.png": "-steps.png", "tasks.png": "-tasks.png"}
"""What a table's folder holds for documents: names there, ends of names in the record."""


def environment_of(directories: Sequence[Path]) -> dict[str, Any]:
    """What the environments of runs share; where they differ, a list of all values.

    A run without a readable environment.json counts as one of which nothing is known.
    """
    environments = []
    for directory in directories:
        try:
            environments.append(load_environment(directory))
        except ReportError:
            environments.append(Environment())
    shared: dict[str, Any] = {}
    for name in (*VERSIONS, "instruction_set", *MACHINE, "commit"):
        values = list(dict.fromkeys(getattr(item, name) for item in environments))
        shared[name] = values[0] if len(values) == 1 else values
    return shared


def lacks(environment: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a stranger needs to repeat a record and does not find, as short phrases.

    Args:
        environment: of its runs.
        rows: those of a table, as plain data.
    """
    commit = environment.get("commit")
    missing = {
        "versions": any(environment.get(name) is None for name in VERSIONS),
        "machine": any(environment.get(name) is None for name in MACHINE),
        "one commit": not isinstance(commit, str),
        "clean commit": str(commit).endswith("-dirty"),
    }
    missing |= {name: any(not row.get(name) for row in rows) for name in ("settings", "seeds")}
    return [name for name, lacking in missing.items() if lacking]


def _tuning(out: Path) -> dict[str, Any]:
    """What was tried and chosen; what a trial shares with its row stands in the row's settings."""
    tuning = Tuning.read(out)
    trials = tuple(replace(trial, config={}) for trial in tuning.trials)
    return {"tuning": to_plain(replace(tuning, trials=trials))} if trials else {}


def write(
    name: str, content: Summary, out: Path, folder: Path, *, quick: bool = False
) -> list[Path]:
    """Write NAME.json, its table and its pictures to a folder; the files.

    Args:
        name: of the entry of the catalog.
        content: of complete runs.
        out: the table's folder.
        folder: where the record goes, such as docs/results.
        quick: whether the runs are those of --quick.

    Raises UsageError where the record would not be whole.
    """
    if missing := lacks(content.environment, to_plain(content.rows)):
        raise UsageError(
            f"{out}: as a record it lacks {', '.join(missing)}; make all its runs again with "
            "--overwrite, from a source tree without uncommitted changes"
        )
    seeds = content.rows[0].seeds
    counted = seeds == tuple(range(len(seeds)))
    words = ["spikebridge", "reproduce", name, *(["--quick"] if quick else [])]
    words += ["--count", str(len(seeds))] if counted else ["--seeds", *map(str, seeds)]
    plain = {"command": " ".join(words)} | _tuning(out) | to_plain(content)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.json"]
    rundir.write_json(written[0], plain)
    for own, end in FILES.items():
        if (out / own).exists():
            path = folder / f"{name}{end}"
            rundir.replace(path, partial(shutil.copyfile, out / own))
            written.append(path)
    return written
