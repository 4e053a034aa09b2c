"""Counts of events x sourced costs: joules and seconds, each figure with its node and its source.

One `Counts` of a network serves every kind of hardware: `on_crossbar` takes from it what a crossbar
of phase-change memory (PCM) does, `on_digital` what digital logic does.  Each figure is marked:

    published   stands in the source that is named
    derived     arithmetic on such figures; the source says which
    assumed     ours; the source gives the reasoning.  Replace it by your own:
                dataclasses.replace(PCM, read_V=Cost(0.1, "V", 14, "our test chip", "published"))

Figures of different process nodes stand side by side as published, they are not rescaled.  Counted
nowhere: leakage, clock, wires between tiles and memory banks, moving inputs and spikes, amplifiers
in front of converters, the sigmoid of a soft unit.  Memory is charged as banks of 8 KB, the
cheapest there are, which favours digital hardware; what counts `weights_fetched` decides on reuse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace

from spikebridge.base.records import listed

MARKS = ("published", "derived", "assumed")
"""Where a figure comes from, the strongest first."""


def _not_negative(name: str, value: float, remedy: str) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value:g}: it must be finite and not negative; {remedy}")


@dataclass(frozen=True)
class Cost:
    """One figure.

    Args:
        value: in `unit`, finite and not negative.
        unit: "pJ", "ns", "V" or, for a plain number, "1".
        node_nm: process node of what was measured or modelled.
        source: the publication, or the reasoning.
        mark: one of `MARKS`.
    """

    value: float
    unit: str
    node_nm: int
    source: str
    mark: str

    def __post_init__(self) -> None:
        _not_negative("value", self.value, "give the figure as its source has it")
        if self.mark not in MARKS:
            raise ValueError(f"mark={self.mark!r}: it must be one of {listed(MARKS)}; pass one")
        if not (self.source and self.node_nm > 0):
            raise ValueError(f"{self}: a figure has a source and a node; name both")
        if self.unit == "1" and not self.value:
            raise ValueError(f"{self}: 0 at once would take forever; pass 1 or more")


@dataclass(frozen=True)
class Counts:
    """How often each event happens, per inference, per epoch, or whatever the run was.

    Counts of layers add up, `sum(layers, Counts())`, and scale, `counts * samples`.  Count each
    field over the same layers and time steps; a field that is left out is 0.

    Args:
        macs: multiply-accumulates of dense products, what a network without spikes has to do.
        accumulates: additions that spikes cause, one per spike and weight behind it.
        neuron_updates: neurons x time steps.
        cell_reads: cells that carry current in a read; a pair of cells counts twice.
        read_uS: conductances of these cells, summed over all reads, in microsiemens.
        adc_conversions: column currents that are digitised.
        dac_conversions: inputs of several bits that are put on a row.
        row_events: spikes that are put on a row of a tile.
        set_pulses, reset_pulses: programming pulses, of SET and of RESET.
        tile_reads: matrix-vector products that have to wait for each other; tiles that are read
            at the same time count once.
        weights_fetched: weights that dense digital hardware reads from memory, or writes to it in
            training: `macs` of them where none is used twice while it is at hand.

    Raises ValueError for a count that is negative or not finite, and for conductance without cells.
    """

    macs: float = 0.0
    accumulates: float = 0.0
    neuron_updates: float = 0.0
    cell_reads: float = 0.0
    read_uS: float = 0.0
    adc_conversions: float = 0.0
    dac_conversions: float = 0.0
    row_events: float = 0.0
    set_pulses: float = 0.0
    reset_pulses: float = 0.0
    tile_reads: float = 0.0
    weights_fetched: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = float(getattr(self, entry.name))
            _not_negative(entry.name, value, "count the events of a run, or leave it out for 0")
            object.__setattr__(self, entry.name, value)  # plain floats go into JSON
        if self.read_uS and not self.cell_reads:
            raise ValueError(
                f"read_uS={self.read_uS:g} with cell_reads=0: conductance belongs to cells that "
                "are read; count them too"
            )

    @property
    def mean_read_uS(self) -> float:
        """Mean conductance of the cells that are read, in microsiemens; 0 where none is."""
        return self.read_uS / self.cell_reads if self.cell_reads else 0.0

    def __add__(self, other: Counts) -> Counts:
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(**{name: n + getattr(other, name) for name, n in asdict(self).items()})

    def __mul__(self, factor: float) -> Counts:
        _not_negative("factor", factor, "multiply by a number of runs")
        return Counts(**{name: n * factor for name, n in asdict(self).items()})

    __rmul__ = __mul__


@dataclass(frozen=True)
class CostRow:
    """A line of the table: energy_pJ = count x unit_pJ."""

    part: str
    count: float
    unit_pJ: float
    node_nm: int
    source: str
    mark: str
    energy_pJ: float

    @classmethod
    def of(cls, part: str, count: float, cost: Cost) -> CostRow:
        """So many times a cost."""
        energy = count * cost.value
        return cls(part, float(count), cost.value, cost.node_nm, cost.source, cost.mark, energy)

    def plus(self, other: CostRow) -> CostRow:
        """Both together, of the same part and source."""
        count, energy = self.count + other.count, self.energy_pJ + other.energy_pJ
        # Means differ from run to run; equal unit costs stay as they are, free of rounding.
        alike = self.unit_pJ == other.unit_pJ or not count
        unit = self.unit_pJ if alike else energy / count
        return replace(self, count=count, unit_pJ=unit, energy_pJ=energy)


@dataclass(frozen=True)
class Energy:
    """What a run costs.  Iterating gives the rows of its table, one per part and source.

    Costs of layers and of stages add up, `sum(layers, Energy())`: energies, and times in seconds,
    as of one after the other.
    """

    rows: tuple[CostRow, ...] = ()
    seconds_s: float = 0.0

    @property
    def parts_pJ(self) -> Mapping[str, float]:
        """Energy of each part, in picojoules, in the order of the table."""
        parts: dict[str, float] = {}
        for row in self.rows:
            parts[row.part] = parts.get(row.part, 0.0) + row.energy_pJ
        return parts

    @property
    def total_pJ(self) -> float:
        """Energy of all parts, in picojoules."""
        return math.fsum(row.energy_pJ for row in self.rows)

    @property
    def total_J(self) -> float:
        """Energy of all parts, in joules."""
        return self.total_pJ * 1e-12

    def __iter__(self) -> Iterator[CostRow]:
        return iter(self.rows)

    def __add__(self, other: Energy) -> Energy:
        if not isinstance(other, Energy):
            return NotImplemented
        merged: dict[tuple[str, int, str, str], CostRow] = {}
        for row in (*self.rows, *other.rows):
            key = (row.part, row.node_nm, row.source, row.mark)
            merged[key] = merged[key].plus(row) if key in merged else row
        return Energy(tuple(merged.values()), self.seconds_s + other.seconds_s)


HOROWITZ = "Horowitz, Computing's energy problem, ISSCC 2014, 45 nm at 0.9 V"
ISAAC = "ISAAC (Shafiee et al., ISCA 2016, Table I, 32 nm, cycle of 100 ns)"
LEE = "Lee et al., ISCA 2009, as transcribed in the PCRAM sample cell of NVSim, 90 nm"
OPERATIONS: Mapping[str, Cost] = {
    name: Cost(value_pJ, "pJ", 45, HOROWITZ, "published")
    for name, value_pJ in {
        "int8 multiplication": 0.2,
        "int32 addition": 0.1,
        "int32 multiplication": 3.1,
        "fp32 addition": 0.9,
        "fp32 multiplication": 3.7,
        "64 bits of 8 KB SRAM": 10.0,
    }.items()
}
"""Operations of digital logic, from which the costs of a network's events are put together."""

