"""What a table of the catalog is made of, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from spikebridge.settings.config import Config, preset
from spikebridge.settings.published import Printed

OURS = "ours; nothing published beside it"


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    unit: str
    """A variant, such as "recurrent-softsnu"."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the entry."""
    name: str = ""
    """Start of the names of its runs' folders; by default the variant."""
    label: str = ""
    """What tables call it; by default the unit's own label."""
    group: str = ""
    """What a comparison of learning rules is about: rows of a group are compared with each other,
    seed by seed."""
    role: Literal["", "plain", "gain", "grapes", "online", "ewc", "si"] = ""
    """What the row is in its group: the rule that it starts from (plain), GRAPES with the mean
    factor for all (gain) or as it is, a rule that learns online, or a method against forgetting
    (ewc, si)."""
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """What is tried for this row on top of the entry's grid, or in its place where names agree."""
    epoch_s: float = 0.0
    """Seconds of an epoch on one core, measured on a few batches or reckoned; 0 = unknown."""


@dataclass(frozen=True)
class Entry:
    """A table or figure that one command makes again."""

    name: str
    title: str
    source: str
    """Where the published one stands."""
    task: str
    data: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What all rows share."""
    printed: tuple[Printed, ...] = ()
    """The lines of a published table that stand below ours."""
    seeds: int = 5
    minutes: float = 0.0
    """What all rows, seeds and trials take on two cores: measured, or reckoned from one run."""
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values that are tried for every row before its runs: the best on validation is taken."""
    trial: Mapping[str, Any] = field(default_factory=dict)
    """What differs in those trials, such as fewer epochs."""
    by_steps: tuple[int, ...] = ()
    """Numbers of time steps at which each run is tested besides; not with --quick."""
    chip: Mapping[str, Any] | None = None
    """Settings of the digital chip that each run is exported to; None: to none."""
    cells: Mapping[str, Any] | None = None
    """Settings of the memory cells that each run is programmed into, in simulated chips; None: into
    none.  Rows that train in the loop have theirs in their settings."""
    quick: Mapping[str, Any] = field(default_factory=lambda: {"epochs": 2})
    """What --quick changes: enough to see that everything works, not what is reached."""

    def config(self, row: Row, *, quick: bool = False) -> Config:
        """The settings of a row."""
        given = {**self.settings, **row.settings, **(self.quick if quick else {})}
        return preset(self.task, row.unit, self.data, **given)


MNIST = partial(Entry, task="digits", data="mnist", quick={"epochs": 1})
JSB = partial(Entry, task="music", data="jsb")
NMNIST = partial(Entry, task="events", data="nmnist", quick={"epochs": 1})
