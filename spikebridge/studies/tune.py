"""What is chosen for each row of a table before its runs: the best of a grid, on validation.

Every row tries the same values with the same seeds, which are not those of its runs, and the test
set is never read.  Trials that were done are kept in tuning.json, so that what was cut off goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikebridge.base import processes
from spikebridge.base.metrics import METRICS
from spikebridge.base.records import (
    UNLESS_DEFAULT,
    RunError,
    Several,
    UsageError,
)
from spikebridge.runs import rundir
from spikebridge.settings.config import Config, from_dict, override, to_dict
from spikebridge.studies.catalog import Entry, Row
from spikebridge.studies.plan import Contender, seeded
from spikebridge.studies.search import metric_of

TUNING = "tuning.json"
SEEDS = (1000, 1001)
Tell = Callable[["Trial"], None]


@dataclass(frozen=True)
class Trial:
    """Settings that are tried for a row of a table with one seed."""

    row: str
    settings: dict[str, Any]
    """Those of the row's grid."""
    seed: int
    valid: float | None
    """The metric on validation; None where the training failed."""
    config: dict[str, Any] = field(default_factory=dict, metadata=UNLESS_DEFAULT)
    """All settings, as plain data."""


@dataclass(frozen=True)
class Tuning:
    """The content of tuning.json."""

    trials: Several[Trial] = ()
    """Those that are done."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """The best settings of each row; empty while trials are missing."""

    @staticmethod
    def read(directory: Path) -> Tuning:
        """What lies in a table's folder, empty where there is nothing.

        Raises RunError where it is damaged.
        """
        path = directory / TUNING
        if not path.exists():
            return Tuning()
        return rundir.read_record(Tuning, path, "remove it to tune anew")

    def means(self, row: str) -> list[tuple[dict[str, Any], float | None]]:
        """The settings of a row with their mean over seeds; None where one failed."""
        values: dict[str, tuple[dict[str, Any], list[float | None]]] = {}
        for trial in self.trials:
            if trial.row == row:
                values.setdefault(repr(trial.settings), (trial.settings, []))[1].append(trial.valid)
        return [
            (settings, statistics.fmean(v for v in of_seeds if v is not None))
            if None not in of_seeds
            else (settings, None)
            for settings, of_seeds in values.values()
        ]


def tune(
    entry: Entry,
    contenders: Sequence[Contender],
    out: Path,
    *,
    seeds: Sequence[int] = (),
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
        seeds: of the runs that follow.
        quick: one seed and the first value of each grid only.
        jobs: trials at the same time; each has one thread, so that their number changes nothing.
        anew: forget the trials that lie there.
        tell: is called with each trial as it ends.

    Raises RunError where all trials of a row failed, UsageError where seeds are those of trials.
    """
    if not entry.grid:
        return list(contenders)
    if set(seeds) & set(SEEDS):
        raise UsageError(
            f"seeds={list(seeds)}: {list(SEEDS)} choose the settings and would flatter them; take "
            "other seeds"
        )
    planned = {(row, config): picked for row, picked, config in _grid(entry, contenders, quick)}
    known = {} if anew else _known(out)
    out.mkdir(parents=True, exist_ok=True)

    def write(chosen: Mapping[str, Any]) -> Tuning:
        """The trials that are done, in the order of the grid."""
        done = Tuning(
            tuple(
                Trial(row, picked, config.train.seed, known[row, config], to_dict(config))
                for (row, config), picked in planned.items()
                if (row, config) in known
            ),
            dict(chosen),
        )
        rundir.write_json(out / TUNING, done)
        return done

    todo = [(key, to_dict(key[1])) for key in planned if key not in known]
    for key, valid in processes.results(_valid, todo, jobs):
        known[key] = valid
        write({})
        if tell is not None:
            tell(Trial(key[0], planned[key], key[1].train.seed, valid))
    higher = METRICS[metric_of(contenders[0].config)].higher_is_better
    done = write({})
    chosen = {row.name: _best(row.name, done, higher) for row in contenders}
    write(chosen)
    return [
        dataclasses.replace(row, config=override(row.config, **chosen[row.name]))
        for row in contenders
    ]


