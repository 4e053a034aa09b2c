"""What came out of a comparison: the content of compare.json, and tables for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikebridge import rundir
from spikebridge.config import data_name, task_name, variant_of
from spikebridge.contenders import Planned
from spikebridge.metrics import METRICS
from spikebridge.quantities import in_words
from spikebridge.rundir import Result

if TYPE_CHECKING:
    from rich.table import Table


def summary(planned: Sequence[Planned]) -> dict[str, Any]:
    """The content of compare.json, from the results of complete runs."""
    groups: dict[str, list[tuple[Planned, Result]]] = {}
    for run in planned:
        group = groups.setdefault(run.contender.name, [])
        group.append((run, rundir.read_result(run.directory)))
    first = planned[0]
    result = next(iter(groups.values()))[0][1]
    rows = [_row(group) for group in groups.values()]
    _keep_alike(rows)
    return {
        "task": task_name(first.config),
        "data": data_name(first.config),
        "metric": result.metric,
        "higher_is_better": result.higher_is_better,
        "rows": rows,
    }


def _keep_alike(rows: list[dict[str, Any]]) -> None:
    """Only deployments like the first stand in one table."""
    names = ("times_s", "memory", "split", "networks", "chips")
    known = [row for row in rows if row["memory"]]
    for row in known[1:]:
        if any(row["memory"][name] != known[0]["memory"][name] for name in names):
            row["memory"] = None


def _row(group: list[tuple[Planned, Result]]) -> dict[str, Any]:
    one = group[0][0].contender
    results = [result for _, result in group]
    tests = [result.test for result in results]
    spikes = [result.spikes_per_inference for result in results]
    counted = [value for value in spikes if value is not None]
    return {
        "unit": variant_of(one.config.model),
        "label": one.label,
        "n": len(results),
        "test_mean": statistics.fmean(tests),
        "test_std": statistics.stdev(tests) if len(tests) > 1 else None,
        "tests": tests,
        "valid_mean": statistics.fmean(result.valid for result in results),
        "parameters": results[0].parameters,
        "operations": results[0].operations_per_step,
        "seconds_mean": statistics.fmean(result.seconds for result in results),
        "spikes_mean": statistics.fmean(counted) if counted else None,
        "published": one.published,
        "memory": _in_memory([run.directory for run, _ in group]),
        "runs": [run.name for run, _ in group],
    }


def _in_memory(directories: Sequence[Path]) -> dict[str, Any] | None:
    """Over all runs and chips, where every run has been programmed at the same times."""
    paths = [directory / rundir.MEMORY for directory in directories]
    if not all(path.exists() for path in paths):
        return None
    found = [rundir.read_json(path, "run `spikebridge program` again") for path in paths]
    alike = ("times_s", "memory", "samples", "split")
    if any(one[name] != found[0][name] for one in found for name in alike):
        return None
    moments = [
        [chip[i] for one in found for chip in one["compensated"]]
        for i in range(len(found[0]["times_s"]))
    ]
    energies = [one["energy"]["hardware"] for one in found]
    return {
        "device": found[0]["device"]["name"],
        "cells": found[0]["cells"],
        "networks": len(found),
        "chips": len(found[0]["compensated"]),
        "memory": found[0]["memory"],
        "split": found[0]["split"],
        "times_s": found[0]["times_s"],
        "means": [statistics.fmean(values) for values in moments],
        "stds": [statistics.stdev(values) if len(values) > 1 else None for values in moments],
        "energy_pJ": {
            name: statistics.fmean(one[name]["total_pJ"] for one in energies)
            for name in energies[0]
        },
    }


def memory_table(content: dict[str, Any]) -> Table | None:
    """What the units do in memory cells, as a table for a terminal; None where nobody tried."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = [row for row in content["rows"] if row.get("memory")]
    if not rows:
        return None
    metric, first = METRICS[content["metric"]], rows[0]["memory"]
    title = (
        f"In {first['device']} phase-change cells, drift compensated: {metric.axis}, mean of "
        f"{first['networks']} networks x {first['chips']} chips"
    )
    built = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    built.add_column("unit")
    names = ["in software", *(in_words(time_s) for time_s in first["times_s"])]
    for name in (*names, "nJ on PCM", "nJ digital int8"):
        built.add_column(name, justify="right")
    for row in rows:
        memory = row["memory"]
        energies = [memory["energy_pJ"][name] for name in ("PCM crossbar", "digital, int8, events")]
        built.add_row(
            row["label"],
            metric.figure(row["test_mean"]),
            *(_spread(metric, *pair) for pair in zip(memory["means"], memory["stds"], strict=True)),
            *(f"{value / 1e3:,.0f}" for value in energies),
        )
    return built


def _spread(metric: Any, mean: float, std: float | None) -> str:
    text = metric.figure(mean)
    return text if std is None else f"{text} ± {metric.figure(std)}"


def table(content: dict[str, Any]) -> Table:
    """The comparison as a table for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    metric = METRICS[content["metric"]]
    title = f"{content['task']} ({content['data']}): {metric.axis}, {metric.better}"
    built = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    built.add_column("unit")
    # Short enough for 80 columns.
    for name in ("test", "valid", "seeds", "params", "MACs", "spikes", "s/run", "paper"):
        built.add_column(name, justify="right")
    for row in content["rows"]:
        built.add_row(
            row["label"],
            _spread(metric, row["test_mean"], row["test_std"]),
            metric.figure(row["valid_mean"]),
            str(row["n"]),
            f"{row['parameters']:,}",
            f"{row['operations']:,}",
            "-" if row["spikes_mean"] is None else f"{row['spikes_mean']:,.0f}",
            f"{row['seconds_mean']:.1f}",
            metric.figure(row["published"]["value"]) if row["published"] else "-",
        )
    return built
