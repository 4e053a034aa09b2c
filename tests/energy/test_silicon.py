"""The cost of the digital chip: sums by hand, laws, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebridge import energy as silicon
from spikebridge.chip.program import ChipConfig, ChipCounts, Program, ProgramLayer, SlowState
from spikebridge.energy.costs import MARKS, Energy
from spikebridge.energy.figures import ADDITIONS, LOGIC, MACROS, MULTIPLICATIONS

LOP = "itrs-lop"


def program(sizes=(4, 3, 2), decay=0, slope=0, reset="gate", slow=False, **chip) -> Program:
    """Dense layers of weights 0; membranes of 20 bits, factors of 8, slow states of 12."""
    layers = []
    for number, (inputs, neurons) in enumerate(pairwise(sizes)):
        zeros = np.zeros(neurons, np.int64)
        readout = number == len(sizes) - 2
        layers.append(
            ProgramLayer(
                name=f"layer {number}",
                weight=np.zeros((inputs, neurons), np.int32),
                bias=zeros,
                threshold=zeros,
                decay=zeros + (256 if readout else decay),
                amount=zeros,
                scale=np.ones(neurons),
                inputs=inputs,
                reset=reset,
                slope=slope,
                reduce="last" if readout else None,
                slow=SlowState("oscillation", 12, *[zeros] * 3) if slow and not readout else None,
            )
        )
    hardware = ChipConfig(**({"lanes": 4} | chip))
    return Program(tuple(layers), hardware.weight_bits, 8, 0, 20, 1, hardware).check()


SMALL = program()
BIG = program((784, 256, 256, 10), lanes=64)
SOME = ChipCounts(
    samples=1,
    steps=1,
    input_events=3,
    spikes=2,
    weight_reads=5,
    additions=15,
    membrane_reads=2,
    membrane_writes=3,
    parameter_reads=2,
    event_reads=5,
    event_writes=6,
    updates=5,
    outputs=2,
    cycles=100,
)


def test_a_small_chip_by_hand() -> None:
    """Every memory fits into macros of 1 KB x 64 bits, 0.68 pJ a read and 1.24 pJ a write."""
    energy = silicon.on_chip(SOME, SMALL, LOP, 200.0)
    # 4 lanes x (20 + 8 + 1), 64 words of 3 bits and a mark, 128 of control.
    flip_flops = 4 * 29 + 64 * 4 + 128
    adder_mW = 2.38e-3 * 20 / 32
    assert energy.seconds_s == pytest.approx(500e-9)
    assert energy.parts_pJ == pytest.approx(
        {
            "weight memory reads": 5 * 0.68,  # rows of 32 bits
            "membrane memory reads": 2 * 2 * 0.68,  # 80 bits: 2 macros at once
            "membrane memory writes": 3 * 2 * 1.24,
            "parameter memory reads": 2 * 5 * 0.68,  # 4 x (3 x 20 + 9) = 276 bits
            "event memory reads": 5 * 0.68,
            "event memory writes": 6 * 1.24,
            "additions": (15 + 5) * 0.0857 * 20 / 32,  # a bias for each update
            "comparisons": 5 * 0.029 * 20 / 32,
            "registers and clock": flip_flops * 100 * 0.009,
            "leakage of memories": (1 + 2 + 5 + 1) * 0.031 * 500,  # mW x ns = pJ
            "leakage of logic": (4 * 3 * adder_mW + flip_flops * 7.4e-5) * 500,
        }
    )
    assert energy.total_J == pytest.approx(sum(energy.parts_pJ.values()) * 1e-12)


def test_only_what_a_program_needs_is_charged() -> None:
    plain = silicon.on_chip(SOME, SMALL).parts_pJ
    assert "multiplications" not in plain
    assert not SMALL.multiplies
    subtracting = silicon.on_chip(SOME, program(reset="subtract")).parts_pJ
    assert subtracting["additions"] == pytest.approx(plain["additions"] * 25 / 20)
    decaying = silicon.on_chip(SOME, program(decay=200)).parts_pJ
    product_pJ = 0.2 * (20 * 9) / (8 * 8)
    assert decaying["multiplications"] == pytest.approx(5 * product_pJ)
    both = silicon.on_chip(SOME, program(decay=200, slope=10)).parts_pJ
    assert both["multiplications"] == pytest.approx(10 * product_pJ)
    turning = silicon.on_chip(replace(SOME, slow_updates=3), program(slow=True)).parts_pJ
    assert turning["multiplications"] == pytest.approx(2 * 3 * product_pJ)
    added = 3 * 3 * 0.0857 * 20 / 32
    assert turning["additions"] == pytest.approx(plain["additions"] + added)
    assert turning["slow memory reads"] == turning["slow parameter memory reads"] == 0
    assert both["leakage of logic"] > decaying["leakage of logic"] > plain["leakage of logic"]


def test_the_clock_is_the_programs_unless_another_is_given() -> None:
    slow = program(clock_MHz=50.0)
    assert silicon.on_chip(SOME, slow).seconds_s == pytest.approx(2e-6)
    assert silicon.on_chip(SOME, slow, clock_MHz=100.0).seconds_s == pytest.approx(1e-6)
    faster, as_is = silicon.on_chip(SOME, slow, clock_MHz=100.0), silicon.on_chip(SOME, slow)
    for part, energy_pJ in as_is.parts_pJ.items():
        share = 0.5 if part.startswith("leakage") else 1.0
        assert faster.parts_pJ[part] == pytest.approx(share * energy_pJ)


@pytest.mark.parametrize(
    ("rows", "bits", "bank_KB", "macro", "columns", "deep"),
    [
        (1, 1, 32, (1, 64), 1, 1),
        (128, 64, 32, (1, 64), 1, 1),
        (129, 64, 32, (8, 64), 1, 1),
        (128, 65, 32, (1, 64), 2, 1),
        (129, 65, 32, (8, 256), 1, 1),  # three rows share a word
        (3 * 256 + 1, 65, 32, (32, 256), 1, 1),
        (1306, 11, 32, (8, 64), 1, 1),  # five rows share a word
        (4416, 512, 32, (32, 256), 2, 5),
        (4416, 512, 8, (8, 256), 2, 18),
        (4416, 512, 128, (128, 256), 2, 2),
    ],
)
def test_memories_are_whole_macros(rows, bits, bank_KB, macro, columns, deep) -> None:
    built = silicon.sram(rows, bits, LOP, bank_KB)
    assert built.macro == MACROS[LOP][macro]
    assert (built.columns, built.deep) == (columns, deep)
    assert built.leak_mW == pytest.approx(columns * deep * built.macro.leak_mW)


@given(
    rows=st.integers(1, 1 << 20),
    bits=st.integers(1, 1 << 14),
    bank_KB=st.sampled_from(silicon.BANKS_KB),
)
def test_memories_hold_what_they_have_to(rows: int, bits: int, bank_KB: int) -> None:
    built = silicon.sram(rows, bits, LOP, bank_KB)
    macro = built.macro
    assert (built.columns - 1) * macro.word_bits < bits <= built.columns * macro.word_bits
    shared = max(1, macro.word_bits // bits)
    assert rows <= built.deep * macro.words * shared
    assert (built.deep - 1) * macro.words * shared < rows
    assert macro.kilobytes <= bank_KB
    assert built.macros * macro.kilobytes * 8192 >= rows * bits


def test_decks_are_ordered_as_in_their_table() -> None:
    for size, lop in MACROS[LOP].items():
        hp, lstp = MACROS["itrs-hp"][size], MACROS["itrs-lstp"][size]
        assert lop.read_pJ < min(hp.read_pJ, lstp.read_pJ)
        assert lop.write_pJ < min(hp.write_pJ, lstp.write_pJ)
        assert hp.leak_mW > lop.leak_mW > lstp.leak_mW
        assert hp.access_ns < lop.access_ns < lstp.access_ns < 2.0
    moving = replace(SOME, cycles=0)
    hp, lop, lstp = (silicon.on_chip(moving, BIG, deck) for deck in silicon.DECKS)
    assert lop.total_pJ < hp.total_pJ < lstp.total_pJ
    waiting = ChipCounts(cycles=1000)
    hp, lop, lstp = (silicon.on_chip(waiting, BIG, deck) for deck in silicon.DECKS)
    assert hp.total_pJ > lop.total_pJ > lstp.total_pJ


NUMBERS = st.integers(0, 1 << 40)
COUNTS = st.builds(ChipCounts, **{entry.name: NUMBERS for entry in fields(ChipCounts)})
PROGRAMS = [
    SMALL,
    BIG,
    program((30, 20, 5), decay=3, slope=7, reset="subtract", weight_bits=4),
    program(decay=3, slow=True),
]
programs = pytest.mark.parametrize("of", PROGRAMS, ids=["small", "big", "leaky", "slow"])


@programs
@given(one=COUNTS, other=COUNTS)
def test_energies_of_parts_of_a_run_add_up(of: Program, one: ChipCounts, other: ChipCounts) -> None:
    together, apart = (
        silicon.on_chip(one + other, of),
        silicon.on_chip(one, of) + silicon.on_chip(other, of),
    )
    assert together.parts_pJ == pytest.approx(apart.parts_pJ, rel=1e-9)
    assert together.seconds_s == pytest.approx(apart.seconds_s, rel=1e-9)
    assert len(together.rows) == len(apart.rows)


FREE = {"samples", "steps", "input_events", "spikes", "outputs"}


@programs
@pytest.mark.parametrize("name", [entry.name for entry in fields(ChipCounts)])
def test_more_of_anything_costs_more(of: Program, name: str) -> None:
    more = silicon.on_chip(replace(SOME, **{name: getattr(SOME, name) + 1}), of)
    before = silicon.on_chip(SOME, of)
    # What is free has a price through the accesses and cycles that come with it.
    free = name in FREE or (name.startswith("slow_") and not of.slow_bits)
    assert (more.total_pJ > before.total_pJ) == (not free)
    assert (more.seconds_s > before.seconds_s) == (name == "cycles")


@programs
def test_nothing_costs_nothing(of: Program) -> None:
    for deck in silicon.DECKS:
        nothing = silicon.on_chip(ChipCounts(), of, deck)
        assert nothing.rows
        assert (nothing.total_pJ, nothing.seconds_s) == (0.0, 0.0)
    energies = [silicon.on_chip(SOME, of)] * 3
    assert sum(energies, Energy()).total_pJ == pytest.approx(3 * energies[0].total_pJ)


@programs
def test_the_rows_of_the_table_can_be_checked(of: Program) -> None:
    for logic in LOGIC:
        for row in silicon.on_chip(SOME, of, logic=logic):
            assert row.energy_pJ == pytest.approx(row.count * row.unit_pJ)
            assert row.mark in MARKS
            assert row.node_nm in (40, 45)
            assert len(row.source) > 20
    json.dumps([asdict(row) for row in silicon.on_chip(SOME, of)], allow_nan=False)


@programs
@settings(max_examples=25)
@given(counts=COUNTS)
def test_spans_hold_what_they_span(of: Program, counts: ChipCounts) -> None:
    low, nominal, high = silicon.span(counts, of)
    assert low.total_pJ <= nominal.total_pJ <= high.total_pJ
    assert nominal == silicon.on_chip(counts, of)
    for deck in silicon.DECKS:
        for logic in LOGIC:
            energy = silicon.on_chip(counts, of, deck, logic=logic)
            assert low.total_pJ <= energy.total_pJ <= high.total_pJ


def test_sources_of_logic_are_ordered() -> None:
    adders = [part.wide(20).value for part in ADDITIONS.values()]
    assert adders == pytest.approx([0.0857 * 20 / 32, 0.0625, 0.0625, 0.21 * 20 / 32])
    multipliers = [part.product(8, 8).value for part in MULTIPLICATIONS.values()]
    assert multipliers == pytest.approx([0.2, 8.63 / 16, 12.68 / 16])
    low, nominal, high = LOGIC.values()
    for entry in fields(low):
        if entry.name.endswith(("ion", "flop")):  # energies; a faster adder leaks less
            of = [getattr(logic, entry.name).wide(8).value for logic in (low, nominal, high)]
            assert of == sorted(of)


def test_a_small_perceptron_by_hand() -> None:
    work = silicon.mlp_counts((16, 8, 4))
    assert work.macs == 16 * 8 + 8 * 4
    energy = silicon.on_dense(work, lanes=8)
    # 16 + 8 inputs and two rows of biases, 2 + 4 cycles a layer, 4 words of 8 activations.
    cycles = 26 + 12 + 4
    flip_flops = 8 * (21 + 8) + 64 + 128  # sums of 16 + 5 bits
    assert energy.seconds_s == pytest.approx(cycles / 200e6)
    assert energy.parts_pJ == pytest.approx(
        {
            "weight memory reads": 26 * 0.68,
            "activation memory reads": 3 * 0.68,
            "activation memory writes": 4 * 1.24,
            "additions": 160 * 0.0857 * 21 / 32,
            "comparisons": 8 * 0.029 * 21 / 32,
            "multiplications": 160 * 0.2,
            "registers and clock": flip_flops * cycles * 0.009,
            "leakage of memories": 2 * 0.031 * cycles * 5,
            "leakage of logic": cycles
            * 5
            * (8 * (2 * 2.38e-3 * 21 / 32 + 0.0482 / 16) + flip_flops * 7.4e-5),
        }
    )


def test_zeros_that_are_skipped_cost_nothing() -> None:
    dense = silicon.mlp_counts((784, 128, 10))
    sparse = silicon.mlp_counts((784, 128, 10), active=(150.5, 60))
    assert sparse.macs == pytest.approx(150.5 * 128 + 60 * 10)
    assert silicon.mlp_counts((784, 128, 10), active=(784, 128)).macs == dense.macs
    one, other = silicon.on_dense(dense), silicon.on_dense(sparse)
    assert other.total_pJ < one.total_pJ
    assert other.seconds_s < one.seconds_s


def test_a_gru_counts_what_its_equations_say() -> None:
    inputs, hidden, steps, outputs = 28, 16, 28, 10
    work = silicon.gru_counts(inputs, hidden, steps, outputs)
    assert work.macs == steps * 3 * hidden * (inputs + hidden) + hidden * outputs
    assert work.lookups == steps * 3 * hidden
    assert (work.multiplications, work.additions) == (2 * hidden * steps, 3 * hidden * steps)
    energy = silicon.on_dense(work, lanes=16)
    assert energy.parts_pJ["look-up tables reads"] == pytest.approx(work.lookups * 0.68)
    # Weights are fetched anew in each step: a row per input and bias, 3 chunks of 16 lanes.
    fetched = steps * 3 * ((inputs + 1) + (hidden + 1)) + hidden + 1
    (weights,) = (row for row in energy if row.part == "weight memory reads")
    assert weights.count == fetched
    twice = silicon.on_dense(silicon.gru_counts(inputs, hidden, 2 * steps, outputs), lanes=16)
    assert 1.9 < twice.total_pJ / energy.total_pJ < 2.0


@pytest.mark.parametrize("lanes", [1, 16, 64, 256])
def test_spans_of_dense_networks_are_ordered(lanes: int) -> None:
    for work in (silicon.mlp_counts((784, 100, 10)), silicon.gru_counts(28, 64, 28, 10)):
        low, nominal, high = silicon.dense_span(work, lanes)
        assert low.total_pJ <= nominal.total_pJ <= high.total_pJ
        assert nominal == silicon.on_dense(work, lanes)


def test_area_by_hand() -> None:
    area = silicon.area_mm2(SMALL)
    assert {part: cost.value for part, cost in area.items()} == pytest.approx(
        {
            "weight memory": 0.00319,
            "membrane memory": 2 * 0.00319,
            "parameter memory": 5 * 0.00319,
            "event memory": 0.00319,
            "adders and comparators": 4 * 3 * 179e-6 * 20 / 32,
            "registers": 500 * 5.98e-6,
        }
    )
    for cost in area.values():
        assert (cost.unit, cost.node_nm, cost.mark) == ("mm2", 40, "derived")
    leaky = silicon.area_mm2(program(decay=5))
    assert leaky["multipliers"].value == pytest.approx(4 * 4600e-6 * 20 * 9 / 1024)
    # CACTI's cells and what is around them: 0.32 to 0.45 um2 a bit.
    for macro in MACROS[LOP].values():
        assert 0.3 < macro.area_mm2 * 1e6 / (macro.kilobytes * 8192) < 0.5


@pytest.mark.parametrize("row", silicon.constants(), ids=lambda row: row[0])
def test_every_figure_has_a_unit_a_node_a_source_and_a_mark(row: tuple) -> None:
    name, value, unit, node_nm, source, mark = row
    assert name
    assert value > 0
    assert node_nm in (40, 45)
    assert len(source) > 20
    assert mark in MARKS
    assert unit in {"pJ", "mW", "ns", "mm2", "um2", "nJ", "%", "1"}


def test_figures_are_named_once_and_say_who_assumed_them() -> None:
    table = silicon.constants()
    assert len({row[0] for row in table}) == len(table)
    assert [row[0] for row in table if row[-1] == "assumed"] == ["flip-flops of control"]
    assert [cost.value for cost in silicon.PUBLISHED.values()] == [48.4, 773.0, 98.0]


def test_mistakes_are_named() -> None:
    known = "it must be one of itrs-hp, itrs-lop, itrs-lstp"
    with pytest.raises(ValueError, match=f"deck='tsmc': {known}"):
        silicon.on_chip(SOME, SMALL, "tsmc")
    with pytest.raises(ValueError, match="logic='best': it must be one of high, low, nominal"):
        silicon.on_chip(SOME, SMALL, logic="best")
    with pytest.raises(ValueError, match="logic='best'"):
        silicon.area_mm2(SMALL, logic="best")
    with pytest.raises(ValueError, match="bank_KB=16: it must be one of"):
        silicon.on_chip(SOME, SMALL, bank_KB=16)
    for wrong in (0.0, -200.0, 501.0, float("nan")):
        with pytest.raises(ValueError, match=r"clock_MHz=.* at most 500, .*pass clock_MHz=200"):
            silicon.on_chip(SOME, SMALL, clock_MHz=wrong)
    with pytest.raises(ValueError, match="0 rows of 8 bits"):
        silicon.sram(0, 8)
    with pytest.raises(ValueError, match="inputs and outputs at least"):
        silicon.mlp_counts((784,))
    with pytest.raises(ValueError, match=r"active: 1 .* 2 layers; pass one of each"):
        silicon.mlp_counts((784, 10, 10), active=(3,))
    with pytest.raises(ValueError, match="active=785: it must lie in 0 to the 784 inputs"):
        silicon.mlp_counts((784, 10), active=(785,))
    with pytest.raises(ValueError, match="times=0: it must be 1 or more"):
        silicon.gru_counts(28, 64, 0, 10)
    with pytest.raises(ValueError, match="lanes=0: it must be 1 or more"):
        silicon.on_dense(silicon.mlp_counts((784, 10)), lanes=0)


def test_it_loads_without_torch() -> None:
    code = "import sys, spikebridge.energy; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
