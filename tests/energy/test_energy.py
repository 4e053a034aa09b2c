"""Laws of the energy model, and its figures recomputed from what their sources state."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikebridge.energy.costs import (
    CHIP_MAC_PJ,
    FP32_45NM,
    INT8_45NM,
    MARKS,
    PCM,
    Cost,
    Counts,
    CrossbarCosts,
    DigitalCosts,
    Energy,
    constants,
    on_crossbar,
    on_digital,
    pcm,
)

HARDWARE = {
    "crossbar": on_crossbar,
    "fp32 dense": lambda counts: on_digital(counts, FP32_45NM, sparse=False),
    "fp32 events": lambda counts: on_digital(counts, FP32_45NM, sparse=True),
    "int8 dense": lambda counts: on_digital(counts, INT8_45NM, sparse=False),
    "int8 events": lambda counts: on_digital(counts, INT8_45NM, sparse=True),
}
hardware = pytest.mark.parametrize("energy_of", HARDWARE.values(), ids=HARDWARE)
digital = pytest.mark.parametrize("costs", [FP32_45NM, INT8_45NM], ids=["fp32", "int8"])
NAMES = [entry.name for entry in fields(Counts)]
NUMBERS = st.one_of(st.just(0.0), st.floats(1e-3, 1e12))
SOME = {name: 1000.0 + 37.0 * i for i, name in enumerate(NAMES)}


@st.composite
def all_counts(draw: st.DrawFn) -> Counts:
    drawn = {name: draw(NUMBERS) for name in NAMES}
    if not drawn["cell_reads"]:
        drawn["read_uS"] = 0.0
    return Counts(**drawn)


def assert_same(one: Energy, other: Energy) -> None:
    assert one.parts_pJ == pytest.approx(other.parts_pJ, rel=1e-9)
    assert one.total_pJ == pytest.approx(other.total_pJ, rel=1e-9)
    assert one.seconds_s == pytest.approx(other.seconds_s, rel=1e-9)


@hardware
@given(counts=all_counts(), factor=st.floats(0.0, 1e6))
def test_energy_and_time_are_linear_in_the_counts(energy_of, counts: Counts, factor: float) -> None:
    once, often = energy_of(counts), energy_of(counts * factor)
    assert often.total_pJ == pytest.approx(factor * once.total_pJ, rel=1e-9)
    assert often.seconds_s == pytest.approx(factor * once.seconds_s, rel=1e-9)
    assert factor * counts == counts * factor


@hardware
@given(one=all_counts(), other=all_counts())
def test_energies_of_parts_of_a_run_add_up(energy_of, one: Counts, other: Counts) -> None:
    together = energy_of(one) + energy_of(other)
    assert_same(energy_of(one + other), together)
    assert len(together.rows) == len(energy_of(one).rows)


@hardware
def test_nothing_costs_nothing(energy_of) -> None:
    nothing = energy_of(Counts())
    assert (nothing.total_pJ, nothing.total_J, nothing.seconds_s) == (0.0, 0.0, 0.0)
    assert nothing.rows
    assert_same(sum([energy_of(Counts(**SOME))] * 3, Energy()), energy_of(3 * Counts(**SOME)))


@hardware
@given(counts=all_counts())
def test_the_rows_of_the_table_make_the_total(energy_of, counts: Counts) -> None:
    energy = energy_of(counts)
    for row in energy:
        assert row.energy_pJ == pytest.approx(row.count * row.unit_pJ, rel=1e-12)
        assert row.source
        assert row.node_nm > 0
        assert row.mark in MARKS
    assert sum(energy.parts_pJ.values()) == pytest.approx(energy.total_pJ)
    assert energy.total_J == pytest.approx(energy.total_pJ / 1e12)
    json.dumps([asdict(row) for row in energy], allow_nan=False)


@digital
@given(
    macs=st.floats(0.0, 1e12),
    density=st.floats(0.0, 1.0),
    neuron_updates=st.floats(0.0, 1e9),
)
def test_events_never_cost_more_than_products(
    costs: DigitalCosts, macs: float, density: float, neuron_updates: float
) -> None:
    counts = Counts(
        macs=macs,
        accumulates=density * macs,
        weights_fetched=macs,
        neuron_updates=neuron_updates,
    )
    dense = on_digital(counts, costs, sparse=False)
    events = on_digital(counts, costs, sparse=True)
    assert events.total_pJ <= dense.total_pJ
    assert events.seconds_s <= dense.seconds_s


CHARGED = {
    "crossbar": {
        *("cell_reads", "read_uS", "adc_conversions", "dac_conversions", "row_events"),
        *("neuron_updates", "set_pulses", "reset_pulses", "tile_reads"),
    },
    "fp32 dense": {"macs", "neuron_updates", "weights_fetched"},
    "fp32 events": {"accumulates", "neuron_updates"},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", CHARGED)
def test_each_kind_of_hardware_charges_its_own_events(where: str, name: str) -> None:
    counts = Counts(**SOME)
    # Without cells their conductance is gone too, so that one count is halved instead.
    fewer = replace(counts, **{name: SOME[name] / 2})
    before, after = HARDWARE[where](counts), HARDWARE[where](fewer)
    saved = (before.total_pJ - after.total_pJ) + (before.seconds_s - after.seconds_s)
    # The energy of cells is in their conductance, their number is for the table.
    assert (saved > 1e-6) == (name in CHARGED[where] - {"cell_reads"})


def test_a_step_of_a_small_layer_by_hand() -> None:
    """A spiking layer of 4 inputs and 3 neurons for one time step, in which 2 inputs fire."""
    counts = Counts(
        macs=4 * 3,
        accumulates=2 * 3,
        neuron_updates=3,
        weights_fetched=4 * 3,
        cell_reads=2 * 3 * 2,  # pairs of cells
        read_uS=12 * 5.0,
        row_events=2,
        adc_conversions=3,
        tile_reads=1,
    )
    assert counts.mean_read_uS == 5.0
    crossbar = on_crossbar(counts)
    assert crossbar.parts_pJ == pytest.approx(
        {
            "cell reads": 12 * 0.05,  # 0.2 V squared x 5 uS x 250 ns = 50 fJ
            "row drivers": 2 * 0.390625,
            "digital-to-analogue": 0.0,
            "analogue-to-digital": 3 * 1.5625,
            "partial sums": 3 * 0.1,
            "neuron updates": 3 * 13.3,
            "SET pulses": 0.0,
            "RESET pulses": 0.0,
        }
    )
    assert crossbar.total_pJ == pytest.approx(0.6 + 0.78125 + 4.6875 + 0.3 + 39.9)
    assert crossbar.seconds_s == pytest.approx(250e-9)
    dense = on_digital(counts, FP32_45NM, sparse=False)
    assert dense.total_pJ == pytest.approx(12 * 4.6 + 12 * 5.0 + 3 * 15.5)
    assert dense.seconds_s == pytest.approx((12 + 3) / 128 * 1e-9)
    events = on_digital(counts, INT8_45NM, sparse=True)
    assert events.parts_pJ == pytest.approx(
        {"accumulates": 6 * 0.1, "weight memory": 6 * 1.25, "neuron updates": 3 * 13.3}
    )


def test_pulses_cost_current_times_time_times_voltage() -> None:
    trained = on_crossbar(Counts(set_pulses=10, reset_pulses=4))
    assert trained.parts_pJ["SET pulses"] == pytest.approx(10 * 150e-6 * 150e-9 * 0.6 / 1e-12)
    assert trained.parts_pJ["RESET pulses"] == pytest.approx(4 * 300e-6 * 40e-9 * 1.6 / 1e-12)
    assert trained.seconds_s == pytest.approx(10 * 150e-9 + 4 * 40e-9)
    rows = replace(PCM, pulses_at_once=replace(PCM.pulses_at_once, value=8))
    row_by_row = on_crossbar(Counts(set_pulses=10, reset_pulses=4), rows)
    assert row_by_row.seconds_s == pytest.approx(trained.seconds_s / 8)
    assert row_by_row.total_pJ == trained.total_pJ


SOURCES = {
    # Horowitz 2014: 8-bit multiplication 0.2, 32-bit addition 0.1 and multiplication 3.1, floats
    # of 32 bits 0.9 and 3.7, 64 bits from a cache of 8 KB 10 pJ.
    "operation: int8 multiplication": 0.2,
    "operation: int32 addition": 0.1,
    "operation: int32 multiplication": 3.1,
    "operation: fp32 addition": 0.9,
    "operation: fp32 multiplication": 3.7,
    "operation: 64 bits of 8 KB SRAM": 10.0,
    "FP32_45NM: mac_pJ": 3.7 + 0.9,
    "FP32_45NM: accumulate_pJ": 0.9,
    "FP32_45NM: weight_fetch_pJ": 10 / 2,
    "FP32_45NM: neuron_update_pJ": 3.7 + 0.9 + 0.9 + 5 + 5,
    "INT8_45NM: mac_pJ": 0.2 + 0.1,
    "INT8_45NM: accumulate_pJ": 0.1,
    "INT8_45NM: weight_fetch_pJ": 10 / 8,
    "INT8_45NM: neuron_update_pJ": 3.1 + 0.1 + 0.1 + 5 + 5,
    "PCM: partial_sum_pJ": 0.1,
    "PCM: neuron_update_pJ": 3.1 + 0.1 + 0.1 + 5 + 5,
    # ISAAC: in a cycle of 100 ns 1024 drivers take 4 mW, 8 converters 16 mW for 128 columns each.
    "PCM: row_event_pJ": 4e-3 * 100e-9 / 1024 / 1e-12,
    "PCM: adc_pJ": 16e-3 * 100e-9 / (8 * 128) / 1e-12,
    "PCM: read_ns": 250e-9 / 1e-9,
    "PCM: set_pulse_ns": 150.0,
    "PCM: reset_pulse_ns": 40.0,
    # Le Gallo 2023: 63.1 Top/s at 9.76 Top/s/W, which is 6.47 W for half as many products.
    "reference: multiply-accumulate of a PCM chip": (63.1 / 9.76) / (63.1e12 / 2) / 1e-12,
}


def test_what_is_not_assumed_is_what_the_sources_say() -> None:
    table = constants()
    assert len({row[0] for row in table}) == len(table)
    stated = {name: value for name, value, *_, mark in table if mark != "assumed"}
    assert stated == pytest.approx(SOURCES)


@pytest.mark.parametrize("row", constants(), ids=lambda row: row[0])
def test_every_figure_has_a_unit_a_node_a_source_and_a_mark(row: tuple) -> None:
    name, value, unit, node_nm, source, mark = row
    assert value > 0
    assert 5 <= node_nm <= 90
    assert len(source) > 20
    assert mark in MARKS
    ending = name.rpartition("_")[2]
    assert unit == (ending if ending in {"pJ", "ns", "V"} else unit)
    assert unit in {"pJ", "ns", "V", "1"}


def test_converters_cost_more_with_each_bit() -> None:
    figures = [pcm(adc_bits=bits).adc_pJ for bits in range(1, 15)]
    values = [figure.value for figure in figures]
    assert values == sorted(set(values))
    assert values[3] == pytest.approx(values[7] / 2)
    assert values[9] == pytest.approx(values[7] * 4)
    assert [figure.mark for figure in figures].index("derived") == 7
    assert pcm(dac_bits=1).dac_pJ.value == PCM.row_event_pJ.value
    for wrong in ({"adc_bits": 0}, {"dac_bits": 15}):
        with pytest.raises(ValueError, match="1 to 14 bits; pass one"):
            pcm(**wrong)


def test_a_full_tile_costs_what_a_chip_that_was_built_costs_within_a_factor_of_three() -> None:
    n, mean_uS = 256, 5.0
    counts = Counts(
        cell_reads=2 * n * n,
        read_uS=2 * n * n * mean_uS,
        dac_conversions=n,
        adc_conversions=n,
        tile_reads=1,
    )
    ours = on_crossbar(counts).total_pJ / n**2
    assert CHIP_MAC_PJ.value / 3 < ours < CHIP_MAC_PJ.value * 3


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_counts_are_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value:g}: it must be finite .* leave it out"):
        Counts(**{name: value})


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"factor=-2: .* number of runs"):
        Counts(macs=1) * -2
    with pytest.raises(ValueError, match=r"read_uS=5 with cell_reads=0.*count them too"):
        Counts(read_uS=5)
    with pytest.raises(ValueError, match="mark='recalled': it must be one of assumed, derived"):
        Cost(1.0, "pJ", 45, "a talk", "recalled")
    with pytest.raises(ValueError, match="a source and a node; name both"):
        Cost(1.0, "pJ", 45, "", "assumed")
    with pytest.raises(ValueError, match="pass 1 or more"):
        Cost(0.0, "1", 45, "a talk", "assumed")
    with pytest.raises(TypeError):
        Counts() + 1.0


def test_a_figure_of_your_own_shows_in_the_table() -> None:
    mine = Cost(0.1, "V", 14, "our test chip", "published")
    counts = Counts(cell_reads=2, read_uS=10)
    at_half = on_crossbar(counts, replace(PCM, read_V=mine))
    assert at_half.total_pJ == pytest.approx(on_crossbar(counts).total_pJ / 4)
    row = next(iter(at_half))
    assert "our test chip" in row.source
    assert (row.node_nm, row.mark) == (14, "derived")
    assert isinstance(PCM, CrossbarCosts)


def test_it_loads_without_torch() -> None:
    code = "import sys, spikebridge.energy; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
