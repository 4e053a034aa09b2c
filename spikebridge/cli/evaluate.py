"""`spikebridge evaluate`: a trained network at other numbers of time steps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from spikebridge.base.metrics import METRICS
from spikebridge.base.records import to_plain
from spikebridge.cli.flags import Flag, page_of, say
from spikebridge.runs import rundir


@dataclass(frozen=True)
class Evaluate:
    """Test a trained network at other numbers of time steps: accuracy against steps."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished `spikebridge train digits` or `events`."""
    steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    """Numbers of time steps."""
    json: Flag = False
    """Print one JSON object."""
    no_report: Flag = False
    """Do not write the folder's report.html anew, with the curve."""

    def run(self) -> None:
        from spikebridge.trained import by_steps

        with rundir.owning(self.run_dir, "evaluate"):
            content = by_steps.by_steps(
                self.run_dir, self.steps, lambda count: say(f"{count} steps tested")
            )
            page = None if self.no_report else page_of(self.run_dir)
        if self.json:
            print(json.dumps({**to_plain(content), "report": page}))
            return
        metric = METRICS[content.metric]
        print(f"steps  {metric.axis}")
        for count, value in zip(content.steps, content.test, strict=True):
            print(f"{count:5}  {metric.figure(value)}")
        if page:
            print(f"page: {page}")
