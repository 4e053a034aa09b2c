"""Figures of 40 nm CMOS: memory macros, and the parts of a datapath.

Memory: `MACROS`, a run of CACTI 7.0.3 at 40 nm and 300 K.  That is a model, not silicon, and the
transistor decks of the ITRS that it computes with were forecasts: energies of the three span a
factor of two, leakage one of fifteen thousand.  Three decks are a range, not a measurement.

Logic: `LOGIC`, from the component tables of Aladdin ("normalised to a commercial 40g") and from
Horowitz's talk (45 nm).  Aladdin names no width for its adder and multiplier; 32 bits are inferred
from its comparator.  Widths scale: an adder, a comparator and a register in proportion to the bits,
a multiplier to the product of its two widths.  Nodes do not: what stands at 45 nm is used as it is,
at 40 nm it would be some tenth less, far less than sources differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from spikebridge.energy.costs import HOROWITZ, Cost

NODE_NM = 40
CACTI = (
    "CACTI 7.0.3 (HewlettPackard), ram, 1 RW port, 40 nm, 300 K, wires, ED^2 objective and all "
    "else as in the cache.cfg that comes with it"
)
ALADDIN = "Aladdin, power_func.h, components of 32 bits normalised to a commercial 40g"

CONTROL_BITS = Cost(
    128, "1", NODE_NM, "state, layer, chunk, event, address: some 8 counters of 16 bits", "assumed"
)
"""Flip-flops beside those of the lanes and the queue."""


@dataclass(frozen=True)
class Macro:
    """A memory macro with one port for reading and writing; an access takes a whole word.

    All figures are of `CACTI`, hence "derived"; energies in picojoules per access, leakage in
    milliwatts, area in square millimetres with its decoders and sense amplifiers.
    """

    deck: str
    kilobytes: int
    word_bits: int
    area_mm2: float
    read_pJ: float
    write_pJ: float
    leak_mW: float
    access_ns: float

    @property
    def words(self) -> int:
        """Words that it holds."""
        return self.kilobytes * 8192 // self.word_bits

    def __str__(self) -> str:
        return f"{self.kilobytes} KB x {self.word_bits} bits, {self.deck}"


# (KB, bits, area in mm2), the area the same for all decks within 0.1 %, but for two of 64 bits that
# CACTI folds differently (the largest is given): read pJ, write pJ, leak mW and access ns by deck.
# fmt: off
_RUN: Mapping[tuple[int, int, float], tuple[float, ...]] = {
    (1, 64, 0.00319): (1.27, 2.6, 0.41, 0.19, 0.68, 1.24, 0.031, 0.42, 1.52, 3.17, 2.8e-5, 0.74),
    (8, 64, 0.0233): (4.87, 5.89, 3.4, 0.26, 2.85, 2.84, 0.26, 0.59, 5.78, 7.29, 2.3e-4, 1.00),
    (8, 256, 0.0277): (8.58, 19.5, 3.4, 0.26, 4.86, 9.52, 0.26, 0.59, 11.2, 24.8, 2.3e-4, 1.00),
    (32, 64, 0.0994): (13.9, 11.5, 12.6, 0.39, 6.50, 4.92, 0.95, 0.88, 13.8, 12.8, 8.5e-4, 1.41),
    (32, 256, 0.0925): (20.6, 38.2, 12.6, 0.39, 12.3, 18.7, 0.95, 0.86, 26.2, 48.7, 8.5e-4, 1.35),
    (128, 64, 0.447): (23.8, 18.0, 46.0, 0.77, 12.0, 9.59, 3.5, 1.36, 30.4, 24.4, 3.1e-3, 1.97),
    (128, 256, 0.426): (53.1, 61.6, 46.0, 0.69, 31.3, 31.4, 3.5, 1.27, 71.5, 84.1, 3.1e-3, 1.93),
}
# fmt: on
DECKS = ("itrs-hp", "itrs-lop", "itrs-lstp")
"""High performance, low operating power, low standby power."""
MACROS: Mapping[str, Mapping[tuple[int, int], Macro]] = {
    deck: {
        (kilobytes, word): Macro(deck, kilobytes, word, area, *figures[start : start + 4])
        for (kilobytes, word, area), figures in _RUN.items()
    }
    for start, deck in zip((0, 4, 8), DECKS, strict=True)
}
"""Deck -> (kilobytes, bits of a word) -> macro."""


@dataclass(frozen=True)
class Component:
    """A figure that stands for so many bits, and how it scales to others."""

    cost: Cost
    bits: int

    def wide(self, bits: int) -> Cost:
        """In proportion to the bits."""
        return self._scaled(bits / self.bits, f"x {bits}/{self.bits}")

    def product(self, first: int, second: int) -> Cost:
        """Of a multiplier, in proportion to the product of its widths."""
        how = f"x ({first} x {second})/({self.bits} x {self.bits})"
        return self._scaled(first * second / self.bits**2, how)

    def _scaled(self, factor: float, how: str) -> Cost:
        cost = self.cost
        source = f"{cost.value:g} {cost.unit} {how}; {cost.source}"
        value = cost.value * factor
        return cost if factor == 1 else replace(cost, value=value, source=source, mark="derived")


@dataclass(frozen=True)
class Logic:
    """What the parts of a datapath cost: energy per operation, leakage, area."""

    addition: Component
    comparison: Component
    multiplication: Component
    flip_flop: Component  # one bit in one cycle, clocked
    adder_leak: Component
    multiplier_leak: Component
    flip_flop_leak: Component
    adder_area: Component
    multiplier_area: Component
    flip_flop_area: Component


def _aladdin(value: float, unit: str, bits: int = 32, at: str = "1 to 6 ns") -> Component:
    return Component(Cost(value, unit, NODE_NM, f"{ALADDIN}, at {at}", "published"), bits)


ADDITIONS: Mapping[str, Component] = {
    "Aladdin at 5 ns": _aladdin(0.0857, "pJ", at="5 ns"),
    "Horowitz, int16": Component(Cost(0.05, "pJ", 45, HOROWITZ, "published"), 16),
    "Horowitz, int32": Component(Cost(0.1, "pJ", 45, HOROWITZ, "published"), 32),
    "Aladdin at 1 ns": _aladdin(0.21, "pJ", at="1 ns"),
}
"""What the sources say of an adder, from the least energy per bit to the most."""
MULTIPLICATIONS: Mapping[str, Component] = {
    "Horowitz, int8": Component(Cost(0.2, "pJ", 45, HOROWITZ, "published"), 8),
    "Aladdin at 5 ns": _aladdin(8.63, "pJ", at="5 ns"),
    "Aladdin at 1 ns": _aladdin(12.68, "pJ", at="1 ns"),
}
"""What the sources say of a multiplier, from the least energy to the most."""


def _logic(addition: str, multiplication: str, slow: bool) -> Logic:
    at = "5 ns" if slow else "1 ns"
    return Logic(
        addition=ADDITIONS[addition],
        comparison=_aladdin(0.0290 if slow else 0.0295, "pJ", at=at),
        multiplication=MULTIPLICATIONS[multiplication],
        flip_flop=_aladdin(0.009, "pJ", bits=1),
        adder_leak=_aladdin(2.38e-3 if slow else 2.25e-3, "mW", at=at),
        multiplier_leak=_aladdin(0.0482 if slow else 0.0779, "mW", at=at),
        flip_flop_leak=_aladdin(7.40e-5, "mW", bits=1),
        adder_area=_aladdin(179.0 if slow else 278.0, "um2", at=at),
        multiplier_area=_aladdin(4600.0 if slow else 6350.0, "um2", at=at),
        flip_flop_area=_aladdin(5.98, "um2", bits=1),
    )


LOGIC: Mapping[str, Logic] = {
    "low": _logic("Aladdin at 5 ns", "Horowitz, int8", slow=True),
    "nominal": _logic("Aladdin at 5 ns", "Horowitz, int8", slow=True),
    "high": _logic("Aladdin at 1 ns", "Aladdin at 1 ns", slow=False),
}
"""Nominal is the adder of the same node at the cycle of the same length, 5 ns for 200 MHz, which is
also the lowest of the sources; and the multiplier that is published for 8 bits, which needs no
scaling where a dense baseline multiplies 8 by 8, and favours that baseline: Aladdin's, scaled,
takes 2.7 to 4 times as much."""

YIN = "Yin et al., BioCAS 2017, arXiv 1709.06206, abstract"
PUBLISHED: Mapping[str, Cost] = {
    name: Cost(value, unit, NODE_NM, YIN, "published")
    for name, value, unit in (
        ("MNIST, least energy per image", 48.4, "nJ"),
        ("MNIST, most energy per image", 773.0, "nJ"),
        ("MNIST, accuracy more than", 98.0, "%"),
    )
}
"""A chip designed for binary activations, to stand beside ours.  Which network and which accuracy
belong to which energy is unknown to us, as are its clock, its voltage and its memories: we hold
our figures against it and calibrate nothing to it."""


def constants() -> tuple[tuple[str, float, str, int, str, str], ...]:
    """Every figure of this module, as `spikebridge.energy.costs.constants` gives them."""
    rows: list[tuple[str, float, str, int, str, str]] = []
    for macros in MACROS.values():
        for macro in macros.values():
            for name in ("read_pJ", "write_pJ", "leak_mW", "access_ns", "area_mm2"):
                unit = name.rpartition("_")[2]
                value = getattr(macro, name)
                rows.append((f"{macro}: {name}", value, unit, NODE_NM, CACTI, "derived"))
    slow, fast = LOGIC["nominal"], LOGIC["high"]
    figures = {f"addition, {name}": part.cost for name, part in ADDITIONS.items()}
    figures |= {f"multiplication, {name}": part.cost for name, part in MULTIPLICATIONS.items()}
    for name in ("flip_flop", "flip_flop_leak", "flip_flop_area"):
        words = name.replace("_", "-", 1).replace("_", " ")
        figures[f"{words} of 1 bit"] = getattr(slow, name).cost
    for name in ("comparison", "adder_leak", "multiplier_leak", "adder_area", "multiplier_area"):
        for at, logic in (("5 ns", slow), ("1 ns", fast)):
            figures[f"{name.replace('_', ' ')}, Aladdin at {at}"] = getattr(logic, name).cost
    own = {"flip-flops of control": CONTROL_BITS}
    for name, cost in (figures | dict(PUBLISHED) | own).items():
        rows.append((name, cost.value, cost.unit, cost.node_nm, cost.source, cost.mark))
    return tuple(rows)
