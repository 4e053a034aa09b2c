"""Laws of memory cells; declared constants found again by fits.  A new model joins `CASES`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn, tensor

from spikebridge.base.records import UsageError
from spikebridge.crossbar import pcm
from spikebridge.crossbar.cells import BLOCK, CellArray, SimulatedArray
from spikebridge.crossbar.measured import COLUMNS, from_table, read_table
from spikebridge.crossbar.pcm import ACCUMULATION, ACCUMULATION_2020, ITERATIVE, Cell, ideal

MANY, DAY, close = 100_000, 86_400.0, np.testing.assert_allclose
ROWS = """0.5, 2.0, 0.3, 0.2, 0.05, 0.08, 0.01
          4, 1.5, 0.6, 0.5, 0.1, 0.06, 0.008
          12, 0.8, 0.4, 0.7, 0.25, 0.05, 0.005
          20, 0.6, 0.5, 0.6, 0.2, 0.04, 0.006"""
TABLE = dict(zip(COLUMNS, np.loadtxt(ROWS.split("\n"), delimiter=",").T, strict=True))
# Of constants, conductances, what was written or the number of pulses, and the time.
FLAT, LINE, FADING, EXPONENTIAL, AND_LINE, PARABOLA, LOGARITHM, TABLED, ONE_OVER_F = (
    lambda c, g, n, t: c[0] + 0 * g,
    lambda c, g, n, t: c[0] + c[1] * g,
    lambda c, g, n, t: c[0] * g + c[1] + c[2] * np.exp(-n / c[3]),
    lambda c, g, n, t: c[0] * (1 + c[1] * np.exp(-g / c[2])),
    lambda c, g, n, t: c[0] + c[1] * g + c[2] * np.exp(-g / 4),
    lambda c, g, n, t: c[0] + c[1] * (g / 25) + c[2] * (g / 25) ** 2,
    lambda c, g, n, t: c[0] + c[1] * np.log(g / 25),
    lambda c, g, n, t: np.interp(g, TABLE["g_uS"], c),
    lambda c, g, n, t: c[0] * g * (n / 25) ** -c[1] * math.sqrt(math.log((t + 20) / 500e-9)),
)


class Law(NamedTuple):  # spread and mean with their constants, in a range of conductances
    low: float
    high: float
    sd: Callable[..., np.ndarray]
    sds: tuple[float, ...]
    mean: Callable[..., np.ndarray] = FLAT
    means: tuple[float, ...] = (0.0,)


class Case(NamedTuple):  # a model, and what it declares
    cell: Cell
    reset: tuple[float, float] = (0.0, 0.0)
    pulse: Law | None = None
    write: Law | None = None
    read: Law | None = None
    drift: tuple[float, float, list[Law]] | None = None  # reference, added to times, laws


EXACTLY_0 = Law(0, 25, FLAT, (0,))
SLOPES = Law(2.2, 5.1, LOGARITHM, (-0.0059, -0.0125), LOGARITHM, (0.0244, -0.0155))
CASES = [
    Case(
        ACCUMULATION,
        reset=(0.1, 0.01),
        pulse=Law(0.1, 12, FADING, (0.091, 0.26, 2.15, 2.6), FADING, (-0.084, 0.88, 1.4, 2.6)),
        read=Law(1.6, 12, LINE, (0.13, 0.03)),
        drift=(38.6, 0.0, [Law(2, 12, FLAT, (0,), FLAT, (0.04,))]),
    ),
    Case(
        ACCUMULATION_2020,
        reset=(0.1, 0.1),
        pulse=Law(0, 20, AND_LINE, (0.312, 0.0648, 1.6341), EXPONENTIAL, (0.1, 27.235, 4.0)),
    ),
    Case(
        ITERATIVE,
        write=Law(0, 25, PARABOLA, (0.26348, 1.965, -1.1731)),
        read=Law(2.5, 25, ONE_OVER_F, (0.0088, 0.65)),
        drift=(20.0, 20.0, [Law(8.3, 25, FLAT, (0.008,), FLAT, (0.049,)), SLOPES]),
    ),
    Case(ideal(), (0, 0), Law(0, 25, FLAT, (0,), FLAT, (0.025,)), EXACTLY_0, EXACTLY_0),
    Case(ideal(16), (0, 0), Law(0, 25, FLAT, (0,), FLAT, (25 / 15,)), None, EXACTLY_0),
    Case(
        from_table(TABLE, t0_s=2.0),
        reset=(0.5, 0.0),
        pulse=Law(0.5, 20, TABLED, TABLE["pulse_sd_uS"], TABLED, TABLE["pulse_mean_uS"]),
        write=Law(0.5, 20, TABLED, TABLE["write_sd_uS"]),
        read=Law(0.7, 20, TABLED, TABLE["read_sd_uS"]),
        drift=(2.0, 0.0, [Law(0.5, 20, TABLED, TABLE["drift_nu_sd"], TABLED, TABLE["drift_nu"])]),
    ),
]


def cases(part: str = "cell") -> pytest.MarkDecorator:
    chosen = [case for case in CASES if getattr(case, part) is not None]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.cell.name)


def numbers(x: Tensor) -> np.ndarray:
    return x.double().numpy()


def check_fit(curve: Callable, constants: tuple[float, ...], y, sigma, *at) -> None:
    """Weighted regression around declared constants: no step beyond 5 standard errors."""
    c = np.array(constants, float)
    if not sigma.any():
        return close(y, curve(c, *at), rtol=0, atol=2e-5)
    slopes = [(curve(c + d, *at) - curve(c - d, *at)) / 2e-4 for d in 1e-4 * np.eye(len(c))]
    weighted = np.stack(slopes, 1) / sigma[:, None]
    covariance = np.linalg.inv(weighted.T @ weighted)
    step = covariance @ (weighted.T @ ((y - curve(c, *at)) / sigma))
    error = 5 * np.sqrt(np.diag(covariance))
    assert (np.abs(step) < error).all(), (c, step, error)
    assert (error < 0.5 * np.abs(c))[c != 0].all(), f"too few cells to tell {c}: {error}"


def check_law(law: Law, y, g: Tensor, also: Tensor, t: float = 0.0) -> None:
    at = numbers(g), numbers(also), t
    sigma = law.sd(law.sds, *at)
    check_fit(law.mean, law.means, y, sigma, *at)
    # The mean of |N(0, s^2)| is s sqrt(2 / pi).
    spread = np.abs(y - law.mean(law.means, *at)) * math.sqrt(math.pi / 2)
    check_fit(law.sd, law.sds, spread, sigma * math.sqrt(math.pi / 2 - 1), *at)


def check_moments(g: Tensor, mean: float, sd: float, slack: float = 1e-6) -> None:
    y = numbers(g)
    error = 5 * y.std() / math.sqrt(len(y)) + slack
    assert abs(y.mean() - mean) <= error, (y.mean(), mean)
    assert abs(y.std() - sd) <= error, (y.std(), sd)


def many(cell: Cell, law: Law = EXACTLY_0, clamps: bool = True) -> tuple[SimulatedArray, Tensor]:
    """Cells, and conductances over the range of a law; clamps would bend the statistics."""
    cell = cell if clamps else replace(cell, g_min_uS=-1e3, g_max_uS=1e3)
    return SimulatedArray((MANY,), cell, seed=1), torch.linspace(law.low, law.high, MANY)


@cases("pulse")
def test_a_pulse_has_the_declared_mean_and_spread(case: Case) -> None:
    array, before = many(case.cell, case.pulse, clamps=False)
    earlier = torch.arange(MANY) % 6
    array.pulse(earlier)
    array.g_uS.copy_(before)
    array.pulse(torch.ones_like(earlier))
    check_law(case.pulse, numbers(array.g_uS) - numbers(before), before, earlier + 1)


@cases()
def test_programming_and_reset_have_the_declared_errors(case: Case) -> None:
    array, target = many(case.cell, case.write or EXACTLY_0, clamps=False)
    check_moments(array.conductance(), *case.reset)
    array.program(target)
    if case.write is not None:
        check_law(case.write, numbers(array.g_uS) - numbers(target), target, target)
    array.reset()
    check_moments(array.conductance(), *case.reset)


@cases("drift")
def test_drift_follows_the_declared_exponents(case: Case) -> None:
    reference, added, laws = case.drift
    assert bool((SimulatedArray((MANY,), case.cell).nu >= 0).all())  # nothing rises
    for law in laws:
        array, target = many(case.cell, law)
        array.program(target)
        x, seen = np.log([1.0, 3.0, 100.0, 3e4]), []
        for factor in np.exp(x):
            array.wait(max(0.0, factor * reference - added - array.clock_s))
            seen.append(array.conductance())
        assert torch.equal(seen[0], array.g_uS)
        kept, x = seen[0] > 0, x - x.mean()
        y = np.log(numbers(torch.stack(seen)[:, kept]))
        nu = -(x @ y) / (x @ x)
        close(y - y.mean(0), -x[:, None] * nu, atol=1e-5)  # straight lines
        check_law(law, nu, target[kept], target[kept])


@cases("read")
@pytest.mark.parametrize("t", [0.0, 3600.0, DAY])
def test_reads_scatter_as_declared(case: Case, t: float) -> None:
    array, g = many(case.cell, case.read)
    array.wait(t)
    array.g_uS.fill_(1)
    array.g_uS.copy_(g / array.conductance())  # so that drift has led to g
    errors = []
    for _ in range(2):
        errors.append(numbers(array.read()) - numbers(g))
        noise = case.cell.noise
        slow = noise is not None and noise.slow  # then reads at one time are the same
        assert torch.equal(array.read(), array.read()) == (slow or noise is None)
        array.wait(0.0)
    check_law(case.read, errors[0], g, array.g_uS, t)
    assert case.read is EXACTLY_0 or abs(np.corrcoef(errors)[0, 1]) < 5 / math.sqrt(MANY)


def test_the_derived_values_are_reached() -> None:
    derived = {1: (2.07, 1.52), 2: (3.45, 1.97), 5: (5.93, 2.39), 10: (7.86, 2.47)}
    array, _ = many(replace(ACCUMULATION, g_max_uS=20.0))
    for n in range(1, 21):
        array.pulse(torch.ones(MANY, dtype=torch.int64))
        if n in (1, 2, 5, 10, 20):
            check_moments(array.g_uS, *derived.get(n, (9.42, 2.67)), slack=0.005)
    curve = pcm.mean_curve_uS(replace(ACCUMULATION_2020, reset_uS=0.0)) / 10
    x = tensor([0.01, 0.05, 0.1, 0.2, 0.5, 1.0])
    g, drift, noise = 25 * x, ITERATIVE.drift, ITERATIVE.noise
    early, late = (noise.sigma_uS(g, g, tensor(t)) / g for t in (0, DAY - 20))
    for found, derived, places in (
        (curve[[1, 2, 3, 5, 10, 20]], [0.282, 0.427, 0.531, 0.682, 0.924, 1.217], 3),
        (curve[[50, -1]], [1.73, 2.0], 2),
        (ITERATIVE.write.sigma_uS(g), [0.283, 0.359, 0.448, 0.610, 0.953, 1.055], 3),
        (drift.mean_nu(g), [0.0958, 0.0708, 0.0601, 0.0493, 0.049, 0.049], 4),
        (drift.mean_nu(g / 10)[:2], [0.1, 0.1], 4),
        (drift.sd_nu(g), [0.045, 0.0315, 0.0229, 0.0142, 0.008, 0.008], 4),
        (early, [0.735, 0.258, 0.165, 0.105, 0.058, 0.037], 3),
        (late, [0.893, 0.314, 0.200, 0.127, 0.070, 0.045], 3),
        (noise.sigma_uS(x, x / 10, tensor(0))[:2] / x[:2], [0.837, 0.837], 3),
    ):
        assert found.tolist() == pytest.approx(derived, abs=0.6 * 10**-places)


def test_targets_get_the_number_of_pulses_that_comes_nearest() -> None:
    slow = from_table({"g_uS": [0, 25], "pulse_mean_uS": [0.1, 0.1]})
    for cell in (ACCUMULATION, ACCUMULATION_2020, slow):
        array, target = SimulatedArray((50,), cell), torch.linspace(0, cell.g_max_uS, 50)
        curve = pcm.mean_curve_uS(cell)
        array.program(target, target > 1)
        assert torch.equal(array.pulses, pcm.pulses_for(cell, target) * (target > 1))
        assert torch.equal(array.writes, (target > 1).int())
        best = (curve - target[:, None]).abs().min(1).values
        missed = (curve[pcm.pulses_for(cell, target)] - target).abs()
        assert float((missed - best).max()) < 0.05, cell.name


def exercise(array: SimulatedArray) -> list[Tensor]:
    """Some of everything; what was read."""
    top = None if array.cell.overshoot else array.g_max_uS
    draw, found = torch.Generator().manual_seed(3), []
    assert isinstance(array, CellArray)
    for _ in range(2):
        chance = torch.rand(array.shape, generator=draw)
        array.program(torch.rand(array.shape, generator=draw) * array.g_max_uS, chance < 0.7)
        found.append(array.read())
        if array.cell.pulse is not None:
            array.pulse(torch.randint(0, 9, array.shape, generator=draw))
        array.wait(70.0)
        array.reset(chance > 0.9)
        found.append(array.read())
        assert torch.equal(array.g_uS, array.g_uS.clamp(array.cell.g_min_uS, top))
        assert all(bool((g >= 0).all()) for g in found)
    return found


@cases()
def test_an_array_goes_on_bit_for_bit(case: Case) -> None:
    array, again, other = (SimulatedArray((9, 11), case.cell, seed=s, dead=0.2) for s in (5, 5, 6))
    a, b, c = exercise(array), exercise(again), exercise(other)
    assert all(map(torch.equal, a, b))
    assert not any(map(torch.equal, a, c))
    other.load_state_dict(load(save(array.state_dict())))
    network = nn.ModuleList([nn.Linear(2, 2), copy.deepcopy(array)]).half().to(torch.float64)
    assert network[0].weight.dtype == torch.float64
    twins = [again, other, copy.deepcopy(array), network[1]]
    expected, last = exercise(array), save(array.state_dict())
    for twin in twins:
        found = exercise(twin)
        assert all(map(torch.equal, expected, found))
        assert save(twin.state_dict()) == last
        assert found[0].dtype == twin.g_uS.dtype == torch.float32


@cases()
@pytest.mark.parametrize("share", [0.4, 0.0])
def test_what_is_not_chosen_is_left_alone(case: Case, share: float) -> None:
    array, where = SimulatedArray((30, 20), case.cell), torch.rand(30, 20) < share
    exercise(array)
    commands = [lambda: array.reset(where), lambda: array.program(torch.ones(30, 20), where)]
    if case.pulse is not None:
        commands.insert(0, lambda: array.pulse(where * torch.randint(1, 5, array.shape)))
    for command in commands:
        before = save(array.state_dict())
        command()
        assert share or save(array.state_dict()) == before, "something was drawn"
        for name in ("g_uS", "written_s", "nu", "history", "pulses", "writes"):
            kept = load(before)["memory" if name == "history" else name]  # its name in files
            assert torch.equal(getattr(array, name)[~where], kept[~where]), name


@cases("pulse")
def test_blocks_are_not_seen(case: Case) -> None:
    n = 3 * BLOCK + 7
    mixed, alike = SimulatedArray((n,), case.cell), SimulatedArray((n,), case.cell, seed=2)
    mixed.pulse(torch.arange(n) % 3)
    alike.pulse(torch.full((n,), 2))
    mean, sd, twice = alike.g_uS.mean().item(), alike.g_uS.std().item(), torch.arange(n) % 3 == 2
    for part in (slice(0, BLOCK), slice(-BLOCK, n)):
        check_moments(mixed.g_uS[part][twice[part]], mean, sd, 5 * sd / math.sqrt(n) + 1e-5)
    assert torch.equal(*alike.g_uS[: 2 * BLOCK].chunk(2)) == (sd < 1e-6)


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
    check_moments(after[stuck], (low + high) / 2, (high - low) / math.sqrt(12))


SIX = {most: st.lists(st.integers(0, most), min_size=6, max_size=6) for most in (1, 5)}
AIMED = st.lists(st.floats(0, 25, width=32), min_size=6, max_size=6)
ROW = st.tuples(st.sampled_from("pwra"), SIX[1].filter(any), SIX[5], AIMED)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([0, 2, 11, 26]), st.floats(0, 30), st.lists(ROW, max_size=8))
def test_ideal_arrays_do_what_they_are_told(levels, pulse_uS, rows) -> None:
    """Against plain numbers for each cell, with the counters; targets go to the nearest level."""
    array, grid = SimulatedArray((6,), ideal(levels, pulse_uS=pulse_uS)), 25 / max(levels - 1, 1)
    g, pulses, writes, step = [0.0] * 6, [0] * 6, [0] * 6, pulse_uS or (grid if levels else 0.025)
    for command, chosen, counts, aimed in rows:
        if command == "p":
            array.pulse(tensor(counts))
            g = [min(a + n * step, 25.0) for a, n in zip(g, counts, strict=True)]
            pulses = [a + n for a, n in zip(pulses, counts, strict=True)]
        elif command == "a":
            array.wait(1.5)
        else:
            where, write = tensor(chosen).bool(), command == "w"
            array.program(tensor(aimed), where) if write else array.reset(where)
            new = [(round(a / grid) * grid if levels else a) * write for a in aimed]
            g = [b if c else a for a, b, c in zip(g, new, chosen, strict=True)]
            writes = [a + c for a, c in zip(writes, chosen, strict=True)]
        assert array.read().tolist() == pytest.approx(g, abs=1e-4)
    assert (array.pulses.tolist(), array.writes.tolist()) == (pulses, writes)
    assert array.clock_s == 1.5 * sum(row[0] == "a" for row in rows)


def table(text: str, head: str = "g_uS,read_sd_uS\n", **options: float) -> Cell:
    with TemporaryDirectory() as folder:
        Path(folder, "mine.csv").write_bytes((head + text).encode("utf-8", "surrogateescape"))
        return read_table(Path(folder, "mine.csv"), **options)


def test_tables_are_read_as_straight_lines() -> None:
    cell = table(ROWS + "\n\n", "\ufeff" + ",".join(COLUMNS) + "\n", t0_s=2.0)
    g = torch.linspace(0, 30, 997)
    assert cell == replace(CASES[-1].cell, name="mine", source="mine.csv")
    close(cell.pulse.mean_step_uS(g, g)[0], TABLED(TABLE["pulse_mean_uS"], g, g, 0), atol=1e-5)
    close(cell.noise.sigma_uS(g, g, g), TABLED(TABLE["read_sd_uS"], g, g, 0), atol=1e-5)
    # Once RESET is forgotten, the curves of the 2018 model are straight lines.
    rows = [f"{g},{0.88 - 0.084 * g},{0.26 + 0.091 * g},{0.13 + 0.03 * g}\n" for g in (0, 12)]
    cell = table("".join(rows), " g_uS,pulse_mean_uS, pulse_sd_uS,read_sd_uS\n")
    at = torch.linspace(0, 12, 50), torch.zeros(50), torch.randn(50)
    close(cell.pulse.step(*at)[0], ACCUMULATION.pulse.step(*at)[0], atol=1e-5)
    close(cell.noise.sigma_uS(*at), ACCUMULATION.noise.sigma_uS(*at), atol=1e-5)


BAD: list[tuple[Callable[[SimulatedArray], object], str]] = [
    (lambda a: a.program(torch.ones(3)), r"target_uS must be \(2,\), got \(3,\)"),
    (lambda a: a.program(tensor([1, math.nan])), "NaN or infinite values; check the weights"),
    (lambda a: a.program(tensor([-1.0, 13])), r"in \[0, 12\], got -1 to 13; scale or clip"),
    (lambda a: a.reset(torch.ones(3)), r"where must be bool \(2,\), got torch.float32 \(3,\)"),
    (lambda a: a.pulse(tensor([1])), r"counts must be \(2,\), got \(1,\)"),
    (lambda a: a.pulse(tensor([1, -3])), "at least 0, got -3; conductances are lowered by RESET"),
    (lambda a: a.pulse(tensor([1.0, 1])), r"whole numbers, got torch.float32; call .to"),
    (lambda a: SimulatedArray((1,), ITERATIVE).pulse(tensor([1])), r"'iterative' .* train on"),
    (lambda a: a.wait(-1.0), "seconds_s=-1.0: time passes forward; give 0 or more"),
    (lambda a: SimulatedArray((2, 0), ITERATIVE), r"sides of at least 1, got \(2, 0\)"),
    (lambda a: SimulatedArray((2,), a.cell, dead=0.6, stuck=0.6), "dead=0.6, stuck=0.6: shares"),
    (
        lambda a: SimulatedArray((2,), ITERATIVE, seed=-1),
        r"seed=-1: a seed is a whole number in \[0, 2\*\*63\)",
    ),
    (lambda a: ideal(1), r"levels=1: a cell holds at least 2 values, or any \(0\)"),
    (lambda a: from_table({"read_sd_uS": [1.0, 2]}), r"two points or more.*got \(\)"),
    (lambda a: from_table({"g_uS": [0, 1], "drift_nu": [1]}), "1 points, g_uS 2; give as many"),
    (lambda a: read_table("missing.csv"), "missing.csv: expected .*; found No such file"),
    (lambda a: table("\x81\x00\n"), "no text in any encoding.*; save it as UTF-8"),
    (lambda a: table("0,1\n"), r"two points or more, from 0 up and rising; got \(0.0,\)"),
    (lambda a: table("0,1\n5\n"), "2 fields in each row; found 1 in line 3"),
    (lambda a: table("0,1\n5,x\n"), "a finite number in column read_sd_uS; found 'x' in line 3"),
    (lambda a: table("0,1\n5,\n"), "numbers in column read_sd_uS; found '' in line 3; write"),
    (lambda a: table("0,x\n5,y\n"), "numbers in column read_sd_uS; found 'x' in line 2"),
    (lambda a: table("0,1\n5,inf\n"), "a finite number in column read_sd_uS; found 'inf'"),
    (lambda a: table("0,1\n5,-1\n"), "has a negative spread, -1.0; give it as >= 0"),
    (lambda a: table("0,1\n10,1e39\n"), "read_sd_uS has the value 1e.39, and at most 1e.09"),
    (lambda a: table("0,1\n1e300,1\n"), "g_uS has the value 1e.300, and at most 1e.09"),
    (lambda a: table("1,1\n1.00000000000001,1\n"), "g_uS=1.0 and .* are the same number in fl"),
    (lambda a: table("0,1\n5," + "9" * 200_000 + "\n"), "field larger than field limit"),
    (lambda a: from_table({"g_uS": [0, 1], "drift_nu": [0, -40]}), "drift_nu has the value -40"),
    (lambda a: from_table({"g_uS": [0, 1e300]}), "g_uS has the value 1e.300"),
    (lambda a: from_table({"g_uS": [0, 1], "drift_nu": [1, 1]}, t0_s=math.inf), "t0_s=inf"),
    (lambda a: table("5,1\n0,1\n"), r"from 0 up and rising; got \(5.0, 0.0\)"),
    (lambda a: table("0,1\n5,1\n", "g_uS,other\n"), "column 'other' is not known; use drift_nu, "),
    (lambda a: from_table({"g_uS": [0, 1], "drift_nu": [1, 1]}, t0_s=0.0), "t0_s"),
]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_cell_from_any_table_that_is_taken_stays_finite(data: st.DataObject) -> None:
    wide = st.floats(width=64, allow_nan=False, allow_infinity=False)
    number = st.one_of(st.sampled_from([0.0, 1e-40, 1e-9, 1.0, 1e9, 1e30, 1e39, 1e300]), wide)
    names = ["g_uS", *data.draw(st.sets(st.sampled_from([*COLUMNS][1:])))]
    columns = {name: data.draw(st.lists(number, min_size=2, max_size=3)) for name in names}
    columns["g_uS"] = sorted(columns["g_uS"])
    try:
        cell = from_table(columns)
    except UsageError:
        return
    array = SimulatedArray((5,), cell)
    array.program(torch.full((5,), cell.g_max_uS))
    if cell.pulse is not None:
        array.pulse(torch.full((5,), 2))
        assert all(map(math.isfinite, array.pulse_curve_uS))
    array.wait(10.0)
    assert array.read().isfinite().all()


@pytest.mark.parametrize(("call", "message"), BAD, ids=[row[1] for row in BAD])
def test_bad_input_is_named(call: Callable[[SimulatedArray], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError, UsageError), match=message):
        call(SimulatedArray((2,), ACCUMULATION))
