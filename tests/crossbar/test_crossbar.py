"""Weights on crossbars: what an ideal device must give, and what each imperfection does."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from spikebridge.base.records import UsageError
from spikebridge.crossbar.cells import SimulatedArray
from spikebridge.crossbar.network import Crossbar, CrossbarNetwork, from_crossbar, to_crossbar
from spikebridge.crossbar.optimizer import InMemory
from spikebridge.crossbar.pcm import ACCUMULATION, ITERATIVE, Cell, ideal
from spikebridge.crossbar.traffic import Traffic, listening
from spikebridge.nn.layers import Layer
from spikebridge.nn.network import build, operations
from spikebridge.nn.synapses import Conv2d, Dense, Embedding, Normalised
from spikebridge.nn.units import make_unit
from spikebridge.settings.crossbar import CrossbarConfig
from spikebridge.settings.model import ModelConfig

YEAR_S = 365 * 86_400.0
STEPS, BATCH, SYMBOLS = 5, 3, 20
CONV: dict[str, Any] = {"channels": (4,), "kernel_size": 3, "stride": 1, "pool": 2, "hidden": (7,)}
CENTRED: dict[str, Any] = {"norm": True, "centre": True}
TEXT: dict[str, Any] = {"unit": "softsnu", "recurrent": True, "hidden": (8, 6), "embedding": 5}
# Model, shape of an input, readout; no shape stands for symbols.
MODELS: dict[str, tuple[ModelConfig, tuple[int, ...], Any]] = {
    "snu": (ModelConfig(hidden=(12, 9)), (10,), "mean"),
    "recurrent snu": (ModelConfig(hidden=(12, 9), recurrent=True), (10,), "each"),
    "soft snu": (ModelConfig(unit="softsnu", hidden=(12, 9), norm=True), (10,), "each"),
    "conv": (ModelConfig(**CONV), (2, 8, 8), "each"),
    "binary di": (ModelConfig(unit="binary-di", hidden=(12, 9), **CENTRED), (10,), "each"),
    "binary ci": (ModelConfig(unit="binary-ci", hidden=(12, 9)), (10,), "mean"),
    "binary ci conv": (ModelConfig(**CONV | {"unit": "binary-ci"}), (2, 8, 8), "each"),
    "relu": (ModelConfig(unit="relu", hidden=(12, 9)), (10,), "each"),
    "tanh conv": (ModelConfig(**CONV | {"unit": "tanh", "drive_bias": True}), (2, 8, 8), "mean"),
    "li-snu": (ModelConfig(unit="li-snu", hidden=(12,)), (10,), "last"),
    "tied text": (ModelConfig(**TEXT, tied=True), (), "each"),
    "text": (ModelConfig(hidden=(8, 6), recurrent=True), (), "each"),
}
IDEAL = ideal()
NETWORKS = pytest.mark.parametrize("name", [*MODELS, "torch"])
CONVERTERS: dict[str, Any] = {"dac_bits": 14, "adc_bits": 14, "adc_range": 6.0, "tile": 6}


def network_of(name: str) -> Any:
    torch.manual_seed(7)
    if name == "torch":
        conv = nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    model, shape, readout = MODELS[name]
    if not shape:
        return build(model, SYMBOLS, SYMBOLS, readout, symbols=True)
    made = build(model, math.prod(shape), 4, readout, image=shape if len(shape) == 3 else None)
    for layer in made.layers:
        if getattr(layer.array, "bias", None) is not None:  # a constant drive, 0 at first
            nn.init.uniform_(layer.array.bias, -0.5, 0.5)
    return made


def input_of(name: str) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if name == "torch":
        return torch.randn(BATCH, 2, 8, 8, generator=draw)
    shape = MODELS[name][1]
    if not shape:
        return torch.randint(0, SYMBOLS, (STEPS, BATCH), generator=draw)
    return (torch.rand(STEPS, BATCH, math.prod(shape), generator=draw) < 0.4).float()


def output_of(network: nn.Module, x: Tensor) -> Tensor:
    found = network(x)
    return found[0] if isinstance(found, tuple) else found


def results(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output of a copy and gradients of a fixed loss, by names that are the same on a chip."""
    network = copy.deepcopy(network)
    y = output_of(network, x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)) / BATCH
    (y * cotangent).sum().backward()
    grads = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    short = {re.sub(r"\.array|\.original|parametrizations\.", "", k): g for k, g in grads.items()}
    return {"output": y, **short}


