"""Time series by the customary protocol: of the last rows of a table, many rows at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikebridge.base.metrics import MetricName
from spikebridge.data.files import DataError
from spikebridge.data.forecast import TableTask, bounds_of, open_table
from spikebridge.data.task import Batch, Readout, Task, check_split, sample_batches
from spikebridge.settings.tasks import ForecastConfig

DAY = 24


class Windows(TableTask):
    """Predict the next `horizon` rows from `look_back` rows; loss and score: squared error.

    The parts follow each other in time.  A window belongs to the part that all its predicted rows
    lie in; what it sees may reach into the part before.  All columns are put on the scale of the
    training rows.  An output (B, horizon * O) is the targets of the first row ahead, then of the
    second, and so on, after the last step.  With `anchor="last"` inputs and answers are relative
    to the last row that is seen, which the errors do not feel.

    The customary numbers on ETTh1: look_back=336, horizon=96, rows=(8640, 2880, 2880), Zhou et al.
    2021, arXiv 2012.07436.
    """

    readout: Readout = "last"
    metric: MetricName = "mse"

    def __init__(self, config: ForecastConfig) -> None:
        table = open_table(config)
        self._describe(config, table)
        parts = bounds_of(table.path, len(table.values), config)
        ends = {split: end for split, (_, end) in parts.items()}
        starts = {"train": 0, "valid": ends["train"], "test": ends["valid"]}
        self._first = {split: max(start, config.look_back) for split, start in starts.items()}
        self._sizes = {
            split: ends[split] - first - config.horizon + 1 for split, first in self._first.items()
        }
        if min(self._sizes.values()) < 1:
            raise DataError(
                table.path,
                f"parts with {config.look_back} rows to see and {config.horizon} to predict",
                f"{len(table.values):,} rows in parts that end at "
                f"{', '.join(f'{end:,}' for end in ends.values())}",
                "give a longer table, a smaller --look-back or --horizon, or other --rows",
            )
        self.mean, self.sd = table.scale(ends["train"])
        self._rows = torch.from_numpy(table.scaled(self.mean, self.sd))
        counts = ", ".join(f"{n:,} to {verb}" for verb, n in self._sizes.items())
        self.notes = (*table.notes, f"windows of {config.look_back} rows: {counts}")
        self.baselines = self._simple()

    def _name_outputs(self) -> tuple[str, ...]:
        ahead = range(1, self.config.horizon + 1)
        return tuple(f"{name} +{row}" for row in ahead for name in self.targets)

    def _test_all(self, path: Path) -> None:
        """All windows, the last one of the last rows of the table."""
        rows, seen = len(self._rows) - self._unknown, self.config.look_back
        if rows < seen:
            raise DataError(path, f"at least {seen} rows", f"{rows:,}", "give a longer table")
        self._first, self._sizes = {"test": seen}, {"test": rows - seen + 1}
        self.answered = rows > seen

    def size(self, split: str) -> int:
        """Number of windows of a split."""
        return self._sizes[check_split(split)]

    def first_row(self, split: str) -> int:
        """The first row of the table, counted from 0, that a split predicts."""
        return self._first[check_split(split)]

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (look_back, B, I) and target (B, horizon * O) float32; mask None."""
        samples = sample_batches(self.size(split), split, batch_size, generator)
        return (self._batch(split, chosen) for chosen in samples)

    def _batch(self, split: str, chosen: Tensor) -> Batch:
        first, config = self._first[split] + chosen, self.config
        seen = first + torch.arange(-config.look_back, 0).unsqueeze(1)
        ahead = first.unsqueeze(1) + torch.arange(config.horizon)
        x, target = self._rows[seen], self._rows[ahead][..., self._places]
        if config.anchor == "last":
            last = x[-1]
            x, target = x - last, target - last[:, None, self._places]
        return Batch(x, target.flatten(1), None)

    def answers(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Output and target (n, horizon * O), or (n,) without rows beyond the end of a table."""
        output, target = super().answers(output, batch)
        if not self._unknown:
            return output, target
        known = target.isfinite()
        return output[known], target[known]

    def score(self, output: Tensor, batch: Batch) -> tuple[float, int]:
        """As of any task, or the sum of absolute errors where the metric is mae; their number."""
        if self.metric != "mae":
            return super().score(output, batch)
        output, target = self.answers(output, batch)
        return float((output - target).abs().sum(dtype=torch.float64)), target.numel()

    def views(self) -> Mapping[str, Task]:
        """The absolute error of the same answers, which is customary beside the squared one."""
        other = copy.copy(self)
        other.metric = "mae"
        return {"of the same answers": other}

    def _simple(self) -> dict[str, float]:
        """Squared errors on the test of a closed-form linear map, and of the last day again."""
        config, rows = self.config, self._rows.double().numpy()
        seen, ahead = config.look_back, config.horizon

        # A column at a time: all of them would take the table's memory some hundred times.
        def windows(split: str, column: int) -> tuple[np.ndarray, np.ndarray]:
            first = self._first[split]
            part = rows[first - seen : first + self._sizes[split] - 1 + ahead, column]
            both = np.lib.stride_tricks.sliding_window_view(part, seen + ahead)
            return both[:, :seen], both[:, seen:]

        columns = self._places.tolist()
        weights = _linear(windows("train", column) for column in columns)
        linear, again = [], []
        for column in columns:
            x, y = windows("test", column)
            linear.append(np.square(x @ weights[:-1] + weights[-1] - y).mean())
            if seen >= DAY:
                last = np.tile(x[:, -DAY:], -(-ahead // DAY))[:, :ahead]
                again.append(np.square(last - y).mean())
        result = {f"linear map of {seen} rows": float(np.mean(linear))}
        return result | ({f"last {DAY} rows again": float(np.mean(again))} if again else {})

    def in_units(self, output: Tensor) -> Tensor:
        """Outputs (..., horizon * O) in the units of the table; relative ones stay relative."""
        scale = torch.from_numpy(self.sd)[self._places].repeat(self.config.horizon)
        level = torch.from_numpy(self.mean)[self._places].repeat(self.config.horizon)
        return output.double() * scale + (0 if self.config.anchor == "last" else level)

    def placed(self, split: str, answers: np.ndarray) -> np.ndarray:
        """Answers (n, horizon * O) that were relative to the last rows seen, on top of them."""
        if self.config.anchor != "last":
            return answers
        first, count = self._first[split], self._sizes[split]
        last = self._rows[first - 1 : first - 1 + count][:, self._places].double().numpy()
        places = self._places.numpy()
        levels = last * self.sd[places] + self.mean[places]
        return answers + np.tile(levels, self.config.horizon)


def _linear(columns: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The affine map (rows seen + 1, rows ahead) that least squares gives for all columns alike."""
    inner: Any = 0.0
    outer: Any = 0.0
    for seen, ahead in columns:
        with_one = np.hstack([seen, np.ones((len(seen), 1))])
        inner, outer = inner + with_one.T @ with_one, outer + with_one.T @ ahead
    little = 1e-6 * np.eye(len(inner))  # columns may be constant
    return np.linalg.solve(inner + little, outer)
