"""`spikebridge evaluate`: a trained network at other numbers of time steps."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from spikebridge.base.metrics import METRICS
from spikebridge.base.records import to_plain
from spikebridge.cli.flags import Output, RunFolder, page_of, say
from spikebridge.runs import rundir


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

        folder = self.output.folder(self.run_dir)
        with rundir.owning(folder, "evaluate"):
            content = self.output.kept(partial(by_steps.kept, folder, self.steps))
            if content is None:
                content = by_steps.by_steps(
                    folder, self.steps, lambda count: say(f"{count} steps tested")
                )
            page = None if self.output.no_report else page_of(folder)
        if self.output.json:
            print(json.dumps({**to_plain(content), "report": page}))
            return
        metric = METRICS[content.metric]
        print(f"steps  {metric.axis}")
        for count, value in zip(content.steps, content.test, strict=True):
            print(f"{count:5}  {metric.figure(value)}")
        if page:
            print(f"page: {page}")
