"""`spikebridge report`: the page of runs and comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spikebridge.base.records import UsageError
from spikebridge.cli.flags import Output, RunFolders, page_of


@dataclass(frozen=True)
class Report:
    """Write the HTML page of runs or comparisons.

    It is report.html in each folder; of one folder, --out names another file.
    """

    EXAMPLE: ClassVar[str] = "report runs/digits8x8-snu-0"
    REFUSES: ClassVar[dict[str, str]] = {
        "overwrite": "a page is always written anew; leave it out",
        "no_report": "pages are all that this command writes; leave it out",
    }

    runs: RunFolders
    """Folders that train, compare or demo have written."""
    section: tuple[str, ...] = ()
    """Sections of your own on the pages of runs: each is mypackage:function, which takes the loaded
    run and returns a spikebridge.report.Section."""
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        out = self.output.out
        if not self.runs:
            raise UsageError("no folder is given; name one that train, compare or demo has written")
        if out is not None and len(self.runs) > 1:
            raise UsageError(f"out={out}: a file holds one page; name one folder")
        pages = [page_of(run, out, self.section) for run in self.runs]
        self.output.show({"pages": pages}, pages)
