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
from typing import Any, NamedTuple

from spikebridge import pool, rundir
from spikebridge.catalog import Entry, Row
from spikebridge.config import Config, from_dict, override, to_dict
from spikebridge.contenders import Contender
from spikebridge.optimisation import best_epoch
from spikebridge.records import RunError
from spikebridge.search import higher_is_better

TUNING = "tuning.json"
SEEDS = (1000, 1001)

Tell = Callable[[str, dict[str, Any], int, float | None], None]


class _Trial(NamedTuple):
    row: str
    settings: dict[str, Any]
    config: Config

    @property
    def key(self) -> tuple[str, Config]:
        """All that decides its numbers."""
        return self.row, self.config


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
    asked = {trial.key: trial for trial in trials}
    known: dict[tuple[str, Config], float | None] = {}
    if path.exists() and not anew:
        for record in rundir.read_json(path, "remove it to tune anew")["trials"]:
            key = (record["row"], from_dict(record["config"]))
            if key in asked:
                known[key] = record["valid"]
    out.mkdir(parents=True, exist_ok=True)
    todo = [(trial, to_dict(trial.config)) for trial in trials if trial.key not in known]
    for trial, valid in pool.results(_valid, todo, jobs):
        known[trial.key] = valid
        _write(path, trials, known, {})
        if tell is not None:
            tell(trial.row, trial.settings, trial.config.train.seed, valid)
    higher = higher_is_better(contenders[0].config)
    chosen = {one.name: _chosen(one.name, trials, known, higher) for one in contenders}
    _write(path, trials, known, chosen)
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


def _of_rows(entry: Entry, contenders: Sequence[Contender], quick: bool) -> Iterator[list[_Trial]]:
    trial = {} if quick else dict(entry.trial)
    for row, one in zip(entry.rows, contenders, strict=True):
        grid = {**entry.grid, **row.grid}
        values = [options[:1] if quick else options for options in grid.values()]
        found = []
        for picked in itertools.product(*values):
            settings = dict(zip(grid, picked, strict=True))
            for seed in SEEDS[: 1 if quick else None]:
                config = override(one.config, **(trial | settings | {"seed": seed, "threads": 1}))
                found.append(_Trial(one.name, settings, config))
        yield found


def _write(
    path: Path,
    trials: Sequence[_Trial],
    known: Mapping[tuple[str, Config], float | None],
    chosen: dict[str, Any],
) -> None:
    """The trials that are done, in the order of rows and grids."""
    records = [
        {
            "row": trial.row,
            "settings": trial.settings,
            "seed": trial.config.train.seed,
            "valid": known[trial.key],
            "config": to_dict(trial.config),
        }
        for trial in trials
        if trial.key in known
    ]
    rundir.write_json(path, {"trials": records, "chosen": chosen})


def _chosen(
    row: str,
    trials: Sequence[_Trial],
    known: Mapping[tuple[str, Config], float | None],
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
    from spikebridge import experiment

    try:
        history = experiment.validate(from_dict(plain))
    except RunError:
        return None
    return float(history[best_epoch(history) - 1]["valid"])
