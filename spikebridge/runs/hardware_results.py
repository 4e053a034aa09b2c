"""What commands make of a run's network: one record for each file, for its writer and its readers.

    memory.json      OnCells     programmed into memory cells
    digital.json     OnChip      compiled for the digital chip
    rtl.json         Proof       its Verilog in simulators
    steps.json       BySteps     tested at other numbers of time steps
    complexity.json  Measured    in the measures of NeuroBench

Every fault of a file raises ReportError with the file, what is wrong with it and the remedy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from spikebridge.base.quantities import number
from spikebridge.base.records import Amount, Positive, check_shape, to_plain
from spikebridge.chip.program import ChipCounts
from spikebridge.energy.costs import CostRow, Energy
from spikebridge.runs import rundir
from spikebridge.runs.load import REPEAT, ReportError, reported
from spikebridge.settings.crossbar import programmed

Content = TypeVar("Content")


@dataclass(frozen=True)
class Hardware:
    """What an inference, or a training, costs on one kind of hardware."""

    total_pJ: Amount
    seconds_s: Amount
    rows: tuple[CostRow, ...]

    def __post_init__(self) -> None:
        if min((min(r.count, r.unit_pJ, r.energy_pJ) for r in self.rows), default=0) < 0:
            raise ValueError('"rows" hold a number below 0')

    @classmethod
    def of(cls, energy: Energy) -> Hardware:
        """As a file has it."""
        return cls(energy.total_pJ, energy.seconds_s, energy.rows)


@dataclass(frozen=True)
class CellModel:
    """A model of cells."""

    name: str
    source: str


@dataclass(frozen=True)
class Tiles:
    """A weight matrix on its tiles."""

    name: str
    shape: tuple[int, ...]
    tiles: tuple[int, ...]
    cells: int
    error: Amount
    """Root mean square of what was read back less what was meant, over that of the latter."""
    largest_weight: float = 0.0


@dataclass(frozen=True)
class Look:
    """What cells hold at one time."""

    time_s: Amount
    cells: np.ndarray
    """(bins,) cells by conductance, from 0 to the top of the range."""

    def __post_init__(self) -> None:
        check_shape(self, "cells", None)


@dataclass(frozen=True)
class Histograms:
    """Cells by conductance, over time."""

    top_uS: Positive
    at: tuple[Look, ...]


@dataclass(frozen=True)
class Points:
    """Some cells, each with what was aimed at and what is read."""

    target_uS: np.ndarray
    read_uS: np.ndarray

    def __post_init__(self) -> None:
        check_shape(self, "target_uS", None)
        check_shape(self, "read_uS", len(self.target_uS))


@dataclass(frozen=True)
class Limits:
    """Shares of the cells at the ends of their range."""

    at_top: Amount
    at_bottom: Amount


@dataclass(frozen=True)
class Level:
    """Many cells programmed to one conductance, over the times of the drift."""

    target_uS: float
    mean_uS: np.ndarray
    sd_uS: np.ndarray


@dataclass(frozen=True)
class DriftCurves:
    """Mean conductance of cells programmed to a few levels, over time, and its spread."""

    times_s: np.ndarray
    curves: tuple[Level, ...]

    def __post_init__(self) -> None:
        check_shape(self, "times_s", None)
        if self.times_s[0] <= 0 or (np.diff(self.times_s) <= 0).any():
            raise ValueError('"times_s" of "drift" do not rise from above 0')
        for level in self.curves:
            check_shape(level, "mean_uS", len(self.times_s))
            check_shape(level, "sd_uS", len(self.times_s))


@dataclass(frozen=True)
class Costs:
    """What an inference costs on several kinds of hardware, the crossbar first."""

    hardware: dict[str, Hardware]
    per: str = "sample"
    counts: dict[str, Any] | None = None
    """Events of an inference."""

    def __post_init__(self) -> None:
        if not self.hardware:
            raise ValueError('"hardware" is empty')


@dataclass(frozen=True)
class Training:
    """What the whole training cost, for a run that was trained on cells."""

    hardware: dict[str, Hardware]


@dataclass(frozen=True, kw_only=True)
class OnCells:
    """The content of memory.json."""

    metric: str
    higher_is_better: bool = True
    device: CellModel
    memory: dict[str, Any]
    """Settings of the hardware, under their names of today."""
    cells: int
    samples: int
    """Of the split, for each chip and time; 0 = all."""
    seed: int = 0
    split: str = "test"
    software: float
    times_s: tuple[float, ...]
    """Seconds after programming, rising."""
    plain: np.ndarray
    """(chips, times) the metric without compensation."""
    compensated: np.ndarray
    """The same with compensation."""
    layers: tuple[Tiles, ...]
    histograms: Histograms
    programmed: tuple[Points, ...]
    """At the first and the last time."""
    limits: Limits
    drift: DriftCurves
    energy: Costs
    training: Training | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "memory", programmed(self.memory))
        if self.times_s[0] < 0 or (np.diff(self.times_s) <= 0).any():
            raise ValueError('"times_s" do not rise from 0 or more')
        check_shape(self, "plain", None, len(self.times_s))
        check_shape(self, "compensated", *self.plain.shape)

    @property
    def chips(self) -> int:
        return len(self.plain)

    def setting(self, name: str) -> float:
        """A number among the settings of the hardware; 0 where there is none."""
        return number(self.memory.get(name)) or 0.0


@dataclass(frozen=True)
class ChipSettings:
    """The chip that a program runs on."""

    lanes: int
    clock_MHz: Amount
    weight_bits: int = 0
    decay_bits: float = 0
    """As asked for: -1 leaves it to the program."""
    fraction_bits: float = -1
    """The same."""
    max_steps: int = 0
    queue: int = 0


@dataclass(frozen=True)
class Sizes:
    """What a program needs."""

    weight_bits: int
    decay_bits: int
    fraction_bits: int
    membrane_bits: int
    max_steps: int
    weight_memory_bits: int
    membrane_memory_bits: int
    parameter_memory_bits: int
    event_memory_bits: int
    inputs: int
    multiplies: bool
    slow_bits: int = 0
    slow_memory_bits: int = 0
    slow_parameter_memory_bits: int = 0

    @property
    def memory_bits(self) -> dict[str, int]:
        """Of each memory."""
        names = ["weight", "membrane", "parameter", "event"]
        names += ["slow", "slow_parameter"] if self.slow_bits else []
        return {name: getattr(self, f"{name}_memory_bits") for name in names}


@dataclass(frozen=True)
class InIntegers:
    """A layer in integers."""

    name: str
    kind: str
    """dense or convolution."""
    recurrent: bool
    inputs: int
    neurons: int
    weights: int
    weight_error: Amount
    """Root mean square of what rounding took from the weights, over that of the weights."""
    decay_error: Amount
    """Largest error of a decay."""
    drive_error: Amount
    """Largest error of a bias, in shares of the largest weight."""
    same_spikes: Amount | None
    """Share of neurons and time steps that do the same as in software; None of the readout."""


@dataclass(frozen=True)
class Range:
    """Energy and time per sample: what is likely, and the ends of the range."""

    low: Hardware
    nominal: Hardware
    high: Hardware

    @property
    def ends(self) -> dict[str, Hardware]:
        return {name: getattr(self, name) for name in ENDS}


ENDS = ("low", "nominal", "high")


@dataclass(frozen=True)
class OnChip:
    """The content of digital.json."""

    metric: str
    higher_is_better: bool
    split: str
    samples: int
    steps: Amount
    """Time steps of a sample, the mean over the samples."""
    software: float
    integer: float
    chip: ChipSettings
    program: Sizes
    layers: tuple[InIntegers, ...]
    counts: ChipCounts
    """What the chip did with all samples together."""
    per: str
    """What a sample is: "sample", or "step" where a stream never ends."""
    energy: Range
    area_mm2: dict[str, Amount]
    part: str = ""
    """What a sample has several of, such as heartbeats, each with its energy; "" = nothing."""
    parts: Amount = 0.0
    """How many of them a sample has, the mean."""
    asked: dict[str, Any] = field(default_factory=dict)
    """The plan that this is the result of."""

    def __post_init__(self) -> None:
        if not self.counts.samples:
            raise ValueError('"samples" of "counts" is 0')
        if not self.area_mm2:
            raise ValueError('"area_mm2" is empty')

    @property
    def part_pJ(self) -> dict[str, float]:
        """Energy of each part, at the ends of the range; empty without parts."""
        ends = self.energy.ends.items()
        return {name: end.total_pJ / self.parts for name, end in ends} if self.parts else {}

    def each(self, name: str) -> float:
        """A count per sample."""
        return getattr(self.counts, name) / self.counts.samples

    @property
    def dense_additions(self) -> float | None:
        """Additions per sample if each input spiked in each step.

        None with a convolution, whose borders the file does not tell.
        """
        if any(layer.kind != "dense" for layer in self.layers):
            return None
        return self.steps * sum(layer.weights for layer in self.layers)


@dataclass(frozen=True)
class Outcome:
    """Verilog beside the integer model in simulators, on the first test samples."""

    samples: int
    simulators: tuple[str, ...]
    equal: bool | None
    """None where no simulator answered."""
    reason: str
    """Why there is no answer, or what differs; empty where all is equal."""


@dataclass(frozen=True)
class Proof(Outcome):
    """The content of rtl.json."""

    program_sha256: str = ""
    """Of the compiled program that it is of."""


@dataclass(frozen=True)
class BySteps:
    """The content of steps.json."""

    metric: str
    trained_with: int
    steps: tuple[int, ...]
    test: tuple[float, ...]
    spikes_per_inference: tuple[Amount | None, ...]


@dataclass(frozen=True)
class SynapticOperations:
    """Synaptic operations per sample, by NeuroBench's own names; see `trained.complexity`."""

    Effective_MACs: float
    """Products of an input and a weight that are not zero, in calls with inputs of any value."""
    Effective_ACs: float
    """The same in calls whose inputs are all in {-1, 0, 1}, which need no multiplication."""
    Dense: float
    """All products, of both kinds, as if no input and no weight were zero."""


