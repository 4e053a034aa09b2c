"""Settings of in-memory hardware, as a frozen record (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikebridge.base.records import at_least, check_types, require

# Largest steps of refreshing, as shares of what pulses can reach: aihwkit's OneSidedUnitCell.
REFRESH_HIGH, REFRESH_LOW = 0.75, 0.25


@dataclass(frozen=True)
class MemoryConfig:
    """The in-memory hardware that holds the weights while they are trained; none by default."""

    device: Literal["", "pcm", "accumulation", "accumulation-2020", "iterative", "ideal"] = ""
    """Model of the memory cells: single SET pulses (accumulation), programming with verification
    (iterative), whichever of these two fits the purpose (pcm), or without errors (ideal); empty =
    the one in --device-table, or else train without hardware, and program with iterative."""
    device_table: str = ""
    """A CSV file with measured curves of your own device, instead of --device: columns g_uS
    (conductance, rising from row to row) and, where it happens, pulse_mean_uS, pulse_sd_uS (change
    by one SET pulse), write_sd_uS (error of programming with verification), read_sd_uS (spread of
    reads), drift_nu, drift_nu_sd (drift exponent)."""
    levels: int = 0
    """Values that a cell of the ideal device can hold; 0 = any."""
    pairs: int = 1
    """Differential pairs of cells per weight, at least 1."""
    tile: int = 256
    """Rows and columns of weights on a tile, at least 1; larger matrices take several."""
    w_max: float = 0.0
    """The weight that all of a cell's range stands for; 0 = the largest weight of each tile when
    it is programmed, and four root mean squares of a matrix where it is trained on the cells."""
    clip_rms: float = 0.0
    """Where above 0, and without --w-max: weights are cut off at so many root mean squares of
    their tile, so that the others use more of the range."""
    dac_bits: int = 0
    """Bits of the converters that drive rows, 2 to 14; 0 = exact."""
    adc_bits: int = 0
    """Bits of the converters that read columns, 2 to 14; 0 = exact."""
    adc_range: float = 10.0
    """Range of the converters of a tile's columns, in products of its largest weight with the
    largest input."""
    wire_ohm: float = 0.0
    """Resistance of a column's wire from one cell to the next; 0 = none."""
    dead: float = 0.0
    """Share of cells that stay at the lowest conductance, 0 to 1."""
    stuck: float = 0.0
    """Share of cells that stay at any conductance, 0 to 1."""
    epsilon: float = 0.0
    """Change of a weight that is worth a pulse when training on the hardware; 0 = what a pulse
    does on average over the lower half of its range."""
    refresh_every: int = 100
    """Updates between two rounds in which saturated pairs are written anew; 0 = never."""
    step_s: float = 1.0
    """Time that an update takes on the hardware."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "1", "pairs", "tile")
        at_least(
            self,
            0,
            "0",
            "w_max",
            "clip_rms",
            "wire_ohm",
            "dead",
            "stuck",
            "epsilon",
            "refresh_every",
            "step_s",
        )
        for name in ("dac_bits", "adc_bits"):
            bits, flag = getattr(self, name), name.replace("_", "-")
            require(
                bits == 0 or 2 <= bits <= 14,
                f"{name}={bits}: a converter has 2 to 14 bits; pass --{flag} 8, or 0 for none",
            )
        require(self.adc_range > 0, f"adc_range={self.adc_range}: it must be above 0; pass 10")
        require(
            self.dead + self.stuck <= 1,
            f"dead={self.dead}, stuck={self.stuck}: together at most 1; pass smaller shares",
        )
        require(
            self.levels == 0 or self.levels >= 2,
            f"levels={self.levels}: a cell holds 2 or more; pass --levels 16, or 0 for any",
        )
        require(
            self.levels == 0 or self.device == "ideal",
            f"levels={self.levels}: only the ideal device has levels; pass --device ideal, or "
            "leave --levels out",
        )
        require(
            not (self.device and self.device_table),
            f"device={self.device!r}, device_table={self.device_table!r}: give one of them",
        )

    @property
    def used(self) -> bool:
        """Whether there is any hardware."""
        return bool(self.device or self.device_table)
