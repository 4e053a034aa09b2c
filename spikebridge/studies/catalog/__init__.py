"""The published figures and tables, and ours beside them: one named entry each, as data.

`spikebridge reproduce NAME` runs an entry.  What settings an entry does not name come from the
preset of its data and unit (presets.py).
"""

from __future__ import annotations

from spikebridge.base.records import UsageError
from spikebridge.studies.catalog.benchmark import BENCHMARK
from spikebridge.studies.catalog.continual import FORGETTING
from spikebridge.studies.catalog.entry import Entry, Row
from spikebridge.studies.catalog.learning import LEARNING
from spikebridge.studies.catalog.papers import PUBLISHED
from spikebridge.studies.catalog.sequences import SEQUENCES

__all__ = ["CATALOG", "Entry", "Row", "find"]

CATALOG = (*PUBLISHED, *SEQUENCES, *BENCHMARK, *LEARNING, *FORGETTING)


def find(name: str) -> Entry:
    """The entry of a name.  Raises UsageError."""
    for entry in CATALOG:
        if entry.name == name:
            return entry
    raise UsageError(
        f"{name!r}: there is no such entry; `spikebridge reproduce --list` shows them all"
    )
