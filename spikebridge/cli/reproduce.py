"""`spikebridge reproduce`: a table or a figure of the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import tyro

from spikebridge.base.quantities import plural
from spikebridge.base.records import UsageError
from spikebridge.cli.compare import on_hardware, run_all, show
from spikebridge.cli.flags import Flag, Output, say, settings_text
from spikebridge.runs import rundir
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig, parts_of

if TYPE_CHECKING:
    from spikebridge.studies import catalog
    from spikebridge.studies.comparison import Summary
    from spikebridge.studies.plan import Planned
    from spikebridge.studies.tune import Trial, Work


@dataclass(frozen=True)
class Reproduce:
    """Make a published table or figure again: runs over seeds, a table, a picture and a page.

    All of it goes to runs/reproduce-NAME.
    """

    EXAMPLE: ClassVar[str] = "reproduce jsb --count 3 --jobs 2"

    name: tyro.conf.Positional[str] = ""
    """Which one; --list shows them all."""
    list: Flag = False
    """Show all entries with what they take on two cores."""
    seeds: tuple[int, ...] = ()
    """Seeds; by default 0, 1, 2, .., as many as the entry says.  Of one seed: with --count 1."""
    count: int = 0
    """Number of seeds 0, 1, 2, .., instead of --seeds; 0 = as many as the entry says."""
    quick: Flag = False
    """A few epochs of one seed: to see that it works, not what it reaches."""
    jobs: int = 2
    """Runs that train at the same time, each with its share of the cores."""
    record: Path | None = None
    """Folder for NAME.json with settings, seeds, versions, machine and commit, and for table and
    pictures; refused where a run was made from a changed source tree."""

    output: Output = field(default_factory=Output)

    @property
    def folder(self) -> Path:
        """Where all of it goes."""
        quick = "-quick" if self.quick else ""
        return self.output.out or rundir.FOLDER / f"reproduce-{self.name}{quick}"

    def all_seeds(self, usual: int) -> Sequence[int]:
        """The seeds asked for, of an entry that usually has so many."""
        return self.seeds or range(self.count or (1 if self.quick else usual))

    def run(self) -> None:
        if self.list:
            show_catalog(self.output)
            return
        if not self.name:
            raise UsageError("no entry is named; `spikebridge reproduce --list` shows them all")
        if self.count < 0:
            raise UsageError(f"count={self.count}: a number of seeds, 0 or above; pass --count 5")
        if self.seeds and self.count not in (0, len(self.seeds)):
            raise UsageError(f"count={self.count}, seeds={self.seeds}: give one of them")
        from spikebridge.studies import catalog, record

        entry = catalog.find(self.name)
        out = self.folder
        say(f"{entry.title}\n{entry.source}")
        with rundir.owning(out, "reproduce", make=True):
            content, files = _make(self, entry, out)
            if self.record is not None:
                written = record.write(self.name, content, out, self.record, quick=self.quick)
                say("record: " + ", ".join(map(str, written)))
        show(content, out, self.output)
        if not self.output.json:
            for what, path in files:
                print(f"{what}: {path}")


def _make(
    options: Reproduce, entry: catalog.Entry, out: Path
) -> tuple[Summary, list[tuple[str, Path]]]:
    """The content of an entry's compare.json, and the files that show it."""
    from spikebridge.studies import plan, tune
    from spikebridge.studies.summary import by_role

    quick, jobs, overwrite = options.quick, options.jobs, options.output.overwrite
    contenders = plan.of_entry(entry, quick=quick)
    seeds = options.all_seeds(entry.seeds)
    ahead = tune.work(entry, contenders, out, seeds=seeds, quick=quick, anew=overwrite)
    for line in _takes(entry, ahead, jobs, quick):
        say(line)
    contenders = tune.tune(
        entry, contenders, out, seeds=seeds, quick=quick, jobs=jobs, anew=overwrite, tell=_say_trial
    )
    planned = plan.plan(contenders, seeds, out, jobs=jobs)
    kept = 0 if overwrite else sum(run.complete for run in planned)
    complete = f"; {kept} are complete" if kept else ""
    say(f"{plural(len(planned), 'run')} in {out}{complete}")
    content = run_all(
        planned,
        out,
        jobs,
        options.output,
        about=entry.title,
        finish=lambda run: _on_hardware(entry, run, quick),
        by_steps=() if quick else entry.by_steps,
        more=lambda: {"printed": entry.printed, **by_role(entry, planned, out)},
    )
    from spikebridge.report import still

    pictures = still.write(content, out, entry.source)
    return content, [("table", out / still.TABLE), *(("plot", path) for path in pictures)]


def _takes(entry: catalog.Entry, rows: Sequence[Work], jobs: int, quick: bool) -> Iterator[str]:
    """What a table takes before it begins: runs and trials with their epochs, and the time."""
    for row in rows:
        parts = [f"{plural(row.runs, 'run')} x {plural(row.epochs, 'epoch')}{_of(row.runs_done)}"]
        if row.trials:
            trials = f"{plural(row.trials, 'trial')} x {plural(row.trial_epochs, 'epoch')}"
            parts.insert(0, f"{trials}{_of(row.trials_done)}")
        if row.epoch_s and not quick:
            parts.append(f"{_hours(row.left * row.epoch_s)} left on one core")
        yield f"{row.row}: {', '.join(parts)}"
    whole, left = sum(row.whole for row in rows), sum(row.left for row in rows)
    text = f"in all {left:,} of {whole:,} epochs to do"
    if not quick and all(row.epoch_s for row in rows):
        seconds = sum(row.left * row.epoch_s for row in rows) / max(jobs, 1)
        text += f", about {_hours(seconds)} with --jobs {jobs}"
    elif not quick and entry.minutes:
        text += f", about {_hours(60 * entry.minutes * left / whole)} on 2 cores"
    yield text


def _of(done: int) -> str:
    return f" ({done} done)" if done else ""


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"


def _on_hardware(entry: catalog.Entry, run: Planned, quick: bool) -> None:
    """What is done with a complete run's network, as its table says."""
    from spikebridge.trained.on_cells import CellPlan
    from spikebridge.trained.on_chip import ChipPlan

    chip = None if entry.chip is None else ChipPlan(dict(entry.chip))
    cells = None
    if entry.cells is not None:
        parts = parts_of(entry.cells)
        settings = CellConfig(**parts["cells"]), CrossbarConfig(**parts["crossbar"])
        cells = CellPlan(*settings, chips=2 if quick else 10)
    on_hardware(run, chip, cells)


def _say_trial(trial: Trial) -> None:
    outcome = "failed" if trial.valid is None else f"valid {trial.valid:.5g}"
    say(f"{trial.row}  {settings_text(trial.settings).strip()}  seed {trial.seed}  {outcome}")


def show_catalog(output: Output) -> None:
    """List what `reproduce` can make, and what it takes on two cores."""
    from spikebridge.studies import catalog

    rows, lines = [], []
    for e in catalog.CATALOG:
        rows.append({"name": e.name, "title": e.title, "seeds": e.seeds, "minutes": e.minutes})
        takes = f"{e.minutes:,.0f} min" if e.minutes else "unknown"
        lines.append(f"{e.name:26} {takes:>9}  {f'{len(e.rows)} x {e.seeds} runs':12}  {e.title}")
    output.show({"entries": rows}, lines)
