"""What lies in a run of its life on the digital chip: digital.json and rtl.json, checked.

Every fault raises ReportError with the file, what is wrong with it and the remedy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spikebridge.base.records import RunError
from spikebridge.runs import rundir
from spikebridge.runs.deployed import Hardware, costs
from spikebridge.runs.fields import Fields
from spikebridge.runs.load import ReportError

COUNTS = (
    "samples",
    "steps",
    "input_events",
    "spikes",
    "weight_reads",
    "additions",
    "membrane_reads",
    "membrane_writes",
    "parameter_reads",
    "event_reads",
    "event_writes",
    "updates",
    "cycles",
)
MEMORIES = ("weight", "membrane", "parameter", "event")
ENDS = ("low", "nominal", "high")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Layer:
    """A layer in integers."""

    name: str
    kind: str
    recurrent: bool
    inputs: int
    neurons: int
    weights: int
    weight_error: float
    """Root mean square of what rounding took from the weights, over that of the weights."""
    decay_error: float
    """Largest error of a decay."""
    same_spikes: float | None
    """Share of neurons and time steps that do the same as in software; None of the readout."""


@dataclass(frozen=True)
class Compiled:
    """The content of digital.json."""

    metric: str
    split: str
    per: str
    """What a sample is: "sample", or "step" where a stream never ends."""
    steps: float
    """Time steps of a sample, the mean over the samples."""
    software: float
    integer: float
    lanes: int
    clock_MHz: float
    weight_bits: int
    membrane_bits: int
    fraction_bits: int
    decay_bits: int
    multiplies: bool
    memory_bits: dict[str, int]
    """Of each of `MEMORIES`."""
    layers: tuple[Layer, ...]
    counts: dict[str, int]
    """What the chip did with all samples together, by the names of `COUNTS`."""
    energy: tuple[Hardware, ...]
    """Per sample: low, nominal and high, as in `ENDS`."""
    area_mm2: dict[str, float]

    @property
    def samples(self) -> int:
        return self.counts["samples"]

    def each(self, name: str) -> float:
        """A count per sample."""
        return self.counts[name] / self.samples

    @property
    def dense_additions(self) -> float | None:
        """Additions per sample if each input spiked in each step.

        None with a convolution, whose borders the file does not tell.
        """
        if any(layer.kind != "dense" for layer in self.layers):
            return None
        return self.steps * sum(layer.weights for layer in self.layers)


@dataclass(frozen=True)
class Proof:
    """The content of rtl.json: Verilog beside the integer model, on the first test samples."""

    samples: int
    simulators: tuple[str, ...]
    equal: bool | None
    """None where no simulator answered."""
    reason: str
    """Why there is no answer, or what differs; empty where all is equal."""


def load(directory: Path) -> Compiled | None:
    """The digital.json of a run; None where the run was not exported."""
    remedy = f"export the run again with `spikebridge export {directory}`"
    return _read(directory / rundir.DIGITAL, remedy, _compiled)


def load_proof(directory: Path) -> Proof | None:
    """The rtl.json of a run; None where there is none, or one of a program that was replaced."""
    remedy = "remove the file, then run `spikebridge demo` again"
    found = _read(
        directory / rundir.RTL, remedy, lambda file: (file.text("program_sha256"), _proof(file))
    )
    if found is None or found[0] != program_sha256(directory):
        return None
    return found[1]


def proof_of(content: Any) -> Proof | None:
    """What compare.json says of the Verilog; None where it says nothing."""
    if not isinstance(content, dict):
        return None
    names = ("samples", "simulators", "equal", "reason")
    return Proof(**{name: content[name] for name in names})


def program_sha256(directory: Path) -> str:
    """Of the compiled program of a run, by which a proof knows what it is of; "" without one."""
    try:
        return hashlib.sha256((directory / rundir.PROGRAM).read_bytes()).hexdigest()
    except OSError:
        return ""


def _read(path: Path, remedy: str, make: Callable[[Fields], Found]) -> Found | None:
    if not path.exists():
        return None
    try:
        return make(Fields(rundir.read_json(path, remedy), "the file"))
    except RunError as error:
        raise ReportError(str(error)) from error
    except ValueError as error:
        raise ReportError(f"{path}: {error}; {remedy}") from error


def _compiled(file: Fields) -> Compiled:
    chip, program, counts = file.fields("chip"), file.fields("program"), file.fields("counts")
    energy, area = file.fields("energy"), file.fields("area_mm2")
    if not counts.count("samples"):
        raise ValueError('"samples" of "counts" is 0')
    if not area.value:
        raise ValueError('"area_mm2" is empty')
    return Compiled(
        metric=file.text("metric"),
        split=file.text("split"),
        per=file.text("per"),
        steps=file.number("steps", 0),
        software=file.number("software"),
        integer=file.number("integer"),
        lanes=chip.count("lanes"),
        clock_MHz=chip.number("clock_MHz", 0),
        weight_bits=program.count("weight_bits"),
        membrane_bits=program.count("membrane_bits"),
        fraction_bits=program.count("fraction_bits"),
        decay_bits=program.count("decay_bits"),
        multiplies=program.value.get("multiplies") is True,
        memory_bits={name: program.count(f"{name}_memory_bits") for name in MEMORIES},
        layers=tuple(map(_layer, file.objects("layers"))),
        counts={name: counts.count(name) for name in COUNTS},
        energy=tuple(costs(name, energy.fields(name)) for name in ENDS),
        area_mm2={name: area.number(name, 0) for name in area.value},
    )


def _layer(row: Fields) -> Layer:
    same = None
    if row.value.get("same_spikes") is not None:
        same = row.number("same_spikes", 0)
    return Layer(
        row.text("name"),
        row.text("kind"),
        row.value.get("recurrent") is True,
        row.count("inputs"),
        row.count("neurons"),
        row.count("weights"),
        row.number("weight_error", 0),
        row.number("decay_error", 0),
        same,
    )


def _proof(file: Fields) -> Proof:
    equal, names = file.value.get("equal"), file.value.get("simulators")
    if equal is not None and not isinstance(equal, bool):
        raise ValueError('"equal" is neither true, false nor null')
    if not isinstance(names, list):
        raise ValueError('"simulators" is no list')
    return Proof(file.count("samples"), tuple(map(str, names)), equal, file.text("reason"))
