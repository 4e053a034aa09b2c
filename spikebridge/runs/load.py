"""Run directories read back as records.

Every fault raises ReportError with the file, what is wrong with it and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spikebridge.base.archives import MOST_BYTES, ArchiveError, read_arrays
from spikebridge.base.records import RunError, Several, UsageError
from spikebridge.runs import rundir
from spikebridge.runs.environment import Environment
from spikebridge.runs.results import Epoch, Result
from spikebridge.settings.config import Config, data_name, label_of, variant_of

REPEAT = "run it again with --overwrite"
RESUME = "go on with the run by --resume, or start it anew with --overwrite"


class ReportError(UsageError):
    """No page can be made; the message names the file, the fault and the remedy."""


@dataclass(frozen=True)
class Symbols:
    """The content of symbols.json."""

    symbols: Several[str]
    """What the symbols of a text stand for, by number."""


@dataclass(frozen=True)
class Examples:
    """What the network did on E test examples (T time steps, I inputs, N neurons)."""

    x: np.ndarray
    """(T, E, I) inputs, or (T, E) symbols."""
    output: np.ndarray
    """(E, O) or (T, E, O) predicted probabilities, or numbers."""
    target: np.ndarray
    """(E,) or (T, E) classes; (E, O) or (T, E, O) notes or numbers that really came."""
    length: np.ndarray
    """(E,) real time steps of each example."""
    y: dict[int, np.ndarray]
    """Layer number, from 1, to its outputs (T, E, N)."""
    s: dict[int, np.ndarray]
    """Layer number to its membrane states (T, E, N); layers without a membrane are absent."""
    threshold: dict[int, np.ndarray] = field(default_factory=dict)
    """Layer number to its firing thresholds (N,); absent where they move, and in older files."""
    output_names: tuple[str, ...] = ()
    """What the outputs are called, where they have names."""
    top: np.ndarray | None = None
    """(T, E, K) of texts: the likeliest symbols; `output` then holds the probability of the right
    symbol and after it those of these."""

    @property
    def count(self) -> int:
        return int(self.x.shape[1])

    def spiking(self, layer: int) -> bool:
        """Whether a layer's outputs are spikes: it has a membrane, and only 0 and 1 occur."""
        return layer in self.s and bool(np.isin(self.y[layer], (0, 1)).all())


@dataclass(frozen=True)
class Run:
    """One run directory; what an incomplete run has not written is None or empty."""

    directory: Path
    config: Config
    environment: Environment
    epochs: list[Epoch]
    result: Result | None
    examples: Examples | None
    symbols: tuple[str, ...] = ()
    """What the symbols of a text stand for, by number."""

    @property
    def task(self) -> str:
        return self.config.task.NAME

    @property
    def data(self) -> str:
        return self.result.data if self.result else data_name(self.config)

    @property
    def unit(self) -> str:
        """The unit with its recurrence, such as "recurrent-snu": what decides its colour."""
        return variant_of(self.config.model)

    @property
    def label(self) -> str:
        return self.result.label if self.result else label_of(self.unit)

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def metric(self) -> str:
        if self.result:
            return self.result.metric
        known = self.epochs[-1].metric if self.epochs else None
        return known or self.config.task.metric() or "accuracy"

    @property
    def counted(self) -> str:
        """What the loss is a mean over, such as "frame"."""
        classes = None if self.examples is None else self.examples.target
        if self.task in ("npz", "own") and classes is not None and classes.ndim > 1:
            return "step" if classes.dtype.kind != "f" or classes.ndim == 3 else "sample"
        task = self.config.task
        if (sample := task.sample_name()) == "window":
            return sample
        return task.step_name() if sample == "stream" else task.COUNTED

    @property
    def inference(self) -> str:
        """What one inference is: a sample, or a step of a stream that never ends."""
        sample = self.config.task.sample_name()
        return self.counted if sample == "stream" else sample


def load_run(directory: Path, *, examples: bool = True) -> Run:
    """The run in a directory; one without result.json is incomplete and may lack other files.

    Raises ReportError when a file is damaged, or missing although the run is complete.
    """
    complete = rundir.is_complete(directory)
    wanted = [rundir.CONFIG]
    if complete:
        wanted += [rundir.ENVIRONMENT, rundir.METRICS, rundir.EXAMPLES]
    remedy = REPEAT if complete else RESUME
    for name in wanted:
        if not (directory / name).exists():
            raise ReportError(f"{directory / name}: the file is missing; {remedy}")
    archive, symbols = directory / rundir.EXAMPLES, directory / rundir.SYMBOLS
    with reported(remedy):
        return Run(
            directory=directory,
            config=rundir.read_config(directory),
            environment=load_environment(directory, remedy),
            epochs=load_epochs(directory),
            result=rundir.read_result(directory) if complete else None,
            examples=_examples(archive, remedy) if examples and archive.exists() else None,
            symbols=read_symbols(symbols, remedy) if symbols.exists() else (),
        )


