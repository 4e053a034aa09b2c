"""How much each way to learn forgets: rows x seeds, settings chosen on validation, one table.

What was done is kept: trials in tuning.json, runs in folders NAME-SEED, so that a table that was
stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikebridge.base import processes
from spikebridge.base.records import RunError, SpikebridgeError, UsageError
from spikebridge.runs import rundir
from spikebridge.settings.continual import ContinualConfig, from_dict, override, to_dict
from spikebridge.studies.catalog.continual import ForgettingEntry
from spikebridge.studies.forgetting_table import summary
from spikebridge.studies.forgetting_tuning import Clock, Tell, tune

FORGETTING = "forgetting.json"


def compare(
    entry: ForgettingEntry,
    out: Path,
    *,
    seeds: Sequence[int],
    quick: bool = False,
    jobs: int = 1,
    overwrite: bool = False,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Choose each row's settings, run all seeds, write forgetting.json.

    Args:
        entry: rows, grid, shared settings.
        out: folder.
        seeds: of the runs; a seed has the same tasks and the same first weights in all rows.
        quick: the entry's quick settings, and the first value of each grid without a trial.
        jobs: processes that train at the same time, one thread each.
        overwrite: do everything anew.
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
    with rundir.owning(out, "reproduce", make=True):
        if overwrite:
            (out / FORGETTING).unlink(missing_ok=True)
        tuned = tune(entry, out, quick=quick, jobs=jobs, anew=overwrite, tell=tell)
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
    return content


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
    clock, failed = Clock(len(todo), "run", tell), []
    for (row, seed), error in processes.results(_run, todo, jobs):
        if error:
            failed.append(f"\n  {row}-{seed}: {error}")
        clock.tell(f"{row}, seed {seed}: {'failed' if error else 'complete'}")
    if failed:
        raise RunError(
            f"{len(failed)} of {len(planned)} runs failed, the others are kept:{''.join(failed)}"
        )


def _run(argument: tuple[dict[str, Any], str, bool]) -> str:
    from spikebridge.runs import continual

    plain, folder, anew = argument
    try:
        continual.run(from_dict(plain), folder, resume=not anew, overwrite=anew)
    except SpikebridgeError as error:
        return str(error)
    return ""
