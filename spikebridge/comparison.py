"""Units x seeds: one run each, then one table, `compare.json` and the page.

Every run lies in its own sub-folder, `UNIT-SEED`, and complete ones are kept, so that a comparison
that was stopped goes on where it was and one that is complete is shown at once.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikebridge import environment, published, rundir
from spikebridge.catalog import Entry
from spikebridge.config import (
    Config,
    data_name,
    from_dict,
    label_of,
    override,
    task_name,
    to_dict,
    variant_of,
)
from spikebridge.metrics import METRICS
from spikebridge.records import RunError, SpikebridgeError, UsageError
from spikebridge.rundir import Result

if TYPE_CHECKING:
    from rich.table import Table

    from spikebridge.experiment import Progress

COMPARE = "compare.json"
LOOK_EVERY_SECONDS = 0.25
DEMO_UNITS = ("snu", "softsnu", "lstm")
DEMO_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Contender:
    """What is compared with others: a line of the table."""

    name: str
    """Safe for folders, such as "recurrent-softsnu"."""
    label: str
    config: Config
    published: dict[str, Any] | None
    """A published figure to stand beside it: {"value": .., "source": ..}."""


def of_unit(config: Config) -> Contender:
    """A unit as it is, under its own name."""
    variant = variant_of(config.model)
    return Contender(variant, label_of(variant), config, published.headline(config))


@dataclass(frozen=True)
class Planned:
    """One run of a comparison."""

    name: str
    """Its sub-folder, such as "recurrent-softsnu-0"."""
    directory: Path
    config: Config
    contender: Contender

    @property
    def complete(self) -> bool:
        return rundir.is_complete(self.directory)


def of_entry(entry: Entry, *, quick: bool = False) -> list[Contender]:
    """The lines of a table of the catalog."""
    found = []
    for row in entry.rows:
        config = entry.config(row, quick=quick)
        label = row.label or label_of(row.unit)
        found.append(Contender(row.name or row.unit, label, config, published.headline(config)))
    return found


def plan(
    contenders: Sequence[Contender], seeds: Sequence[int], directory: Path, *, jobs: int = 1
) -> list[Planned]:
    """The runs of a comparison, line by line.

    With several jobs each run gets its share of the cores as threads, unless the config says how
    many.  A run that was begun keeps its number of threads, for its bits depend on it.
    Raises UsageError for a comparison that makes no sense.
    """
    if not contenders or not seeds:
        raise UsageError("a comparison needs at least one unit and one seed; pass --units, --seeds")
    if jobs < 1:
        raise UsageError(f"jobs={jobs}: it must be at least 1; pass --jobs 1")
    names = [f"unit {one.name}" for one in contenders]
    names += [f"seed {seed}" for seed in seeds]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice; name each one once")
    share = max(1, environment.cores() // jobs) if jobs > 1 else 0
    planned = []
    for one in contenders:
        for seed in seeds:
            name = f"{one.name}-{seed}"
            seeded = override(one.config, seed=seed)
            if one.config.train.threads == 0:
                begun = _threads_of(directory / name)
                seeded = override(seeded, threads=share if begun is None else begun)
            planned.append(Planned(name, directory / name, seeded, one))
    return planned


def _threads_of(directory: Path) -> int | None:
    if not (directory / rundir.CONFIG).exists():
        return None
    return rundir.read_config(directory).train.threads


def demo_contenders() -> list[Contender]:
    """The units of the demo on the digits that come with scikit-learn."""
    from spikebridge.config import preset

    return [of_unit(preset("digits", unit, "digits8x8")) for unit in DEMO_UNITS]


def is_complete(planned: Iterable[Planned]) -> bool:
    """Whether all runs are complete."""
    return all(run.complete for run in planned)


def compare(
    planned: Sequence[Planned],
    directory: Path,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    page: bool = True,
    progress: Callable[[str], Progress] | None = None,
    about: str = "",
) -> dict[str, Any]:
    """Do what is not done yet, then write compare.json and, if asked for, the page.

    Args:
        planned: from `plan`.
        directory: the comparison's folder.
        jobs: processes that train at the same time.
        overwrite: do all runs anew.
        page: write report.html.
        progress: gives, for a run's name, what is told of it.
        about: a title for the page.

    Returns the content of compare.json.  Raises RunError where some runs failed; the others are
    complete and kept.
    """
    if overwrite:
        (directory / COMPARE).unlink(missing_ok=True)
    begun = [run for run in planned if (run.directory / rundir.CONFIG).exists()]
    for run in [] if overwrite else begun:
        rundir.same_settings(run.directory, run.config)
    todo = [run for run in planned if overwrite or not run.complete]
    if todo:
        work = _one_by_one if jobs == 1 or len(todo) == 1 else _side_by_side
        failed = work(todo, overwrite, progress or _silent, jobs)
        if failed:
            told = "".join(f"\n  {name}: {error}" for name, error in failed.items())
            raise RunError(
                f"{len(failed)} of {len(planned)} runs failed, the others are kept:{told}"
            )
    content = summary(planned) | ({"title": about} if about else {})
    _write(content, directory, page)
    return content


def _write(content: dict[str, Any], directory: Path, page: bool) -> None:
    """Write compare.json and the page, where they are not there yet or no longer true."""
    path = directory / COMPARE
    changed = _read(path) != content
    if changed:
        rundir.write_json(path, content)
    if page and (changed or not (directory / rundir.REPORT).exists()):
        from spikebridge.report.page import write

        write(directory)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _silent(name: str) -> Progress:
    from spikebridge.experiment import Silent

    return Silent()


def _one_by_one(
    todo: Sequence[Planned], overwrite: bool, progress: Callable[[str], Progress], jobs: int
) -> dict[str, str]:
    """Do the runs in this process; the errors of those that failed, by name."""
    from spikebridge import experiment

    failed = {}
    for run in todo:
        try:
            experiment.run(
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
    # spawn: a fork of a process whose torch already has threads may hang.
    context = multiprocessing.get_context("spawn")
    jobs = min(jobs, len(todo))
    pool = ProcessPoolExecutor(jobs, context, initializer=_quiet)
    # The pool watches those processes that it had when it last heard of one: let each speak once,
    # or the death of a later one would go unnoticed until another has finished its run.
    wait([pool.submit(time.sleep, 0) for _ in range(jobs)])
    followed = {
        pool.submit(_work, to_dict(run.config), str(run.directory), overwrite): _Followed(
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
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        for future in waiting:
            followed[future].end()
    pool.shutdown()
    errors = {one.run.name: _error_of(future) for future, one in followed.items()}
    return {name: text for name, text in errors.items() if text}


def _error_of(future: Future[str | None]) -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return "its process was killed, perhaps for want of memory; try again with fewer --jobs"


def _quiet() -> None:
    """In a working process: leave Ctrl-C, and the news of missing kernels, to the parent."""
    import signal
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", message="spikebridge runs its time loop")


def _work(plain: dict[str, Any], directory: str, overwrite: bool) -> str | None:
    """In a working process: do one run; the error's text if it fails."""
    from spikebridge import experiment

    try:
        experiment.run(from_dict(plain), directory, resume=not overwrite, overwrite=overwrite)
    except SpikebridgeError as error:
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
            self.progress.epoch(json.loads(line))
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


