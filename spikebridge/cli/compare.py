"""`spikebridge compare`: units over seeds, side by side; what other commands of many runs share."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from spikebridge.base.quantities import in_words, plural
from spikebridge.base.records import RunError
from spikebridge.cli import progress
from spikebridge.cli.flags import Flag, refresh_page, say, settings_text
from spikebridge.runs import rundir
from spikebridge.settings.config import Config, flatten, variant_of
from spikebridge.settings.names import VariantName

if TYPE_CHECKING:
    from spikebridge.studies.plan import Planned


@dataclass(frozen=True)
class Compare:
    """What is compared, where it is written, and what is printed.

    All other flags apply to every unit; a flag that is not given takes each unit's own preset.
    """

    ABOUT: ClassVar[str] = "Compare units over seeds."
    PER_TASK: ClassVar[str] = "Compare units over seeds: {}."

    units: tuple[VariantName, ...] = ("snu", "softsnu", "lstm")
    """Units to compare; use this, not --unit."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, one run of each unit per seed; use this, not --seed."""
    jobs: int = 1
    """Runs that train at the same time, each with its share of the cores."""
    out: Path | None = None
    """Folder of the comparison; by default runs/compare-DATA, with what differs from the presets.
    Complete runs in it are kept."""
    overwrite: Flag = False
    """Do all runs anew, even if the folder holds them."""
    json: Flag = False
    """Print compare.json on stdout."""
    no_report: Flag = False
    """Do not write the folder's report.html at the end."""

    def run(self, configs: Sequence[Config], fixed: Collection[str]) -> None:
        """Train each config over the seeds and show them side by side."""
        from spikebridge.studies import compare

        contenders = [compare.of_unit(config) for config in configs]
        out = self.out or compare.default_folder(contenders, self.seeds, self.jobs)
        planned = compare.plan(contenders, self.seeds, out, jobs=self.jobs)
        say(_shared_settings([run.config for run in planned]))
        kept = 0 if self.overwrite else sum(run.complete for run in planned)
        tell_of_kernels(self.jobs)
        complete = f", {kept} of them complete" if kept else ""
        say(f"{plural(len(planned), 'run')} in {out}{complete}")
        with progress.display(whole=ahead(planned, self.jobs, self.overwrite)) as display:
            content = compare.compare(
                planned,
                out,
                jobs=self.jobs,
                overwrite=self.overwrite,
                progress=display,
            )
        if not self.no_report:
            refresh_page(out)
        show(content, out, not self.no_report, self.json)


def _shared_settings(configs: Sequence[Config]) -> str:
    """What all runs share, then what is each unit's own."""
    first = flatten(configs[0])
    shared = {k: v for k, v in first.items() if all(flatten(c).get(k) == v for c in configs)}
    lines = [f"all:\n{settings_text(shared)}"]
    for variant, config in {variant_of(config.model): config for config in configs}.items():
        own = {k: v for k, v in flatten(config).items() if k not in shared and k != "seed"}
        lines.append(f"{variant}:\n{settings_text(own)}")
    return "\n".join(lines)


def tell_of_kernels(jobs: int) -> None:
    """Working processes keep quiet about missing kernels: their parent says it once."""
    from spikebridge.nn.kernels import native

    if jobs > 1 and native.missing is not None:
        say(f"units run in the Python loop, which is slower: {native.missing}")


def ahead(planned: Sequence[Planned], jobs: int, overwrite: bool) -> progress.Whole | None:
    """What is to be done of some runs, told with the time that it will take, by a few batches.

    None where nothing is to be done.  Raises UsageError where the data are missing.
    """
    todo = [run for run in planned if overwrite or not run.complete]
    if not todo:
        return None
    kinds = {run.contender.name: run.config for run in todo}
    epochs = {run.name: run.config.train.epochs for run in todo}
    alike = {run.name: run.contender.name for run in todo}
    guesses = _rehearsed(kinds)
    whole = progress.Whole(epochs, alike, guesses, min(jobs, len(todo)))
    left = whole.seconds_left()
    takes = "" if left is None else f", about {in_words(float(f'{left:.2g}'))} in all"
    several = sorted({config.train.epochs for config in kinds.values()})
    shown = " to ".join(map(str, dict.fromkeys((several[0], several[-1]))))
    say(
        f"{plural(len(todo), 'training')} of {shown} "
        f"{'epoch' if several[-1] == 1 else 'epochs'}{takes}, by a few batches of each"
    )
    return whole


def _rehearsed(kinds: Mapping[str, Config]) -> dict[str, float]:
    """Seconds of an epoch of each kind of run; which ones run in the Python loop is told."""
    from spikebridge import data as tasks
    from spikebridge.runs import training

    loaded: dict[Any, Any] = {}
    found = {}
    for name, config in kinds.items():
        if config.task not in loaded:
            loaded = {config.task: tasks.load(config.task)}  # one at a time: they may be large
        try:
            rehearsal = training.rehearse(config, loaded[config.task])
        except RunError:  # the run itself says so
            continue
        found[name] = rehearsal.epoch_s
        if rehearsal.loop is not None:
            say(f"{name} runs in the Python loop, which is slower: {rehearsal.loop}")
    return found


def show(content: dict[str, Any], out: Path, page: bool, as_json: bool) -> None:
    """Print the tables of a comparison, or its compare.json."""
    if as_json:
        print(json.dumps(content))
        return
    from rich.console import Console

    from spikebridge.studies import compare

    console = Console()
    if not console.is_terminal:  # a file has no width; never fold the table there
        console = Console(width=160)
    console.print(compare.table(content))
    for more in (compare.memory_table(content), compare.chip_table(content)):
        if more is not None:
            console.print(more)
    if page:
        print(f"page: {out / rundir.REPORT}")