CHIP_MAC_PJ = Cost(
    2 / 9.76,
    "pJ",
    14,
    "whole PCM chip, 8-bit inputs and outputs, low-precision read mode: 9.76 TOPS/W (Le Gallo et "
    "al., Nature Electronics 2023), two operations per multiply-accumulate",
    "derived",
)
"""A multiply-accumulate of a chip that was built, to hold the sum of our parts against."""


@dataclass(frozen=True)
class CrossbarCosts:
    """What events cost on a crossbar of PCM; the ending of a name is the unit of its `Cost`.

    A cell that is read costs read_V ^ 2 x its conductance x read_ns.
    """

    read_V: Cost  # voltage on a row
    read_ns: Cost  # until the next read, during which converters and neurons do their work
    row_event_pJ: Cost  # driving one row with a spike
    dac_pJ: Cost  # driving one row with an input of several bits
    adc_pJ: Cost  # digitising the current of one column
    partial_sum_pJ: Cost  # adding that to the sum of a neuron
    neuron_update_pJ: Cost  # one neuron in one time step, in digital logic next to the tile
    set_pulse_pJ: Cost  # programming one cell once
    set_pulse_ns: Cost
    reset_pulse_pJ: Cost
    reset_pulse_ns: Cost
    pulses_at_once: Cost  # cells that are programmed at the same time