@dataclass(frozen=True)
class Complexity:
    """What a network holds and does, by NeuroBench's names and definitions."""

    footprint: int
    """Bytes of all parameters and buffers; rounded weights count in the dtype that holds them."""
    parameter_count: int
    """Numbers in all parameters."""
    connection_sparsity: float
    """Share of weights in [0, 1] that are zero, rounded to 4 decimals as there: of linear maps,
    convolutions and recurrent matrices, and of RNN, GRU and LSTM with their biases."""
    activation_sparsity: float
    """Share in [0, 1] of zeros among the outputs of all layers of units, spiking, soft or without
    memory, over layers, steps and samples; 0 where there is no such layer, as there."""
    synaptic_operations: SynapticOperations
    """Per sample."""
    membrane_updates: float
    """Membranes of spiking layers that a step changes, per sample; the first changes all."""
    samples: int
    """Samples that were measured; of a stream without end each step is one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data by NeuroBench's names, and `samples`."""
        return to_plain(self)


@dataclass(frozen=True)
class Measured(Complexity):
    """The content of complexity.json."""

    source: str
    """Of the definitions."""
    split: str
    per: str
    """A "sample", or what a step of a stream is, such as "word"."""
    asked: int = -1
    """How many samples were asked for; 0 = all."""


def _loader(kind: type[Content], name: str, remedy: str) -> Callable[[Path], Content | None]:
    """What reads a file of a run; None where it is not there."""

    def load(directory: Path) -> Content | None:
        if not (directory / name).exists():
            return None
        with reported():
            return rundir.read_record(kind, directory / name, remedy.format(directory))

    return load


