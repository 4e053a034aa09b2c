"""`spikebridge sample`: a language model writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import tyro

from spikebridge.cli.flags import Flag, RunFolder


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
    length: int = 100
    """Symbols (words or characters) to write."""
    temperature: float = 0.8
    """Below 1 keeps to what is likely, above 1 wanders; 0 always takes the likeliest."""
    top: int = 40
    """Draw among this many likeliest symbols; 0 = among all."""
    seed: int = 0
    """Seed of the draws."""
    json: Flag = False
    """Print one JSON object."""

    def run(self) -> None:
        from spikebridge.trained.text import Writer

        text = Writer(self.run_dir).go_on(
            self.prompt, self.length, temperature=self.temperature, top=self.top, seed=self.seed
        )
        print(json.dumps({"prompt": self.prompt, "text": text}) if self.json else text)
