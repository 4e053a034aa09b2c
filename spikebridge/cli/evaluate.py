"""`spikebridge evaluate`: a trained network at other numbers of time steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spikebridge.base.metrics import METRICS
from spikebridge.cli.flags import Output, RunFolder, say


@dataclass(frozen=True)
class Evaluate:
    """Test a trained network at other numbers of time steps: accuracy against steps.

    Writes steps.json into the run's folder, and its page anew.
    """

    EXAMPLE: ClassVar[str] = "evaluate runs/digits8x8-snu-0 --steps 1 5 20"

    run_dir: RunFolder
    """Folder of a finished `spikebridge train digits` or `events`."""
    steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    """Numbers of time steps."""
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        from spikebridge.trained import by_steps

        content, _, page = self.output.of_run(
            self.run_dir,
            "evaluate",
            lambda folder: by_steps.kept(folder, self.steps),
            lambda folder: by_steps.by_steps(
                folder, self.steps, lambda n: say(f"{n} steps tested")
            ),
        )
        metric = METRICS[content.metric]
        tests = zip(content.steps, content.test, strict=True)
        lines = [f"{count:5}  {metric.figure(value)}" for count, value in tests]
        self.output.show(content, [f"steps  {metric.axis}", *lines], report=page)
