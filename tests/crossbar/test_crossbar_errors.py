"""Errors of cells, converters and wires; what goes through."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from helpers.crossbar_models import (
    BATCH,
    CONVERTERS,
    IDEAL,
    MODELS,
    NETWORKS,
    STEPS,
    SYMBOLS,
    input_of,
    network_of,
    on_chip,
    output_of,
    results,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from spikebridge.crossbar.network import to_crossbar
from spikebridge.crossbar.pcm import ACCUMULATION, ITERATIVE, Cell
from spikebridge.crossbar.traffic import Traffic, listening
from spikebridge.nn.layers import Layer
from spikebridge.nn.network import build, operations
from spikebridge.nn.synapses import Conv2d, Embedding, Normalised
from spikebridge.settings.model import ModelConfig

YEAR_S = 365 * 86_400.0


def linear(rows: list[list[float]]) -> Any:
    network = nn.Sequential(nn.Linear(len(rows[0]), len(rows), bias=False))
    network[0].weight.data = torch.tensor(rows)
    return network


def drawn(rows: int, columns: int, seed: int = 0) -> Any:
    draw = torch.Generator().manual_seed(seed)
    return linear(torch.randn(rows, columns, generator=draw).tolist())


# --- cells, tiles and scales ---


@settings(max_examples=25, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    tile=st.integers(1, 10),
    pairs=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_the_largest_weight_of_a_tile_takes_the_whole_range(
    sides: tuple[int, int], tile: int, pairs: int, seed: int
) -> None:
    network = drawn(*sides, seed)
    weight = network[0].weight.detach()
    chip, crossbar = on_chip(network, IDEAL, tile=tile, pairs=pairs)
    assert crossbar.tiles == tuple(math.ceil(side / tile) for side in sides)
    assert chip.cells == 2 * pairs * weight.numel()
    g = crossbar.cell_array.read()
    for a, b in product(range(0, sides[0], tile), range(0, sides[1], tile)):
        part = (slice(a, a + tile), slice(b, b + tile))
        np.testing.assert_allclose(crossbar.w_max[part], float(weight[part].abs().max()), rtol=1e-6)
        top = g[(slice(None), slice(None), *part)].amax((0, 2, 3))
        np.testing.assert_allclose(top, 25.0, rtol=1e-6)
    assert not (g[0] * g[1]).any()  # a weight lies on one side of its pair
    torch.testing.assert_close(crossbar.weights(), weight)


def test_cells_of_a_network_and_cut_off_weights() -> None:
    assert on_chip(build(ModelConfig(hidden=(150,)), 88, 88, "each"), IDEAL)[0].cells == 52_800
    network = linear([[0.2, -0.5, 0.7], [-3.0, 0.0, 0.5]])
    chip, crossbar = on_chip(network, IDEAL, w_max=0.5)
    wanted = torch.tensor([[0.2, -0.5, 0.5], [-0.5, 0.0, 0.5]])
    torch.testing.assert_close(crossbar.weights(), wanted)
    torch.testing.assert_close(crossbar.clip(network[0].weight.detach()), wanted)
    rms = math.sqrt(sum(v**2 for v in (0.2, 0.5, 0.7, 3.0, 0.5)) / 6)
    assert float(on_chip(network, IDEAL, clip_rms=1.5)[1].w_max.max()) == pytest.approx(1.5 * rms)
    error = math.sqrt((0.2**2 + 2.5**2) / (0.04 + 0.25 + 0.49 + 9 + 0.25))
    assert chip.errors()["0.weight"] == pytest.approx(error, rel=1e-5)


def test_a_matrix_of_zeros_has_a_finite_error() -> None:
    errors = [on_chip(linear([[0.0]]), cell)[0].errors()["0.weight"] for cell in (ITERATIVE, IDEAL)]
    assert all(map(math.isfinite, errors))


# --- errors of cells ---


def published_error(weight: np.ndarray) -> float:
    """Read-back error by the published equations of the cells, at 20 s on its clock of drift."""
    random, top = np.random.default_rng(5), 25.0
    target = np.stack([weight.clip(0), (-weight).clip(0)]) / np.abs(weight).max()
    sigma = 0.26348 + 1.9650 * target - 1.1731 * target**2
    g = (target * top + sigma * random.standard_normal(target.shape)).clip(0, top)
    q = np.minimum(0.0088 / np.maximum((g / top) ** 0.65, 1e-3), 0.2)
    spread = g * q * math.sqrt(math.log((20 + 250e-9) / 500e-9))
    g = (g + spread * random.standard_normal(g.shape)).clip(0)
    found = (g[0] - g[1]) / top * np.abs(weight).max()
    return math.sqrt(((found - weight) ** 2).mean() / (weight**2).mean())


def test_read_back_errors() -> None:
    network = drawn(200, 200)
    weight = network[0].weight.detach().double()
    chips = [on_chip(network, ITERATIVE, pairs=pairs)[0] for pairs in (1, 2, 4, 9)]
    (g,), (h,) = copy.deepcopy(chips[0]).crossbars["0.weight"].cell_array.read().double()
    gap = (g - h) / 25 * weight.abs().max() - weight
    by_hand = float(gap.square().mean().sqrt() / weight.square().mean().sqrt())
    errors = [chip.errors()["0.weight"] for chip in chips]
    assert errors[0] == pytest.approx(by_hand, rel=1e-5)
    assert errors[0] == pytest.approx(published_error(weight.numpy()), rel=0.02)
    assert errors == pytest.approx([errors[0] / k**0.5 for k in (1, 2, 4, 9)], rel=0.1)


def test_errors_are_those_of_the_seed() -> None:
    network = nn.Sequential(*drawn(9, 9), *drawn(9, 9))
    chips = [to_crossbar(network, ITERATIVE, seed=seed) for seed in (3, 3, 4)]
    for _ in range(2):
        one, same, other = ([c.weights() for c in chip.crossbars.values()] for chip in chips)
        assert all(map(torch.equal, one, same))
        assert not torch.equal(one[0], other[0])
        assert not torch.equal(one[0], one[1])  # each matrix draws from a stream of its own


@pytest.mark.parametrize("more", [{}, {"dac_bits": 8, "dead": 0.1, "stuck": 0.1}], ids=str)
def test_a_copy_of_a_chip_reads_the_same_and_is_its_own(more: dict[str, Any]) -> None:
    chip, _ = on_chip(network_of("recurrent snu"), ACCUMULATION, **more)
    chip.wait(100.0)
    chip.compensate()
    twin, x = copy.deepcopy(chip), input_of("recurrent snu")
    for _ in range(2):
        assert torch.equal(output_of(chip.network, x), output_of(twin.network, x))
        assert chip.errors() == twin.errors()
    twin.wait(50.0)
    twin.program({key: torch.zeros_like(value) for key, value in twin.aimed.items()})
    assert {c.cell_array.clock_s for c in chip.crossbars.values()} == {100.0}
    assert all(float(value.abs().max()) > 0 for value in chip.aimed.values())


@pytest.mark.parametrize(("dead", "stuck"), [(0.1, 0.0), (0.0, 0.2), (0.1, 0.2)])
def test_faults_appear(dead: float, stuck: float) -> None:
    chip, crossbar = on_chip(drawn(100, 100), IDEAL, dead=dead, stuck=stuck)
    before = crossbar.cell_array.read()[0, 0]
    crossbar.program(torch.ones(100, 100))
    after = crossbar.cell_array.read()[0, 0]
    fixed, lowest = after < 25, (before == 0) & (after == 0)
    assert torch.equal(after[fixed], before[fixed])
    shares = [float(where.float().mean()) for where in (fixed, lowest)]
    assert shares == pytest.approx([dead + stuck, dead], abs=0.02)
    assert chip.errors()["0.weight"] > 0.1


@pytest.mark.parametrize("cell", [IDEAL, ITERATIVE, ACCUMULATION], ids=lambda c: c.name)
def test_compensation_of_a_matrix_of_zeros_leaves_it_alive(cell: Cell) -> None:
    network = nn.Linear(3, 2, bias=False)
    network.weight.data.zero_()
    chip = to_crossbar(network, cell)
    chip.wait(YEAR_S)
    assert chip.compensate() == {"weight": 1.0}
    crossbar = chip.crossbars["weight"]
    crossbar.program(torch.ones(2, 3))
    assert float(crossbar.weights().mean()) > 0.5


def test_compensation_of_what_nothing_is_left_of_is_no_factor() -> None:
    _, crossbar = on_chip(linear([[1.0, -0.5]]), IDEAL)
    crossbar.cell_array.reset()
    assert crossbar.compensate() == 1.0


def test_compensation_takes_back_what_weights_lost_on_average() -> None:
    chip, crossbar = on_chip(drawn(30, 30), replace(ITERATIVE, noise=None))
    start = float(crossbar.weights().abs().mean())
    chip.wait(YEAR_S)
    lost = float(crossbar.weights().abs().mean())
    assert lost < 0.7 * start
    for _ in range(2):
        assert chip.compensate()["0.weight"] == pytest.approx(start / lost, rel=1e-5)
        assert float(crossbar.weights().abs().mean()) == pytest.approx(start, rel=1e-6)
    chip.uncompensate()
    assert float(crossbar.weights().abs().mean()) == pytest.approx(lost, rel=1e-6)
    chip, _ = on_chip(drawn(60, 60), ITERATIVE)
    errors = [chip.errors()["0.weight"]]
    for act in (lambda: chip.wait(YEAR_S), chip.compensate):
        act()
        errors.append(chip.errors()["0.weight"])
    assert errors[0] < errors[2] < 0.6 * errors[1]


# --- converters and wires ---


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(2, 12), tile=st.integers(1, 9), seed=st.integers(0, 999))
def test_a_converter_errs_by_half_a_step_per_tile(bits: int, tile: int, seed: int) -> None:
    network, x = drawn(5, 8, seed), torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    weight, levels = network[0].weight.detach(), 2 ** (bits - 1) - 1
    top = x.abs().amax(1, keepdim=True)
    chip, crossbar = on_chip(network, IDEAL, tile=tile, adc_bits=bits, adc_range=8.0)
    bounds = sum(8 * top * crossbar.w_max[:, b] for b in range(0, 8, tile)) / levels / 2
    assert bool(((chip.network(x) - network(x)).abs() <= bounds + 1e-5).all())
    chip, _ = on_chip(network, IDEAL, tile=tile, dac_bits=bits)
    bounds = weight.abs().sum(1) * top / levels / 2
    assert bool(((chip.network(x) - network(x)).abs() <= bounds + 1e-5).all())
    spikes = (x > 0).float()
    torch.testing.assert_close(chip.network(spikes), network(spikes), rtol=0, atol=1e-6)


@NETWORKS
def test_many_bits_approach_the_exact_result_and_gradients_pass(name: str) -> None:
    network, x = network_of(name), input_of(name)
    hard = on_chip(network, IDEAL, **CONVERTERS)[0].network
    torch.testing.assert_close(results(hard, x), results(network, x), rtol=1e-2, atol=2e-3)


TIED = "embedding.weight"
SHAPES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(4, 3), (2, 4)),
    (nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")), (2, 2, 6, 6)),
    (nn.Sequential(nn.Conv2d(2, 3, 3, padding="same")), (2, 2, 6, 6)),
    (nn.Sequential(nn.Conv2d(2, 3, 3)), (2, 6, 6)),
]


@pytest.mark.parametrize(("network", "shape"), SHAPES)
def test_converters_of_any_array(network: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    found = on_chip(network, IDEAL, dac_bits=12)[0].network(x)
    assert 1e-6 < float((found - network(x)).detach().abs().max()) < 1e-2


def test_two_tiles_by_hand() -> None:
    network, x = linear([[1.0, 0.5, -0.25, 0.5]]), torch.tensor([[1.0, 0.5, 1.0, -1.0]])
    # 1.25 and -0.75 of tiles with the largest weights 1 and 1/2, at 3 steps to each side.
    for adc_range, wanted in ((2.0, 4 / 3 - 2 / 3), (1.0, 1.0 - 0.5), (6.0, 2.0 - 1.0)):
        chip, _ = on_chip(network, IDEAL, tile=2, adc_bits=3, adc_range=adc_range)
        assert chip.network(x).item() == pytest.approx(wanted)
        assert chip.network(10 * x).item() == pytest.approx(10 * wanted)
    chip, _ = on_chip(network, IDEAL, dac_bits=3)  # 1/2 becomes 2/3
    assert chip.network(x).item() == pytest.approx(1 + 1 / 3 - 0.25 - 0.5)


def test_wires() -> None:
    column = linear([[1.0, 0.5]])
    _, crossbar = on_chip(column, IDEAL, wire_ohm=1000.0)
    # 25 and 12.5 uS: the first loses R (G1 + G2) / 2 of its input, the second R (G1 + 2 G2) / 2.
    wanted = torch.tensor([[1 - 0.01875, 0.5 * (1 - 0.025)]])
    torch.testing.assert_close(crossbar.weights(), wanted, rtol=1e-5, atol=0)
    _, crossbar = on_chip(column, IDEAL, wire_ohm=1000.0, tile=1)
    wanted = torch.tensor([[1 - 0.0125, 0.5 * (1 - 0.0125)]])  # each at the end of its own wire
    torch.testing.assert_close(crossbar.weights(), wanted, rtol=1e-5, atol=0)
    chips = [on_chip(column, IDEAL, wire_ohm=ohm)[0] for ohm in (0, 1, 1e3, 1e9)]
    outputs = [chip.network(torch.ones(1, 2)).item() for chip in chips]
    assert outputs == sorted(outputs, reverse=True)
    assert (outputs[0], outputs[-1]) == (1.5, 0)


# --- what goes through ---


def inputs_of(network: Any, x: Tensor) -> dict[str, Tensor]:
    """What each matrix is multiplied with, (vectors, rows), worked out from what layers send."""
    found, seen = {}, network.observe(x)
    sent = x if network.embedding is None else network.embedding(x)
    for number, (layer, trace) in enumerate(zip(network.layers, seen.layers, strict=True)):
        key = f"layers.{number}.array{'.array' * isinstance(layer.array, Normalised)}.weight"
        if isinstance(layer.array, Conv2d):
            sent = F.unfold(sent.view(-1, 2, 8, 8), 3, padding=1).transpose(1, 2)
        elif not sent.is_floating_point():
            sent = F.one_hot(sent, SYMBOLS)
        found[key] = sent.flatten(0, 1)
        if getattr(layer, "recurrent", None) is not None:
            before = torch.cat([torch.zeros_like(trace.y[:1]), trace.y[:-1]])
            found[f"layers.{number}.recurrent"] = before.flatten(0, 1)
        sent = trace.y
    reduced = {"each": sent.flatten(0, 1), "last": sent[-1], "mean": sent.mean(0)}
    return found | {"readout.linear.weight": reduced[network.readout.reduce]}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_traffic_is_what_layers_send(name: str) -> None:
    network, x = network_of(name).eval(), input_of(name)
    chip, _ = on_chip(network, IDEAL, tile=6)
    with listening(network) as found:
        network(x)
    with listening(chip.network) as same:
        chip.network(x)
    assert same == found
    traffic, updates = found
    sizes = [layer.unit.size for layer in network.layers if isinstance(layer, Layer)]
    assert sum(updates.values()) == STEPS * BATCH * sum(sizes)
    inputs = inputs_of(network, x)
    assert traffic.keys() == chip.crossbars.keys() == inputs.keys() | ({TIED} & traffic.keys())
    assert (TIED in traffic) == network.tied
    for key, sent in inputs.items():
        count, rows = sent.shape
        columns, binary = chip.crossbars[key].scale.numel() // rows, set(sent.unique().tolist())
        if isinstance(network.get_submodule(key.rpartition(".")[0]), Embedding):
            assert traffic[key] == Traffic(1, columns, count, count)  # rows that are looked up
            continue
        active = int(sent.count_nonzero())
        assert traffic[key] == Traffic(rows, columns, count, active, binary <= {0, 1}), key
    if network.readout.reduce == "each" and x.is_floating_point():
        assert sum(t.macs for t in traffic.values()) == operations(network) * STEPS * BATCH
