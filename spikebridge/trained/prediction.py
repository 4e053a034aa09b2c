"""A trained network on other data: its metric, where there are answers, and its predictions."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spikebridge import data as tasks
from spikebridge.base.archives import write_arrays
from spikebridge.base.chance import generator
from spikebridge.base.records import UsageError
from spikebridge.data.files import DataError
from spikebridge.data.forecast import Forecast
from spikebridge.data.task import UNKNOWN, Batch, Task
from spikebridge.data.windows import Windows
from spikebridge.runs import evaluation, rundir
from spikebridge.settings.config import Config
from spikebridge.settings.tasks import (
    DigitsConfig,
    EcgConfig,
    EventsConfig,
    ForecastConfig,
    NpzConfig,
    SpeechConfig,
)

__all__ = ["Predictions", "predict"]

FORMATS = (".npz", ".csv")
# Of these, other data are a folder as for training, of which the test set is taken.
_FOLDERS = DigitsConfig | EventsConfig | EcgConfig


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network answers, sample by sample in the order of the data."""

    prediction: np.ndarray
    """(n, O), or (n, T, O) where it answers at each step (NaN after the end of a shorter sequence);
    of a table (rows, O), the rows that are predicted.  Probabilities of the classes, or numbers in
    the units of the data."""
    target: np.ndarray | None
    """(n,) or (n, T) classes, -1 where there is none, or numbers of the shape of prediction, NaN
    where there are none; None where the data hold no answers."""
    metric: str
    value: float | None
    """The metric, as in result.json; None where the data hold no answers."""
    classes: bool
    names: tuple[str, ...] = ()
    """Of the outputs, where they have names."""
    first: int = 0
    """Number of the first predicted row of a table, counted from 0."""

    @property
    def chosen(self) -> np.ndarray:
        """The likeliest classes (n,) or (n, T), -1 after the end of a sequence."""
        result = np.nan_to_num(self.prediction, nan=-1.0).argmax(-1)
        return np.where(np.isnan(self.prediction[..., 0]), UNKNOWN, result)

    @property
    def of_table(self) -> bool:
        """Whether the answers are rows of a table, whose columns have names."""
        return bool(self.names) and not self.classes

    def write(self, path: Path) -> None:
        """Write an .npz with `prediction`, `class`, `target`, or a .csv with a line per answer.

        Whole or not at all.  Raises UsageError for another ending.
        """
        check_format(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            rundir.replace(path, self._csv)
            return
        arrays = {"prediction": self.prediction}
        if self.classes:
            arrays["class"] = self.chosen
        if self.target is not None:
            arrays["target"] = self.target
        if self.names:
            arrays["names"] = np.array(self.names)
        write_arrays(path, arrays)

    def _csv(self, path: Path) -> None:
        outputs = range(self.prediction.shape[-1])
        kind = "p" if self.classes else "y"
        names = list(self.names) or [f"{kind}{number}" for number in outputs]
        places = ["row"] if self.of_table else ["sample", "step"][: self.prediction.ndim - 1]
        head = [*places, *["class"] * self.classes, *names]
        if self.target is not None:
            head += ["target"] if self.classes else [f"target {name}" for name in names]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            writer.writerows(self._lines())

    def _lines(self) -> Iterator[list[Any]]:
        chosen = self.chosen if self.classes else None
        for place in np.ndindex(self.prediction.shape[:-1]):
            values = self.prediction[place]
            if np.isnan(values).all():  # after the end of a sequence
                continue
            line: list[Any] = [place[0] + self.first, *place[1:]]
            line += [] if chosen is None else [int(chosen[place])]
            line += [_number(value) for value in values]
            if self.target is not None:
                target = np.atleast_1d(self.target[place])
                line += [_class(target[0])] if self.classes else [_number(v) for v in target]
            yield line


def predict(run: str | Path, data: str | Path | None = None, *, split: str = "test") -> Predictions:
    """What the network of a run answers to other data, or to its own.

    Args:
        run: folder of a run of npz, speech, forecast, digits, events or ecg.
        data: npz: an .npz file (y may be missing), or a folder with test.npz or a single one;
            forecast: a table with the columns of the training; the others: a folder as for
            `spikebridge train`, of which the test set is taken.  None: the run's own data.
        split: of the run's own data: test or valid.

    Inputs are scaled, and columns taken, as in training.  Raises UsageError (of data: DataError),
    RunError where the network is damaged.
    """
    run = Path(run)
    config, network = evaluation.trained(run)
    task = _task(run, config, data, split)
    known = json.loads((network.description or {})["sizes"])
    sizes = (known["input_size"], known["output_size"])
    if (task.input_size, task.output_size) != sizes:
        raise DataError(
            data or run,
            f"{sizes[0]:,} inputs and {sizes[1]:,} outputs, as in training",
            f"{task.input_size:,} and {task.output_size:,}",
            "give data of the same kind",
        )
    tally = evaluation.Tally(task)
    judge = generator(config.train.eval_seed, split)
    passes = evaluation.passes(network, task, split, config.train.batch_size, judge)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch, seen in passes:
        if task.answered:
            tally.add(seen.output, batch)
        parts.append(_rows(task, seen.output, batch))
    outputs, targets = (task.placed(split, part) for part in _joined(task, parts))
    return Predictions(
        prediction=outputs,
        target=targets if task.answered else None,
        metric=task.metric,
        value=tally.score().metric if task.answered else None,
        classes=task.metric == "accuracy",
        names=tuple(task.output_names),
        first=task.first_row(split) if isinstance(task, Forecast | Windows) else 0,
    )


def refuse_reading(run: Path, data: Path | None, out: Path) -> None:
    """Raise UsageError where predictions would be written over the data that are read for them."""
    task = rundir.read_config(run).task
    own = [getattr(task, name, "") for name in ("file", "data_dir")]
    for place in [data] if data is not None else [Path(name) for name in own if name]:
        read = place.expanduser().resolve()
        if out.exists() and read in (out.resolve(), out.resolve().parent):
            raise UsageError(
                f"out={out}: it is among the data that are read; give another file with --out"
            )


def check_format(path: Path) -> None:
    """Raise UsageError unless predictions can be written to a file of this name."""
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: predictions are written as .npz or .csv; pass --out p.csv")


def _task(run: Path, config: Config, data: str | Path | None, split: str) -> Task:
    """The data that are asked for, as the split that is asked for."""
    own = config.task
    if split not in ("test", "valid"):
        raise UsageError(f"split={split!r}: choose test or valid; pass --split test")
    if not isinstance(own, NpzConfig | SpeechConfig | ForecastConfig | _FOLDERS):
        remedy = {"text": "spikebridge sample", "music": "spikebridge compose"}.get(own.NAME)
        raise UsageError(
            f"{run}: predictions of the task {own.NAME} are not written; "
            + (f"use {remedy}" if remedy else "use load_network in the task's own program")
        )
    if data is None:
        return tasks.load(own)
    if split != "test":
        raise UsageError(f"split={split}: other data are all tested; leave --split out")
    if isinstance(own, _FOLDERS):
        place = {"data_dir": str(data)} | ({"data": own.OWN_DATA} if own.OWN_DATA else {})
        return tasks.load(dataclasses.replace(own, **place))  # type: ignore[arg-type]
    return tasks.other(own, data, _scaling(run))


def _scaling(run: Path) -> Mapping[str, Any] | None:
    path = run / rundir.SCALING
    return rundir.read_json(path, "train again with --overwrite") if path.exists() else None


def _rows(task: Task, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Of a batch, sample first: outputs as the data have them, answers, and lengths."""
    answers = task.in_units(output)
    target = batch.target
    if target.is_floating_point():
        target = task.in_units(target)
    steps, count = batch.x.shape[:2]
    lengths = torch.full((count,), steps) if batch.mask is None else batch.mask.sum(0)
    if task.readout == "each":
        answers, target = answers.transpose(0, 1), target.transpose(0, 1)
    return answers, target, lengths


def _joined(
    task: Task, parts: list[tuple[Tensor, Tensor, Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """All batches as one array each; a stream's stretches one after the other."""
    if task.readout != "each":
        outputs, targets, _ = (torch.cat(item) for item in zip(*parts, strict=True))
    elif task.carries_state:
        outputs, targets = (torch.cat([part[i][0] for part in parts]) for i in range(2))
        targets[sum(int(part[2][0]) for part in parts) :] = torch.nan  # beyond the table's end
    else:
        rows = [row for part in parts for row in zip(*part, strict=True)]
        outputs = pad_sequence([row[:length] for row, _, length in rows], True, torch.nan)
        none = torch.nan if rows[0][1].is_floating_point() else UNKNOWN
        targets = pad_sequence([row[:length] for _, row, length in rows], True, none)
    return outputs.numpy(), targets.numpy()


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.7g}"


def _class(value: int) -> str:
    return "" if value == UNKNOWN else str(int(value))
