"""Networks on crossbars: the software result on ideal cells, refusals change nothing."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.crossbar_models import (
    CONVERTERS,
    IDEAL,
    NETWORKS,
    input_of,
    network_of,
    on_chip,
    output_of,
    results,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from spikebridge.base.records import UsageError
from spikebridge.crossbar.cells import SimulatedArray
from spikebridge.crossbar.network import from_crossbar, to_crossbar
from spikebridge.crossbar.optimizer import InMemory
from spikebridge.crossbar.pcm import ACCUMULATION, ITERATIVE
from spikebridge.nn.layers import Layer
from spikebridge.nn.network import build
from spikebridge.nn.synapses import Conv2d, Dense
from spikebridge.nn.units import make_unit
from spikebridge.settings.crossbar import CrossbarConfig
from spikebridge.settings.model import ModelConfig

# --- an ideal cell is no cell ---


@pytest.mark.parametrize("more", [{}, {"pairs": 3, "tile": 5}, {"w_max": 40.0}], ids=str)
@NETWORKS
def test_an_ideal_cell_gives_the_software_result(name: str, more: dict[str, Any]) -> None:
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
        array: Any = chip.crossbars[name].cell_array
        assert not array.pulses.sum(0)[0][mask == 0].any()
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


def unknown_array(shape: tuple[int, ...]) -> Any:
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
        unknown_array,
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
    make, cells, kind = HALF[message]
    network = make()
    before, classes = dict(network.state_dict()), [type(m) for m in network.modules()]
    parameters = list(network.parameters())
    with pytest.raises(kind, match=message):
        to_crossbar(network, cells, in_place=in_place)
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
