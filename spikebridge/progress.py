"""What a run shows while it goes on, on stderr: bars in a terminal, else a line per epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from spikebridge.config import Config

if TYPE_CHECKING:
    import rich.progress

    from spikebridge.experiment import Progress


class Display:
    """Makes what one run or several at a time report to: `display(name)`."""

    said: set[str]

    def fresh(self, notes: Sequence[str]) -> list[str]:
        """Those that no run has told yet: runs of a comparison have the same data."""
        new = [note for note in notes if note not in self.said]
        self.said |= set(new)
        return new

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
        self.stream, self.said = stream, set()

    def __call__(self, name: str) -> Progress:
        return _Line(name, self)


class _Line:
    """A line per epoch: loss, validation metric (* = best so far), time left."""

    def __init__(self, name: str, lines: _Lines) -> None:
        self.name, self.lines, self.stream = name, lines, lines.stream
        self.epochs = self.done = 0
        self.started = 0.0

    def begin(self, config: Config, done: int) -> None:
        self.epochs, self.done, self.started = config.train.epochs, done, time.monotonic()

    def remarks(self, notes: Sequence[str]) -> None:
        for note in self.lines.fresh(notes):
            print(note, file=self.stream, flush=True)

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
        self.bars, self.said = bars, set()

    def __call__(self, name: str) -> Progress:
        return _Bar(name, self)


class _Bar:
    """A bar over a run's epochs; a line stays of it when the run ends."""

    def __init__(self, name: str, display: _Bars) -> None:
        self.name, self.display, self.bars = name, display, display.bars
        self.epochs, self.note = 0, ""
        self.task: rich.progress.TaskID | None = None

    def begin(self, config: Config, done: int) -> None:
        self.epochs = config.train.epochs
        self.task = self.bars.add_task(self.name, total=self.epochs, completed=done, note="")

    def remarks(self, notes: Sequence[str]) -> None:
        for note in self.display.fresh(notes):
            self.bars.console.print(note, highlight=False, markup=False)

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
