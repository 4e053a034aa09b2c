"""`spikebridge info`: the environment and where data are looked for."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

from spikebridge.base.records import to_plain
from spikebridge.cli.flags import Flag
from spikebridge.runs import environment


@dataclass(frozen=True)
class Info:
    """Show versions, processor, kernels in use or why not, and where data lie."""

    EXAMPLE: ClassVar[str] = "info --json"

    json: Flag = False
    """Print one JSON object."""

    def run(self) -> None:
        known = dataclasses.replace(environment.collect(), command=())
        facts = to_plain(known) | {"data": environment.data_folders()}
        if self.json:
            print(json.dumps(facts))
            return
        for name, value in facts.items():
            shown = value if isinstance(value, dict) else {"": value}
            for key, detail in shown.items():
                print(f"{f'{name} {key}'.strip():18} {'unknown' if detail is None else detail}")
