"""What a run shows while it goes on, on stderr: bars in a terminal, else a line per epoch."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from spikebridge.base.quantities import in_words
from spikebridge.settings.config import Config

if TYPE_CHECKING:
    import rich.progress

    from spikebridge.runs.training import Progress


class Whole:
    """How long several runs will take in all, from guesses and from what has been measured.

    Args:
        epochs: of each run that is to be done, by its name.
        alike: what runs share whose epochs take equally long.
        guesses: seconds of an epoch of each such kind, as far as they are known.
        jobs: runs at the same time.
    """

    def __init__(
        self,
        epochs: Mapping[str, int],
        alike: Mapping[str, str],
        guesses: Mapping[str, float],
        jobs: int = 1,
    ) -> None:
        self.left = dict(epochs)
        self.alike, self.guesses, self.jobs = alike, guesses, jobs
        self.done: set[str] = set()
        self.measured: dict[str, list[float]] = {}

    def begin(self, name: str, done: int) -> None:
        """A run goes on after so many epochs."""
        self.left[name] = max(0, self.left.get(name, done) - done)

    def epoch(self, name: str, seconds: float) -> None:
        """An epoch of a run took so long."""
        self.left[name] = max(0, self.left.get(name, 1) - 1)
        self.measured.setdefault(self.alike.get(name, name), []).append(seconds)

    def end(self, name: str) -> None:
        """A run has ended, perhaps sooner than it might have."""
        self.left[name] = 0
        self.done.add(name)

    def seconds_left(self) -> float | None:
        """In all; None while nothing is known of some kind."""
        rates = {kind: statistics.fmean(seconds) for kind, seconds in self.measured.items()}
        known = [rates[kind] / self.guesses[kind] for kind in rates if self.guesses.get(kind)]
        scale = statistics.fmean(known) if known else 1.0
        each = []
        for name, epochs in self.left.items():
            kind = self.alike.get(name, name)
            rate = rates.get(kind, scale * self.guesses[kind] if kind in self.guesses else None)
            if epochs and rate is None:
                return None
            each.append(epochs * (rate or 0.0))
        return max(sum(each) / self.jobs, max(each, default=0.0))

    def text(self) -> str:
        """What is left, for people."""
        left = self.seconds_left()
        shown = "" if left is None else f"{in_words(float(f'{left:.2g}'))} left in all"
        return f"{len(self.done)}/{len(self.left)} runs done" + (f", {shown}" if shown else "")


class Trials:
    """How long the rest of a search may take, by the trials so far."""

    def __init__(self, total: int) -> None:
        self.total, self.ran, self.started = total, 0, time.monotonic()

    def left(self, number: int) -> str:
        """After the trial of this number, counted over all units, for people."""
        self.ran += 1
        seconds = (time.monotonic() - self.started) / self.ran * (self.total - number)
        return f"about {in_words(float(f'{seconds:.2g}'))} left in all"


class Display:
    """Makes what one run or several at a time report to: `display(name)`."""

    said: set[str]
    whole: Whole | None
    """What is left of several runs, where that is told."""

    def fresh(self, notes: Sequence[str]) -> list[str]:
        """Those that no run has told yet: runs of a comparison have the same data."""
        new = [note for note in notes if note not in self.said]
        self.said |= set(new)
        return new

    def __call__(self, name: str) -> Progress:
        raise NotImplementedError


@contextmanager
def display(stream: TextIO | None = None, whole: Whole | None = None) -> Iterator[Display]:
    """The display that suits a stream (stderr): bars where it is a terminal, else lines.

    With `whole` what is left of all runs is told instead of what is left of each.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield _Lines(stream, whole)
        return
    import rich.progress
    from rich.console import Console

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TextColumn("{task.fields[note]}"),
        *([] if whole else [rich.progress.TimeRemainingColumn(compact=True)]),
    )
    with rich.progress.Progress(*columns, console=Console(file=stream)) as bars:
        yield _Bars(bars, whole)


def describe(record: dict[str, Any], epochs: int) -> str:
    """An epoch's line of metrics.jsonl, for people."""
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['train_loss']:.4f}  "
        f"valid {record['valid']:.4f}{' *' if record['best'] else '  '}"
    )


class _Lines(Display):
    def __init__(self, stream: TextIO, whole: Whole | None) -> None:
        self.stream, self.said, self.whole = stream, set(), whole

    def __call__(self, name: str) -> Progress:
        return _Line(name, self)


class _Line:
    """A line per epoch: loss, validation metric (* = best so far), time left."""

    def __init__(self, name: str, lines: _Lines) -> None:
        self.name, self.lines, self.stream = name, lines, lines.stream
        self.whole = lines.whole
        self.epochs = self.done = 0
        self.started = 0.0

    def begin(self, config: Config, done: int) -> None:
        self.epochs, self.done, self.started = config.train.epochs, done, time.monotonic()
        if self.whole is not None:
            self.whole.begin(self.name, done)

    def remarks(self, notes: Sequence[str]) -> None:
        for note in self.lines.fresh(notes):
            print(note, file=self.stream, flush=True)

    def batch(self, epoch: int, share: float) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        if self.whole is None:
            ran = record["epoch"] - self.done
            left = (time.monotonic() - self.started) / ran * (self.epochs - record["epoch"])
            rest = f"{left:.0f} s left"
        else:
            self.whole.epoch(self.name, record["seconds"])
            rest = self.whole.text()
        print(
            f"{self.name}  {describe(record, self.epochs)}  {record['seconds']:.1f} s  {rest}",
            file=self.stream,
            flush=True,
        )

    def end(self) -> None:
        if self.whole is not None:
            self.whole.end(self.name)


class _Bars(Display):
    def __init__(self, bars: rich.progress.Progress, whole: Whole | None) -> None:
        self.bars, self.said, self.whole = bars, set(), whole
        self.all: rich.progress.TaskID | None = None
        if whole is not None:
            self.total = sum(whole.left.values())
            self.all = bars.add_task("in all", total=self.total, note=whole.text())

    def tell_whole(self) -> None:
        """Show what is left of all runs."""
        if self.all is not None and self.whole is not None:
            done = self.total - sum(self.whole.left.values())
            self.bars.update(self.all, completed=done, note=self.whole.text())

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
        if self.display.whole is not None:
            self.display.whole.begin(self.name, done)
            self.display.tell_whole()

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
        if self.display.whole is not None:
            self.display.whole.epoch(self.name, record["seconds"])
            self.display.tell_whole()

    def end(self) -> None:
        if self.display.whole is not None:
            self.display.whole.end(self.name)
            self.display.tell_whole()
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.bars.console.print(f"{self.name}  {self.note}", highlight=False)
