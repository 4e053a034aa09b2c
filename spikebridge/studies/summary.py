"""What came out of a comparison: the content of compare.json, from the files of complete runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
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
from spikebridge.runs.load import load_epochs
from spikebridge.runs.rundir import Result
from spikebridge.runs.transfer import MEASURES
from spikebridge.settings.config import Config, data_name, task_name, to_dict, variant_of
from spikebridge.studies.catalog import Entry, Row
from spikebridge.studies.comparison import (
    CellMeans,
    ChipMeans,
    FigureMeans,
    MeanSpread,
    RowResult,
    RuleContrast,
    RuleResult,
    RunOutcome,
    SequenceMeans,
    StepMeans,
    Summary,
)
from spikebridge.studies.contrasts import paired
from spikebridge.studies.plan import Planned
from spikebridge.studies.record import environment_of
from spikebridge.studies.slowness import slowness
from spikebridge.studies.tune import Tuning, at_edge

AGAINST = {"grapes": ("gain", "plain"), "online": ("plain",)}
"""Roles and the controls that each is compared with, seed by seed."""

Content = TypeVar("Content")
# Only deployments that agree in these stand in one table.
_CELLS_ALIKE = attrgetter("times_s", "memory", "split", "networks", "chips")
_CHIPS_ALIKE = attrgetter("split", "samples", "lanes", "clock_MHz")


def summary(planned: Sequence[Planned], **more: Any) -> Summary:
    """What the results of complete runs say; `more` are further fields of the summary."""
    groups = list(_by_row(planned).values())
    cells = _alike([_on_cells(group) for group in groups], _CELLS_ALIKE)
    chips = _alike([_on_chip(group) for group in groups], _CHIPS_ALIKE)
    first = rundir.read_result(planned[0].directory)
    return Summary(
        task=task_name(planned[0].config),
        data=data_name(planned[0].config),
        metric=first.metric,
        higher_is_better=first.higher_is_better,
        rows=tuple(map(_row, groups, cells, chips)),
        rtl=_proof(planned),
        environment=environment_of([run.directory for run in planned]),
        **more,
    )


def _by_row(planned: Sequence[Planned]) -> dict[str, list[Planned]]:
    groups: dict[str, list[Planned]] = {}
    for run in planned:
        groups.setdefault(run.contender.name, []).append(run)
    return groups


def _row(runs: Sequence[Planned], cells: CellMeans | None, chip: ChipMeans | None) -> RowResult:
    contender = runs[0].contender
    results = _results(runs)
    tests = [result.test for result in results]
    spikes = [r.spikes_per_inference for r in results if r.spikes_per_inference is not None]
    return RowResult(
        unit=variant_of(contender.config.model),
        label=contender.label,
        look=contender.look,
        n=len(results),
        test_mean=statistics.fmean(tests),
        test_std=_deviation(tests),
        tests=tuple(tests),
        valid_mean=statistics.fmean(result.valid for result in results),
        parameters=results[0].parameters,
        operations=results[0].operations_per_step,
        seconds_median=statistics.median(result.seconds for result in results),
        spikes_mean=statistics.fmean(spikes) if spikes else None,
        published=contender.published,
        memory=cells,
        chip=chip,
        by_steps=_by_steps(runs),
        figures=_figures(results),
        sequence=_sequence(results),
        runs=tuple(run.name for run in runs),
        seeds=tuple(run.config.train.seed for run in runs),
        settings=_without_seed(runs[0].config),
    )


def _results(runs: Sequence[Planned]) -> list[Result]:
    return [rundir.read_result(run.directory) for run in runs]


def _figures(results: Sequence[Result]) -> dict[str, FigureMeans]:
    """What all runs were judged by besides; not what is the test itself under another name."""
    means = {}
    for name, first in results[0].figures.items():
        of_runs = [result.figures.get(name) for result in results]
        values = [figure.value for figure in of_runs if figure and figure.metric == first.metric]
        if len(values) == len(results) and values != [result.test for result in results]:
            mean, std = statistics.fmean(values), _deviation(values)
            means[name] = FigureMeans(first.metric, mean, std, tuple(values))
    return means


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _moments(columns: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean and deviation of each column, under their names in a record."""
    return {
        "means": tuple(map(statistics.fmean, columns)),
        "stds": tuple(map(_deviation, columns)),
    }


