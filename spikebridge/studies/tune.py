"""What is chosen for each row of a table before its runs: the best of a grid, on validation.

Every row tries the same values with the same seeds, which are not those of its runs, and the test
set is never read.  Trials that were done are kept, so that what was cut off goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spikebridge.base import processes
from spikebridge.base.records import RunError
from spikebridge.runs.optimizers import best_epoch
from spikebridge.settings.config import from_dict, override, to_dict
from spikebridge.studies import trials as trials_of
from spikebridge.studies.catalog import Entry, Row
from spikebridge.studies.plan import Contender
from spikebridge.studies.search import higher_is_better
from spikebridge.studies.trials import TUNING, Key, Trial

SEEDS = (1000, 1001)

Tell = Callable[[str, dict[str, Any], int, float | None], None]


def tune(
    entry: Entry,
    contenders: Sequence[Contender],
    out: Path,
    *,
    quick: bool = False,
    jobs: int = 1,
    anew: bool = False,
    tell: Tell | None = None,
) -> list[Contender]:
    """The contenders with the settings of their grid that were best; out/tuning.json says why.

    Args:
        entry: its rows, grid and trial.
        contenders: of the entry, in the order of its rows.
        out: folder of the table.
        quick: one seed and the first value of each grid only.
        jobs: trials at the same time; each has one thread, so that their number changes nothing.
        anew: forget the trials that lie there.
        tell: is told of each trial: row, settings, seed, validation metric or None if it failed.

    Raises RunError where all trials of a row failed.
    """
    if not entry.grid:
        return list(contenders)
    path = out / TUNING
    trials = [trial for row in _of_rows(entry, contenders, quick) for trial in row]
    known = {} if anew else trials_of.known(path, trials, from_dict)
    out.mkdir(parents=True, exist_ok=True)
    todo = [(trial, to_dict(trial.config)) for trial in trials if trial.key not in known]
    for trial, valid in processes.results(_valid, todo, jobs):
        known[trial.key] = valid
        trials_of.write(path, trials, known, {}, to_dict)
        if tell is not None:
            tell(trial.row, trial.settings, trial.config.train.seed, valid)
    higher = higher_is_better(contenders[0].config)
    chosen = {one.name: _chosen(one.name, trials, known, higher) for one in contenders}
    trials_of.write(path, trials, known, chosen, to_dict)
    return [
        dataclasses.replace(one, config=override(one.config, **chosen[one.name]))
        for one in contenders
    ]


def at_edge(entry: Entry, row: Row, chosen: Mapping[str, Any]) -> bool:
    """Whether a value is the first or the last that was tried: a better one may lie beyond."""
    grid = {**entry.grid, **row.grid}
    return any(
        len(grid[name]) > 1 and value in (grid[name][0], grid[name][-1])
        for name, value in chosen.items()
    )


def _of_rows(entry: Entry, contenders: Sequence[Contender], quick: bool) -> Iterator[list[Trial]]:
    trial = {} if quick else dict(entry.trial)
    for row, one in zip(entry.rows, contenders, strict=True):
        grid = {**entry.grid, **row.grid}
        values = [options[:1] if quick else options for options in grid.values()]
        found = []
        for picked in itertools.product(*values):
            settings = dict(zip(grid, picked, strict=True))
            for seed in SEEDS[: 1 if quick else None]:
                config = override(one.config, **(trial | settings | {"seed": seed, "threads": 1}))
                found.append(Trial(one.name, settings, config))
        yield found


def _chosen(
    row: str,
    trials: Sequence[Trial],
    known: Mapping[Key, float | None],
    higher: bool,
) -> dict[str, Any]:
    """The settings with the best mean over seeds; of equal ones those that come first."""
    found: dict[str, tuple[dict[str, Any], list[float | None]]] = {}
    for trial in trials:
        if trial.row == row:
            _, values = found.setdefault(repr(trial.settings), (trial.settings, []))
            values.append(known[trial.key])
    means = [
        (statistics.fmean(value for value in values if value is not None), settings)
        for settings, values in found.values()
        if None not in values
    ]
    if not means:
        raise RunError(f"{row}: all trials failed; give it a grid of lower learning rates")
    return dict((max if higher else min)(means, key=lambda pair: pair[0])[1])


def _valid(plain: dict[str, Any]) -> float | None:
    """The best validation metric of a training; None where it failed."""
    from spikebridge.runs import training

    try:
        history = training.validate(from_dict(plain))
    except RunError:
        return None
    return float(history[best_epoch(history) - 1]["valid"])
