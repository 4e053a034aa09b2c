"""Settings of in-memory hardware: which cells, how crossbars are built, how they are trained.

Frozen records, no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from spikebridge.base.records import (
    RENAMED,
    Amount,
    Bound,
    Count,
    Positive,
    Size,
    check_types,
    refuse_unknown,
    require,
)
from spikebridge.settings.names import check_name

CELLS = ("", "pcm", "accumulation", "accumulation-2020", "iterative", "ideal")
if TYPE_CHECKING:
    CellName: TypeAlias = str
else:  # the command line lists these, and takes names of a user's module too
    CellName = Literal[CELLS] | str
Bits = Annotated[int, Bound("[2, 14]", or_zero=True)]
# Largest steps of refreshing, as shares of what pulses can reach: aihwkit's OneSidedUnitCell.
REFRESH_HIGH, REFRESH_LOW = 0.75, 0.25


@dataclass(frozen=True)
class CellConfig:
    """The memory cells that hold the weights; none by default."""

    cells: CellName = ""
    """Model of the memory cells: single SET pulses (accumulation), programming with verification
    (iterative), whichever of these two fits the purpose (pcm), without errors (ideal), or
    mypackage:CELL of your own; empty =
    the one in --cell-table, or else train without hardware, and program with iterative."""
    cell_table: str = ""
    """A CSV file with measured curves of your own cells, instead of --cells: columns g_uS
    (conductance, rising from row to row) and, where it happens, pulse_mean_uS, pulse_sd_uS (change
    by one SET pulse), write_sd_uS (error of programming with verification), read_sd_uS (spread of
    reads), drift_nu, drift_nu_sd (drift exponent)."""
    levels: Annotated[int, Bound("[2, inf)", or_zero=True)] = 0
    """Values that an ideal cell can hold; 0 = any."""

    def __post_init__(self) -> None:
        check_types(self)
        check_name("cells", self.cells, CELLS)
        require(
            self.levels == 0 or self.cells == "ideal",
            f"levels={self.levels}: only ideal cells have levels; pass --cells ideal, or leave "
            "--levels out",
        )
        require(
            not (self.cells and self.cell_table),
            f"cells={self.cells!r}, cell_table={self.cell_table!r}: give one of them",
        )

    @property
    def used(self) -> bool:
        """Whether there are any cells."""
        return bool(self.cells or self.cell_table)


@dataclass(frozen=True)
class CrossbarConfig:
    """How the crossbar of a weight matrix is built."""

    pairs: Size = 1
    """Differential pairs of cells per weight, at least 1."""
    tile: Size = 256
    """Rows and columns of weights on a tile, at least 1; larger matrices take several."""
    w_max: Amount = 0.0
    """The weight that all of a cell's range stands for; 0 = the largest weight of each tile when
    it is programmed, and four root mean squares of a matrix where it is trained on the cells."""
    clip_rms: Amount = 0.0
    """Where above 0, and without --w-max: weights are cut off at so many root mean squares of
    their tile, so that the others use more of the range."""
    dac_bits: Bits = 0
    """Bits of the converters that drive rows, 2 to 14; 0 = exact."""
    adc_bits: Bits = 0
    """Bits of the converters that read columns, 2 to 14; 0 = exact."""
    adc_range: Positive = 10.0
    """Range of the converters of a tile's columns, in products of its largest weight with the
    largest input."""
    wire_ohm: Amount = 0.0
    """Resistance of a column's wire from one cell to the next; 0 = none."""
    dead: Amount = 0.0
    """Share of cells that stay at the lowest conductance, 0 to 1."""
    stuck: Amount = 0.0
    """Share of cells that stay at any conductance, 0 to 1."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.adc_bits > 0 or self.adc_range == CrossbarConfig.adc_range,
            f"adc_range={self.adc_range}: without --adc-bits there are no converters that have a "
            "range; pass --adc-bits 8 too, or leave --adc-range out",
        )
        require(
            not (self.w_max and self.clip_rms),
            f"w_max={self.w_max}, clip_rms={self.clip_rms}: the first sets the range of a tile, "
            "the second takes it from the tile's weights; leave one of them out",
        )
        require(
            self.dead + self.stuck <= 1,
            f"dead={self.dead}, stuck={self.stuck}: together at most 1; pass smaller shares",
        )


@dataclass(frozen=True)
class PulseConfig:
    """How weights are trained on their cells: updates that become programming pulses."""

    epsilon: Amount = 0.0
    """Change of a weight that is worth a pulse when training on the hardware; 0 = what a pulse
    does on average over the lower half of its range."""
    refresh_every: Count = 100
    """Updates between two rounds in which saturated pairs are written anew; 0 = never."""
    step_s: Amount = 1.0
    """Time that an update takes on the hardware."""

    def __post_init__(self) -> None:
        check_types(self)


def changed(*records: Any) -> dict[str, Any]:
    """The settings of records that are not at their defaults, by name."""
    return {
        f.name: value
        for record in records
        for f in dataclasses.fields(record)
        if (value := getattr(record, f.name)) != f.default
    }


def parts_of(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of cells, crossbar and pulses by the part of a config that holds them.

    Raises ConfigError for a setting of none of them.
    """
    parts: dict[str, dict[str, Any]] = {"cells": {}, "crossbar": {}, "pulses": {}}
    where = {
        f.name: part
        for part, kind in zip(parts, (CellConfig, CrossbarConfig, PulseConfig), strict=True)
        for f in dataclasses.fields(kind)
    }
    refuse_unknown(settings, where, "memory")
    for name, value in settings.items():
        parts[where[name]][name] = value
    return parts


def programmed(memory: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a programmed network under their names of today, without those of training."""
    today = {RENAMED.get(name, name): value for name, value in memory.items()}
    pulses = [f.name for f in dataclasses.fields(PulseConfig)]
    return {name: value for name, value in today.items() if name not in pulses}


def renewed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a config with its hardware in three parts, where it was in one, "memory".

    What had no use there is left out: all of it without cells, and `clip_rms` and `adc_range` where
    they did nothing.
    """
    memory = config.get("memory")
    if not isinstance(memory, Mapping):
        return dict(config)
    plain = {part: values for part, values in config.items() if part != "memory"}
    settings: dict[str, Any] = {RENAMED.get(str(name), str(name)): v for name, v in memory.items()}
    if not settings.get("cells") and not settings.get("cell_table"):
        return plain
    settings.pop("clip_rms", None)
    if not settings.get("adc_bits"):
        settings.pop("adc_range", None)
    return plain | parts_of(settings)