def read_symbols(path: Path, remedy: str) -> tuple[str, ...]:
    """The symbols of a text, by number.  Raises RunError."""
    return rundir.read_record(Symbols, path, remedy).symbols


@contextmanager
def reported(remedy: str = "") -> Iterator[None]:
    """What is wrong with a file as a ReportError, with the remedy where it names none."""
    try:
        yield
    except RunError as error:
        raise ReportError(str(error)) from error
    except ReportError:
        raise
    except UsageError as error:
        raise ReportError(f"{error}; {remedy}") from error


def load_environment(directory: Path, remedy: str = REPEAT) -> Environment:
    """The environment of a run; empty where the file is not there."""
    path = directory / rundir.ENVIRONMENT
    with reported():
        return rundir.read_record(Environment, path, remedy) if path.exists() else Environment()


def load_epochs(directory: Path) -> list[Epoch]:
    """The epochs of metrics.jsonl; a line that a stopped run was still writing is left out."""
    path = directory / rundir.METRICS
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ReportError(f"{path}: it cannot be read ({why}); {REPEAT}") from error
    if not rundir.is_complete(directory):
        lines = lines[:-1]
    epochs: list[Epoch] = []
    for index, line in enumerate(lines, start=1):
        try:
            epochs += [Epoch.of(line)] if line.strip() else []
        except ValueError as error:
            raise ReportError(f"{path}, line {index}: damaged ({error}); {REPEAT}") from error
    return epochs


def _examples(path: Path, remedy: str) -> Examples:
    try:
        arrays = read_arrays(path, most_bytes=MOST_BYTES)
    except (OSError, MemoryError, ArchiveError) as error:
        raise ReportError(f"{path}: it is damaged or cannot be read ({error}); {remedy}") from error
    missing = [name for name in ("x", "output", "target", "length") if name not in arrays]
    if missing:
        raise ReportError(f"{path}: the array {missing[0]!r} is missing; {remedy}")
    layers: dict[str, dict[int, np.ndarray]] = {"y": {}, "s": {}, "threshold": {}}
    for name in list(arrays):
        if result := re.fullmatch(r"layer(\d+)_(y|s|threshold)", name):
            layers[result[2]][int(result[1])] = arrays[name]
            if result[2] == "threshold":  # which has neither time steps nor examples
                del arrays[name]
    names = arrays.pop("output_names", np.array([], str))
    steps = _check_shapes(path, arrays, remedy)
    return Examples(
        x=arrays["x"],
        output=arrays["output"],
        target=arrays["target"],
        length=np.clip(arrays["length"].astype(int), 0, steps),
        y=dict(sorted(layers["y"].items())),
        s={layer: s for layer, s in layers["s"].items() if layer in layers["y"]},
        threshold={
            layer: values
            for layer, values in layers["threshold"].items()
            if layer in layers["y"]
            and values.shape == layers["y"][layer].shape[2:]
            and values.dtype.kind == "f"
        },
        output_names=tuple(map(str, names.ravel())),
        top=arrays.get("top"),
    )


def _check_shapes(path: Path, arrays: Mapping[str, np.ndarray], remedy: str) -> int:
    """Raise ReportError unless T and E agree over all arrays and all are numbers; T."""
    x, output = arrays["x"], arrays["output"]
    symbols = x.ndim == 2 and x.dtype.kind in "iu"
    steps, count = (x.shape[0], x.shape[1]) if x.ndim == 3 or symbols else (-1, -1)
    wanted: dict[str, tuple[tuple[int, ...], ...]] = {
        "x": ((steps, count),),
        "output": ((count,), (steps, count)),
        "target": ((count,), (steps, count)),
        "length": ((count,),),
    }
    for name, array in arrays.items():
        options = wanted.get(name, ((steps, count),))
        # Classes are whole numbers without a last dimension O.
        classes = name == "target" and array.ndim < 3 and array.dtype.kind != "f"
        extra = 0 if name == "length" or classes or (name == "x" and symbols) else 1
        fits = any(array.shape[: array.ndim - extra] == shape for shape in options)
        kinds = "biu" if extra == 0 else "biuf"
        if steps < 0 or not fits or array.dtype.kind not in kinds:
            raise ReportError(
                f"{path}: the array {name!r} of shape {array.shape} and type {array.dtype} does "
                f"not fit x of shape {x.shape}; {remedy}"
            )
        if name.endswith("_s") and array.shape != arrays.get(f"{name[:-1]}y", array).shape:
            raise ReportError(f"{path}: {name!r} and its outputs differ in shape; {remedy}")
    target = arrays["target"]
    if target.shape != (output.shape if target.ndim == output.ndim else output.shape[:-1]):
        raise ReportError(f"{path}: 'target' and 'output' differ in shape; {remedy}")
    return steps
