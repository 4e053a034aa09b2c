"""What is chosen for each row of a table of forgetting: the best of its grid, on validation.

The seeds are not those of the runs, and the test sets are never read.  Trials that were done are
kept, so that what was cut off goes on.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spikebridge.base import processes
from spikebridge.base.records import RunError
from spikebridge.settings.continual import from_dict, override, to_dict
from spikebridge.studies import trials as trials_of
from spikebridge.studies.catalog.continual import ForgettingEntry, ForgettingRow
from spikebridge.studies.trials import TUNING, Key, Trial

Tell = Callable[[str], None]


def tune(
    entry: ForgettingEntry,
    out: Path,
    *,
    quick: bool = False,
    jobs: int = 1,
    anew: bool = False,
    tell: Tell,
) -> dict[str, Any]:
    """The settings of each row's grid with the best mean validation accuracy over all tasks.

    Args:
        entry: its rows, grids and trial seeds.
        out: folder of the table; out/tuning.json holds the trials.
        quick: the entry's quick settings, and the first value of each grid without a trial.
        jobs: trials at the same time, one thread each, so that their number changes nothing.
        anew: forget the trials that lie there.
        tell: is told of each trial.

    Returns the content of tuning.json: `trials` of this grid in its order (row, settings, seed,
    valid, config; valid is None where it diverged) and `chosen` by row, of equal means what comes
    first in the grid.  Raises RunError where every setting of a row has diverged.
    """
    path = out / TUNING
    trials = [trial for row in entry.rows for trial in _trials(entry, row, quick)]
    known = {} if anew else trials_of.known(path, trials, from_dict)
    trials_of.write(path, trials, known, {}, to_dict)
    todo = [(trial, to_dict(trial.config)) for trial in trials if trial.key not in known]
    clock = Clock(len(todo), "trial", tell)
    for trial, valid in processes.results(_validate, todo, jobs):
        failed = isinstance(valid, str)
        known[trial.key] = None if failed else valid
        trials_of.write(path, trials, known, {}, to_dict)
        said = valid if failed else f"validation {100 * valid:.2f} %"
        clock.tell(f"{_name(trial)}: {said}")
    chosen = {
        row.name: _best(row.name, _options(entry, row, quick), trials, known) for row in entry.rows
    }
    return trials_of.write(path, trials, known, chosen, to_dict)


def _name(trial: Trial) -> str:
    chosen = ", ".join(f"{name} {value:g}" for name, value in trial.settings.items())
    return f"{trial.row}, {chosen}, seed {trial.config.train.seed}"


def _trials(entry: ForgettingEntry, row: ForgettingRow, quick: bool) -> Iterator[Trial]:
    options = _options(entry, row, quick)
    for settings in options if len(options) > 1 else ():
        for seed in entry.trial_seeds:
            config = override(entry.config(row, seed, quick=quick), **settings)
            yield Trial(row.name, settings, config)


def _options(entry: ForgettingEntry, row: ForgettingRow, quick: bool) -> list[dict[str, float]]:
    """All settings of a row's grid."""
    grid = {**entry.grid, **row.grid}
    values = itertools.product(*(v[:1] if quick else v for v in grid.values()))
    return [dict(zip(grid, chosen, strict=True)) for chosen in values]


def _best(
    row: str,
    options: Sequence[dict[str, float]],
    trials: Sequence[Trial],
    known: Mapping[Key, float | None],
) -> dict[str, float]:
    if len(options) == 1:  # nothing to be chosen
        return options[0]
    means = []
    for settings in options:
        mine = (t for t in trials if t.row == row and t.settings == settings)
        values = [known[trial.key] for trial in mine]
        finite = [value for value in values if value is not None]
        if len(finite) == len(values):
            means.append((statistics.fmean(finite), settings))
    if not means:
        raise RunError(f"{row}: all trials diverged; give it a grid of lower learning rates")
    return max(means, key=lambda pair: pair[0])[1]


def _validate(plain: dict[str, Any]) -> float | str:
    """The mean validation accuracy of a trial, or why it failed."""
    from spikebridge.runs import continual

    try:
        return continual.validate(from_dict(plain))
    except RunError as error:
        return str(error)


class Clock:
    """Tells how far something has come and how long it still takes."""

    def __init__(self, count: int, what: str, tell: Tell) -> None:
        self.count, self.what, self.told = count, what, tell
        self.done, self.started = 0, time.monotonic()

    def tell(self, text: str) -> None:
        """One more of them is done."""
        self.done += 1
        each = (time.monotonic() - self.started) / self.done
        left = each * (self.count - self.done)
        self.told(f"{self.what} {self.done}/{self.count}  {text}  {left:.0f} s left")
