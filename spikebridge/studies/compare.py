"""Units x seeds: one run each, then one table: `compare.json`.

Every run lies in its own sub-folder, `UNIT-SEED`, and complete ones are kept, so that a comparison
that was stopped goes on where it was and one that is complete is shown at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikebridge.base.processes import make, stop
from spikebridge.base.records import RunError, UsageError, to_plain
from spikebridge.runs import rundir
from spikebridge.runs.results import Epoch
from spikebridge.settings.config import folder_name, from_dict, to_dict
from spikebridge.studies.comparison import COMPARE, Summary
from spikebridge.studies.plan import (
    DEMO_SEEDS,
    Contender,
    Planned,
    demo_contenders,
    is_complete,
    of_entry,
    of_unit,
    plan,
)
from spikebridge.studies.summary import summary

if TYPE_CHECKING:
    from spikebridge.runs.training import Progress

__all__ = [
    "COMPARE",
    "DEMO_SEEDS",
    "Contender",
    "Planned",
    "compare",
    "default_folder",
    "demo_contenders",
    "is_complete",
    "of_entry",
    "of_unit",
    "plan",
]

LOOK_EVERY_SECONDS = 0.25


def compare(
    planned: Sequence[Planned],
    directory: Path,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    progress: Callable[[str], Progress] | None = None,
    about: str = "",
    finish: Callable[[Planned], None] | None = None,
    by_steps: Sequence[int] = (),
    more: Callable[[], dict[str, Any]] | None = None,
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

    Raises RunError where some runs failed, the others are
    complete and kept; UsageError where a comparison is going on there.
    """
    for run in planned:
        rundir.refuse_reading(run.directory, run.config)
    with rundir.owning(directory, "compare", make=True):
        _do(planned, directory, jobs, overwrite, progress or _silent)
        if finish is not None:
            for run in planned:
                finish(run)
        if by_steps:
            from spikebridge.trained import by_steps as stepwise

            for run in planned:
                stepwise.tested(run.directory, by_steps)
        result = summary(planned, title=about or None, **(more() if more is not None else {}))
        if _read(directory / COMPARE) != to_plain(result):
            rundir.write_json(directory / COMPARE, to_plain(result))
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
    started = [
        run
        for run in plan(contenders, seeds, plain, jobs=jobs)
        if (run.directory / rundir.CONFIG).exists()
    ]
    try:
        for run in started:
            rundir.same_settings(run.directory, run.config)
    except UsageError:
        return named
    return plain if started else named


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
    started = [run for run in planned if (run.directory / rundir.CONFIG).exists()]
    for run in [] if overwrite else started:
        rundir.same_settings(run.directory, run.config)
    todo = [run for run in planned if overwrite or not run.complete]
    if not todo:
        return
    work = _one_by_one if jobs == 1 or len(todo) == 1 else _side_by_side
    failed = work(todo, overwrite, progress, jobs)
    if failed:
        text = "".join(f"\n  {name}: {error}" for name, error in failed.items())
        raise RunError(f"{len(failed)} of {len(planned)} runs failed, the others are kept:{text}")


def _read(path: Path) -> object:
    try:
        return rundir.parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _silent(name: str) -> Progress:
    from spikebridge.runs.training import Silent

    return Silent()


def _one_by_one(
    todo: Sequence[Planned], overwrite: bool, progress: Callable[[str], Progress], jobs: int
) -> dict[str, str]:
    """Do the runs in this process; the errors of those that failed, by name."""
    from spikebridge.runs import training

    failed = {}
    for run in todo:
        try:
            training.run(
                run.config,
                run.directory,
                resume=not overwrite,
                overwrite=overwrite,
                progress=progress(run.name),
            )
        except RunError as error:
            failed[run.name] = str(error)
    return failed


def _side_by_side(
    todo: Sequence[Planned], overwrite: bool, progress: Callable[[str], Progress], jobs: int
) -> dict[str, str]:
    """Do the runs in `jobs` processes; the errors of those that failed, by name."""
    jobs = min(jobs, len(todo))
    executor = make(jobs, _quiet)
    followed = {
        executor.submit(_work, to_dict(run.config), str(run.directory), overwrite): _Followed(
            run, progress(run.name)
        )
        for run in todo
    }
    waiting = set(followed)
    try:
        while waiting:
            done, waiting = wait(waiting, LOOK_EVERY_SECONDS, FIRST_COMPLETED)
            for future in waiting:
                followed[future].look()
            for future in done:
                followed[future].end()
    except BaseException:
        # What the runs have reached lies on the disk; nothing is lost by ending them now.
        stop(executor)
        raise
    finally:
        for future in waiting:
            followed[future].end()
    executor.shutdown()
    errors = {one.run.name: _error_of(future) for future, one in followed.items()}
    return {name: text for name, text in errors.items() if text}


def _error_of(future: Future[str | None]) -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return "its process was killed, perhaps for want of memory; try again with fewer --jobs"


def _quiet() -> None:
    """In a working process: leave the news of missing kernels to the parent."""
    import warnings

    warnings.filterwarnings("ignore", message="spikebridge runs its time loop")


def _work(plain: dict[str, Any], directory: str, overwrite: bool) -> str | None:
    """In a working process: do one run; the error's text if it fails."""
    from spikebridge.runs import training

    try:
        training.run(from_dict(plain), directory, resume=not overwrite, overwrite=overwrite)
    except RunError as error:  # a UsageError is everybody's, and ends the comparison
        return str(error)
    return None


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
        if stamp == self.stamp:
            return
        self.stamp = stamp
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        if self.seen < 0:
            self.progress.begin(self.run.config, len(lines))
            self.seen = len(lines)
        for line in lines[self.seen :]:
            self.progress.epoch(Epoch.of(line))
        self.seen = len(lines)

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