def _without_seed(config: Config) -> dict[str, Any]:
    plain = to_dict(config)
    del plain["train"]["seed"]
    if "sequence" in plain:
        del plain["sequence"]["sequence_seed"]  # which is another one for each seed
    return plain


def _sequence(results: Sequence[Result]) -> SequenceMeans | None:
    """Of tasks one after the other: measures of each run, accuracies as means over runs."""
    runs = [result.sequence for result in results if result.sequence is not None]
    if len(runs) < len(results) or not runs:
        return None
    count = range(runs[0].tasks)
    rows = [_moments([[run.matrix[k][j] for run in runs] for j in count]) for k in count]
    values = {name: tuple(getattr(run.measures, name) for run in runs) for name in MEASURES}
    return SequenceMeans(
        tasks=runs[0].tasks,
        chance=runs[0].chance,
        measures={n: MeanSpread(statistics.fmean(v), _deviation(v), v) for n, v in values.items()},
        first=_moments([[run.first[j] for run in runs] for j in count])["means"],
        matrix=tuple(row["means"] for row in rows),
        matrix_std=tuple(row["stds"] for row in rows),
    )


def _all(
    load: Callable[[Path], Content | None],
    runs: Sequence[Planned],
    settings: Callable[[Content], Any],
) -> list[Content]:
    """What every run has of a kind, where all have the same settings; empty otherwise."""
    contents = [load(run.directory) for run in runs]
    result = [content for content in contents if content is not None]
    same = all(settings(content) == settings(result[0]) for content in result)
    return result if same and len(result) == len(runs) else []


def _alike(rows: list[Content | None], settings: Callable[[Content], Any]) -> list[Content | None]:
    """Rows whose settings are those of the first; None for the others."""
    first = next((row for row in rows if row is not None), None)
    if first is None:
        return rows
    return [None if r is None or settings(r) != settings(first) else r for r in rows]


def _by_steps(runs: Sequence[Planned]) -> StepMeans | None:
    """Where every run has been tested at the same numbers of steps."""
    result = _all(load_by_steps, runs, attrgetter("steps"))
    if not result:
        return None
    columns = list(zip(*(tested.test for tested in result), strict=True))
    return StepMeans(result[0].trained_with, result[0].steps, **_moments(columns))


def _on_cells(runs: Sequence[Planned]) -> CellMeans | None:
    """Over all runs and chips, where every run has been programmed at the same times."""
    result = _all(load_on_cells, runs, attrgetter("times_s", "memory", "samples", "split"))
    if not result:
        return None
    first, times = result[0], range(len(result[0].times_s))
    columns = [[v for r in result for v in r.compensated[:, i].tolist()] for i in times]
    return CellMeans(
        device=first.device.name,
        cells=first.cells,
        networks=len(result),
        chips=first.chips,
        memory=first.memory,
        split=first.split,
        times_s=first.times_s,
        **_moments(columns),
        energy_pJ={
            name: statistics.fmean(r.energy.hardware[name].total_pJ for r in result)
            for name in first.energy.hardware
        },
    )


def _on_chip(runs: Sequence[Planned]) -> ChipMeans | None:
    """Over all runs, where every run has been exported alike."""
    result = _all(load_on_chip, runs, _shared)
    if not result:
        return None
    integers = [r.integer for r in result]
    return ChipMeans(
        **_shared(result[0]),
        networks=len(result),
        software_mean=statistics.fmean(r.software for r in result),
        mean=statistics.fmean(integers),
        std=_deviation(integers),
        energy_pJ={
            name: statistics.fmean(r.energy.ends[name].total_pJ for r in result) for name in ENDS
        },
        cycles=statistics.fmean(r.each("cycles") for r in result),
        additions=statistics.fmean(r.each("additions") for r in result),
        part_pJ={
            name: statistics.fmean(r.part_pJ[name] for r in result) for name in result[0].part_pJ
        },
    )


def _shared(result: OnChip) -> dict[str, Any]:
    """The settings of the chip that runs share which are taken together."""
    return {
        "split": result.split,
        "per": result.per,
        "part": result.part,
        "samples": result.counts.samples,
        "lanes": result.chip.lanes,
        "clock_MHz": result.chip.clock_MHz,
        "weight_bits": result.program.weight_bits,
        "decay_bits": result.program.decay_bits,
        "fraction_bits": result.program.fraction_bits,
    }


def _proof(planned: Sequence[Planned]) -> RunOutcome | None:
    """What simulators said of the Verilog of the first run that has been put to them."""
    for run in planned:
        if p := load_proof(run.directory):
            return RunOutcome(p.samples, p.simulators, p.equal, p.reason, run=run.name)
    return None


def by_role(entry: Entry, planned: Sequence[Planned], out: Path) -> dict[str, Any]:
    """What a summary holds of rows against their controls, where rows have roles; else {}.

    Args:
        entry: the table.
        planned: its runs, all complete.
        out: its folder, with tuning.json where settings were chosen.
    """
    if not any(row.role for row in entry.rows):
        return {}
    chosen = Tuning.read(out).chosen
    groups = _by_row(planned)
    rows = [
        _in_group(entry, row, runs, chosen.get(name, {}))
        for row, (name, runs) in zip(entry.rows, groups.items(), strict=True)
    ]
    names = dict.fromkeys(row.group for row in rows)
    contrasts = (c for n in names for c in _contrasts([row for row in rows if row.group == n]))
    return {"learning": tuple(rows), "contrasts": tuple(contrasts)}


def _in_group(
    entry: Entry, row: Row, runs: Sequence[Planned], chosen: dict[str, Any]
) -> RuleResult:
    results = _results(runs)
    sequence = _sequence(results)
    slow = [s for run, result in zip(runs, results, strict=True) for s in _slowness(run, result)]
    return RuleResult(
        name=runs[0].contender.name,
        label=runs[0].contender.label,
        group=row.group,
        role=row.role,
        chosen=chosen,
        at_edge=at_edge(entry, row, chosen),
        tests=tuple(result.test for result in results),
        slowness=tuple(slow),
        slowness_mean=statistics.fmean(slow) if slow else None,
        slowness_std=_deviation(slow),
        measures=None if sequence is None else {n: s.values for n, s in sequence.measures.items()},
    )


def _slowness(run: Planned, result: Result) -> Iterator[float]:
    """Of the accuracy on validation, since the test set is read only once; of nothing else."""
    if result.metric != "accuracy" or result.sequence is not None:
        return
    epochs = load_epochs(run.directory)
    if len(epochs) > 1:
        curve = [epoch.valid for epoch in epochs]
        yield slowness(curve, 1 / _classes(run.directory)).slowness


def _classes(directory: Path) -> int:
    path = directory / rundir.MODEL
    try:
        with safe_open(path, framework="numpy") as file:
            return int(json.loads(file.metadata()["sizes"])["output_size"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: it does not say how many classes there are ({error})") from error


def _contrasts(group: Sequence[RuleResult]) -> Iterator[RuleContrast]:
    """What a group is about against its controls, in all that is compared."""
    mine = {row.role: row for row in group}
    for role, against in ((r, other) for r, others in AGAINST.items() for other in others):
        if role not in mine or against not in mine:
            continue
        ours, theirs = mine[role], mine[against]
        for what, values in ours.compared.items():
            if values and len(values) == len(theirs.compared[what]):
                yield RuleContrast(
                    **to_plain(paired(values, theirs.compared[what])),
                    group=ours.group,
                    role=role,
                    against=against,
                    of=what,
                    label=ours.label,
                    other=theirs.label,
                )
