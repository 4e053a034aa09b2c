"""Units x seeds: one run each, then one table: `compare.json`.

Every run lies in its own sub-folder, `UNIT-SEED`, and complete ones are kept, so that a comparison
that was stopped goes on where it was and one that is complete is shown at once.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spikebridge.base import processes
from spikebridge.base.records import RunError, UsageError, to_plain
from spikebridge.runs import rundir
from spikebridge.runs.callbacks import Progress, Silent
from spikebridge.runs.load import load_epochs
from spikebridge.settings.config import folder_name, from_dict, to_dict
from spikebridge.studies.comparison import COMPARE, Summary
from spikebridge.studies.plan import Contender, Planned, plan
from spikebridge.studies.summary import summary

KILLED = "its process was killed, perhaps for want of memory; try again with fewer --jobs"


def compare(
    planned: Sequence[Planned],
    directory: Path,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    progress: Callable[[str], Progress] = lambda name: Silent(),
    about: str = "",
    finish: Callable[[Planned], None] = lambda run: None,
    by_steps: Sequence[int] = (),
    more: Callable[[], dict[str, Any]] = dict,
) -> Summary:
    """Do what is not done yet, then write compare.json.

    Args:
        planned: from `plan`.
        directory: the comparison's folder.
        jobs: processes that train at the same time.
        overwrite: do all runs anew.
        progress: gives, for a run's name, what is told of it.
        about: a title for tables and pages.
        finish: is called for each complete run before the summary is written.
        by_steps: numbers of time steps at which each complete run is tested before that.
        more: gives, once all runs are complete, further fields of the summary.

    Raises RunError where some runs failed, the others are complete and kept; UsageError where a
    comparison is going on there.
    """
    for run in planned:
        rundir.refuse_reading(run.directory, run.config)
    with rundir.owning(directory, "compare", make=True):
        _do(planned, directory, jobs, overwrite, progress)
        for run in planned:
            finish(run)
        if by_steps:
            from spikebridge.trained import by_steps as stepwise

            for run in planned:
                stepwise.tested(run.directory, by_steps)
        result = summary(planned, title=about or None, **more())
        if _read(directory / COMPARE) != to_plain(result):
            rundir.write_json(directory / COMPARE, result)
    return result


def default_folder(contenders: Sequence[Contender], seeds: Sequence[int], jobs: int) -> Path:
    """Where a comparison goes if nobody says where.

    One with these very settings that lies where earlier versions put it stays there.
    """
    configs = [contender.config for contender in contenders]
    named = rundir.shared_folder("compare", configs)
    plain = rundir.FOLDER / f"compare-{folder_name(configs[0])}"
    if named == plain or named.exists():
        return named
    try:
        started = _started(plan(contenders, seeds, plain, jobs=jobs))
    except UsageError:
        return named
    return plain if started else named


def _started(planned: Sequence[Planned]) -> list[Planned]:
    """The runs that were begun.  Raises UsageError where one has other settings."""
    started = [run for run in planned if (run.directory / rundir.CONFIG).exists()]
    for run in started:
        rundir.same_settings(run.directory, run.config)
    return started


def _do(
    planned: Sequence[Planned],
    directory: Path,
    jobs: int,
    overwrite: bool,
    progress: Callable[[str], Progress],
) -> None:
    """The runs that are not done yet.  RunError where some failed."""
    if overwrite:
        (directory / COMPARE).unlink(missing_ok=True)
    else:
        _started(planned)
    todo = [run for run in planned if overwrite or not run.complete]
    if jobs == 1 or len(todo) < 2:
        errors = {run.name: _train(run, overwrite, progress(run.name)) for run in todo}
    else:
        errors = dict(_side_by_side(todo, jobs, overwrite, progress))
    failed = [f"\n  {name}: {error}" for name, error in errors.items() if error]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(planned)} runs failed, the others are kept:{''.join(failed)}"
        )


def _read(path: Path) -> object:
    try:
        return rundir.parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _train(run: Planned, overwrite: bool, progress: Progress | None = None) -> str | None:
    """Do a run; the error's text if it fails."""
    from spikebridge.runs import training

    more: dict[str, Any] = {"resume": not overwrite, "overwrite": overwrite, "progress": progress}
    try:
        training.run(run.config, run.directory, **more)
    except RunError as error:  # a UsageError is everybody's, and ends the comparison
        return str(error)
    return None


def _side_by_side(
    todo: Sequence[Planned], jobs: int, overwrite: bool, progress: Callable[[str], Progress]
) -> Iterator[tuple[str, str | None]]:
    """Do the runs in processes; the error of each that failed, by name."""
    followed = {run.name: _Followed(run, progress(run.name)) for run in todo}

    def look() -> None:
        for run in followed.values():
            run.look()

    work = [(run.name, (to_dict(run.config), run, overwrite)) for run in todo]
    try:
        for name, error in processes.results(_in_process, work, jobs, look=look):
            followed.pop(name).end()
            yield name, error
    except processes.Killed:
        yield from ((name, KILLED) for name in followed)
    finally:
        for run in followed.values():
            run.end()


def _in_process(work: tuple[dict[str, Any], Planned, bool]) -> str | None:
    """In a working process: the config comes as plain data, the news of kernels is the parent's."""
    plain, run, overwrite = work
    warnings.filterwarnings("ignore", message="spikebridge runs its time loop")
    return _train(dataclasses.replace(run, config=from_dict(plain)), overwrite)


class _Followed:
    """A run in another process, followed by its metrics.jsonl."""

    def __init__(self, run: Planned, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.path = run.directory / rundir.METRICS
        self.stamp = self._stamp()  # what an earlier run has left there is no news
        self.seen = -1

    def look(self) -> None:
        """Tell of the epochs that were finished since the last look."""
        stamp = self._stamp()
        if stamp is None or stamp == self.stamp:
            return
        self.stamp = stamp
        epochs = load_epochs(self.run.directory)
        if self.seen < 0:
            self.progress.begin(self.run.config, len(epochs))
            self.seen = len(epochs)
        for epoch in epochs[self.seen :]:
            self.progress.epoch(epoch)
        self.seen = len(epochs)

    def end(self) -> None:
        self.look()
        if self.seen >= 0:
            self.progress.end()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino
