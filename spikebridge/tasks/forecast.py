"""Time series: predict columns of a table some rows ahead."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikebridge.metrics import MetricName
from spikebridge.task_configs import ForecastConfig
from spikebridge.tasks.base import (
    Batch,
    Readout,
    Task,
    check_batch_size,
    check_split,
    stream_chunks,
)
from spikebridge.tasks.files import DataError

# Where two of them part the rows equally well, the earlier: a comma may be that of decimals.
DELIMITERS = ("\t", ";", ",")
LOOKED_AT = 50
"""Rows by which it is decided what parts the fields."""
MISSING = ("", "nan", "na", "n/a", "null")
# Where nothing is trained no gradient ends at a chunk's edge, so longer ones only save time.
JUDGED_STEPS = 250
_MEND = "mend the file"


class Table(NamedTuple):
    """The columns of a file that hold numbers."""

    names: tuple[str, ...]
    values: np.ndarray  # (rows, columns) float64, NaN where a value is missing
    left_out: tuple[str, ...] = ()  # columns that hold other things than numbers


class Forecast(Task):
    """Predict the targets `horizon` rows ahead at every row; loss: squared error, score: RMSE.

    The rows are parted in time: first those for training, then for validation, then for the test.
    A row belongs to a part by being predicted there; what the network sees when it predicts the
    first rows of a part lies `horizon` rows earlier, at the end of the part before.  All columns
    are put on the scale of the training part: mean 0 and standard deviation 1 there, so that errors
    count in its standard deviations (a column that is constant there is only shifted).

    The training part runs in up to `batch_size` streams side by side, each an equal stretch of at
    least `steps` rows, in chunks of `steps`; the state is carried over.  Validation and test are
    one stream each, whose state begins in silence: the first rows are predicted without a memory.
    """

    name = "forecast"
    readout: Readout = "each"
    metric: MetricName = "rmse"
    carries_state = True

    def __init__(self, config: ForecastConfig) -> None:
        self.config = config
        path = Path(config.file).expanduser()
        table = read_table(path if config.file else None)
        self.columns = table.names
        self.output_names = config.targets or table.names
        self._targets = torch.tensor(_places(path, self.output_names, table.names))
        self.input_size, self.output_size = len(self.columns), len(self.output_names)
        values, filled = fill_forward(table.values)
        self.notes = tuple(_notes(table, filled))
        self._bounds = _bounds(path, len(values), config)
        train = values[: self._bounds["train"][1]]
        constant = train.max(0) == train.min(0)
        with np.errstate(over="ignore", invalid="ignore"):  # told below, with its column
            self.mean, self.sd = train.mean(0), np.where(constant, 1.0, train.std(0))
            scaled = ((values - self.mean) / self.sd).astype(np.float32)
        self._check_scaled(path, scaled)
        self._rows = torch.from_numpy(scaled)
        self.baselines = self._baselines()

    def _check_scaled(self, path: Path, scaled: np.ndarray) -> None:
        for place, name in enumerate(self.columns):
            if not (np.isfinite(self.sd[place]) and np.isfinite(scaled[:, place]).all()):
                raise DataError(
                    path,
                    f"numbers in column {name} whose mean and standard deviation can be computed",
                    f"a mean of {self.mean[place]:g} and a deviation of {self.sd[place]:g}",
                    "give the column in another unit, or leave it out",
                )

    def _baselines(self) -> dict[str, float]:
        now, ahead = self._part("test")
        now, ahead = now[:, self._targets].double(), ahead.double()
        return {
            "nothing changes": float((ahead - now).square().mean().sqrt()),
            "mean of the training data": float(ahead.square().mean().sqrt()),
        }

    def size(self, split: str) -> int:
        """Number of predicted rows of a split."""
        start, end = self._bounds[check_split(split)]
        return end - start

    def count_batches(self, batch_size: int) -> int:
        """Number of chunks in an epoch."""
        _, length = self._streams("train", batch_size)
        return -(-length // self.config.steps)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Chunks of x (T, B, I) and target (T, B, O), mask None.

        In training the first chunk has a length drawn from the generator, so that the cuts, over
        which no gradient passes, fall elsewhere in each epoch.  Where the rows do not divide by the
        streams, the earliest are left out in training.
        """
        check_split(split)
        check_batch_size(batch_size)
        streams, length = self._streams(split, batch_size)
        x, target = (
            part[-streams * length :].view(streams, length, -1).transpose(0, 1)
            for part in self._part(split)
        )
        if split == "train":
            chunks = stream_chunks(length, self.config.steps, generator)
        else:
            chunks = stream_chunks(length, JUDGED_STEPS)
        return (Batch(x[a:b].contiguous(), target[a:b].contiguous(), None) for a, b in chunks)

    def _part(self, split: str) -> tuple[Tensor, Tensor]:
        """All that a split shows (rows, I) and asks for (rows, O), in the order of the file."""
        start, end = self._bounds[check_split(split)]
        ahead = self.config.horizon
        return self._rows[start - ahead : end - ahead], self._rows[start:end, self._targets]

    def _streams(self, split: str, batch_size: int) -> tuple[int, int]:
        """Number of streams, and the rows of each."""
        size = self.size(split)
        wanted = min(batch_size, size // self.config.steps) if split == "train" else 1
        streams = max(1, wanted)
        return streams, size // streams


def _bounds(path: Path, rows: int, config: ForecastConfig) -> dict[str, tuple[int, int]]:
    """First and last + 1 of the rows that each part predicts."""
    test = rows - round(config.test_share * rows)
    valid = test - round(config.valid_share * rows)
    bounds = {"train": (config.horizon, valid), "valid": (valid, test), "test": (test, rows)}
    if any(end - start < 1 for start, end in bounds.values()):
        raise DataError(
            path,
            f"a row to predict {config.horizon} ahead in each of training, validation and test",
            f"{rows:,} rows, of them {valid:,}, {test - valid:,} and {rows - test:,}",
            "give a longer table, a smaller --horizon or other shares",
        )
    return bounds


def _places(path: Path, targets: Sequence[str], names: Sequence[str]) -> list[int]:
    unknown = [name for name in targets if name not in names]
    if unknown or len(set(targets)) < len(targets):
        raise DataError(
            path,
            f"columns of numbers, each named once as a target: {', '.join(targets)}",
            f"columns of numbers: {', '.join(names)}",
            "mend --targets, or leave it out to predict all columns",
        )
    return [names.index(name) for name in targets]


def fill_forward(values: np.ndarray) -> tuple[np.ndarray, int]:
    """(rows, columns) with each NaN replaced, and how many there were.

    By the last value above it, or, where there is none, by the first one below.
    """
    known = ~np.isnan(values)
    rows = np.arange(len(values))[:, None]
    last = np.maximum.accumulate(np.where(known, rows, -1), axis=0)
    source = np.where(last < 0, known.argmax(axis=0), last)
    return np.take_along_axis(values, source, axis=0), int((~known).sum())


def read_table(path: Path | None) -> Table:
    """The columns of a CSV file that have a name and hold numbers.  Raises DataError.

    Fields are parted by commas, semicolons or tabs, by what fits most rows; with semicolons numbers
    may have a decimal comma.  An empty field is a missing value.  A column without any number is
    left out, but one with some text among its numbers is an error: more likely the text is a
    mistake than the numbers.
    """
    if path is None:
        raise DataError("--file", "a CSV file", "none", "pass --file with a table")
    header, rows, delimiter = _read_rows(path)
    columns: dict[str, np.ndarray] = {}
    left_out = []
    for place, name in enumerate(header):
        values = _numbers(path, name, [row[place] for row in rows], delimiter == ";")
        if name and values is not None:
            columns[name] = values
        else:
            left_out.append(name or f"the one without a name at place {place + 1}")
    if not columns:
        found = f"{', '.join(header)}, none of them of numbers, in {len(rows):,} rows"
        raise DataError(path, "a column of numbers", found, "give another table")
    return Table(tuple(columns), np.stack(list(columns.values()), axis=1), tuple(left_out))


def _notes(table: Table, filled: int) -> Iterator[str]:
    """What was made of the file without asking."""
    if table.left_out:
        yield f"columns left out, for they hold no numbers: {', '.join(table.left_out)}"
    if filled:
        rows = len(table.values) * len(table.names)
        yield f"{filled:,} of {rows:,} values are missing and repeat the one before"


def _read_rows(path: Path) -> tuple[list[str], list[list[str]], str]:
    """Names of the columns, the fields of all other rows, and what parts them."""
    expected = "a CSV file in UTF-8 with a header line and one row per time step"
    try:
        # -sig: spreadsheets put a mark before the first name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(list(islice(file, LOOKED_AT)))
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next((row for row in reader if row), [])]
            rows: list[list[str]] = []
            empty = 0
            for row in reader:
                if not row:
                    empty += 1
                    continue
                if len(row) != len(header):
                    found = f"{len(row)} in line {reader.line_num}"
                    raise DataError(path, f"{len(header)} fields in each row", found, _MEND)
                # Of a single column, an empty line between others is a row whose value is missing.
                rows += [[""]] * (empty if len(header) == 1 else 0)
                rows.append(row)
                empty = 0
    except OSError as error:
        raise DataError(path, expected, str(error.strerror), "mend --file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, expected, f"one that cannot be read ({error})", _MEND) from error
    _check_header(path, header, delimiter == ";")
    return header, rows, delimiter


def _delimiter(lines: list[str]) -> str:
    """What parts most lines into as many fields as the first, and most of them numbers."""

    def fit(mark: str) -> tuple[float, float]:
        rows = [row for row in csv.reader(lines, delimiter=mark) if row]
        if not rows or len(rows[0]) < 2:
            return 0.0, 0.0
        like_the_first = [row for row in rows if len(row) == len(rows[0])]
        fields = [text for row in like_the_first[1:] for text in row]
        numbers = sum(
            text.strip().lower() in MISSING or _number(text, mark == ";") is not None
            for text in fields
        )
        return len(like_the_first) / len(rows), numbers / max(1, len(fields))

    return max(DELIMITERS, key=fit)


def _check_header(path: Path, header: list[str], comma: bool) -> None:
    named = [name for name in header if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if not named or twice or all(_number(name, comma) is not None for name in named):
        found = f"the name {twice[0]} twice" if twice else f"the line {', '.join(header)!r}"
        remedy = "name each column in the first line of the file"
        raise DataError(path, "a header line with a name for each column", found, remedy)


def _numbers(path: Path, name: str, texts: list[str], comma: bool) -> np.ndarray | None:
    """A column (rows,) with NaN where a value is missing; None where it is not of numbers."""
    values = np.full(len(texts), np.nan)
    wrong: list[int] = []
    for row, text in enumerate(texts):
        if text.strip().lower() in MISSING:
            continue
        value = _number(text, comma)
        if value is None:
            wrong.append(row)
        else:
            values[row] = value
    count = int((~np.isnan(values)).sum())
    if not count or count <= len(wrong):
        return None
    if wrong or np.isinf(values).any():
        row = wrong[0] if wrong else int(np.isinf(values).argmax())
        found, remedy = (
            f"{texts[row]!r} in row {row + 1} below the header",
            f"{_MEND}, or leave the field empty",
        )
        raise DataError(path, f"a finite number in column {name}", found, remedy)
    return values


def _number(text: str, comma: bool) -> float | None:
    if "_" in text:  # Python reads 2020_01_01 as a number
        return None
    try:
        return float(text.replace(",", ".") if comma else text)
    except ValueError:
        return None
