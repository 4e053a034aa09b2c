"""How much each way to learn forgets: rows x seeds, settings chosen on validation, one table.

What was done is kept: trials in tuning.json, runs in folders NAME-SEED, so that a table that was
stopped goes on where it was.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from spikebridge import rundir
from spikebridge.continual_config import ContinualConfig, from_dict, override, to_dict
from spikebridge.contrasts import paired
from spikebridge.forgetting_entries import ForgettingEntry, ForgettingRow, find
from spikebridge.records import RunError, SpikebridgeError, UsageError
from spikebridge.transfer import MEASURES

FORGETTING = "forgetting.json"
TUNING = "tuning.json"
AGAINST = ("gain", "plain")

Tell = Callable[[str], None]


class _Trial(NamedTuple):
    row: str
    settings: dict[str, float]
    config: ContinualConfig

    @property
    def key(self) -> tuple[str, str, int]:
        return self.row, repr(sorted(self.settings.items())), self.config.train.seed


def reproduce(
    name: str,
    out: Path | None,
    *,
    seeds: int = 0,
    quick: bool = False,
    jobs: int = 2,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Make a table of `forgetting_entries.FORGETTING` again, and print it.

    seeds is their number, 0 for as many as the entry says.  Raises as `compare`.
    """
    entry = find(name)
    out = out or Path("runs") / f"reproduce-{name}{'-quick' if quick else ''}"
    _say(f"{entry.title}\n{entry.source}")
    count = seeds or (1 if quick else entry.seeds)
    content = compare(
        entry, out, seeds=range(count), quick=quick, jobs=jobs, overwrite=overwrite, tell=_say
    )
    if as_json:
        print(json.dumps(content))
        return
    from spikebridge.report.forgetting_text import lines

    print("\n".join(lines(content)))
    for what, file in (("table", "table.md"), ("plot", "plot.png"), ("page", rundir.REPORT)):
        print(f"{what}: {out / file}")


