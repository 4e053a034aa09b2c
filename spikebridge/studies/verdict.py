"""What a learning rule does against its controls: rows of a group, compared seed by seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from spikebridge.base.records import RunError
from spikebridge.runs import rundir
from spikebridge.studies.catalog import Entry, Row
from spikebridge.studies.contrasts import paired
from spikebridge.studies.plan import Planned
from spikebridge.studies.slowness import Slowness, slowness
from spikebridge.studies.tune import TUNING, at_edge

AGAINST = {"grapes": ("gain", "plain"), "online": ("plain",)}


def verdict(entry: Entry, planned: Sequence[Planned], out: Path) -> dict[str, Any]:
    """What compare.json says of learning rules, for an entry whose rows have roles; else {}.

    Args:
        entry: the table.
        planned: its runs, all complete.
        out: its folder, with tuning.json where settings were chosen.
    """
    if not any(row.role for row in entry.rows):
        return {}
    path = out / TUNING
    tuned = rundir.read_json(path, "remove it to tune anew") if path.exists() else {}
    runs: dict[str, list[Planned]] = {}
    for run in planned:
        runs.setdefault(run.contender.name, []).append(run)
    found = [
        _row(entry, row, runs[name], tuned) for row, name in zip(entry.rows, runs, strict=True)
    ]
    groups = list(dict.fromkeys(one["group"] for one in found))
    contrasts = [c for group in groups for c in _contrasts(group, found)]
    return {"learning": found, "contrasts": contrasts}


def _row(entry: Entry, row: Row, runs: Sequence[Planned], tuned: dict[str, Any]) -> dict[str, Any]:
    name = runs[0].contender.name
    chosen = tuned.get("chosen", {}).get(name, {})
    results = [rundir.read_result(run.directory) for run in runs]
    fits = [fit for fit in (_slowness(run) for run in runs) if fit is not None]
    values = [fit.slowness for fit in fits]
    return {
        "name": name,
        "label": runs[0].contender.label,
        "group": row.group,
        "role": row.role,
        "chosen": chosen,
        "at_edge": at_edge(entry, row, chosen),
        "tests": [result.test for result in results],
        "slowness": values,
        "slowness_mean": statistics.fmean(values) if values else None,
        "slowness_std": statistics.stdev(values) if len(values) > 1 else None,
    }


def _slowness(run: Planned) -> Slowness | None:
    """Of the accuracy on validation, since the test set is read only once; None elsewhere."""
    if rundir.read_result(run.directory).metric != "accuracy":
        return None
    path = run.directory / rundir.METRICS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        curve = [float(rundir.parse_json(line)["valid"]) for line in lines]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path}: it cannot be read ({error}); do the run again") from error
    if len(curve) < 2:
        return None
    return slowness(curve, 1 / _classes(run.directory))


def _classes(directory: Path) -> int:
    path = directory / rundir.MODEL
    try:
        with safe_open(path, framework="numpy") as file:
            return int(json.loads(file.metadata()["sizes"])["output_size"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: it does not say how many classes there are ({error})") from error


def _contrasts(group: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a group is about against its controls, in the metric and in slowness."""
    mine = {row["role"]: row for row in rows if row["group"] == group}
    found = []
    for role, others in AGAINST.items():
        for other in others:
            for what in ("tests", "slowness"):
                ours, theirs = (mine.get(r, {}).get(what) for r in (role, other))
                if ours and theirs and len(ours) == len(theirs):
                    contrast = paired(ours, theirs)
                    found.append(
                        {"group": group, "role": role, "against": other, "of": what}
                        | {"label": mine[role]["label"], "other": mine[other]["label"]}
                        | contrast.to_dict()
                        | {"clear": contrast.clear}
                    )
    return found
