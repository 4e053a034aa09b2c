"""What came out of a comparison: the content of compare.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open

from spikebridge.base.records import RunError, to_plain
from spikebridge.runs import rundir
from spikebridge.runs.hardware_results import (
    ENDS,
    OnChip,
    load_by_steps,
    load_on_cells,
    load_on_chip,
    load_proof,
)
from spikebridge.runs.rundir import Result
from spikebridge.runs.transfer import MEASURES
from spikebridge.settings.config import Config, data_name, task_name, to_dict, variant_of
from spikebridge.studies.catalog import Entry, Row
from spikebridge.studies.contrasts import paired
from spikebridge.studies.plan import Planned
from spikebridge.studies.record import environment_of
from spikebridge.studies.slowness import Slowness, slowness
from spikebridge.studies.tune import Tuning, at_edge

AGAINST = {"grapes": ("gain", "plain"), "online": ("plain",)}
"""Roles and the controls that each is compared with, seed by seed."""

Content = TypeVar("Content")


def summary(planned: Sequence[Planned]) -> dict[str, Any]:
    """The content of compare.json, from the results of complete runs."""
    groups: dict[str, list[tuple[Planned, Result]]] = {}
    for run in planned:
        group = groups.setdefault(run.contender.name, [])
        group.append((run, rundir.read_result(run.directory)))
    first = planned[0]
    result = next(iter(groups.values()))[0][1]
    rows = [_row(group) for group in groups.values()]
    _keep_alike(rows, "memory", ("times_s", "memory", "split", "networks", "chips"))
    _keep_alike(rows, "chip", ("split", "samples", "lanes", "clock_MHz"))
    return {
        "task": task_name(first.config),
        "data": data_name(first.config),
        "metric": result.metric,
        "higher_is_better": result.higher_is_better,
        "rows": rows,
        "rtl": _proof(planned),
        "environment": environment_of([run.directory for run in planned]),
    }


def _keep_alike(rows: list[dict[str, Any]], key: str, names: Sequence[str]) -> None:
    """Only deployments like the first stand in one table: those with the same `names`."""
    known = [row for row in rows if row[key]]
    for row in known[1:]:
        if any(row[key][name] != known[0][key][name] for name in names):
            row[key] = None


def _row(group: list[tuple[Planned, Result]]) -> dict[str, Any]:
    one = group[0][0].contender
    results = [result for _, result in group]
    tests = [result.test for result in results]
    spikes = [result.spikes_per_inference for result in results]
    counted = [value for value in spikes if value is not None]
    return {
        "unit": variant_of(one.config.model),
        "label": one.label,
        "look": one.look,
        "n": len(results),
        "test_mean": statistics.fmean(tests),
        "test_std": _deviation(tests),
        "tests": tests,
        "valid_mean": statistics.fmean(result.valid for result in results),
        "parameters": results[0].parameters,
        "operations": results[0].operations_per_step,
        "seconds_median": statistics.median(result.seconds for result in results),
        "spikes_mean": statistics.fmean(counted) if counted else None,
        "published": one.published,
        "memory": _in_memory([run.directory for run, _ in group]),
        "chip": _on_chip([run.directory for run, _ in group]),
        "by_steps": _by_steps([run.directory for run, _ in group]),
        "sequence": _sequence(results),
        "runs": [run.name for run, _ in group],
        "seeds": [run.config.train.seed for run, _ in group],
        "settings": _without_seed(group[0][0].config),
    }


def _sequence(results: Sequence[Result]) -> dict[str, Any] | None:
    """Of tasks one after the other: measures of each run, accuracies as means over runs."""
    runs = [result.sequence for result in results if result.sequence is not None]
    if len(runs) < len(results) or not runs:
        return None
    count = range(runs[0].tasks)
    matrices = [run.matrix for run in runs]
    cells = [[[m[k][j] for m in matrices] for j in count] for k in count]
    return {
        "tasks": runs[0].tasks,
        "chance": runs[0].chance,
        "measures": {
            name: _spread([getattr(run.measures, name) for run in runs]) for name in MEASURES
        },
        "first": [statistics.fmean(run.first[j] for run in runs) for j in count],
        "matrix": [[statistics.fmean(values) for values in row] for row in cells],
        "matrix_std": [[_deviation(values) for values in row] for row in cells],
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "std": _deviation(values), "values": values}


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _without_seed(config: Config) -> dict[str, Any]:
    plain = to_dict(config)
    del plain["train"]["seed"]
    if "sequence" in plain:
        del plain["sequence"]["sequence_seed"]  # which is another one for each seed
    return plain


def _by_steps(directories: Sequence[Path]) -> dict[str, Any] | None:
    """Over all runs, where every run has been tested at the same numbers of steps."""
    result = _all(load_by_steps, directories, lambda one: one.steps)
    if not result:
        return None
    tests = list(zip(*(item.test for item in result), strict=True))
    return {
        "trained_with": result[0].trained_with,
        "steps": list(result[0].steps),
        "means": [statistics.fmean(values) for values in tests],
        "stds": [_deviation(values) for values in tests],
    }


def _in_memory(directories: Sequence[Path]) -> dict[str, Any] | None:
    """Over all runs and chips, where every run has been programmed at the same times."""
    result = _all(
        load_on_cells,
        directories,
        lambda one: (one.times_s, one.memory, one.samples, one.split),
    )
    if not result:
        return None
    first, times = result[0], range(len(result[0].times_s))
    moments = [[v for item in result for v in item.compensated[:, i].tolist()] for i in times]
    energies = [item.energy.hardware for item in result]
    return {
        "device": first.device.name,
        "cells": first.cells,
        "networks": len(result),
        "chips": first.chips,
        "memory": first.memory,
        "split": first.split,
        "times_s": list(first.times_s),
        "means": [statistics.fmean(values) for values in moments],
        "stds": [_deviation(values) for values in moments],
        "energy_pJ": {
            name: statistics.fmean(hardware[name].total_pJ for hardware in energies)
            for name in energies[0]
        },
    }


def _on_chip(directories: Sequence[Path]) -> dict[str, Any] | None:
    """Over all runs, where every run has been exported alike; energies in pJ, per sample."""
    result = _all(load_on_chip, directories, _alike)
    if not result:
        return None
    first, integers = result[0], [item.integer for item in result]
    return {
        **_alike(first),
        "networks": len(result),
        "software_mean": statistics.fmean(item.software for item in result),
        "mean": statistics.fmean(integers),
        "std": _deviation(integers),
        "energy_pJ": {
            name: statistics.fmean(item.energy.ends[name].total_pJ for item in result)
            for name in ENDS
        },
        "cycles": statistics.fmean(item.each("cycles") for item in result),
        "additions": statistics.fmean(item.each("additions") for item in result),
    }


def _alike(one: OnChip) -> dict[str, Any]:
    """The settings of the chip that runs share which are taken together."""
    return {
        "split": one.split,
        "per": one.per,
        "samples": one.counts.samples,
        "lanes": one.chip.lanes,
        "clock_MHz": one.chip.clock_MHz,
        "weight_bits": one.program.weight_bits,
        "decay_bits": one.program.decay_bits,
        "fraction_bits": one.program.fraction_bits,
    }


def _all(
    load: Callable[[Path], Content | None],
    directories: Sequence[Path],
    alike: Callable[[Content], Any],
) -> list[Content]:
    """What every run has of a kind, where all have the same settings; empty otherwise."""
    result = [content for content in map(load, directories) if content is not None]
    same = all(alike(item) == alike(result[0]) for item in result)
    return result if same and len(result) == len(directories) else []


def _proof(planned: Sequence[Planned]) -> dict[str, Any] | None:
    """What simulators said of the Verilog of the first run that has been put to them."""
    for run in planned:
        if proof := load_proof(run.directory):
            plain = to_plain(proof)
            del plain["program_sha256"]
            return {"run": run.name, **plain}
    return None


def by_role(entry: Entry, planned: Sequence[Planned], out: Path) -> dict[str, Any]:
    """What compare.json says of rows against their controls, where rows have roles; else {}.

    Args:
        entry: the table.
        planned: its runs, all complete.
        out: its folder, with tuning.json where settings were chosen.
    """
    if not any(row.role for row in entry.rows):
        return {}
    tuning = Tuning.read(out)
    runs: dict[str, list[Planned]] = {}
    for run in planned:
        runs.setdefault(run.contender.name, []).append(run)
    rows = [
        _in_group(entry, row, runs[name], tuning)
        for row, name in zip(entry.rows, runs, strict=True)
    ]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    contrasts = [contrast for group in groups for contrast in _contrasts(group, rows)]
    return {"learning": rows, "contrasts": contrasts}


def _in_group(entry: Entry, row: Row, runs: Sequence[Planned], tuning: Tuning) -> dict[str, Any]:
    name = runs[0].contender.name
    chosen = tuning.chosen.get(name, {})
    results = [rundir.read_result(run.directory) for run in runs]
    fits = [_slowness(run, result) for run, result in zip(runs, results, strict=True)]
    values = [fit.slowness for fit in fits if fit is not None]
    return {
        "name": name,
        "label": runs[0].contender.label,
        "group": row.group,
        "role": row.role,
        "chosen": chosen,
        "at_edge": at_edge(entry, row, chosen),
        "tests": [result.test for result in results],
        **_measures(results),
        "slowness": values,
        "slowness_mean": statistics.fmean(values) if values else None,
        "slowness_std": _deviation(values),
    }


def _measures(results: Sequence[Result]) -> dict[str, Any]:
    sequence = _sequence(results)
    if sequence is None:
        return {}
    return {"measures": {name: one["values"] for name, one in sequence["measures"].items()}}


def _slowness(run: Planned, result: Result) -> Slowness | None:
    """Of the accuracy on validation, since the test set is read only once; None elsewhere."""
    if result.metric != "accuracy" or result.sequence is not None:
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
    """What a group is about against its controls, in the metric and in slowness.

    Of tasks one after the other, in each measure of them.
    """
    mine = {row["role"]: row for row in rows if row["group"] == group}
    contrasts = []
    for role, against in ((r, other) for r, others in AGAINST.items() for other in others):
        if role not in mine or against not in mine:
            continue
        ours, theirs = _values(mine[role]), _values(mine[against])
        for what in ours:
            if ours[what] and len(ours[what]) == len(theirs[what]):
                contrast = paired(ours[what], theirs[what])
                contrasts.append(
                    {"group": group, "role": role, "against": against, "of": what}
                    | {"label": mine[role]["label"], "other": mine[against]["label"]}
                    | contrast.to_dict()
                    | {"clear": contrast.clear}
                )
    return contrasts


def _values(row: dict[str, Any]) -> dict[str, list[float]]:
    return row.get("measures") or {"tests": row["tests"], "slowness": row["slowness"]}