@dataclass(frozen=True)
class Work:
    """What a row of a table takes: trials before its runs, and its runs."""

    row: str
    trials: int
    trials_done: int
    trial_epochs: int
    """Of each trial."""
    runs: int
    runs_done: int
    epochs: int
    """Of each run."""
    epoch_s: float
    """Seconds of an epoch on one core; 0 = unknown."""

    @property
    def whole(self) -> int:
        """Epochs of all trials and runs."""
        return self.trials * self.trial_epochs + self.runs * self.epochs

    @property
    def left(self) -> int:
        """Epochs of those that are not done."""
        trials, runs = self.trials - self.trials_done, self.runs - self.runs_done
        return trials * self.trial_epochs + runs * self.epochs


def work(
    entry: Entry,
    contenders: Sequence[Contender],
    out: Path,
    *,
    seeds: Sequence[int],
    quick: bool = False,
    anew: bool = False,
) -> list[Work]:
    """What each row takes, before anything is begun.  Arguments as those of `tune`."""
    planned = list(_grid(entry, contenders, quick)) if entry.grid else []
    known = {} if anew else _known(out)
    result = []
    for row, contender in zip(entry.rows, contenders, strict=True):
        trials = [config for name, _, config in planned if name == contender.name]
        runs = [out / f"{contender.name}-{seed}" for seed in seeds]
        result.append(
            Work(
                row=contender.label,
                trials=len(trials),
                trials_done=sum((contender.name, config) in known for config in trials),
                trial_epochs=trials[0].epochs if trials else 0,
                runs=len(runs),
                runs_done=0 if anew else sum(map(rundir.is_complete, runs)),
                epochs=contender.config.epochs,
                epoch_s=row.epoch_s,
            )
        )
    return result


def at_edge(entry: Entry, row: Row, chosen: Mapping[str, Any]) -> list[str]:
    """The settings at the first or the last value that was tried: a better one may lie beyond."""
    grid = {**entry.grid, **row.grid}
    return [
        name
        for name, value in chosen.items()
        if len(grid[name]) > 1 and value in (grid[name][0], grid[name][-1])
    ]


def _grid(
    entry: Entry, contenders: Sequence[Contender], quick: bool
) -> Iterator[tuple[str, dict[str, Any], Config]]:
    """Row by row all settings of its grid, each with all seeds."""
    shared = {} if quick else dict(entry.trial)
    for row, contender in zip(entry.rows, contenders, strict=True):
        grid = {**entry.grid, **row.grid}
        values = [options[:1] if quick else options for options in grid.values()]
        for combination in itertools.product(*values):
            picked = dict(zip(grid, combination, strict=True))
            config = override(contender.config, **(shared | picked | {"threads": 1}))
            for seed in SEEDS[: 1 if quick else None]:
                yield contender.name, picked, seeded(config, seed)


def _known(out: Path) -> dict[tuple[str, Config], float | None]:
    """What the trials that lie there came to, by all that decides their numbers."""
    known: dict[tuple[str, Config], float | None] = {}
    for trial in Tuning.read(out).trials:
        try:
            known[trial.row, from_dict(trial.config)] = trial.valid
        except UsageError:  # of settings as they are no more
            continue
    return known


def _best(row: str, done: Tuning, higher: bool) -> dict[str, Any]:
    """The settings with the best mean over seeds; of equal ones those that come first."""
    means = [(mean, settings) for settings, mean in done.means(row) if mean is not None]
    if not means:
        raise RunError(f"{row}: all trials failed; give it a grid of lower learning rates")
    return dict((max if higher else min)(means, key=lambda pair: pair[0])[1])


def _valid(plain: dict[str, Any]) -> float | None:
    """The validation metric of a training; None where it failed."""
    from spikebridge.runs import training

    try:
        return training.validation(from_dict(plain))
    except RunError:
        return None
