"""What the runs of a table of forgetting come to: rows over seeds, GRAPES against its controls."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikebridge.runs import rundir
from spikebridge.runs.transfer import MEASURES
from spikebridge.settings.continual import ContinualConfig, to_dict
from spikebridge.studies.catalog.continual import ForgettingEntry, ForgettingRow
from spikebridge.studies.contrasts import paired
from spikebridge.studies.record import environment_of

AGAINST = ("gain", "plain")


def summary(
    entry: ForgettingEntry,
    planned: dict[tuple[str, int], ContinualConfig],
    out: Path,
    tuned: dict[str, Any],
) -> dict[str, Any]:
    """The content of forgetting.json, from runs that are all complete and what `tune` gave."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, seed in planned:
        path = out / f"{name}-{seed}" / "continual.json"
        runs.setdefault(name, []).append(rundir.read_json(path, "remove its folder"))
    first = runs[entry.rows[0].name][0]
    seeds = sorted({seed for _, seed in planned})
    rows = []
    for row in entry.rows:
        settings = to_dict(planned[row.name, seeds[0]])
        del settings["train"]["seed"]
        rows.append(
            _row(entry, row, runs[row.name], tuned) | {"seeds": seeds, "settings": settings}
        )
    return {
        "name": entry.name,
        "title": entry.title,
        "source": entry.source,
        "seeds": seeds,
        "trial_seeds": sorted({record["seed"] for record in tuned["trials"]}),
        **{key: first[key] for key in ("protocol", "tasks", "data", "chance", "unit")},
        "heads": first["config"]["sequence"]["heads"],
        "rows": rows,
        "contrasts": _contrasts(rows),
        # Their configs stand in tuning.json.
        "trials": [
            {key: value for key, value in record.items() if key != "config"}
            for record in tuned["trials"]
        ],
        "config": first["config"],
        "environment": environment_of([out / f"{name}-{seed}" for name, seed in planned]),
    }


def _row(
    entry: ForgettingEntry,
    row: ForgettingRow,
    runs: Sequence[dict[str, Any]],
    tuned: dict[str, Any],
) -> dict[str, Any]:
    chosen = tuned["chosen"][row.name]
    tried = [r["settings"] for r in tuned["trials"] if r["row"] == row.name]
    values = {name: sorted({settings[name] for settings in tried}) for name in chosen if tried}
    matrices = [run["matrix"] for run in runs]
    count = range(len(matrices[0]))
    return {
        "name": row.name,
        "label": row.label,
        "role": row.role,
        "chosen": chosen,
        # The best may lie beyond what was tried.
        "at_edge": [
            name
            for name, tries in values.items()
            if len(tries) > 1 and chosen[name] in (tries[0], tries[-1])
        ],
        "n": len(runs),
        "measures": {name: _spread([run["measures"][name] for run in runs]) for name in MEASURES},
        "first": [statistics.fmean(run["first"][j] for run in runs) for j in count],
        "matrix": [[statistics.fmean(m[k][j] for m in matrices) for j in count] for k in count],
        "matrix_std": [[_deviation([m[k][j] for m in matrices]) for j in count] for k in count],
        "seconds": statistics.median(run["seconds"] for run in runs),
        "parameters": runs[0]["parameters"],
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "std": _deviation(values), "values": values}


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _contrasts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """GRAPES less each of its controls, by seed."""
    mine = {row["role"]: row for row in rows}
    found = []
    for other in AGAINST:
        if "grapes" not in mine or other not in mine:
            continue
        ours, theirs = mine["grapes"], mine[other]
        for name in MEASURES:
            contrast = paired(*(row["measures"][name]["values"] for row in (ours, theirs)))
            found.append(
                {"label": ours["label"], "other": theirs["label"], "against": other}
                | {"measure": name, **contrast.to_dict(), "clear": contrast.clear}
            )
    return found
