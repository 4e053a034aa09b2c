"""Tables of forgetting that one command makes: named entries, as data (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from spikebridge.base.records import UsageError, listed
from spikebridge.settings.continual import ContinualConfig, for_unit, override

Role = Literal["plain", "gain", "grapes", "ewc", "si"]


@dataclass(frozen=True)
class ForgettingRow:
    """One way to learn the tasks."""

    name: str
    """Start of the names of its runs' folders."""
    label: str
    """What tables call it."""
    role: Role
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the entry."""
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What is tried for this row on top of the entry's grid."""


@dataclass(frozen=True)
class ForgettingEntry:
    """A table that one command makes again."""

    name: str
    title: str
    source: str
    """Where a published one stands, and what is known of it."""
    rows: tuple[ForgettingRow, ...]
    unit: str = "relu"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What all rows share."""
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What is tried for every row before its runs, rising; the best on validation is taken."""
    trial_seeds: tuple[int, ...] = (1000, 1001)
    """Seeds of the trials; those of the runs are 0, 1, 2, .."""
    seeds: int = 10
    minutes: float = 0.0
    """What all rows and seeds take on two cores with their trials, as measured."""
    quick: Mapping[str, Any] = field(
        default_factory=lambda: {"hidden": (32,), "tasks": 2, "batch_size": 256}
    )
    """What --quick changes: enough to see that everything works, not what is reached."""

    def config(self, row: ForgettingRow, seed: int, *, quick: bool = False) -> ContinualConfig:
        """The settings of a row and seed, which is that of the tasks too."""
        given = {**self.settings, **row.settings, **(self.quick if quick else {})}
        given |= {"seed": seed, "sequence_seed": seed, "threads": 1}
        return override(for_unit(self.unit), **given)


_GRAPES = {"grapes": "propagated"}
_ROWS = (
    ForgettingRow("plain", "backpropagation", "plain"),
    ForgettingRow("gain", "equal gain", "gain", {**_GRAPES, "grapes_control": "gain"}),
    ForgettingRow("grapes", "GRAPES", "grapes", _GRAPES),
    ForgettingRow("ewc", "EWC", "ewc", {"method": "ewc"}, {"strength": (3.0, 30.0, 300.0)}),
    ForgettingRow("si", "SI", "si", {"method": "si"}, {"strength": (0.1, 1.0, 10.0)}),
)
_PAPER = (
    "Dellaferrera et al. 2022, Nature Communications 13 (GRAPES); its numbers are unknown to us"
)

FORGETTING: tuple[ForgettingEntry, ...] = (
    ForgettingEntry(
        name="grapes-forgetting-permuted",
        title="Forgetting: 5 tasks of permuted MNIST, ReLU 784-256-256-10, one pass each",
        source=f"{_PAPER}. Its first public notebook logs 77.00, 86.11, 93.17, 94.09 and 95.36 % "
        "after the last task: one run, with a factor of 2 for every neuron",
        rows=_ROWS,
        settings={"protocol": "permuted", "tasks": 5},
        grid={"lr": (1e-3, 3e-3, 1e-2, 3e-2)},
        minutes=35,
    ),
    ForgettingEntry(
        name="grapes-forgetting-split",
        title="Forgetting: 5 tasks of two digits each, MNIST, ReLU 784-256-256-10, one pass each",
        source=f"{_PAPER}. Outputs are those of the task's own digits (task-incremental)",
        rows=_ROWS,
        settings={"protocol": "split", "tasks": 5, "heads": "masked"},
        grid={"lr": (1e-3, 3e-3, 1e-2, 3e-2)},
        minutes=10,
    ),
)


def find(name: str) -> ForgettingEntry:
    """The entry of a name.  Raises UsageError."""
    for entry in FORGETTING:
        if entry.name == name:
            return entry
    raise UsageError(
        f"{name!r}: there is no such entry; choose one of {listed(e.name for e in FORGETTING)}"
    )
