"""What came out of a comparison: the content of compare.json, and tables for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import in_words, plural
from spikebridge.base.records import to_plain
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
from spikebridge.settings.config import Config, data_name, task_name, to_dict, variant_of
from spikebridge.studies.plan import Planned
from spikebridge.studies.record import environment_of

if TYPE_CHECKING:
    from rich.table import Table

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
        "test_std": statistics.stdev(tests) if len(tests) > 1 else None,
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
        "runs": [run.name for run, _ in group],
        "seeds": [run.config.train.seed for run, _ in group],
        "settings": _without_seed(group[0][0].config),
    }


def _without_seed(config: Config) -> dict[str, Any]:
    plain = to_dict(config)
    del plain["train"]["seed"]
    return plain


def _by_steps(directories: Sequence[Path]) -> dict[str, Any] | None:
    """Over all runs, where every run has been tested at the same numbers of steps."""
    found = _all(load_by_steps, directories, lambda one: one.steps)
    if not found:
        return None
    tests = list(zip(*(one.test for one in found), strict=True))
    return {
        "trained_with": found[0].trained_with,
        "steps": list(found[0].steps),
        "means": [statistics.fmean(values) for values in tests],
        "stds": [_deviation(values) for values in tests],
    }


def _in_memory(directories: Sequence[Path]) -> dict[str, Any] | None:
    """Over all runs and chips, where every run has been programmed at the same times."""
    found = _all(
        load_on_cells,
        directories,
        lambda one: (one.times_s, one.memory, one.samples, one.split),
    )
    if not found:
        return None
    first, times = found[0], range(len(found[0].times_s))
    moments = [[v for one in found for v in one.compensated[:, i].tolist()] for i in times]
    energies = [one.energy.hardware for one in found]
    return {
        "device": first.device.name,
        "cells": first.cells,
        "networks": len(found),
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
    found = _all(load_on_chip, directories, _alike)
    if not found:
        return None
    first, integers = found[0], [one.integer for one in found]
    return {
        **_alike(first),
        "networks": len(found),
        "software_mean": statistics.fmean(one.software for one in found),
        "mean": statistics.fmean(integers),
        "std": _deviation(integers),
        "energy_pJ": {
            name: statistics.fmean(one.energy.ends[name].total_pJ for one in found) for name in ENDS
        },
        "cycles": statistics.fmean(one.each("cycles") for one in found),
        "additions": statistics.fmean(one.each("additions") for one in found),
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
    found = [content for content in map(load, directories) if content is not None]
    same = all(alike(one) == alike(found[0]) for one in found)
    return found if same and len(found) == len(directories) else []


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _proof(planned: Sequence[Planned]) -> dict[str, Any] | None:
    """What simulators said of the Verilog of the first run that has been put to them."""
    for run in planned:
        if proof := load_proof(run.directory):
            plain = to_plain(proof)
            del plain["program_sha256"]
            return {"run": run.name, **plain}
    return None


def chip_table(content: dict[str, Any]) -> Table | None:
    """What the units do on the digital chip, as a table for a terminal; None where none does."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = [row["chip"] for row in content["rows"] if row.get("chip")]
    if not found:
        return None
    metric, first = METRICS[content["metric"]], found[0]
    title = (
        f"On the digital chip, 40 nm, {first['lanes']} lanes at {first['clock_MHz']:g} MHz: "
        f"{metric.axis}, mean of {plural(first['networks'], 'network')}; "
        f"nJ and cycles per {first['per']}"
    )
    built = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    built.add_column("unit")
    for name in ("bits", "in software", "in integers", "nJ", "low to high", "cycles"):
        built.add_column(name, justify="right")
    for row in content["rows"]:
        chip = row.get("chip")
        if not chip:
            built.add_row(row["label"], *["-"] * 6)
            continue
        low, nominal, high = (_nanojoules(chip["energy_pJ"][name]) for name in ENDS)
        built.add_row(
            row["label"],
            str(chip["weight_bits"]),
            metric.figure(chip["software_mean"]),
            _spread(metric, chip["mean"], chip["std"]),
            nominal,
            f"{low} to {high}",
            f"{chip['cycles']:,.0f}",
        )
    return built


def _nanojoules(energy_pJ: float) -> str:
    value = energy_pJ / 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


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
            f"{row['seconds_median']:.1f}",
            metric.figure(row["published"]["value"]) if row["published"] else "-",
        )
    return built
