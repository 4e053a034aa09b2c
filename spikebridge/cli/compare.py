"""`spikebridge compare`: units over seeds, side by side; what other commands of many runs share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from spikebridge.base.quantities import plural
from spikebridge.base.records import RunError
from spikebridge.cli import progress
from spikebridge.cli.flags import Flag, Output, Units, say, settings_of
from spikebridge.runs import rundir
from spikebridge.settings.config import Config, data_name, variant_of

if TYPE_CHECKING:
    from spikebridge.studies.comparison import Summary
    from spikebridge.studies.plan import Planned
    from spikebridge.trained.on_cells import CellPlan
    from spikebridge.trained.on_chip import ChipPlan


@dataclass(frozen=True)
class Compare:
    """Goes to runs/compare-DATA, with what differs from the presets.

    All other flags apply to every unit; a flag that is not given takes each unit's own preset.
    """

    EXAMPLE: ClassVar[str] = "compare {task} --units snu lstm --seeds 0 1 2"
    MAIN: ClassVar[tuple[str, ...]] = ("units", "seeds", "data", "jobs", "out")
    ABOUT: ClassVar[str] = "Compare units over seeds."
    PER_TASK: ClassVar[str] = "Compare units over seeds: {}."

    REFUSES: ClassVar[dict[str, str]] = {
        "unit": "several units are compared; pass --units snu lstm",
        "seed": "each unit is trained from several seeds; pass --seeds 0 1 2",
    }

    units: Units = ("snu", "softsnu", "lstm")
    """Units to compare, such as snu or recurrent-snu."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, one run of each unit per seed."""
    jobs: int = 1
    """Runs that train at the same time, each with its share of the cores."""
    verbose: Flag = False
    """Say all settings, not only those that differ from the preset."""
    output: Output = field(default_factory=Output)

    def run(self, configs: Sequence[Config], fixed: Collection[str]) -> None:
        """Train each config over the seeds and show them side by side."""
        from spikebridge.studies import compare, plan

        contenders = [plan.of_unit(config) for config in configs]
        out = self.output.out or compare.default_folder(contenders, self.seeds, self.jobs)
        planned = plan.plan(contenders, self.seeds, out, jobs=self.jobs)
        for variant, config in {variant_of(config.model): config for config in configs}.items():
            say(f"{variant} on {data_name(config)}: {settings_of(config, self.verbose)}")
        kept = 0 if self.output.overwrite else sum(run.complete for run in planned)
        complete = f", {kept} of them complete" if kept else ""
        say(f"{plural(len(planned), 'run')} in {out}{complete}")
        content = run_all(planned, out, self.jobs, self.output)
        show(content, out, self.output)


def run_all(
    planned: Sequence[Planned], out: Path, jobs: int, output: Output, **more: Any
) -> Summary:
    """The content of compare.json of runs, each done unless it is complete, with its page.

    more: further arguments of `studies.compare.compare`.
    """
    from spikebridge.nn.kernels import native
    from spikebridge.studies import compare

    if jobs > 1 and native.missing is not None:  # working processes keep quiet about it
        say(f"units run in the Python loop, which is slower: {native.missing}")
    with progress.display(whole=ahead(planned, jobs, output.overwrite)) as display:
        content = compare.compare(
            planned, out, jobs=jobs, overwrite=output.overwrite, progress=display, **more
        )
    if not output.no_report:
        from spikebridge.report.page import refresh

        refresh(out)
    return content


def on_hardware(run: Planned, chip: ChipPlan | None, cells: CellPlan | None) -> None:
    """Export a complete run to the chip and program it into cells, unless that was done."""
    from spikebridge.trained import on_cells, on_chip

    if chip is not None and not (run.directory / rundir.DIGITAL).exists():
        say(f"{run.name}: exported to the digital chip")
        on_chip.export(run.directory, chip)
    if cells is not None and not (run.directory / rundir.MEMORY).exists():
        say(f"{run.name}: programmed into memory cells")
        on_cells.deploy(run.directory, cells)


def ahead(planned: Sequence[Planned], jobs: int, overwrite: bool) -> progress.Whole | None:
    """What is left of some runs, once it is printed with the time that it takes by a few batches.

    None where nothing is to be done.  Raises UsageError where the data are missing.
    """
    todo = [run for run in planned if overwrite or not run.complete]
    if not todo:
        return None
    kinds = {run.contender.name: run.config for run in todo}
    epochs = {run.name: run.config.epochs for run in todo}
    alike = {run.name: run.contender.name for run in todo}
    guesses = _rehearsed(kinds)
    whole = progress.Whole(epochs, alike, guesses, min(jobs, len(todo)))
    left = whole.seconds_left()
    takes = "" if left is None else f", about {progress.about(left)} in all"
    several = sorted({config.epochs for config in kinds.values()})
    shown = " to ".join(map(str, dict.fromkeys((several[0], several[-1]))))
    say(
        f"{plural(len(todo), 'training')} of {shown} "
        f"{'epoch' if several[-1] == 1 else 'epochs'}{takes}, by a few batches of each"
    )
    return whole


def _rehearsed(kinds: Mapping[str, Config]) -> dict[str, float]:
    """Seconds of an epoch of each kind of run; says which of them run in the Python loop."""
    from spikebridge import data as tasks
    from spikebridge.runs import training

    loaded: dict[Any, Any] = {}
    epoch_s = {}
    for name, config in kinds.items():
        if config.task not in loaded:
            loaded = {config.task: tasks.load(config.task)}  # one at a time: they may be large
        try:
            rehearsal = training.rehearse(config, loaded[config.task])
        except RunError:  # the run itself says so
            continue
        epoch_s[name] = rehearsal.epoch_s
        if rehearsal.loop is not None:
            say(f"{name} runs in the Python loop, which is slower: {rehearsal.loop}")
    return epoch_s


def show(content: Summary, out: Path, output: Output) -> None:
    """Print the tables of a comparison, or its compare.json."""
    if output.json:
        output.show(content, [])
        return
    from rich.console import Console

    from spikebridge.cli import tables

    console = Console()
    if not console.is_terminal:  # a file has no width; never fold the table there
        console = Console(width=160)
    for make in (tables.table, tables.sequence_table, tables.cells_table, tables.chip_table):
        if (table := make(content)) is not None:
            console.print(table)
    if not output.no_report:
        print(f"page: {out / rundir.REPORT}")
