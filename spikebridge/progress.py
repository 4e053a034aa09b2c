"""What a run shows while it goes on, on stderr: bars in a terminal, else a line per epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from spikebridge.config import Config

if TYPE_CHECKING:
    import rich.progress

    from spikebridge.experiment import Progress


class Display:
    """Makes what one run or several at a time report to: `display(name)`."""

    def __call__(self, name: str) -> Progress:
        raise NotImplementedError


@contextmanager
def display(stream: TextIO | None = None) -> Iterator[Display]:
    """The display that suits a stream (stderr): bars where it is a terminal, else lines."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield _Lines(stream)
        return
    import rich.progress
    from rich.console import Console

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TextColumn("{task.fields[note]}"),
        rich.progress.TimeRemainingColumn(compact=True),
    )
    with rich.progress.Progress(*columns, console=Console(file=stream)) as bars:
        yield _Bars(bars)


def describe(record: dict[str, Any], epochs: int) -> str:
    """An epoch's line of metrics.jsonl, for people."""
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['train_loss']:.4f}  "
        f"valid {record['valid']:.4f}{' *' if record['best'] else '  '}"
    )


class _Lines(Display):
    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, name: str) -> Progress:
        return _Line(name, self.stream)


class _Line:
    """A line per epoch: loss, validation metric (* = best so far), time left."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self.name, self.stream = name, stream
        self.epochs = self.done = 0
        self.started = 0.0

    def begin(self, config: Config, done: int) -> None:
        self.epochs, self.done, self.started = config.train.epochs, done, time.monotonic()

    def batch(self, epoch: int, share: float) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        ran = record["epoch"] - self.done
        left = (time.monotonic() - self.started) / ran * (self.epochs - record["epoch"])
        print(
            f"{self.name}  {describe(record, self.epochs)}  {record['seconds']:.1f} s  "
            f"{left:.0f} s left",
            file=self.stream,
            flush=True,
        )

    def end(self) -> None:
        pass


class _Bars(Display):
    def __init__(self, bars: rich.progress.Progress) -> None:
        self.bars = bars

    def __call__(self, name: str) -> Progress:
        return _Bar(name, self.bars)


class _Bar:
    """A bar over a run's epochs; a line stays of it when the run ends."""

    def __init__(self, name: str, bars: rich.progress.Progress) -> None:
        self.name, self.bars = name, bars
        self.epochs, self.note = 0, ""
        self.task: rich.progress.TaskID | None = None

    def begin(self, config: Config, done: int) -> None:
        self.epochs = config.train.epochs
        self.task = self.bars.add_task(self.name, total=self.epochs, completed=done, note="")

    def batch(self, epoch: int, share: float) -> None:
        if self.task is not None:
            self.bars.update(self.task, completed=epoch - 1 + share)

    def epoch(self, record: dict[str, Any]) -> None:
        if self.task is not None:
            self.note = describe(record, self.epochs)
            self.bars.update(self.task, completed=record["epoch"], note=self.note)

    def end(self) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.bars.console.print(f"{self.name}  {self.note}", highlight=False)
