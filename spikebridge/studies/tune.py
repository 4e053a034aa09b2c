"""What is chosen for each row of a table before its runs: the best of a grid, on validation.

Every row tries the same values with the same seeds, which are not those of its runs, and the test
set is never read.  Trials that were done are kept in tuning.json, so that what was cut off goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikebridge.base import processes
from spikebridge.base.records import RunError, UsageError
from spikebridge.runs import rundir
from spikebridge.settings.config import Config, from_dict, override, to_dict
from spikebridge.studies.catalog import Entry, Row
from spikebridge.studies.plan import Contender, seeded
from spikebridge.studies.search import higher_is_better

TUNING = "tuning.json"
SEEDS = (1000, 1001)

Tell = Callable[["Trial", "float | None"], None]


@dataclass(frozen=True)
class Trial:
    """Settings that are tried for a row of a table, with the config that they make."""

    row: str
    settings: dict[str, Any]
    config: Config

    @property
    def key(self) -> tuple[str, Config]:
        """All that decides its numbers."""
        return self.row, self.config


Known = dict[tuple[str, Config], float | None]
"""The validation metric of each trial that is done; None where it failed."""


@dataclass(frozen=True)
class Tuning:
    """The content of tuning.json."""

    trials: tuple[dict[str, Any], ...] = ()
    """Those that are done: row, settings, seed, valid (the metric, None: it failed), config."""
    chosen: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """The best settings of each row; empty while trials are missing."""

    def write(self, directory: Path) -> Tuning:
        rundir.write_json(directory / TUNING, dataclasses.asdict(self))
        return self

    @staticmethod
    def read(directory: Path) -> Tuning:
        """What lies in a table's folder, empty where there is nothing.

        Raises RunError where it is damaged.
        """
        path, remedy = directory / TUNING, "remove it to tune anew"
        if not path.exists():
            return Tuning()
        plain = rundir.read_json(path, remedy)
        try:
            return Tuning(tuple(map(dict, plain["trials"])), dict(plain["chosen"]))
        except (LookupError, TypeError, ValueError) as error:
            raise RunError(f"{path}: not the trials of a table ({error!r}); {remedy}") from error


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
        tell: is called with each trial and its validation metric, None if it failed.

    Raises RunError where all trials of a row failed, UsageError where seeds are those of trials.
    """
    if not entry.grid:
        return list(contenders)
    if set(seeds) & set(SEEDS):
        raise UsageError(
            f"seeds={list(seeds)}: {list(SEEDS)} choose the settings and would flatter them; take "
            "other seeds"
        )
    trials = list(_trials(entry, contenders, quick))
    known = {} if anew else _known(out, trials)
    out.mkdir(parents=True, exist_ok=True)
    todo = [(trial, to_dict(trial.config)) for trial in trials if trial.key not in known]
    for trial, valid in processes.results(_valid, todo, jobs):
        known[trial.key] = valid
        _done(trials, known).write(out)
        if tell is not None:
            tell(trial, valid)
    higher = higher_is_better(contenders[0].config)
    chosen = {row.name: _chosen(row.name, trials, known, higher) for row in contenders}
    dataclasses.replace(_done(trials, known), chosen=chosen).write(out)
    return [
        dataclasses.replace(row, config=override(row.config, **chosen[row.name]))
        for row in contenders
    ]


def at_edge(entry: Entry, row: Row, chosen: Mapping[str, Any]) -> list[str]:
    """The settings at the first or the last value that was tried: a better one may lie beyond."""
    grid = {**entry.grid, **row.grid}
    return [
        name
        for name, value in chosen.items()
        if len(grid[name]) > 1 and value in (grid[name][0], grid[name][-1])
    ]


def _trials(entry: Entry, contenders: Sequence[Contender], quick: bool) -> Iterator[Trial]:
    """Row by row all settings of its grid, each with all seeds."""
    shared = {} if quick else dict(entry.trial)
    for row, contender in zip(entry.rows, contenders, strict=True):
        grid = {**entry.grid, **row.grid}
        values = [options[:1] if quick else options for options in grid.values()]
        for picked in itertools.product(*values):
            settings = dict(zip(grid, picked, strict=True))
            config = override(contender.config, **(shared | settings | {"threads": 1}))
            for seed in SEEDS[: 1 if quick else None]:
                yield Trial(contender.name, settings, seeded(config, seed))


def _known(out: Path, trials: Sequence[Trial]) -> Known:
    """What trials that lie there came to, as far as they are of this grid."""
    known: Known = {}
    wanted = {trial.key for trial in trials}
    for kept in Tuning.read(out).trials:
        try:
            key = (kept["row"], from_dict(kept["config"]))
        except (KeyError, UsageError):  # of settings as they are no more
            continue
        if key in wanted:
            known[key] = kept["valid"]
    return known


def _done(trials: Sequence[Trial], known: Known) -> Tuning:
    """The trials that are done, in the order of the grid."""
    return Tuning(
        tuple(
            {
                "row": trial.row,
                "settings": trial.settings,
                "seed": trial.config.train.seed,
                "valid": known[trial.key],
                "config": to_dict(trial.config),
            }
            for trial in trials
            if trial.key in known
        )
    )


def _chosen(row: str, trials: Sequence[Trial], known: Known, higher: bool) -> dict[str, Any]:
    """The settings with the best mean over seeds; of equal ones those that come first."""
    values: dict[str, tuple[dict[str, Any], list[float | None]]] = {}
    for trial in trials:
        if trial.row == row:
            kept = values.setdefault(repr(trial.settings), (trial.settings, []))
            kept[1].append(known[trial.key])
    means = [
        (statistics.fmean(value for value in of_seeds if value is not None), settings)
        for settings, of_seeds in values.values()
        if None not in of_seeds
    ]
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