def compare(
    entry: ForgettingEntry,
    out: Path,
    *,
    seeds: Sequence[int],
    quick: bool = False,
    jobs: int = 1,
    overwrite: bool = False,
    page: bool = True,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Choose each row's settings, run all seeds, write forgetting.json and what shows it.

    Args:
        entry: rows, grid, shared settings.
        out: folder.
        seeds: of the runs; a seed has the same tasks and the same first weights in all rows.
        quick: the entry's quick settings, and the first value of each grid without a trial.
        jobs: processes that train at the same time, one thread each.
        overwrite: do everything anew.
        page: write table.md, plot.png and report.html too.
        tell: is told of each trial and run.

    Returns the content of forgetting.json.  Raises UsageError where seeds are those of trials or a
    run there has other settings; RunError where runs failed, the others are complete and kept.
    """
    if set(seeds) & set(entry.trial_seeds):
        raise UsageError(
            f"seeds={list(seeds)}: {list(entry.trial_seeds)} chose the settings and would flatter "
            "them; take other seeds"
        )
    if jobs < 1 or not seeds:
        raise UsageError(f"jobs={jobs}, {len(seeds)} seeds: at least 1 of each; pass --jobs 2")
    tell = tell or (lambda text: None)
    out.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in (FORGETTING, TUNING):
            (out / name).unlink(missing_ok=True)
    tuned = tune(entry, out, quick=quick, jobs=jobs, tell=tell)
    planned = {
        (row.name, seed): override(
            entry.config(row, seed, quick=quick), **tuned["chosen"][row.name]
        )
        for row in entry.rows
        for seed in seeds
    }
    _run_all(planned, out, jobs, overwrite, tell)
    content = summary(entry, planned, out, tuned)
    rundir.write_json(out / FORGETTING, content)
    if page:
        from spikebridge.report import forgetting_text
        from spikebridge.report import page as pages

        rundir.write_text(out / "table.md", forgetting_text.markdown(content))
        forgetting_text.draw(content, out / "plot.png")
        pages.write(out)
    return content


def tune(
    entry: ForgettingEntry, out: Path, *, quick: bool = False, jobs: int = 1, tell: Tell
) -> dict[str, Any]:
    """The settings of each row's grid with the best mean validation accuracy over all tasks.

    Returns the content of out/tuning.json: `trials` (row, settings, seed, valid; None = diverged)
    and `chosen` by row.  Raises RunError where all trials of a row diverged.
    """
    trials = [trial for row in entry.rows for trial in _trials(entry, row, quick)]
    path, asked = out / TUNING, {trial.key for trial in trials}
    content = _kept(path, entry, quick)
    done = {_key(record) for record in content["trials"]}
    todo = [(trial, to_dict(trial.config)) for trial in trials if trial.key not in done]
    clock = _Clock(len(todo), "trial", tell)
    for trial, valid in _results(_validate, todo, jobs):
        if isinstance(valid, str):
            clock.tell(f"{_name(trial)}: {valid}")
        record = {"row": trial.row, "settings": trial.settings, "seed": trial.config.train.seed}
        content["trials"].append(record | {"valid": valid if isinstance(valid, float) else None})
        rundir.write_json(path, content)
        if isinstance(valid, float):
            clock.tell(f"{_name(trial)}: validation {100 * valid:.2f} %")
    records = [record for record in content["trials"] if _key(record) in asked]
    content["chosen"] = {
        row.name: _best(row.name, records, _options(entry, row, quick)) for row in entry.rows
    }
    rundir.write_json(path, content)
    return content


def _trials(entry: ForgettingEntry, row: ForgettingRow, quick: bool) -> Iterator[_Trial]:
    options = _options(entry, row, quick)
    for settings in options if len(options) > 1 else ():
        for seed in entry.trial_seeds:
            config = override(entry.config(row, seed, quick=quick), **settings)
            yield _Trial(row.name, settings, config)


def _options(entry: ForgettingEntry, row: ForgettingRow, quick: bool) -> list[dict[str, float]]:
    """All settings of a row's grid."""
    grid = {**entry.grid, **row.grid}
    values = itertools.product(*(v[:1] if quick else v for v in grid.values()))
    return [dict(zip(grid, chosen, strict=True)) for chosen in values]


def _kept(path: Path, entry: ForgettingEntry, quick: bool) -> dict[str, Any]:
    """What lies there, without the trials of rows whose other settings have changed since."""
    bases = {row.name: to_dict(entry.config(row, 0, quick=quick)) for row in entry.rows}
    trials = []
    if path.exists():
        before = rundir.read_json(path, "remove it to tune anew")
        same = {name for name, base in before["bases"].items() if bases.get(name) == base}
        trials = [record for record in before["trials"] if record["row"] in same]
    return {"seeds": list(entry.trial_seeds), "bases": bases, "trials": trials, "chosen": {}}


def _key(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["row"], repr(sorted(record["settings"].items())), record["seed"]


def _name(trial: _Trial) -> str:
    chosen = ", ".join(f"{name} {value:g}" for name, value in trial.settings.items())
    return f"{trial.row}, {chosen}, seed {trial.config.train.seed}"


def _best(
    row: str, records: Sequence[dict[str, Any]], options: Sequence[dict[str, float]]
) -> dict[str, float]:
    if len(options) == 1:  # nothing to be chosen
        return options[0]
    found: dict[str, tuple[dict[str, float], list[float | None]]] = {}
    for record in records:
        if record["row"] == row:
            found.setdefault(_key(record)[1], (record["settings"], []))[1].append(record["valid"])
    means = [
        (statistics.fmean(v for v in values if v is not None), settings)
        for settings, values in found.values()
        if None not in values
    ]
    if not means:
        raise RunError(f"{row}: all trials diverged; give it a grid of lower learning rates")
    return dict(max(means, key=lambda pair: pair[0])[1])


def _run_all(
    planned: dict[tuple[str, int], ContinualConfig],
    out: Path,
    jobs: int,
    overwrite: bool,
    tell: Tell,
) -> None:
    todo = []
    for (row, seed), config in planned.items():
        folder = out / f"{row}-{seed}"
        theirs = folder / rundir.CONFIG
        same = theirs.exists() and from_dict(rundir.read_json(theirs, "remove it")) == config
        # Runs with settings that are no longer chosen would mix two tables.
        anew = overwrite or (folder.exists() and not same)
        if anew or not (folder / "continual.json").exists():
            todo.append(((row, seed), (to_dict(config), str(folder), anew)))
    clock, failed = _Clock(len(todo), "run", tell), []
    for (row, seed), error in _results(_run, todo, jobs):
        if error:
            failed.append(f"\n  {row}-{seed}: {error}")
        clock.tell(f"{row}, seed {seed}: {'failed' if error else 'complete'}")
    if failed:
        raise RunError(
            f"{len(failed)} of {len(planned)} runs failed, the others are kept:{''.join(failed)}"
        )


def _results(work: Callable[[Any], Any], todo: Sequence[Any], jobs: int) -> Iterator[Any]:
    """(key, work(argument)) for each (key, argument), as they come in."""
    if jobs == 1 or len(todo) < 2:
        yield from ((key, work(argument)) for key, argument in todo)
        return
    # spawn: a fork of a process whose torch already has threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(todo)), context, initializer=_quiet)
    futures = {pool.submit(work, argument): key for key, argument in todo}
    try:
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool as error:
                raise RunError(
                    "a working process was killed, perhaps for want of memory; what is complete is "
                    "kept, try again with fewer --jobs"
                ) from error
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


def _validate(plain: dict[str, Any]) -> float | str:
    from spikebridge import continual

    try:
        return continual.validate(from_dict(plain))
    except RunError as error:
        return str(error)


def _run(argument: tuple[dict[str, Any], str, bool]) -> str:
    from spikebridge import continual

    plain, folder, anew = argument
    try:
        continual.run(from_dict(plain), folder, resume=not anew, overwrite=anew)
    except SpikebridgeError as error:
        return str(error)
    return ""


def summary(
    entry: ForgettingEntry,
    planned: dict[tuple[str, int], ContinualConfig],
    out: Path,
    tuned: dict[str, Any],
) -> dict[str, Any]:
    """The content of forgetting.json, from runs that are all complete."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, seed in planned:
        path = out / f"{name}-{seed}" / "continual.json"
        runs.setdefault(name, []).append(rundir.read_json(path, "remove its folder"))
    first = runs[entry.rows[0].name][0]
    rows = [_row(entry, row, runs[row.name], tuned) for row in entry.rows]
    return {
        "name": entry.name,
        "title": entry.title,
        "source": entry.source,
        "seeds": sorted({seed for _, seed in planned}),
        "trial_seeds": sorted({record["seed"] for record in tuned["trials"]}),
        **{key: first[key] for key in ("protocol", "tasks", "data", "chance", "unit")},
        "heads": first["config"]["sequence"]["heads"],
        "rows": rows,
        "contrasts": _contrasts(rows),
        "trials": tuned["trials"],
        "config": first["config"],
        "environment": first["environment"],
    }


def _row(
    entry: ForgettingEntry,
    row: ForgettingRow,
    runs: Sequence[dict[str, Any]],
    tuned: dict[str, Any],
) -> dict[str, Any]:
    chosen = tuned["chosen"][row.name]
    tried = [r["settings"] for r in tuned["trials"] if r["row"] == row.name]
    values = {name: sorted({settings[name] for settings in tried}) for name in chosen if tried}
    matrices = [run["matrix"] for run in runs]
    count = range(len(matrices[0]))
    return {
        "name": row.name,
        "label": row.label,
        "role": row.role,
        "chosen": chosen,
        # The best may lie beyond what was tried.
        "at_edge": [
            name
            for name, tries in values.items()
            if len(tries) > 1 and chosen[name] in (tries[0], tries[-1])
        ],
        "n": len(runs),
        "measures": {name: _spread([run["measures"][name] for run in runs]) for name in MEASURES},
        "first": [statistics.fmean(run["first"][j] for run in runs) for j in count],
        "matrix": [[statistics.fmean(m[k][j] for m in matrices) for j in count] for k in count],
        "matrix_std": [[_deviation([m[k][j] for m in matrices]) for j in count] for k in count],
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "parameters": runs[0]["parameters"],
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "std": _deviation(values), "values": values}


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _contrasts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """GRAPES less each of its controls, by seed."""
    mine = {row["role"]: row for row in rows}
    found = []
    for other in AGAINST:
        if "grapes" not in mine or other not in mine:
            continue
        ours, theirs = mine["grapes"], mine[other]
        for name in MEASURES:
            contrast = paired(*(row["measures"][name]["values"] for row in (ours, theirs)))
            found.append(
                {"label": ours["label"], "other": theirs["label"], "against": other}
                | {"measure": name, **contrast.to_dict(), "clear": contrast.clear}
            )
    return found


class _Clock:
    """Tells how far something has come and how long it still takes."""

    def __init__(self, count: int, what: str, tell: Tell) -> None:
        self.count, self.what, self.told = count, what, tell
        self.done, self.started = 0, time.monotonic()

    def tell(self, text: str) -> None:
        self.done += 1
        each = (time.monotonic() - self.started) / self.done
        left = each * (self.count - self.done)
        self.told(f"{self.what} {self.done}/{self.count}  {text}  {left:.0f} s left")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
