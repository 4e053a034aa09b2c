"""What each entry of the catalog takes on two cores, from a few timed updates of every row.

    python benchmarks/catalog.py [NAME ...]

Processor time of one thread, after two updates to warm up, times updates, epochs and seeds, plus a
tenth for validation and test, over two cores.  Its figures stand in `catalog.Entry.minutes`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import time
from pathlib import Path

import torch

from spikebridge.runs import training
from spikebridge.settings.config import Config, override
from spikebridge.studies.catalog import CATALOG, Entry

WARM_UP, TIMED = 2, 8


class Enough(Exception):
    """The updates that are timed are done."""


class Clock(training.Silent):
    """Processor time per update."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def batch(self, epoch: int, share: float) -> None:
        self.times.append(time.process_time())
        if len(self.times) > WARM_UP + TIMED:
            raise Enough

    def epoch(self, record: object) -> None:
        raise Enough


def seconds_per_epoch(config: Config) -> float:
    """Processor seconds of one training epoch."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = training._Run(override(config, threads=1), Path(folder), clock, None)
        with contextlib.suppress(Enough):
            run.train_all()
    steps = [later - before for before, later in itertools.pairwise(clock.times[WARM_UP:])]
    return run.batches * sum(steps) / max(len(steps), 1)


def minutes(entry: Entry) -> float:
    """Minutes on two cores for all rows and seeds."""
    total = 0.0
    for row in entry.rows:
        config = entry.config(row)
        epoch = seconds_per_epoch(config)
        total += 1.1 * epoch * config.train.epochs * entry.seeds
        print(f"  {entry.name} {row.name or row.unit}: {epoch:.1f} s an epoch", flush=True)
    return total / 2 / 60


def main() -> None:
    torch.set_num_threads(1)
    for entry in CATALOG:
        if len(sys.argv) < 2 or entry.name in sys.argv[1:]:
            print(f"{entry.name}: {minutes(entry):.0f} min", flush=True)


if __name__ == "__main__":
    main()
