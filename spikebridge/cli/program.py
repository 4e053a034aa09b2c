"""`spikebridge program`: trained networks on memory cells."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import in_si, in_words
from spikebridge.base.records import Count, Seed, Size, UsageError
from spikebridge.cli.flags import Output, RunFolders, say
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig

if TYPE_CHECKING:
    from spikebridge.runs.hardware_results import OnCells


@dataclass(frozen=True)
class Program:
    """Program trained networks into memory cells: accuracy over time, energy, pictures.

    Writes memory.json into each run's folder, and its page anew; with --out and several runs into a
    folder there for each.
    """

    EXAMPLE: ClassVar[str] = "program runs/digits8x8-snu-0 --chips 5"
    MAIN: ClassVar[tuple[str, ...]] = ("cells", "chips", "times", "samples", "out")

    runs: RunFolders
    """Folders of finished runs of spiking units or their soft form."""
    cells: CellConfig = field(default_factory=CellConfig)
    crossbar: CrossbarConfig = field(default_factory=CrossbarConfig)
    chips: Size = 10
    """Simulated chips, each with draws of its own."""
    times: tuple[float, ...] = (20.0, 3600.0, 86400.0, 2592000.0, 31536000.0)
    """Seconds after programming at which the network is tested."""
    samples: Count = 0
    """Test samples for each chip and time; 0 = all."""
    seed: Seed = 0
    """Seed of the chips."""
    split: Literal["test", "valid"] = "test"
    """What is tested on; valid is for choosing settings such as --w-max."""
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        from spikebridge.trained import on_cells

        # Not as the flag's default: beside it, --cell-table would be a second model.
        cells = self.cells if self.cells.used else replace(self.cells, cells="iterative")
        tested = (self.chips, self.times, self.samples, self.seed, self.split)
        plan = on_cells.CellPlan(cells, self.crossbar, *tested)
        if not self.runs:
            raise UsageError("no run is named; give the folder of a finished run")

        def deploy(run: Path) -> OnCells:
            def callback(number: int, time_s: float, value: float) -> None:
                time = in_words(time_s)
                say(f"{run}  chip {number + 1}/{plan.chips}  {time:>9}  {value:.4f}")

            return on_cells.deploy(run, plan, callback)

        contents = {}
        for run in self.runs:
            output = self.output
            if output.out is not None and len(self.runs) > 1:
                output = replace(output, out=output.out / run.name)
            content, folder, page = output.of_run(
                run, "program", lambda folder: on_cells.kept(folder, plan), deploy
            )
            contents[str(folder)] = content
            if not output.json:
                output.show(content, text_of(content), report=page)
        if self.output.json:
            self.output.show(contents, [])


def text_of(content: OnCells) -> list[str]:
    """The table of memory.json."""
    metric = METRICS[content.metric]
    lines = [
        f"{content.cells:,} cells, {content.device.name}; in software "
        f"{metric.figure(content.software)}",
        f"{'after':>9}  {metric.axis}, mean and spread of {content.chips} chips",
    ]
    for i, time_s in enumerate(content.times_s):
        cells = []
        for kind, tests in (("plain", content.plain), ("compensated", content.compensated)):
            values = tests[:, i].tolist()
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            mean = statistics.fmean(values)
            cells.append(f"{kind} {metric.figure(mean)} ± {metric.figure(spread)}")
        lines.append(f"{in_words(time_s):>9}  " + "   ".join(cells))
    costs = {f"energy per {content.energy.per}": content.energy.hardware}
    if content.training:
        costs["energy of the whole training"] = content.training.hardware
    for what, parts in costs.items():
        lines.append(f"{what}:")
        for name, cost in parts.items():
            energy, time = in_si(cost.total_pJ * 1e-12, "J"), in_si(cost.seconds_s, "s")
            lines.append(f"  {name:<24} {energy:>10} {time:>10}")
    return lines