def linear(rows: list[list[float]]) -> Any:
    network = nn.Sequential(nn.Linear(len(rows[0]), len(rows), bias=False))
    network[0].weight.data = torch.tensor(rows)
    return network


def drawn(rows: int, columns: int, seed: int = 0) -> Any:
    draw = torch.Generator().manual_seed(seed)
    return linear(torch.randn(rows, columns, generator=draw).tolist())


def on_chip(network: nn.Module, cell: Cell, **more: Any) -> tuple[CrossbarNetwork, Crossbar]:
    """With the crossbar of its first matrix."""
    chip = to_crossbar(network, cell, CrossbarConfig(**more))
    return chip, next(iter(chip.crossbars.values()))


# --- an ideal device is no device ---


@pytest.mark.parametrize("more", [{}, {"pairs": 3, "tile": 5}, {"w_max": 40.0}], ids=str)
@NETWORKS
def test_an_ideal_device_gives_the_software_result(name: str, more: dict[str, Any]) -> None:
    network, x = network_of(name), input_of(name)
    before = copy.deepcopy(network.state_dict())
    chip, _ = on_chip(network, IDEAL, **more)
    wanted, found = results(network, x), results(chip.network, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert len(wanted) >= 4
    assert all(float(value.detach().abs().max()) > 1e-3 for value in wanted.values())
    assert max(chip.errors().values()) < 1e-6
    chip.program({key: torch.zeros_like(value) for key, value in chip.aimed.items()})
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize("more", [{}, CONVERTERS | {"dac_bits": 8}], ids=str)
@NETWORKS
def test_taken_off_again_it_is_a_network_like_any_other(name: str, more: dict[str, Any]) -> None:
    network, x = network_of(name).eval(), input_of(name)
    chip, _ = on_chip(network, IDEAL if more else replace(ITERATIVE, noise=None), **more)
    hard, plain = output_of(chip.network, x), from_crossbar(chip)
    assert [type(module) for module in plain.modules()] == [type(m) for m in network.modules()]
    assert plain.state_dict().keys() == network.state_dict().keys()
    assert all(isinstance(p, nn.Parameter) for p in plain.parameters())
    trained = [[p.requires_grad for p in n.parameters()] for n in (plain, network)]
    assert trained[0] == trained[1]
    wanted = output_of(network, x) if more else hard  # converters stay behind on the chip
    torch.testing.assert_close(output_of(plain, x), wanted, rtol=0, atol=1e-6)
    with torch.no_grad():  # the chip goes on as before, and is not bound to what came off it
        for p in plain.parameters():
            p.zero_()
    assert torch.equal(output_of(chip.network, x), hard)
    weights = {key: 2 * value for key, value in chip.aimed.items()}
    chip.program(weights)
    assert not torch.equal(output_of(chip.network, x), hard)
    again = dict(from_crossbar(chip).named_parameters())
    assert all(torch.equal(again[key], c.weights()) for key, c in chip.crossbars.items())


REFUSED = {
    "torch's LSTM .*; use a spiking unit": nn.Sequential(nn.LSTM(3, 4)),
    "torch's .*; use a spiking unit": build(ModelConfig(unit="gru"), 5, 2, "mean"),
    "no Linear, Conv2d or spiking layer": nn.Sequential(nn.ReLU()),
    "in groups are not mapped; use groups=1": nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_lie_on_a_crossbar(message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to_crossbar(REFUSED[message], IDEAL)


def test_a_refusal_of_the_whole_network_begins_without_an_empty_name() -> None:
    for network in (nn.LSTM(3, 4), nn.Conv2d(4, 4, 3, groups=2)):
        with pytest.raises(UsageError, match=r"^(torch's LSTM|convolutions)"):
            to_crossbar(network, IDEAL)


def pruned(module: nn.Module, field: str = "weight") -> nn.Module:
    size = getattr(module, field).numel()
    draw = torch.Generator().manual_seed(4)
    mask = torch.rand(size, generator=draw).view_as(getattr(module, field)) < 0.5
    return prune.custom_from_mask(module, field, mask)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class MadeAnew(nn.Module):
    """Its weight is made from another one in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear: Any = nn.Linear(4, 3)
        self.raw = self.linear.weight
        del self.linear.weight
        self.linear.weight = self.raw * 2


# What a user may have done to a layer; its weight is then no plain parameter.
REMADE: dict[str, Any] = {
    "pruned": pruned,
    "pruned twice": lambda m: prune.l1_unstructured(pruned(m), "weight", 3),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "their own": lambda m: parametrize.register_parametrization(m, "weight", Halved()) or m,
    "older weight norm": weight_norm,
    "older spectral norm": spectral_norm,
}
REMADE_ARRAYS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv": (lambda: nn.Conv2d(2, 4, 3), (3, 2, 5, 5)),
    "ours": (lambda: Dense(6, 4), (3, 6)),
    "our conv": (lambda: Conv2d((2, 5, 5), 4, 3), (3, 50)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("more", [{}, {"dac_bits": 14, "adc_bits": 14}], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", REMADE_ARRAYS)
@pytest.mark.parametrize("how", REMADE)
def test_a_weight_that_is_made_from_others_is_mapped_as_it_is(
    how: str, shape: str, training: bool, in_place: bool, more: dict[str, Any]
) -> None:
    torch.manual_seed(5)
    make, size = REMADE_ARRAYS[shape]
    network = nn.Sequential(REMADE[how](make()), nn.Flatten()).eval()
    x = torch.randn(size)
    wanted = network(x).detach()
    network.train(training)  # a spectral norm that is asked in training is another one after it
    before = {key: value.clone() for key, value in network.state_dict().items()}
    chip = to_crossbar(network, IDEAL, CrossbarConfig(**more), in_place=in_place)
    step = x.abs().max() * chip.crossbars["0.weight"].w_max.max() / (2**13 - 1)
    # Half a step of the converter of a column, and of each of at most 18 rows.
    bound = float(step * (CrossbarConfig().adc_range + 18) / 2) if more else 1e-5
    torch.testing.assert_close(chip.network(x), wanted, rtol=1e-5, atol=bound)
    plain: Any = from_crossbar(chip)
    torch.testing.assert_close(plain(x), wanted, rtol=1e-5, atol=1e-5)
    assert type(plain[0]) is type(make())
    keys = plain.state_dict().keys()
    assert keys == before.keys() if "pruned" in how else keys >= {"0.weight"}
    assert len(list(plain[0].parameters())) == len(list(make().parameters()))
    again = to_crossbar(plain, IDEAL)  # and it goes there and back as often as one likes
    torch.testing.assert_close(again.network(x), wanted, rtol=1e-5, atol=1e-5)
    if not in_place:
        after = network.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        network.eval()(x).sum().backward()  # its class and its hooks are still its own


def test_pruned_weights_stay_away_on_the_cells_and_in_training() -> None:
    layer = Layer(Dense(6, 5), make_unit("snu", 5, threshold=0.1), recurrent=True)
    pruned(layer.array)
    pruned(layer, "recurrent")
    masks: Any = {"array.weight": layer.array.weight_mask, "recurrent": layer.recurrent_mask}
    chip = to_crossbar(layer, ACCUMULATION, CrossbarConfig(w_max=1.0))
    inner = torch.optim.AdamW(chip.network.parameters(), lr=0.05)
    optimizer = InMemory(inner, chip)
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(2))
    for _ in range(3):
        optimizer.zero_grad()
        (chip.network(x)[0] - 0.5).square().sum().backward()
        optimizer.step()
    assert optimizer.pulses > 0
    for name, mask in masks.items():
        owner, _, field = name.rpartition(".")
        device: Any = chip.crossbars[name].device
        assert not device.pulses.sum(0)[0][mask == 0].any()
        assert not getattr(chip.network.get_submodule(owner), field)[mask == 0].any()
    plain = from_crossbar(chip)
    assert plain.state_dict().keys() == layer.state_dict().keys()
    for name, mask in masks.items():
        assert torch.equal(plain.state_dict()[f"{name}_mask"], mask)


def test_a_digital_bias_that_is_pruned_goes_on_being_so_behind_converters() -> None:
    network = nn.Sequential(pruned(nn.Linear(6, 4), "bias"))
    x = torch.randn(3, 6)
    chip = to_crossbar(network, IDEAL, CrossbarConfig(adc_bits=14))
    before = chip.network(x).detach()
    array: Any = chip.network.get_submodule("0.array")
    with torch.no_grad():
        array.bias_orig += 1.0
    assert 0 < array.bias_mask.sum() < 4
    torch.testing.assert_close(chip.network(x), before + array.bias_mask, rtol=0, atol=1e-5)


def test_a_layer_called_twice_has_converters_at_both_places() -> None:
    shared = nn.Linear(5, 5)
    chip = to_crossbar(nn.Sequential(shared, nn.Tanh(), shared), IDEAL, CrossbarConfig(adc_bits=2))
    network: Any = chip.network
    assert network[0] is network[2]
    assert hasattr(network[2], "crossbar")
    plain: Any = from_crossbar(chip)
    assert plain[0] is plain[2]
    assert type(plain[0]) is nn.Linear


def unknown_device(shape: tuple[int, ...]) -> Any:
    if shape[2] == 2:  # the second matrix
        raise OSError("the instrument is gone")
    return SimulatedArray(shape, IDEAL)


def nan_in_the_second() -> nn.Module:
    network: Any = nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    network[1].weight.data[0, 0] = math.nan
    return network


HALF: dict[str, tuple[Any, Any, Any]] = {
    "NaN or infinite": (nan_in_the_second, IDEAL, ValueError),
    "instrument is gone": (
        lambda: nn.Sequential(pruned(nn.Linear(4, 3)), nn.Linear(3, 2)),
        unknown_device,
        OSError,
    ),
    "1.weight has no shape yet; call the network": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.LazyLinear(2)),
        IDEAL,
        UsageError,
    ),
    "1.linear.weight is no parameter.*torch.nn.Parameter": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), MadeAnew()),
        IDEAL,
        UsageError,
    ),
    "lies on a crossbar already.*from_crossbar": (
        lambda: to_crossbar(nn.Sequential(nn.Linear(4, 3)), IDEAL).network,
        IDEAL,
        UsageError,
    ),
    "torch's GRU": (lambda: nn.Sequential(nn.Linear(4, 3), nn.GRU(3, 2)), IDEAL, UsageError),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:.*Lazy modules")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("message", HALF)
def test_a_refusal_changes_nothing(message: str, in_place: bool) -> None:
    make, device, kind = HALF[message]
    network = make()
    before, classes = dict(network.state_dict()), [type(m) for m in network.modules()]
    parameters = list(network.parameters())
    with pytest.raises(kind, match=message):
        to_crossbar(network, device, in_place=in_place)
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert [type(m) for m in network.modules()] == classes
    pairs = zip(parameters, network.parameters(), strict=True)
    assert all(one is other for one, other in pairs)


def test_weights_that_two_modules_share_are_seen_through_what_makes_them() -> None:
    both = [parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(6)]
    assert len(to_crossbar(nn.Sequential(*both), IDEAL).crossbars) == 6
    one, other = (pruned(nn.Linear(4, 4)) for _ in range(2))
    other.weight_orig = one.weight_orig
    with pytest.raises(UsageError, match="1 and 0 share a weight"):
        to_crossbar(nn.Sequential(one, other), IDEAL)


def test_matrices_that_no_crossbar_stands_in_for_are_named() -> None:
    attention = nn.MultiheadAttention(8, 2)
    network = nn.Sequential(nn.Embedding(5, 8), attention, nn.Conv1d(3, 4, 2), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"digital.*: 1\.in_proj_weight, 2\.weight$"):
        chip = to_crossbar(network, IDEAL)
    assert set(chip.crossbars) == {"1.out_proj.weight", "3.weight"}
    few = build(ModelConfig(hidden=(4,), weight_bits=4), 5, 2, "mean")
    norm = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    assert len(to_crossbar(few, IDEAL).crossbars) == 2  # without a warning
    assert len(to_crossbar(norm, IDEAL).crossbars) == 1


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
    g = crossbar.device.read()
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


# --- errors of devices ---


def published_error(weight: np.ndarray) -> float:
    """Read-back error by the published equations of the device, at 20 s on its clock of drift."""
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
    (g,), (h,) = copy.deepcopy(chips[0]).crossbars["0.weight"].device.read().double()
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
    assert {c.device.clock_s for c in chip.crossbars.values()} == {100.0}
    assert all(float(value.abs().max()) > 0 for value in chip.aimed.values())


@pytest.mark.parametrize(("dead", "stuck"), [(0.1, 0.0), (0.0, 0.2), (0.1, 0.2)])
def test_faults_appear(dead: float, stuck: float) -> None:
    chip, crossbar = on_chip(drawn(100, 100), IDEAL, dead=dead, stuck=stuck)
    before = crossbar.device.read()[0, 0]
    crossbar.program(torch.ones(100, 100))
    after = crossbar.device.read()[0, 0]
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
    crossbar.device.reset()
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