@dataclass(frozen=True)
class DigitalCosts:
    """What events cost in digital logic; the ending of a name is the unit of its `Cost`."""

    mac_pJ: Cost  # one multiplication and one addition
    accumulate_pJ: Cost  # one addition of a weight to a sum
    weight_fetch_pJ: Cost  # one weight from memory, or to it
    neuron_update_pJ: Cost  # one neuron in one time step, its state from memory and back
    cycle_ns: Cost  # time of one operation
    lanes: Cost  # operations at the same time


def _sum(what: str, times: Mapping[str, float]) -> Cost:
    """The cost of so many times each of `OPERATIONS`."""
    value = math.fsum(n * OPERATIONS[name].value for name, n in times.items())
    terms = " + ".join(f"{n:g} x {name}" for name, n in times.items())
    return Cost(value, "pJ", 45, f"{what} = {terms}; {HOROWITZ}", "derived")


def _update(kind: str) -> Cost:
    # A comparison is a subtraction, a write costs what a read costs, a gate needs no arithmetic.
    what = "decay, addition of the drive, comparison; 32 bits of state read and written"
    times = {f"{kind} multiplication": 1, f"{kind} addition": 2, "64 bits of 8 KB SRAM": 1}
    return _sum(what, times)


def _digital(bits: int, multiplication: str, kind: str) -> DigitalCosts:
    """Weights of so many bits; sums and states are of a kind that has 32."""
    word = f"{bits} bits, of a word that is used whole"
    clock = "component tables of 40 nm (Aladdin, Accelergy) list adders and multipliers at 1 ns"
    lanes = "as many operations at once as a tile of ISAAC has columns, so that both work in step"
    return DigitalCosts(
        mac_pJ=_sum("product and sum", {multiplication: 1, f"{kind} addition": 1}),
        accumulate_pJ=_sum("sum", {f"{kind} addition": 1}),
        weight_fetch_pJ=_sum(word, {"64 bits of 8 KB SRAM": bits / 64}),
        neuron_update_pJ=_update(kind),
        cycle_ns=Cost(1.0, "ns", 45, clock, "assumed"),
        lanes=Cost(128, "1", 45, lanes, "assumed"),
    )


def _adc(bits: int) -> Cost:
    value = 2.0 / 1.28  # mW / GS/s
    source = f"8 bits at 1.28 GS/s, 16 mW for 8 converters: 2 mW / 1.28 GS/s; {ISAAC}"
    if bits == 8:
        return Cost(value, "pJ", 32, source, "derived")
    # Walden's factor of 2 per bit would promise too much below 8 bits: the decisions, one per bit,
    # of a 4-bit converter still cost half.
    value *= bits / 8 if bits < 8 else 2.0 ** (bits - 8)
    rule = "in proportion to the bits below 8, doubled by each bit above"
    return Cost(value, "pJ", 32, f"{bits} bits, {rule}; from {source}", "assumed")


def _pulse(kind: str, current_uA: float, time_ns: float, volts: float, note: str) -> Cost:
    value = current_uA * time_ns * volts * 1e-3  # uA x ns x V = fJ
    given = f"{kind}: {current_uA:g} uA for {time_ns:g} ns ({LEE})"
    ours = f"{volts:g} V, which the {value:g} pJ implies that is often quoted for this cell"
    return Cost(value, "pJ", 90, f"{given} at {ours}; {note}", "assumed")


def pcm(adc_bits: int = 8, dac_bits: int = 8) -> CrossbarCosts:
    """A crossbar of PCM cells (90 nm) with converters (32 nm) and digital neurons (45 nm).

    Raises ValueError for converters that do not have 1 to 14 bits.
    """
    for name, bits in (("adc_bits", adc_bits), ("dac_bits", dac_bits)):
        if not 1 <= bits <= 14:
            raise ValueError(f"{name}={bits}: converters have 1 to 14 bits; pass one of these")
    row_pJ = 4.0 / 1024 * 100.0  # mW x ns = pJ
    row = f"4 mW for 1024 drivers of 1 bit, over one cycle; {ISAAC}"
    multi_bit = f"as {dac_bits} drives of 1 bit, for want of a figure; {row}"
    read_V = "well below threshold switching, in the usual range of 0.1 to 0.4 V"
    read_ns = "t_read of PCMLikeNoiseModel in IBM's aihwkit, fitted to an array in 90 nm"
    at_once = "one cell after the other: an upper bound, rows of cells need a larger supply"
    return CrossbarCosts(
        read_V=Cost(0.2, "V", 90, read_V, "assumed"),
        read_ns=Cost(250.0, "ns", 90, read_ns, "published"),
        row_event_pJ=Cost(row_pJ, "pJ", 32, row, "derived"),
        dac_pJ=Cost(row_pJ * dac_bits, "pJ", 32, multi_bit, "assumed"),
        adc_pJ=_adc(adc_bits),
        partial_sum_pJ=_sum("sum", {"int32 addition": 1}),
        neuron_update_pJ=_update("int32"),
        set_pulse_pJ=_pulse("SET", 150, 150, 0.6, "crystallises a whole cell; steps cost less"),
        set_pulse_ns=Cost(150.0, "ns", 90, LEE, "published"),
        reset_pulse_pJ=_pulse("RESET", 300, 40, 1.6, "melts the cell"),
        reset_pulse_ns=Cost(40.0, "ns", 90, LEE, "published"),
        pulses_at_once=Cost(1, "1", 90, at_once, "assumed"),
    )