def summary(planned: Sequence[Planned]) -> dict[str, Any]:
    """The content of compare.json, from the results of complete runs."""
    groups: dict[str, list[tuple[Planned, Result]]] = {}
    for run in planned:
        group = groups.setdefault(run.contender.name, [])
        group.append((run, rundir.read_result(run.directory)))
    first = planned[0]
    result = next(iter(groups.values()))[0][1]
    return {
        "task": task_name(first.config),
        "data": data_name(first.config),
        "metric": result.metric,
        "higher_is_better": result.higher_is_better,
        "rows": [_row(group) for group in groups.values()],
    }


def _row(group: list[tuple[Planned, Result]]) -> dict[str, Any]:
    one = group[0][0].contender
    results = [result for _, result in group]
    tests = [result.test for result in results]
    spikes = [result.spikes_per_inference for result in results]
    counted = [value for value in spikes if value is not None]
    return {
        "unit": variant_of(one.config.model),
        "label": one.label,
        "n": len(results),
        "test_mean": statistics.fmean(tests),
        "test_std": statistics.stdev(tests) if len(tests) > 1 else None,
        "tests": tests,
        "valid_mean": statistics.fmean(result.valid for result in results),
        "parameters": results[0].parameters,
        "operations": results[0].operations_per_step,
        "seconds_mean": statistics.fmean(result.seconds for result in results),
        "spikes_mean": statistics.fmean(counted) if counted else None,
        "published": one.published,
        "runs": [run.name for run, _ in group],
    }


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
        spread = row["test_std"]
        test = metric.figure(row["test_mean"])
        built.add_row(
            row["label"],
            test if spread is None else f"{test} ± {metric.figure(spread)}",
            metric.figure(row["valid_mean"]),
            str(row["n"]),
            f"{row['parameters']:,}",
            f"{row['operations']:,}",
            "-" if row["spikes_mean"] is None else f"{row['spikes_mean']:,.0f}",
            f"{row['seconds_mean']:.1f}",
            metric.figure(row["published"]["value"]) if row["published"] else "-",
        )
    return built
