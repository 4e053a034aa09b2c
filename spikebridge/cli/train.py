"""`spikebridge train`: one unit on one task."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import plural
from spikebridge.base.records import UsageError
from spikebridge.cli import progress
from spikebridge.cli.flags import Flag, Output, say, settings_of
from spikebridge.runs import rundir
from spikebridge.runs.results import Result
from spikebridge.runs.transfer import SequenceResult
from spikebridge.settings.config import Config, data_name, title_of, variant_of


@dataclass(frozen=True)
class Train:
    """The run goes to runs/DATA-UNIT-SEED, with what differs from the preset before the seed:
    method, rule, GRAPES, cells, start, and a digest of the rest."""

    EXAMPLE: ClassVar[str] = "train {task} --unit lstm --epochs 5"
    MAIN: ClassVar[tuple[str, ...]] = ("data", "unit", "epochs", "seed", "out")
    ABOUT: ClassVar[str] = "Train one unit."
    PER_TASK: ClassVar[str] = "Train one unit: {}."

    config: Path | None = None
    """A config.json whose settings stand in for the presets; flags win over it."""
    resume: Flag = False
    """Go on with the run in the folder, whose own settings hold where no flag is given.  A run with
    the settings asked for goes on without this flag."""
    verbose: Flag = False
    """Say all settings, not only those that differ from the preset."""
    output: Output = field(default_factory=Output)

    def run(self, config: Config) -> None:
        """Train one unit and say what came out."""
        out = self.output.out or rundir.default_folder(config)
        if self.resume and self.output.overwrite:
            raise UsageError("--resume and --overwrite exclude each other; give one of them")
        if self.resume and self.output.out is None and not rundir.has_run(out):
            rundir.refuse_absent(config)
        unit = f"{title_of(config)}, seed {config.train.seed}"
        say(f"{out}: {unit} on {data_name(config)}: {settings_of(config, self.verbose)}")
        rundir.refuse_reading(out, config)
        result = None
        if rundir.is_complete(out) and not self.output.overwrite:  # answered before torch is loaded
            result = rundir.earlier(out, config, resume=True)
        with rundir.owning(out, "train", make=True) if result is None else nullcontext():
            if result is None:
                result = self._train(config, out)
            page = self.output.page(out)
        self.output.show(result, text_of(result), directory=str(out), report=page)

    def _train(self, config: Config, out: Path) -> Result:
        if rundir.has_run(out) and not self.output.overwrite:
            rundir.earlier(out, config, resume=True)  # what is wrong is said before torch is loaded
        from spikebridge.runs import training

        if reason := training.looped_by(config.model, config.train.backend):
            say(f"{config.model.unit} runs in the Python loop, which is slower: {reason}")
        name = f"{variant_of(config.model)}-{config.train.seed}"
        with progress.display() as display:
            return training.run(
                config,
                out,
                resume=not self.output.overwrite,
                overwrite=self.output.overwrite,
                progress=display(name),
            )


def _sequence_text(result: Result, sequence: SequenceResult) -> list[str]:
    """The matrix of accuracies and the measures of tasks one after the other."""
    tasks = "  ".join(f"task {number:<2}" for number in range(1, sequence.tasks + 1))
    lines = [f"test accuracy (%)  {tasks}"]
    for k, row in enumerate([sequence.first, *sequence.matrix]):
        when = f"after task {k}" if k else "at first"
        lines.append(f"{when:<17}  " + "  ".join(f"{100 * value:7.2f}" for value in row))
    measures = sequence.measures
    return [
        *lines,
        f"average accuracy {100 * measures.average_accuracy:.2f} %, forgetting "
        f"{100 * measures.forgetting:.2f}, backward transfer {100 * measures.backward_transfer:.2f}"
        f", forward transfer {100 * measures.forward_transfer:.2f} points",
        f"tasks before they are learned: {100 * measures.unseen:.2f} % (guessing: "
        f"{100 * sequence.chance:.3g} %)",
        f"{result.label}: {result.parameters:,} parameters, {result.seconds:.1f} s of training",
    ]


def text_of(result: Result) -> list[str]:
    metric = METRICS[result.metric]
    if result.sequence is not None:
        return [*_sequence_text(result, result.sequence), f"run: {result.directory}"]
    lines = [
        f"{result.label} on {result.data}: {plural(result.parameters, 'parameter')}, "
        f"{plural(result.epochs, 'epoch')} in {result.seconds:.1f} s",
        f"test {result.metric}: {metric.figure(result.test)} {metric.unit} "
        f"(weights of epoch {result.best_epoch}, validation {metric.figure(result.valid)})",
    ]
    if result.spikes_per_inference is not None:
        lines.append(f"spikes per inference: {result.spikes_per_inference:,.1f}")
    if result.published is not None:
        value = metric.figure(result.published.value)
        lines.append(f"published: {value} {metric.unit} ({result.published.source})")
    return [*lines, *result.notes, f"run: {result.directory}"]