PCM = pcm()
FP32_45NM = _digital(32, "fp32 multiplication", "fp32")
INT8_45NM = _digital(8, "int8 multiplication", "int32")


def on_crossbar(counts: Counts, costs: CrossbarCosts = PCM) -> Energy:
    """Inference, or the reads and pulses of training, on a crossbar.

    Products happen in the cells: macs, accumulates and weights_fetched cost nothing here.  What
    training computes beside the crossbar is an `on_digital` of its own, to be added.
    """
    per_uS_pJ = costs.read_V.value**2 * costs.read_ns.value * 1e-3  # V^2 x uS x ns = fJ
    ours = "assumed" if "assumed" in (costs.read_V.mark, costs.read_ns.mark) else "derived"
    source = f"V^2 G t with V: {costs.read_V.source}; t: {costs.read_ns.source}"
    cell = Cost(per_uS_pJ * counts.mean_read_uS, "pJ", costs.read_V.node_nm, source, ours)
    rows = (
        CostRow.of("cell reads", counts.cell_reads, cell),
        CostRow.of("row drivers", counts.row_events, costs.row_event_pJ),
        CostRow.of("digital-to-analogue", counts.dac_conversions, costs.dac_pJ),
        CostRow.of("analogue-to-digital", counts.adc_conversions, costs.adc_pJ),
        CostRow.of("partial sums", counts.adc_conversions, costs.partial_sum_pJ),
        CostRow.of("neuron updates", counts.neuron_updates, costs.neuron_update_pJ),
        CostRow.of("SET pulses", counts.set_pulses, costs.set_pulse_pJ),
        CostRow.of("RESET pulses", counts.reset_pulses, costs.reset_pulse_pJ),
    )
    pulses_ns = counts.set_pulses * costs.set_pulse_ns.value
    pulses_ns += counts.reset_pulses * costs.reset_pulse_ns.value
    reads_ns = counts.tile_reads * costs.read_ns.value
    return Energy(rows, (reads_ns + pulses_ns / costs.pulses_at_once.value) * 1e-9)


def on_digital(counts: Counts, costs: DigitalCosts, *, sparse: bool) -> Energy:
    """The same network in digital logic.

    Args:
        sparse: event-driven: each spike fetches the weights behind it anew and adds them, so that
            every one of `accumulates` is a fetch and an addition.  Otherwise all products are
            computed, `macs`, and `weights_fetched` is what they take from memory.  A layer whose
            inputs are not spikes is never sparse; take it by itself and add the two.
    """
    if sparse:
        products = fetched = counts.accumulates
        sums = CostRow.of("accumulates", products, costs.accumulate_pJ)
    else:
        products, fetched = counts.macs, counts.weights_fetched
        sums = CostRow.of("multiply-accumulates", products, costs.mac_pJ)
    rows = (
        sums,
        CostRow.of("weight memory", fetched, costs.weight_fetch_pJ),
        CostRow.of("neuron updates", counts.neuron_updates, costs.neuron_update_pJ),
    )
    operations = products + counts.neuron_updates
    return Energy(rows, operations / costs.lanes.value * costs.cycle_ns.value * 1e-9)


def constants() -> tuple[tuple[str, float, str, int, str, str], ...]:
    """Every figure of this module: (name, value, unit, node in nm, source, mark), for documents."""
    tables: dict[str, Mapping[str, Cost]] = {"operation": OPERATIONS}
    for name, costs in (("PCM", PCM), ("FP32_45NM", FP32_45NM), ("INT8_45NM", INT8_45NM)):
        tables[name] = {entry.name: getattr(costs, entry.name) for entry in fields(costs)}
    tables["reference"] = {"multiply-accumulate of a PCM chip": CHIP_MAC_PJ}
    return tuple(
        (f"{table}: {name}", cost.value, cost.unit, cost.node_nm, cost.source, cost.mark)
        for table, costs in tables.items()
        for name, cost in costs.items()
    )
