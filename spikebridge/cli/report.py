"""`spikebridge report`: the page of runs and comparisons."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from spikebridge.base.records import UsageError
from spikebridge.cli.flags import Flag, page_of


@dataclass(frozen=True)
class Report:
    """Write the HTML page of runs or comparisons."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that train, compare or demo have written."""
    json: Flag = False
    """Print the pages' paths as one JSON object."""

    def run(self) -> None:
        if not self.runs:
            raise UsageError("no folder is given; name one that train, compare or demo has written")
        pages = [page_of(run) for run in self.runs]
        print(json.dumps({"pages": pages}) if self.json else "\n".join(pages))
