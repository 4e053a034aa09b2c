"""Laws of memory cells; declared constants found again by fits.  A new model joins `CASES`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from spikebridge.memory import pcm
from spikebridge.memory.array import Device, SimulatedArray
from spikebridge.memory.measured import COLUMNS, from_table, read_table
from spikebridge.memory.pcm import ACCUMULATION, ACCUMULATION_2020, ITERATIVE, Cell, ideal
from spikebridge.records import UsageError

Array = np.ndarray
Numbers = tuple[float, ...]
Curve = Callable[[Array, Array, Array, float], Array]
"""Of its constants, conductances, what was written or the number of pulses, and the time."""

MANY, DAY = 100_000, 86_400.0
ROWS = """0.5, 2.0, 0.3, 0.2, 0.05, 0.08, 0.01
          4, 1.5, 0.6, 0.5, 0.1, 0.06, 0.008
          12, 0.8, 0.4, 0.7, 0.25, 0.05, 0.005
          20, 0.6, 0.5, 0.6, 0.2, 0.04, 0.006"""
TABLE = dict(zip(COLUMNS, np.array([eval(row) for row in ROWS.split("\n")]).T, strict=True))
FLAT, LINE, FADING, EXPONENTIAL, LOGARITHM, TABLED, ONE_OVER_F = (
    lambda c, g, n, t: c[0] + 0 * g,
    lambda c, g, n, t: c[0] + c[1] * g,
    lambda c, g, n, t: c[0] * g + c[1] + c[2] * np.exp(-n / c[3]),
    lambda c, g, n, t: c[0] * (1 + c[1] * np.exp(-g / c[2])),
    lambda c, g, n, t: c[0] + c[1] * np.log(g / 25),
    lambda c, g, n, t: np.interp(g, TABLE["g_uS"], c),
    lambda c, g, n, t: c[0] * g * (n / 25) ** -c[1] * math.sqrt(math.log((t + 20) / 500e-9)),
)


class Law(NamedTuple):
    """Mean and spread, and the range of conductances in which they hold."""

    low: float
    high: float
    mean: Curve
    means: Numbers
    sd: Curve
    sds: Numbers


class Case(NamedTuple):
    """A model, and what it declares; drift: time of reference, what is added to times, laws."""

    cell: Cell
    reset: tuple[float, float] = (0.0, 0.0)
    pulse: Law | None = None
    write: Law | None = None
    read: Law | None = None
    drift: tuple[float, float, list[Law]] | None = None


def tabled(mean: str | None, sd: str) -> Law:
    return Law(0.7, 20, TABLED, tuple(TABLE[mean]) if mean else (0,) * 4, TABLED, tuple(TABLE[sd]))


def exactly(mean: float) -> Law:
    return Law(0, 25, FLAT, (mean,), FLAT, (0,))


VERIFIED = (
    lambda c, g, n, t: c[0] + c[1] * g / 25 + c[2] * (g / 25) ** 2,
    (0.26348, 1.965, -1.1731),
)
GST_2020 = (lambda c, g, n, t: c[0] + c[1] * g + c[2] * np.exp(-g / 4), (0.312, 0.0648, 1.6341))
CASES = [
    Case(
        ACCUMULATION,
        reset=(0.1, 0.01),
        pulse=Law(0.1, 12, FADING, (-0.084, 0.88, 1.4, 2.6), FADING, (0.091, 0.26, 2.15, 2.6)),
        read=Law(1.6, 12, FLAT, (0,), LINE, (0.13, 0.03)),
        drift=(38.6, 0.0, [Law(2, 12, FLAT, (0.04,), FLAT, (0,))]),
    ),
    Case(
        ACCUMULATION_2020,
        reset=(0.1, 0.1),
        pulse=Law(0, 20, EXPONENTIAL, (0.1, 27.235, 4.0), *GST_2020),
    ),
    Case(
        ITERATIVE,
        write=Law(0, 25, FLAT, (0,), *VERIFIED),
        read=Law(2.5, 25, FLAT, (0,), ONE_OVER_F, (0.0088, 0.65)),
        drift=(20.0, 20.0, [Law(8.3, 25, FLAT, (0.049,), FLAT, (0.008,))]),
    ),
    Case(ideal(), pulse=exactly(0.025), write=exactly(0), read=exactly(0)),
    Case(ideal(16), pulse=exactly(25 / 15), read=exactly(0)),
    Case(
        from_table(TABLE, t0_s=2.0),
        reset=(0.5, 0.0),
        pulse=tabled("pulse_mean_uS", "pulse_sd_uS"),
        write=tabled(None, "write_sd_uS"),
        read=tabled(None, "read_sd_uS"),
        drift=(2.0, 0.0, [tabled("drift_nu", "drift_nu_sd")]),
    ),
]
# Where exponents of the iterative model depend on the conductance.
SLOPING = Law(2.2, 5.1, LOGARITHM, (0.0244, -0.0155), LOGARITHM, (-0.0059, -0.0125))
CASES[2].drift[2].append(SLOPING)


def cases(part: str = "cell") -> pytest.MarkDecorator:
    """The models that have a part."""
    chosen = [case for case in CASES if getattr(case, part) is not None]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.cell.name)


def numbers(x: Tensor) -> Array:
    return x.double().numpy()


def check_fit(curve: Curve, constants: Numbers, y: Array, sigma: Array, *at: object) -> None:
    """Weighted regression around declared constants: no step beyond 5 standard errors."""
    c = np.array(constants, float)
    if not sigma.any():
        return np.testing.assert_allclose(y, curve(c, *at), rtol=0, atol=2e-5)
    slopes = [(curve(c + d, *at) - curve(c - d, *at)) / 2e-4 for d in 1e-4 * np.eye(len(c))]
    weighted = np.stack(slopes, 1) / sigma[:, None]
    covariance = np.linalg.inv(weighted.T @ weighted)
    step = covariance @ (weighted.T @ ((y - curve(c, *at)) / sigma))
    error = 5 * np.sqrt(np.diag(covariance))
    assert (np.abs(step) < error).all(), (c, step, error)
    assert (error < 0.5 * np.abs(c))[c != 0].all(), f"too few cells to tell {c}: {error}"


def check_law(law: Law, y: Array, g: Array, also: Array, t: float = 0.0) -> None:
    sigma = law.sd(np.array(law.sds), g, also, t)
    check_fit(law.mean, law.means, y, sigma, g, also, t)
    # The mean of |N(0, s^2)| is s sqrt(2 / pi).
    spread = np.abs(y - law.mean(np.array(law.means), g, also, t)) * math.sqrt(math.pi / 2)
    check_fit(law.sd, law.sds, spread, sigma * math.sqrt(math.pi / 2 - 1), g, also, t)


def check_moments(y: Array, mean: float, sd: float, slack: float = 1e-6) -> None:
    error = 5 * y.std() / math.sqrt(len(y)) + slack
    assert abs(y.mean() - mean) <= error, (y.mean(), mean)
    assert abs(y.std() - sd) <= error, (y.std(), sd)


def many(cell: Cell, law: Law | None = None, clamps: bool = True) -> tuple[SimulatedArray, Tensor]:
    """Cells, and conductances over the range of a law; clamps would bend the statistics."""
    cell = cell if clamps else replace(cell, g_min_uS=-1e3, g_max_uS=1e3)
    g = torch.linspace(law.low, law.high, MANY) if law else torch.zeros(MANY)
    return SimulatedArray((MANY,), cell, seed=1), g


@cases("pulse")
def test_a_pulse_has_the_declared_mean_and_spread(case: Case) -> None:
    array, before = many(case.cell, case.pulse, clamps=False)
    earlier = torch.arange(MANY) % 6
    array.pulse(earlier)
    array.g_uS.copy_(before)
    array.pulse(torch.ones_like(earlier))
    change = numbers(array.g_uS) - numbers(before)
    check_law(case.pulse, change, numbers(before), numbers(earlier + 1))


@cases("write")
def test_programming_has_the_declared_error(case: Case) -> None:
    array, target = many(case.cell, case.write, clamps=False)
    array.program(target)
    check_law(case.write, numbers(array.g_uS) - numbers(target), numbers(target), numbers(target))


@cases()
def test_reset_has_the_declared_mean_and_spread(case: Case) -> None:
    array, _ = many(case.cell, clamps=False)
    check_moments(numbers(array.conductance()), *case.reset)
    array.program(torch.full((MANY,), 8.0))
    array.reset()
    check_moments(numbers(array.conductance()), *case.reset)


@cases("drift")
def test_drift_follows_the_declared_exponents(case: Case) -> None:
    reference, added, laws = case.drift
    for law in laws:
        array, target = many(case.cell, law)
        array.program(target)
        x, seen = np.log([1.0, 3.0, 100.0, 3e4]), []
        for factor in np.exp(x):
            array.wait(max(0.0, factor * reference - added - array.clock_s))
            seen.append(array.conductance())
        assert torch.equal(seen[0], array.g_uS)
        kept, x = seen[0] > 0, x - x.mean()
        y, aimed = np.log(numbers(torch.stack(seen)[:, kept])), numbers(target[kept])
        nu = -(x @ y) / (x @ x)
        np.testing.assert_allclose(y - y.mean(0), -x[:, None] * nu, atol=1e-5)  # straight lines
        check_law(law, nu, aimed, aimed)


@cases("read")
@pytest.mark.parametrize("t", [0.0, 3600.0, DAY])
def test_reads_scatter_as_declared(case: Case, t: float) -> None:
    array, g = many(case.cell, case.read)
    array.wait(t)
    array.g_uS.fill_(1)
    array.g_uS.copy_(g / array.conductance())  # so that drift has led to g
    errors = [numbers(array.read()) - numbers(g) for _ in range(2)]
    check_law(case.read, errors[0], numbers(g), numbers(array.g_uS), t)
    assert case.read.sds == (0,) or abs(np.corrcoef(errors)[0, 1]) < 5 / math.sqrt(MANY)


def test_the_2018_model_reaches_the_derived_values() -> None:
    derived = {1: (2.07, 1.52), 2: (3.45, 1.97), 5: (5.93, 2.39), 10: (7.86, 2.47)}
    array, _ = many(replace(ACCUMULATION, g_max_uS=20.0))
    for n in range(1, 21):
        array.pulse(torch.ones(MANY, dtype=torch.int64))
        if n in (1, 2, 5, 10, 20):
            check_moments(numbers(array.g_uS), *derived.get(n, (9.42, 2.67)), slack=0.005)


def test_the_other_models_have_the_derived_values() -> None:
    curve = pcm.mean_curve_uS(replace(ACCUMULATION_2020, reset_uS=0.0), 100) / 10
    assert curve[[1, 2, 3]].tolist() == pytest.approx([0.282, 0.427, 0.531], abs=6e-4)
    assert curve[[5, 10, 20]].tolist() == pytest.approx([0.682, 0.924, 1.217], abs=6e-4)
    assert curve[[50, 100]].tolist() == pytest.approx([1.73, 2.0], abs=5e-3)
    g = 25 * torch.tensor([0.01, 0.05, 0.1, 0.2, 0.5, 1.0])
    early, late = (ITERATIVE.noise.sigma_uS(g, g, torch.tensor(t)) / g for t in (0, DAY - 20))
    for found, derived in (
        (ITERATIVE.write.sigma_uS(g), [0.283, 0.359, 0.448, 0.610, 0.953, 1.055]),
        (ITERATIVE.drift.mean_nu(g), [0.0958, 0.0708, 0.0601, 0.0493, 0.049, 0.049]),
        (ITERATIVE.drift.sd_nu(g), [0.045, 0.0315, 0.0229, 0.0142, 0.008, 0.008]),
        (early, [0.735, 0.258, 0.165, 0.105, 0.058, 0.037]),
        (late, [0.893, 0.314, 0.200, 0.127, 0.070, 0.045]),
    ):
        assert found.tolist() == pytest.approx(derived, abs=6e-4 if max(derived) > 0.1 else 6e-5)
    small = torch.tensor([0.05])
    assert ITERATIVE.drift.mean_nu(small).item() == pytest.approx(0.1)
    noise = ITERATIVE.noise.sigma_uS(small, small, torch.tensor(0.0)).item()
    assert noise == pytest.approx(0.05 * 0.2 * math.sqrt(math.log(20 / 500e-9)))


SLOW = from_table({"g_uS": [0, 25], "pulse_mean_uS": [0.1, 0.1]}, name="slow")


@pytest.mark.parametrize("cell", [ACCUMULATION, ACCUMULATION_2020, SLOW], ids=lambda c: c.name)
def test_targets_get_the_number_of_pulses_that_comes_nearest(cell: Cell) -> None:
    # Fails at present for the last two: no target gets more than 64 pulses.
    target, curve = torch.linspace(0, cell.g_max_uS, 50), pcm.mean_curve_uS(cell, 400)
    best = (curve - target[:, None]).abs().min(1).values
    missed = (curve[pcm.pulses_for(cell, target)] - target).abs()
    assert float((missed - best).max()) < 0.05


def exercise(array: SimulatedArray) -> list[Tensor]:
    """Some of everything; what was read."""
    draw, found = torch.Generator().manual_seed(3), []
    for _ in range(2):
        chance = torch.rand(array.shape, generator=draw)
        array.program(torch.rand(array.shape, generator=draw) * array.g_max_uS, chance < 0.7)
        found.append(array.read())
        if array.cell.pulse is not None:
            array.pulse(torch.randint(0, 9, array.shape, generator=draw))
        array.wait(70.0)
        array.reset(chance > 0.9)
        found.append(array.read())
        assert float(array.g_uS.min()) >= np.float32(array.cell.g_min_uS)
        assert float(array.g_uS.max()) <= array.cell.g_max_uS
        assert all(bool((g >= 0).all()) for g in found)
    return found


def snapshot(array: SimulatedArray) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in array.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@cases()
def test_an_array_goes_on_bit_for_bit(case: Case) -> None:
    array, again, other = (SimulatedArray((9, 11), case.cell, seed=s, dead=0.2) for s in (5, 5, 6))
    a, b, c = exercise(array), exercise(again), exercise(other)
    assert all(map(torch.equal, a, b))
    assert not all(map(torch.equal, a, c))
    other.load_state_dict(load(save(array.state_dict())))
    network = nn.ModuleList([nn.Linear(2, 2), copy.deepcopy(array)]).half().to(torch.float64)
    assert network[0].weight.dtype == torch.float64
    twins = [again, other, copy.deepcopy(array), network[1]]
    expected, state = exercise(array), snapshot(array)
    for twin in twins:
        found = exercise(twin)
        assert all(map(torch.equal, expected, found))
        assert same(state, snapshot(twin))
        assert found[0].dtype == twin.g_uS.dtype == torch.float32


@cases()
@pytest.mark.parametrize("share", [0.4, 0.0])
def test_what_is_not_chosen_is_left_alone(case: Case, share: float) -> None:
    # Fails at present where nothing is chosen and programming verifies: ValueError of zip().
    array, where = SimulatedArray((30, 20), case.cell), torch.rand(30, 20) < share
    exercise(array)
    commands = [lambda: array.reset(where), lambda: array.program(torch.ones(30, 20), where)]
    if case.pulse is not None:
        commands.insert(0, lambda: array.pulse(where * torch.randint(1, 5, array.shape)))
    for command in commands:
        before = snapshot(array)
        command()
        assert share or same(before, snapshot(array)), "something was drawn"
        for name, value in snapshot(array).items():
            if value.shape == array.shape:
                assert torch.equal(value[~where], before[name][~where]), name


@cases("pulse")
def test_blocks_are_not_seen(case: Case) -> None:
    n = 3 * pcm.BLOCK + 7
    mixed, alike = SimulatedArray((n,), case.cell), SimulatedArray((n,), case.cell, seed=2)
    mixed.pulse(torch.arange(n) % 3)
    alike.pulse(torch.full((n,), 2))
    everyone, twice = numbers(alike.g_uS), torch.arange(n) % 3 == 2
    for part in (slice(0, pcm.BLOCK), slice(-pcm.BLOCK, n)):
        found = numbers(mixed.g_uS[part][twice[part]])
        slack = 5 * everyone.std() / math.sqrt(n) + 1e-6
        check_moments(found, everyone.mean(), everyone.std(), slack)
    assert torch.equal(*alike.g_uS[: 2 * pcm.BLOCK].chunk(2)) == (case.pulse.sds == (0,))


@cases("drift")
def test_conductances_fall_with_time(case: Case) -> None:
    array, seen = SimulatedArray((2000,), case.cell), []
    array.wait(1000.0)
    array.program(torch.linspace(0, case.cell.g_max_uS, 2000))
    for _ in range(5):
        seen.append(array.conductance())
        array.wait(10 * array.clock_s)
    assert all(bool((later <= g).all()) for g, later in pairwise(seen))
    assert all(later.mean() < g.mean() for g, later in pairwise(seen))


@cases()
def test_faults_are_as_many_as_declared_and_stay(case: Case) -> None:
    n, low, high = 20_000, case.cell.g_min_uS, case.cell.g_max_uS
    array = SimulatedArray((n,), case.cell, seed=3, dead=0.1, stuck=0.2)
    before, _, after = array.read(), exercise(array), array.read()
    dead = array.faulty & (array.fault_uS == low)
    stuck = array.faulty & ~dead
    for found, share in ((dead, 0.1), (stuck, 0.2)):
        assert abs(float(found.sum()) - n * share) < 5 * math.sqrt(n * share * (1 - share))
        assert torch.equal(before[found], after[found])
    assert bool((after[dead] == low).all())
    level = np.sort((numbers(after[stuck]) - low) / (high - low))
    assert np.abs(level - np.linspace(0, 1, len(level))).max() < 2 / math.sqrt(len(level))


NINE = {most: st.lists(st.integers(0, most), min_size=9, max_size=9) for most in (1, 5, 15)}
COMMANDS = st.lists(st.tuples(st.sampled_from("pwra"), NINE[1], NINE[5], NINE[15]), max_size=8)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([(9,), (3, 3)]), st.sampled_from([0, 16]), st.floats(0, 30), COMMANDS)
def test_ideal_arrays_do_what_they_are_told(shape, levels, pulse_uS, commands) -> None:
    """Against single cells in plain numbers, with the counters."""
    array = SimulatedArray(shape, ideal(levels, pulse_uS=pulse_uS))
    g, pulses, writes, waits = [0.0] * 9, [0] * 9, [0] * 9, 0
    step = pulse_uS or (25 / 15 if levels else 0.025)
    for command, chosen, counts, aimed in commands:
        where = torch.tensor(chosen).bool().reshape(shape)
        if command == "p":
            array.pulse(torch.tensor(counts).reshape(shape))
        elif command == "w" and any(chosen):
            array.program(torch.tensor(aimed).reshape(shape) * (25 / 15), where)
        elif command == "r":
            array.reset(where)
        else:
            array.wait(1.5)
            waits += 1
            continue
        for i in range(9):
            if command == "p":
                g[i], pulses[i] = min(g[i] + counts[i] * step, 25.0), pulses[i] + counts[i]
            elif chosen[i]:
                g[i], writes[i] = aimed[i] * 25 / 15 * (command == "w"), writes[i] + 1
        assert array.read().flatten().tolist() == pytest.approx(g, abs=1e-4)
    assert (array.pulses.flatten().tolist(), array.writes.flatten().tolist()) == (pulses, writes)
    assert array.clock_s == 1.5 * waits


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 25, width=32), min_size=1, max_size=9), st.integers(2, 64))
def test_ideal_devices_write_the_nearest_value(targets: list[float], levels: int) -> None:
    target, step = torch.tensor(targets), 25 / (levels - 1)
    free, array = (SimulatedArray(target.shape, ideal(k)) for k in (0, levels))
    free.program(target)
    array.program(target)
    assert torch.equal(free.read(), target)
    assert float((array.read() - target).abs().max()) <= step / 2 + 1e-5
    number = numbers(array.read()) / step
    np.testing.assert_allclose(number, number.round(), atol=1e-4)


def test_writes_by_pulses_count_both() -> None:
    array = SimulatedArray((3,), ACCUMULATION)
    array.program(torch.tensor([0.0, 5.0, 5.0]), torch.tensor([True, True, False]))
    assert (array.pulses.tolist(), array.writes.tolist()) == ([0, 4, 0], [1, 1, 0])


def table(text: str | bytes, **options: float) -> Cell:
    with TemporaryDirectory() as folder:
        file = Path(folder, "mine.csv")
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_table(file, **options)


def test_tables_are_read_as_straight_lines() -> None:
    cell, g = from_table(TABLE), torch.linspace(0, 30, 997)
    for found, name in (
        (cell.pulse.mean_step_uS(g, g)[0], "pulse_mean_uS"),
        (cell.noise.sigma_uS(g, g, g), "read_sd_uS"),
        (cell.drift.at(g, cell.drift.mean), "drift_nu"),
    ):
        np.testing.assert_allclose(found, np.interp(g, TABLE["g_uS"], TABLE[name]), atol=1e-5)
    assert table(",".join(COLUMNS) + "\n" + ROWS, t0_s=2) == replace(
        CASES[-1].cell, name="mine", source="mine.csv"
    )


def test_a_table_of_a_known_model_gives_its_curves_back() -> None:
    """The 2018 model once RESET is forgotten, when its curves are straight lines."""
    rows = [f"{g},{0.88 - 0.084 * g},{0.26 + 0.091 * g},{0.13 + 0.03 * g},0.04" for g in (0.1, 12)]
    head = " g_uS,pulse_mean_uS, pulse_sd_uS,read_sd_uS,drift_nu"
    g, noise, nothing, found = torch.linspace(0.1, 12, 50), torch.randn(50), torch.zeros(50), []
    for cell in (table("\n".join([head, *rows]), t0_s=38.6), ACCUMULATION):
        nu = cell.drift.exponents(g, torch.Generator())
        found.append([cell.pulse.step(g, nothing, noise)[0], cell.noise.sigma_uS(g, g, g)])
        found[-1].append(cell.drift.factor(1e3 * g, nu))
    torch.testing.assert_close(*found)


def two(cell: Cell = ACCUMULATION, **options: float) -> SimulatedArray:
    return SimulatedArray((2,), cell, **options)


def pair(a: float, b: float) -> Tensor:
    return torch.tensor([a, b])


HEAD = "g_uS,read_sd_uS\n"
BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: two().program(torch.ones(3)), r"target_uS must be \(2,\), got \(3,\)"),
    (lambda: two().program(pair(1, math.nan)), "NaN or infinite values; check the weights"),
    (lambda: two().program(pair(-1.0, 1)), r"in \[0, 12\], got -1 to 1; scale or clip"),
    (lambda: two().program(pair(1.0, 13)), r"in \[0, 12\], got 1 to 13; scale or clip"),
    (lambda: two().program(pair(1, 1), pair(1.0, 0)), r"where must be bool \(2,\), got .*float32"),
    (lambda: two().reset(torch.ones(3) > 0), r"where must be bool \(2,\), got .* \(3,\)"),
    (lambda: two().pulse(torch.tensor([1])), r"counts must be \(2,\), got \(1,\)"),
    (lambda: two().pulse(pair(1, -3)), "at least 0, got -3; conductances are lowered by RESET"),
    (lambda: two().pulse(pair(1.0, 1)), r"whole numbers, got torch.float32; call .to"),
    (lambda: two().pulse(pair(1, 1) > 0), r"whole numbers, got torch.bool; call .to"),
    (lambda: two(ITERATIVE).pulse(pair(1, 1)), "'iterative' knows no single pulses; train on"),
    (lambda: two().wait(-1.0), "seconds_s=-1.0: time passes forward; give 0 or more"),
    (lambda: two().wait(math.nan), "seconds_s=nan: time passes forward; give 0 or more"),
    (lambda: SimulatedArray((2, 0), ITERATIVE), r"sides of at least 1, got \(2, 0\)"),
    (lambda: two(stuck=-0.1), "stuck=-0.1: shares of all cells"),
    (lambda: two(dead=0.6, stuck=0.6), "dead=0.6, stuck=0.6: shares of all cells, together"),
    (lambda: two(seed=-1), r"seed=-1: a seed lies in \[0, 2\*\*63\)"),
    (lambda: ideal(1), r"levels=1: a device holds at least 2 values, or any \(0\)"),
    (lambda: from_table({"read_sd_uS": [1.0, 2]}), r"two points or more.*got \(\)"),
    (lambda: from_table({"g_uS": [0, 1], "drift_nu": [1]}), "1 points, g_uS 2; give as many"),
    (lambda: read_table("missing.csv"), r"missing.csv: it cannot be read .*; give a CSV file"),
    (lambda: table(b"g_uS,\xff\n"), "cannot be read as text .*; give a CSV file"),
    (lambda: table(HEAD + "0,1\n"), "a head and two rows, found 2 lines"),
    (lambda: table(HEAD + "0,1\n5\n"), "line 3: 2 columns expected, found 1"),
    (lambda: table(HEAD + "0,1\n5,x\n"), "3: read_sd_uS='x' is no number; write numbers only"),
    (lambda: table(HEAD + "0,1\n5,inf\n"), "read_sd_uS has a value that is not finite; leave"),
    (lambda: table(HEAD + "0,1\n5,-1\n"), "has a negative spread, -1.0; give it as >= 0"),
    (lambda: table(HEAD + "5,1\n0,1\n"), r"from 0 up and rising; got \(5.0, 0.0\)"),
    (lambda: table("g_uS,other\n0,1\n5,1\n"), "column 'other' is not known; use drift_nu, "),
    # Fails at present: reads of such a device are NaN.
    (lambda: from_table({"g_uS": [0, 1], "drift_nu": [1, 1]}, t0_s=0.0), "t0_s"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[row[1] for row in BAD])
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError, UsageError), match=message):
        call()


@pytest.mark.parametrize("text", ["\ufeff" + HEAD + "0,1\n5,1\n", HEAD + "0,1\n5,1\n\n"])
def test_tables_of_spreadsheets_are_read(text: str) -> None:
    # Fails at present: a byte-order mark, or an empty line at the end, is taken for an error.
    assert table(text).g_max_uS == 5
