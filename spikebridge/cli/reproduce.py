"""`spikebridge reproduce`: a table or a figure of the catalog."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from spikebridge.base.quantities import plural
from spikebridge.base.records import UsageError
from spikebridge.cli import progress
from spikebridge.cli.compare import ahead, show, tell_of_kernels
from spikebridge.cli.flags import Flag, Output, refresh_page, say, settings_text
from spikebridge.runs import rundir
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig, parts_of

if TYPE_CHECKING:
    from spikebridge.studies import catalog
    from spikebridge.studies.plan import Planned
    from spikebridge.studies.tune import Trial


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
            show_catalog(as_json=self.output.json)
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
        tell_of_kernels(self.jobs)
        with rundir.owning(out, "reproduce", make=True):
            content, files = _make(self, entry, out)
            if self.record is not None:
                written = record.write(self.name, content, out, self.record)
                say("record: " + ", ".join(map(str, written)))
        show(content, out, not self.output.no_report, self.output.json)
        if not self.output.json:
            for what, path in files:
                print(f"{what}: {path}")


def _make(
    options: Reproduce, entry: catalog.Entry, out: Path
) -> tuple[dict[str, Any], list[tuple[str, Path]]]:
    """The content of an entry's compare.json, and the files that show it."""
    from spikebridge.studies import compare, tune
    from spikebridge.studies.summary import by_role

    quick, jobs, overwrite = options.quick, options.jobs, options.output.overwrite
    contenders = compare.of_entry(entry, quick=quick)
    seeds = options.all_seeds(entry.seeds)
    contenders = tune.tune(
        entry, contenders, out, seeds=seeds, quick=quick, jobs=jobs, anew=overwrite, tell=_say_trial
    )
    planned = compare.plan(contenders, seeds, out, jobs=jobs)
    kept = 0 if overwrite else sum(run.complete for run in planned)
    takes = "" if quick or not entry.minutes else f"; about {entry.minutes:,.0f} min on 2 cores"
    complete = f"; {kept} are complete" if kept else ""
    say(f"{plural(len(planned), 'run')} in {out}{takes}{complete}")
    with progress.display(whole=ahead(planned, jobs, overwrite)) as display:
        content = compare.compare(
            planned,
            out,
            jobs=jobs,
            overwrite=overwrite,
            progress=display,
            about=entry.title,
            finish=lambda run: _on_hardware(entry, run, quick),
            by_steps=() if quick else entry.by_steps,
            more=lambda: by_role(entry, planned, out),
        )
    from spikebridge.report import still

    if not options.output.no_report:
        refresh_page(out)
    pictures = still.write(content, out, entry.source)
    return content, [("table", out / still.TABLE), *(("plot", path) for path in pictures)]


def _on_hardware(entry: catalog.Entry, run: Planned, quick: bool) -> None:
    """Export a complete run to the chip or program it into cells, where its table says so."""
    if entry.chip is not None and not (run.directory / rundir.DIGITAL).exists():
        from spikebridge.trained import on_chip

        say(f"{run.name}: exported to the digital chip")
        on_chip.export(run.directory, on_chip.ChipPlan(dict(entry.chip)))
    if entry.cells is not None and not (run.directory / rundir.MEMORY).exists():
        from spikebridge.trained import on_cells

        say(f"{run.name}: programmed into memory cells")
        parts = parts_of(entry.cells)
        cells, crossbar = CellConfig(**parts["cells"]), CrossbarConfig(**parts["crossbar"])
        plan = on_cells.CellPlan(cells, crossbar, chips=2 if quick else 10)
        on_cells.deploy(run.directory, plan)


def _say_trial(trial: Trial, valid: float | None) -> None:
    outcome = "failed" if valid is None else f"valid {valid:.5g}"
    settings, seed = settings_text(trial.settings).strip(), trial.config.train.seed
    say(f"{trial.row}  {settings}  seed {seed}  {outcome}")


def show_catalog(*, as_json: bool) -> None:
    """List what `reproduce` can make, and what it takes on two cores."""
    from spikebridge.studies import catalog

    entries = catalog.CATALOG
    if as_json:
        rows = [
            {"name": e.name, "title": e.title, "seeds": e.seeds, "minutes": e.minutes}
            for e in entries
        ]
        print(json.dumps({"entries": rows}))
        return
    for entry in entries:
        takes = f"{entry.minutes:,.0f} min" if entry.minutes else "unknown"
        runs = f"{len(entry.rows)} x {entry.seeds} runs"
        print(f"{entry.name:26} {takes:>9}  {runs:12}  {entry.title}")
