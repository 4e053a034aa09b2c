"""The command `spikebridge continual`: tasks one after the other, and what is left of the first."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spikebridge.base.records import SpikebridgeError
from spikebridge.cli.flags import Flag
from spikebridge.runs import rundir
from spikebridge.settings.continual import (
    ContinualConfig,
    SequenceConfig,
    StepsConfig,
    flatten,
    from_dict,
    override,
)
from spikebridge.settings.learning import LearningConfig
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import DigitsConfig, name_of_data

if TYPE_CHECKING:
    from spikebridge.runs.continual import Outcome

DEFAULTS = ContinualConfig()
# What a folder's name says in clear.
NAMED = {
    "protocol",
    "data",
    "data_dir",
    "unit",
    "method",
    "rule",
    "grapes",
    "grapes_control",
    "seed",
}


@dataclass(frozen=True)
class Continual:
    """Learn tasks one after the other: accuracy on all of them after each, forgetting, transfer."""

    task: DigitsConfig = field(default_factory=lambda: DEFAULTS.task)
    model: ModelConfig = field(default_factory=lambda: DEFAULTS.model)
    sequence: SequenceConfig = field(default_factory=lambda: DEFAULTS.sequence)
    train: StepsConfig = field(default_factory=lambda: DEFAULTS.train)
    learning: LearningConfig = field(default_factory=lambda: DEFAULTS.learning)
    out: Path | None = None
    """Folder of the run; by default runs/continual-PROTOCOL-DATA-UNIT-METHOD-SEED, with a digest of
    what differs from the defaults before the seed."""
    resume: Flag = False
    """Go on with the incomplete run in the folder, or show the complete one."""
    overwrite: Flag = False
    """Start anew, even if the folder holds a run."""
    json: Flag = False
    """Print continual.json on stdout."""
    no_report: Flag = False
    """Do not write the folder's report.html at the end."""

    def run(self) -> None:
        from spikebridge.cli import progress
        from spikebridge.runs import continual

        config = ContinualConfig(self.task, self.model, self.sequence, self.train, self.learning)
        out = self.out or Path("runs") / _name(config)
        with progress.display() as display, rundir.owning(out, "continual", make=True):
            outcome = continual.run(
                config,
                out,
                resume=self.resume,
                overwrite=self.overwrite,
                progress=display(config.label),
            )
            page = None
            if not self.no_report:
                from spikebridge.report.page import write

                page = str(write(out))
        if self.json:
            print(json.dumps(outcome.to_dict() | {"directory": str(out), "report": page}))
            return
        print("\n".join(told(outcome)))
        print(f"run: {out}" + (f"\npage: {page}" if page else ""))


def _name(config: ContinualConfig) -> str:
    parts = (config.sequence.protocol, name_of_data(config.task), config.model.unit)
    learning = config.learning
    how = (config.sequence.method, learning.rule, learning.grapes, learning.grapes_control)
    marks = [mark for mark in how if mark not in ("naive", "bptt", "none")]
    own = {"protocol": config.sequence.protocol, "method": config.sequence.method}
    usual = flatten(override(DEFAULTS, **own))  # a method has a strength of its own
    rest = {
        name: value
        for name, value in flatten(config).items()
        if name not in NAMED and value != usual[name]
    }
    plain = "-".join(["continual", *parts, *marks, str(config.train.seed)])
    named = "-".join(["continual", *parts, *marks, *rundir.marks(rest), str(config.train.seed)])
    # What earlier versions put there, with these very settings, stays there.
    kept = named != plain and not (rundir.FOLDER / named).exists()
    return plain if kept and _holds(rundir.FOLDER / plain, config) else named


def _holds(directory: Path, config: ContinualConfig) -> bool:
    try:
        return from_dict(rundir.read_json(directory / rundir.CONFIG, "")) == config
    except SpikebridgeError:
        return False


def told(outcome: Outcome) -> list[str]:
    """The matrix of accuracies and the measures, for a terminal."""
    count = range(outcome.tasks)
    lines = [f"test accuracy (%)  {'  '.join(f'task {j + 1:<2}' for j in count)}"]
    for k, row in enumerate([outcome.first, *outcome.matrix]):
        when = f"after task {k}" if k else "at first"
        lines.append(f"{when:<17}  " + "  ".join(f"{100 * value:7.2f}" for value in row))
    found = outcome.measures
    return [
        *lines,
        f"average accuracy {100 * found.average_accuracy:.2f} %, forgetting "
        f"{100 * found.forgetting:.2f}, backward transfer {100 * found.backward_transfer:.2f}, "
        f"forward transfer {100 * found.forward_transfer:.2f} points",
        f"tasks before they are learned: {100 * found.unseen:.2f} % (guessing: "
        f"{100 * outcome.chance:.3g} %)",
        f"{outcome.label}: {outcome.parameters:,} parameters, {outcome.seconds:.1f} s of training",
    ]
