"""`spikebridge sample`: a language model writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import tyro

from spikebridge.cli.flags import Flag, RunFolder
from spikebridge.settings.plans import SamplePlan


@dataclass(frozen=True)
class Sample:
    """Let a trained language model write."""

    EXAMPLE: ClassVar[str] = "sample text runs/ptb-snu-0 --prompt 'the stock market'"

    what: tyro.conf.Positional[Literal["text"]]
    """What is to be produced."""
    run_dir: RunFolder
    """Folder of a finished `spikebridge train text`."""
    prompt: str = ""
    """Where to start; by default at the beginning of a line."""
    plan: SamplePlan = field(default_factory=SamplePlan)
    json: Flag = False
    """Print one JSON object."""

    def run(self) -> None:
        from spikebridge.trained.text import Writer

        text = Writer(self.run_dir).go_on(self.prompt, self.plan)
        print(json.dumps({"prompt": self.prompt, "text": text}) if self.json else text)
