"""`spikebridge report`: the page of runs and comparisons."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from spikebridge.base.records import UsageError
from spikebridge.cli.flags import Flag, RunFolders, page_of


@dataclass(frozen=True)
class Report:
    """Write the HTML page of runs or comparisons: report.html in each folder."""

    EXAMPLE: ClassVar[str] = "report runs/digits8x8-snu-0"

    runs: RunFolders
    """Folders that train, compare or demo have written."""
    out: Path | None = None
    """The file to write instead, of one folder."""
    json: Flag = False
    """Print the pages' paths as one JSON object on stdout."""
    section: tuple[str, ...] = ()
    """Sections of your own on the pages of runs: each is mypackage:function, which takes the loaded
    run and returns a spikebridge.report.Section."""

    def run(self) -> None:
        if not self.runs:
            raise UsageError("no folder is given; name one that train, compare or demo has written")
        if self.out is not None and len(self.runs) > 1:
            raise UsageError(f"out={self.out}: a file holds one page; name one folder")
        pages = [page_of(run, self.out, self.section) for run in self.runs]
        print(json.dumps({"pages": pages}) if self.json else "\n".join(pages))