load_on_cells = _loader(
    OnCells, rundir.MEMORY, "program the run again with `spikebridge program {}`"
)
load_on_chip = _loader(OnChip, rundir.DIGITAL, "export the run again with `spikebridge export {}`")
load_by_steps = _loader(BySteps, rundir.STEPS, "run `spikebridge evaluate` again")
load_complexity = _loader(
    Measured, rundir.COMPLEXITY, "measure the run again with `spikebridge complexity {}`"
)
_load_proof = _loader(Proof, rundir.RTL, "remove the file, then run `spikebridge demo` again")


def load_proof(directory: Path) -> Proof | None:
    """The rtl.json of a run; None where there is none, or one of a program that was replaced."""
    proof = _load_proof(directory)
    return proof if proof and proof.program_sha256 == program_sha256(directory) else None


def program_sha256(directory: Path) -> str:
    """Of the compiled program of a run, by which a proof knows what it is of; "" without one."""
    try:
        return hashlib.sha256((directory / rundir.PROGRAM).read_bytes()).hexdigest()
    except OSError:
        return ""


def load_counts(directory: Path, name: str) -> np.ndarray | None:
    """A count of every cell, (cells,), such as "pulses", from chip.safetensors.

    None where there is no such file, or the devices in it do not count.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / rundir.CHIP
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            keys = [key for key in file.keys() if key.endswith(f"/device.{name}")]  # noqa: SIM118
            counts = [file.get_tensor(key).ravel() for key in keys]
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ReportError(f"{path}: it is damaged or cannot be read ({error}); {REPEAT}") from error
    if not counts or not sum(map(len, counts)):
        return None
    values = np.concatenate(counts)
    if values.dtype.kind not in "iu" or values.min() < 0:
        raise ReportError(f"{path}: 'device.{name}' holds no counts; {REPEAT}")
    return values
