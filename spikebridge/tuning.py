"""What is chosen for each row of a table before its runs: the best of a grid, on validation.

Every row tries the same values with the same seeds, which are not those of its runs, and the test
set is never read.  Trials that were done are kept, so that what was cut off goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from spikebridge import rundir
from spikebridge.catalog import Entry
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
    seed: int
    config: Config

    @property
    def key(self) -> tuple[str, str, int]:
        return self.row, repr(sorted(self.settings.items())), self.seed


def tune(
    entry: Entry,
    contenders: Sequence[Contender],
    out: Path,
    *,
    quick: bool = False,
    jobs: int = 1,
    tell: Tell | None = None,
) -> list[Contender]:
    """The contenders with the settings of their grid that were best; out/tuning.json says why.

    Args:
        entry: its rows, grid and trial.
        contenders: of the entry, in the order of its rows.
        out: folder of the table.
        quick: one seed and the first value of each grid only.
        jobs: trials at the same time, each with one thread if several.
        tell: is told of each trial: row, settings, seed, validation metric or None if it failed.

    Raises RunError where all trials of a row failed.
    """
    if not entry.grid:
        return list(contenders)
    path = out / TUNING
    trials = [trial for pair in _of_rows(entry, contenders, quick, jobs) for trial in pair]
    content = _kept(path, contenders)
    known = {_key(record) for record in content["trials"]}
    out.mkdir(parents=True, exist_ok=True)
    for trial, valid in _done([t for t in trials if t.key not in known], jobs):
        record = {"row": trial.row, "settings": trial.settings, "seed": trial.seed, "valid": valid}
        content["trials"].append(record)
        rundir.write_json(path, content)
        if tell is not None:
            tell(trial.row, trial.settings, trial.seed, valid)
    asked = {trial.key for trial in trials}
    records = [record for record in content["trials"] if _key(record) in asked]
    higher = higher_is_better(contenders[0].config)
    content["chosen"] = {one.name: _chosen(one.name, records, higher) for one in contenders}
    rundir.write_json(path, content)
    return [
        dataclasses.replace(one, config=override(one.config, **content["chosen"][one.name]))
        for one in contenders
    ]


def _of_rows(
    entry: Entry, contenders: Sequence[Contender], quick: bool, jobs: int
) -> Iterator[list[_Trial]]:
    trial = {} if quick else dict(entry.trial)
    threads = {"threads": 1} if jobs > 1 else {}
    for row, one in zip(entry.rows, contenders, strict=True):
        grid = {**entry.grid, **row.grid}
        values = [options[:1] if quick else options for options in grid.values()]
        found = []
        for chosen in itertools.product(*values):
            settings = dict(zip(grid, chosen, strict=True))
            for seed in SEEDS[: 1 if quick else None]:
                config = override(one.config, **(trial | threads | settings | {"seed": seed}))
                found.append(_Trial(one.name, settings, seed, config))
        yield found


def _kept(path: Path, contenders: Sequence[Contender]) -> dict[str, Any]:
    """What lies there, without the trials of rows whose other settings have changed since."""
    bases = {one.name: to_dict(one.config) for one in contenders}
    content: dict[str, Any] = {"seeds": list(SEEDS), "bases": bases, "trials": [], "chosen": {}}
    if path.exists():
        before = rundir.read_json(path, "remove it to tune anew")
        own = {one.name: one.config for one in contenders}
        # As records: a setting that did not exist yet had its default.
        same = {name for name, base in before["bases"].items() if own.get(name) == from_dict(base)}
        content["trials"] = [record for record in before["trials"] if record["row"] in same]
    return content


def _key(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["row"], repr(sorted(record["settings"].items())), record["seed"]


def _chosen(row: str, records: Sequence[dict[str, Any]], higher: bool) -> dict[str, Any]:
    found: dict[str, tuple[dict[str, Any], list[float | None]]] = {}
    for record in records:
        if record["row"] == row:
            _, values = found.setdefault(_key(record)[1], (record["settings"], []))
            values.append(record["valid"])
    means = [
        (statistics.fmean(value for value in values if value is not None), settings)
        for settings, values in found.values()
        if None not in values
    ]
    if not means:
        raise RunError(f"{row}: all trials failed; give it a grid of lower learning rates")
    return dict((max if higher else min)(means, key=lambda pair: pair[0])[1])


def _done(trials: Sequence[_Trial], jobs: int) -> Iterator[tuple[_Trial, float | None]]:
    """The trials with their validation metrics, as they come in."""
    if jobs == 1 or len(trials) < 2:
        for trial in trials:
            yield trial, _valid(to_dict(trial.config))
        return
    # spawn: a fork of a process whose torch already has threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(trials)), context, initializer=_quiet)
    futures = {pool.submit(_valid, to_dict(trial.config)): trial for trial in trials}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def _quiet() -> None:
    """In a working process: leave Ctrl-C to the parent."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _valid(plain: dict[str, Any]) -> float | None:
    """The best validation metric of a training; None where it failed."""
    from spikebridge import experiment

    try:
        history = experiment.validate(from_dict(plain))
    except RunError:
        return None
    return float(history[best_epoch(history) - 1]["valid"])
