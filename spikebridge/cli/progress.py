"""What a run shows while it goes on, on stderr: bars in a terminal, else a line per epoch."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from spikebridge.base.quantities import in_words
from spikebridge.settings.config import Config

if TYPE_CHECKING:
    import rich.progress

    from spikebridge.runs.results import Epoch


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
        shown = "" if left is None else f", {about(left)} left in all"
        return f"{len(self.done)}/{len(self.left)} runs done{shown}"


class Trials:
    """How long the rest of a search may take, by the trials so far."""

    def __init__(self, total: int) -> None:
        self.total, self.ran, self.started = total, 0, time.monotonic()

    def left(self, number: int) -> str:
        """After the trial of this number, counted over all units, for people."""
        self.ran += 1
        seconds = (time.monotonic() - self.started) / self.ran * (self.total - number)
        return f"about {about(seconds)} left in all"


def about(seconds: float) -> str:
    """A time in words, with two digits."""
    return in_words(float(f"{seconds:.2g}"))


class Display:
    """Makes what one run or several at a time report to: `display(name)`.

    Args:
        stream: where lines go.
        whole: what is left of several runs, shown instead of what is left of each.
        bars: of a terminal, instead of lines.
    """

    def __init__(
        self, stream: TextIO, whole: Whole | None, bars: rich.progress.Progress | None = None
    ) -> None:
        self.stream, self.whole, self.bars = stream, whole, bars
        self.remarks: set[str] = set()
        if whole is not None and bars is not None:
            self.total = sum(whole.left.values())
            self.all = bars.add_task("in all", total=self.total, note=whole.text())

    def __call__(self, name: str) -> _Run:
        return _Run(name, self)

    def say(self, text: str) -> None:
        if self.bars is None:
            print(text, file=self.stream, flush=True)
        else:
            self.bars.console.print(text, highlight=False, markup=False)

    def show_whole(self) -> None:
        if self.whole is not None and self.bars is not None:
            done = self.total - sum(self.whole.left.values())
            self.bars.update(self.all, completed=done, note=self.whole.text())


@contextmanager
def display(stream: TextIO | None = None, whole: Whole | None = None) -> Iterator[Display]:
    """The display that suits a stream (stderr): bars where it is a terminal, else lines."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield Display(stream, whole)
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
        yield Display(stream, whole, bars)


class _Run:
    """What a run reports to: a bar over its epochs, of which a line stays, or a line per epoch."""

    def __init__(self, name: str, display: Display) -> None:
        self.name, self.display = name, display
        self.whole, self.bars = display.whole, display.bars
        self.epochs = self.done = 0
        self.started, self.note = 0.0, ""
        self.task: rich.progress.TaskID | None = None

    def begin(self, config: Config, done: int) -> None:
        self.epochs, self.done, self.started = config.train.epochs, done, time.monotonic()
        if self.bars is not None:
            self.task = self.bars.add_task(self.name, total=self.epochs, completed=done, note="")
        if self.whole is not None:
            self.whole.begin(self.name, done)
            self.display.show_whole()

    def remarks(self, notes: Sequence[str]) -> None:
        """Runs of a comparison have the same data: what one has said the others do not repeat."""
        for note in notes:
            if note not in self.display.remarks:
                self.display.say(note)
        self.display.remarks |= set(notes)

    def batch(self, epoch: int, share: float) -> None:
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=epoch - 1 + share)

    def epoch(self, record: Epoch) -> None:
        """A line of metrics.jsonl (* = best validation metric so far), and the time left."""
        epoch = record.epoch
        self.note = (
            f"epoch {epoch}/{self.epochs}  loss {record.train_loss:.4f}  "
            f"valid {record.valid:.4f}{' *' if record.best else '  '}"
        )
        if self.whole is not None:
            self.whole.epoch(self.name, record.seconds)
            self.display.show_whole()
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=epoch, note=self.note)
        if self.bars is None:
            ran = epoch - self.done
            left = (time.monotonic() - self.started) / ran * (self.epochs - epoch)
            rest = f"{left:.0f} s left" if self.whole is None else self.whole.text()
            self.display.say(f"{self.name}  {self.note}  {record.seconds:.1f} s  {rest}")

    def end(self) -> None:
        if self.whole is not None:
            self.whole.end(self.name)
            self.display.show_whole()
        if self.bars is not None and self.task is not None:
            self.bars.remove_task(self.task)
            self.display.say(f"{self.name}  {self.note}")
