"""Time series: predict columns of a table some rows ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor

from spikebridge.base.metrics import MetricName
from spikebridge.data.files import DataError, one_file
from spikebridge.data.tables import DataTable, listed, read_table
from spikebridge.data.task import Batch, Readout, Task, check_batch_size, check_split, stream_chunks
from spikebridge.settings.tasks import ForecastConfig

# Where nothing is trained no gradient ends at a chunk's edge, so longer ones only save time.
JUDGED_STEPS = 250


class Series(NamedTuple):
    """Columns of numbers without gaps, and which of them are to be predicted."""

    path: Path
    columns: tuple[str, ...]
    targets: tuple[str, ...]
    values: np.ndarray  # (rows, columns) float64
    notes: tuple[str, ...]

    def scale(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (columns,) of the first rows; of a constant column 1."""
        train = self.values[:rows]
        constant = train.max(0) == train.min(0)
        with np.errstate(over="ignore", invalid="ignore"):  # an error of `scaled`, with its column
            return train.mean(0), np.where(constant, 1.0, train.std(0))

    def scaled(self, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
        """Values on that scale, float32; DataError where there is none."""
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = ((self.values - mean) / sd).astype(np.float32)
        for place, name in enumerate(self.columns):
            if not (np.isfinite(sd[place]) and np.isfinite(scaled[:, place]).all()):
                raise DataError(
                    self.path,
                    f"numbers in column {name} whose mean and standard deviation can be computed",
                    f"a mean of {mean[place]:g} and a deviation of {sd[place]:g}",
                    "give the column in another unit, or leave it out",
                )
        return scaled


def open_table(config: ForecastConfig) -> Series:
    """The table of a config.  Raises DataError."""
    if not config.file:
        raise DataError("--file", "a CSV file", "none", "pass --file with a table")
    path = Path(config.file).expanduser()
    table = _read(path, config)
    targets = tuple(config.targets or table.names)
    _check_targets(path, targets, table.names)
    values, _ = fill_forward(table.values)
    return Series(path, tuple(table.names), targets, values, tuple(_notes(table)))


def table_of(
    path: Path, config: ForecastConfig, columns: Sequence[str], targets: Sequence[str]
) -> Series:
    """One more table with the columns of training, which may stand among others.

    Raises DataError.
    """
    table = _read(path, config)
    places = {name: place for place, name in enumerate(table.names)}
    absent = [name for name in columns if name not in places]
    if absent:
        expected = f"the columns of the training: {listed(columns)}"
        actual = f"columns of numbers: {listed(table.names)}, without {listed(absent)}"
        raise DataError(path, expected, actual, "give a table with the same columns")
    own = table.values[:, [places[name] for name in columns]]
    empty = np.isnan(own).all(0)
    if empty.any():
        never = [name for name, none in zip(columns, empty, strict=True) if none]
        raise DataError(path, "a number in each column", f"none in {listed(never)}", "fill it")
    notes = tuple(_notes(table._replace(names=tuple(columns), values=own)))
    return Series(path, tuple(columns), tuple(targets), fill_forward(own)[0], notes)


class TableTask(Task):
    """What forecasts of a table share: its columns, their scale, and other tables on that scale.

    A subclass has `_name_outputs`, and `_test_all`, which makes all of `_rows` the split "test".
    """

    name = "forecast"
    config: ForecastConfig
    columns: tuple[str, ...]
    targets: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    _places: Tensor
    """Of the targets among the columns."""
    _rows: Tensor
    """(rows, columns) float32 on the scale of training."""
    _unknown: int
    """How many of these, the last ones, lie beyond the table; they are nan."""

    def _describe(self, config: ForecastConfig, table: Series) -> None:
        self.config, self.columns, self.targets = config, table.columns, table.targets
        self._places = torch.tensor([self.columns.index(name) for name in self.targets])
        self.output_names = self._name_outputs()
        self.input_size, self.output_size = len(self.columns), len(self.output_names)
        self.notes, self._unknown = table.notes, 0

    def _name_outputs(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _test_all(self, path: Path) -> None:
        raise NotImplementedError

    def scaling(self) -> dict[str, Any]:
        """What `other` needs to know of the training data, as JSON has it."""
        numbers = {"mean": self.mean.tolist(), "sd": self.sd.tolist()}
        return {"columns": list(self.columns), "targets": list(self.targets), **numbers}

    @classmethod
    def other(cls, config: ForecastConfig, path: Path, scaling: Mapping[str, Any] | None) -> Self:
        """All of one more table as the split "test", and the `horizon` rows after its end.

        Those are predicted and not judged: they have no answers.

        Args:
            config: of the run.
            path: a table, or a folder with a single .csv; it must have the columns of the training
                by their names, in any order and among others.
            scaling: as the run's `scaling` was; None reads the training data again.

        Raises DataError.
        """
        scaling = cls(config).scaling() if scaling is None else scaling  # type: ignore[call-arg]
        table = table_of(one_file(path, "csv"), config, scaling["columns"], scaling["targets"])
        task = cls.__new__(cls)
        task._describe(config, table)
        task.mean, task.sd = np.array(scaling["mean"]), np.array(scaling["sd"])
        scaled = table.scaled(task.mean, task.sd)
        beyond = np.full((config.horizon, scaled.shape[1]), np.nan, np.float32)
        task._rows, task._unknown = torch.from_numpy(np.concatenate([scaled, beyond])), len(beyond)
        task._test_all(table.path)
        return task


class Forecast(TableTask):
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

    readout: Readout = "each"
    metric = cast(MetricName, ForecastConfig.METRIC)
    carries_state = True

    def __init__(self, config: ForecastConfig) -> None:
        table = open_table(config)
        self._describe(config, table)
        self._bounds = bounds_of(table.path, len(table.values), config)
        self.mean, self.sd = table.scale(self._bounds["train"][1])
        self._rows = torch.from_numpy(table.scaled(self.mean, self.sd))
        now, ahead = (part.double() for part in self._part("test"))
        self.baselines = {
            "nothing changes": float((ahead - now[:, self._places]).square().mean().sqrt()),
            "mean of the training data": float(ahead.square().mean().sqrt()),
        }

    def _name_outputs(self) -> tuple[str, ...]:
        return self.targets

    def _test_all(self, path: Path) -> None:
        """One stream that begins in silence: row t shows what is predicted for t + horizon."""
        self._bounds = {"test": (self.config.horizon, len(self._rows))}
        self.answered = len(self._rows) > 2 * self.config.horizon

    def size(self, split: str) -> int:
        """Number of predicted rows of a split."""
        start, end = self._bounds[check_split(split)]
        return end - start

    def first_row(self, split: str) -> int:
        """The first row of the table, counted from 0, that a split predicts."""
        return self._bounds[check_split(split)][0]

    def count_batches(self, batch_size: int) -> int:
        """Number of chunks in an epoch."""
        _, length = self._streams("train", batch_size)
        return -(-length // self.config.steps)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Chunks of x (T, B, I) and target (T, B, O); mask None, but for rows beyond a table.

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
        known = (torch.arange(length) < length - self._unknown).unsqueeze(1)
        masks = (known[a:b] if self._unknown else None for a, b in chunks)
        return (
            Batch(x[a:b].contiguous(), target[a:b].contiguous(), mask)
            for (a, b), mask in zip(chunks, masks, strict=True)
        )

    def in_units(self, output: Tensor) -> Tensor:
        """Outputs (..., O) in the units of the table."""
        chosen = self._places.numpy()
        scale, level = torch.from_numpy(self.sd[chosen]), torch.from_numpy(self.mean[chosen])
        return output.double() * scale + level

    def _part(self, split: str) -> tuple[Tensor, Tensor]:
        """All that a split shows (rows, I) and asks for (rows, O), in the order of the file."""
        start, end = self._bounds[check_split(split)]
        ahead = self.config.horizon
        return self._rows[start - ahead : end - ahead], self._rows[start:end, self._places]

    def _streams(self, split: str, batch_size: int) -> tuple[int, int]:
        """Number of streams, and the rows of each."""
        size = self.size(split)
        wanted = min(batch_size, size // self.config.steps) if split == "train" else 1
        streams = max(1, wanted)
        return streams, size // streams


def bounds_of(path: Path, rows: int, config: ForecastConfig) -> dict[str, tuple[int, int]]:
    """First and last + 1 of the rows that each part predicts.  Raises DataError."""
    if config.rows:
        ends = np.cumsum(config.rows).tolist()
        if ends[2] > rows:
            raise DataError(path, f"{ends[2]:,} rows, as --rows says", f"{rows:,}", "mend --rows")
        valid, test, rows = ends
    else:
        test = rows - round(config.test_share * rows)
        valid = test - round(config.valid_share * rows)
    bounds = {"train": (config.horizon, valid), "valid": (valid, test), "test": (test, rows)}
    if any(end - start < 1 for start, end in bounds.values()):
        raise DataError(
            path,
            f"a row to predict {config.horizon} ahead in each of training, validation and test",
            f"{rows:,} rows, of them {valid:,}, {test - valid:,} and {rows - test:,}",
            "give a longer table, a smaller --horizon, other shares or --rows",
        )
    return bounds


def _check_targets(path: Path, targets: Sequence[str], names: Sequence[str]) -> None:
    if not set(names) >= set(targets) or len(set(targets)) < len(targets):
        raise DataError(
            path,
            f"columns of numbers, each named once as a target: {listed(targets)}",
            f"columns of numbers: {listed(names)}",
            "mend --targets, or leave it out to predict all columns",
        )


def fill_forward(values: np.ndarray) -> tuple[np.ndarray, int]:
    """(rows, columns) with each NaN replaced, and how many there were.

    By the last value above it, or, where there is none, by the first one below.
    """
    known = ~np.isnan(values)
    rows = np.arange(len(values))[:, None]
    last = np.maximum.accumulate(np.where(known, rows, -1), axis=0)
    source = np.where(last < 0, known.argmax(axis=0), last)
    return np.take_along_axis(values, source, axis=0), int((~known).sum())


def _read(path: Path, config: ForecastConfig) -> DataTable:
    decimal: Any = None if config.decimal == "auto" else config.decimal
    return read_table(path, missing=config.missing, decimal=decimal)


def _notes(table: DataTable) -> Iterator[str]:
    """What was read, and what was made of it without asking."""
    yield from table.remarks
    gaps = np.isnan(table.values)
    if gaps.any():
        counts = gaps.sum(0).tolist()
        having = [f"{name} {n:,}" for name, n in zip(table.names, counts, strict=True) if n]
        yield (
            f"{gaps.sum():,} of {gaps.size:,} values are missing and repeat the one before: "
            f"{listed(having)}"
        )
