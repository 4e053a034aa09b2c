"""Arrays, layers, deep networks, readouts and their files."""

from __future__ import annotations

import itertools
import json
import math
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spikebridge.base.records import ConfigError
from spikebridge.base.tensors import digest
from spikebridge.nn.layers import Baseline, Dropout, Layer, Plain, Readout
from spikebridge.nn.network import Network, build, load_network, save_network
from spikebridge.nn.synapses import Array, Conv2d, Dense, Embedding, Normalised, gain
from spikebridge.nn.units import KINDS, make_unit
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.names import BASELINES, BINARY, PLAIN, UNITS

ARRAYS = {
    "dense": (lambda: Dense(6, 4), lambda *s: torch.randn(*s, 6)),
    "conv": (lambda: Conv2d((2, 5, 4), 3, 3, padding=1), lambda *s: torch.randn(*s, 40)),
    "dense and drive": (lambda: biased(Dense(6, 4, bias=True)), lambda *s: torch.randn(*s, 6)),
    "conv and drive": (
        lambda: biased(Conv2d((2, 5, 4), 3, 3, padding=1, pool=2, bias=True)),
        lambda *s: torch.randn(*s, 40),
    ),
    "strided conv": (lambda: Conv2d((1, 5, 5), 2, 3, stride=2), lambda *s: torch.randn(*s, 25)),
}
arrays = pytest.mark.parametrize("name", ARRAYS)


def biased(array: torch.nn.Module) -> torch.nn.Module:
    """With a constant drive that is not 0, as it is at first."""
    assert not array.bias.any()
    torch.nn.init.normal_(array.bias)
    return array


@arrays
def test_arrays_are_affine_and_act_on_the_last_dimension(name: str) -> None:
    make, inputs = ARRAYS[name]
    array = make().double()
    assert isinstance(array, Array)
    x, y = inputs(3, 2).double(), inputs(3, 2).double()
    assert array(x).shape == (3, 2, array.out_features)
    assert x.shape[-1] == array.in_features
    constant = array(torch.zeros_like(x))
    torch.testing.assert_close(array(2 * x + y), 2 * array(x) + array(y) - 2 * constant)
    assert bool(constant.any()) == (array.bias is not None)
    torch.testing.assert_close(array(x)[1, 1], array(x[1, 1]))


@arrays
def test_gradients_of_arrays(name: str) -> None:
    make, inputs = ARRAYS[name]
    array = make().double()
    x = inputs(2, 1).double().requires_grad_()
    names = [name for name, _ in array.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in array.parameters()]

    def call(x: torch.Tensor, *leaves: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(array, dict(zip(names, leaves, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *leaves))


def test_a_convolution_is_the_dense_array_that_it_stands_for() -> None:
    conv = Conv2d((2, 4, 4), 3, 3, padding=1)
    dense = Dense(conv.in_features, conv.out_features)
    with torch.no_grad():
        dense.weight.copy_(conv(torch.eye(conv.in_features)).T)
    x = torch.randn(5, conv.in_features)
    torch.testing.assert_close(conv(x), dense(x))
    conv.bias = torch.nn.Parameter(torch.randn(3))
    torch.testing.assert_close(conv(x), dense(x) + conv.bias.repeat_interleave(16))


def test_an_embedding_is_a_dense_array_on_one_hot_symbols() -> None:
    embedding = Embedding(7, 3)
    symbols = torch.randint(7, (4, 2))
    one_hot = torch.nn.functional.one_hot(symbols, 7).float()
    torch.testing.assert_close(embedding(symbols), one_hot @ embedding.weight)
    with pytest.raises(TypeError, match="symbols as integers"):
        embedding(torch.zeros(2))
    with pytest.raises(ValueError, match=r"must be in \[0, 7\), got 0 to 7"):
        embedding(torch.tensor([0, 7]))


@pytest.mark.parametrize("unit", ["snu", "li-snu", "adaptive-snu"])
@pytest.mark.parametrize("g", ["identity", "relu", "leaky_relu", "elu"])
@pytest.mark.parametrize("decay", [0.3, 0.8, 0.9])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_fresh_spiking_networks_are_alive_in_their_eighth_layer(
    unit: str, g: str, decay: float, rate: float
) -> None:
    network = build(ModelConfig(unit=unit, hidden=(256,) * 8, g=g, decay=decay), 256, 10, "mean")
    brightness = torch.rand(1, 32, 256) ** 2
    x = (torch.rand(20, 32, 256) < brightness / brightness.mean() * rate).float()
    layers = network.observe(x).layers
    for layer in layers:
        assert 0.01 < layer.y.mean() < 0.5, layer.name
    # Samples can be told apart by the rates of the last layer, and gradients reach the first.
    assert layers[-1].y.mean(0).std(0).mean() > 0.005
    network(x)[0].pow(2).sum().backward()
    assert network.layers[0].array.weight.grad.norm() > 1e-3


@pytest.mark.parametrize("unit", BINARY)
@pytest.mark.parametrize("rate", [0.1, 0.3])
@pytest.mark.parametrize("scaled", [{}, {"norm": True}, {"norm": True, "centre": True}], ids=len)
def test_fresh_binary_networks_are_alive_in_their_eighth_layer(
    unit: str, rate: float, scaled: dict
) -> None:
    model = ModelConfig(
        unit=unit, hidden=(256,) * 8, surrogate="window", surrogate_height=0.5, **scaled
    )
    network = build(model, 256, 10, "mean")
    brightness = torch.rand(1, 32, 256) ** 2
    x = (torch.rand(20, 32, 256) < brightness / brightness.mean() * rate).float()
    layers = network.observe(x).layers
    for layer in layers:
        assert 0.05 < layer.y.mean() < 0.5, layer.name
    assert layers[-1].y.mean(0).std(0).mean() > 0.05
    network(x)[0].pow(2).sum().backward()
    first = network.layers[0].array
    assert (first.array if scaled else first).weight.grad.norm() > 1e-3


@pytest.mark.parametrize("g", ["identity", "leaky_relu"])
@pytest.mark.parametrize("decay", [0.3, 0.8, 0.9])
def test_fresh_soft_networks_neither_saturate_nor_forget_their_input(g: str, decay: float) -> None:
    network = build(
        ModelConfig(unit="softsnu", hidden=(256,) * 8, g=g, decay=decay), 256, 10, "mean"
    )
    brightness = torch.rand(1, 32, 256) ** 2
    x = (torch.rand(20, 32, 256) < brightness / brightness.mean() * 0.15).float()
    layers = network.observe(x).layers
    for layer in layers:
        assert 0.1 < layer.y.mean() < 0.7, layer.name
    assert layers[-1].y.mean(0).std(0).mean() > 2e-3
    network(x)[0].pow(2).sum().backward()
    assert network.layers[0].array.weight.grad.norm() > 1e-6


@pytest.mark.parametrize("unit", PLAIN)
@pytest.mark.parametrize("norm", [False, True])
def test_fresh_networks_without_memory_neither_fade_nor_saturate(unit: str, norm: bool) -> None:
    network = build(ModelConfig(unit=unit, hidden=(256,) * 8, norm=norm), 256, 10, "mean")
    x = torch.rand(1, 64, 256) ** 2
    layers = network.observe(x).layers
    assert not any(layer.spiking for layer in layers)
    sizes = [float(layer.y.detach().square().mean().sqrt()) for layer in layers]
    # Eight layers deep, outputs have about the size that they had after the first.
    assert 0.3 < sizes[-1] / sizes[0] < 3
    assert layers[-1].y.std(1).mean() > 0.02
    if unit == "tanh":
        assert all(float(layer.y.detach().abs().mean()) < 0.9 for layer in layers)
    else:
        assert all(0.2 < float((layer.y > 0).float().mean()) < 0.8 for layer in layers)
    network(x)[0].pow(2).sum().backward()
    first = network.layers[0].array
    assert (first.array if norm else first).weight.grad.norm() > 1e-3


@pytest.mark.parametrize("unit", PLAIN)
def test_first_weights_without_memory_are_uniform_with_the_usual_spread(unit: str) -> None:
    variance = {"relu": 2.0, "tanh": 1.0}[unit]
    for array, fan_in in ((Dense(300, 400, unit), 300), (Conv2d((8, 5, 5), 90, 3, unit=unit), 72)):
        bound = (3 * variance / fan_in) ** 0.5
        weight = array.weight.detach()
        assert float(weight.abs().max()) == pytest.approx(bound, rel=1e-3)
        assert float(weight.var()) == pytest.approx(variance / fan_in, rel=0.03)


@pytest.mark.parametrize("unit", PLAIN)
def test_a_layer_without_memory_is_its_formula_at_each_step_by_itself(unit: str) -> None:
    for array in (Dense(6, 4, unit, bias=True), Normalised(Dense(6, 4, unit), unit, centre=True)):
        layer = Plain(array, unit).eval()
        x = torch.randn(5, 3, 6)
        y, state = layer(x)
        assert state is None
        f = {"relu": lambda drive: drive.clamp_min(0), "tanh": torch.tanh}[unit]
        torch.testing.assert_close(y, f(array(x)), rtol=0, atol=0)
        order = torch.tensor([3, 0, 4, 1, 2])
        torch.testing.assert_close(layer(x[order])[0], y[order])


MODELS = [
    ModelConfig(unit=unit, hidden=hidden, recurrent=recurrent)
    for unit, hidden, recurrent in itertools.product(UNITS, [(6,), (6, 4, 5)], [False, True])
    if not (recurrent and unit in (*BASELINES, *PLAIN))
]
models = pytest.mark.parametrize(
    "model", MODELS, ids=lambda m: f"{m.unit}-{m.hidden}-{m.recurrent}"
)


@models
@pytest.mark.parametrize("readout", ["last", "mean", "each"])
def test_any_unit_and_depth_behind_one_interface(model: ModelConfig, readout: str) -> None:
    network = build(model, 7, 3, readout)
    x = torch.randn(5, 2, 7)
    output, state = network(x)
    assert output.shape == ((5, 2, 3) if readout == "each" else (2, 3))
    output.sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    if readout == "each":
        first, middle = network(x[:2])
        second, _ = network(x[2:], middle)
        torch.testing.assert_close(torch.cat([first, second]), output)
        assert len(state) == len(model.hidden)


@models
def test_a_network_shows_what_its_layers_did(model: ModelConfig) -> None:
    network = build(model, 7, 3, "mean").eval()
    x = torch.randn(5, 2, 7)
    plain, full = network.observe(x), network.observe(x, membranes=True)
    torch.testing.assert_close(full.output, plain.output)
    assert [layer.name for layer in full.layers] == [
        f"layer{k + 1}" for k in range(len(model.hidden))
    ]
    for layer, size in zip(full.layers, model.hidden, strict=True):
        assert layer.y.shape == (5, 2, size)
        assert (layer.s is None) == (model.unit in (*BASELINES, *PLAIN))
        assert layer.spiking == (model.unit in KINDS and model.unit != "softsnu")


@models
def test_networks_survive_a_file(model: ModelConfig, tmp_path: Path) -> None:
    network = build(model, 7, 3, "each").eval()
    path = tmp_path / "model.safetensors"
    save_network(network, path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    again = load_network(path).eval()
    x = torch.randn(5, 2, 7)
    assert torch.equal(again(x)[0], network(x)[0])


@pytest.mark.parametrize("unit", ["snu", "softsnu", *BINARY, *PLAIN])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("drive_bias", [False, True])
def test_which_networks_have_a_constant_drive(
    unit: str, norm: bool, centre: bool, drive_bias: bool, tmp_path: Path
) -> None:
    if centre and not norm:
        return
    model = ModelConfig(
        unit=unit, hidden=(5,), channels=(3,), kernel_size=3, norm=norm, centre=centre,
        drive_bias=drive_bias,
    )  # fmt: skip
    network = build(model, 64, 3, "each", image=(1, 8, 8)).eval()
    for layer, groups in zip(network.layers, (3, 5), strict=True):
        inner = layer.array.array if norm else layer.array
        has = (drive_bias or unit == "binary-ci") and not centre
        assert (inner.bias is not None) == has
        assert inner.bias is None or inner.bias.shape == (groups,)
        assert unit in PLAIN or layer.unit.threshold.requires_grad == (unit != "binary-ci")
        assert not norm or (layer.array.shift is not None) == centre
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_network(network, tmp_path / "net.safetensors")
    x = torch.rand(3, 2, 64)
    again = load_network(tmp_path / "net.safetensors").eval()
    assert torch.equal(again(x)[0], network(x)[0])


@pytest.mark.parametrize("subtract", ["initial", "trained", None])
def test_what_a_spike_takes_off_is_in_the_file(tmp_path: Path, subtract: str | None) -> None:
    """The same from the command line as in Python, and a file of before means the initial one."""
    model = ModelConfig(
        hidden=(6,), reset="subtract", threshold=0.5, subtract=subtract or "initial"
    )
    network = build(model, 4, 2, "each")
    assert network.layers[0].unit.rule.amount == (None if subtract == "trained" else 0.5)
    with torch.no_grad():
        network.layers[0].unit.threshold.copy_(torch.linspace(0.1, 1.0, 6))
    if subtract is None:
        old = json.loads(network.description["model"])
        del old["subtract"]
        network.description["model"] = json.dumps(old)
    save_network(network, tmp_path / "model.safetensors")
    again = load_network(tmp_path / "model.safetensors")
    assert again.layers[0].unit.rule == network.layers[0].unit.rule
    x = torch.rand(20, 3, 4, generator=torch.Generator().manual_seed(0)) * 2
    assert torch.equal(again(x)[0], network(x)[0])


def test_files_from_before_there_were_constant_drives_still_load(tmp_path: Path) -> None:
    network = build(ModelConfig(hidden=(4,), norm=True), 7, 3, "each").eval()
    assert set(network.layers[0].array.state_dict()) == {"size", "mean_square", "array.weight"}
    model = json.loads(network.description["model"])
    old = {name: value for name, value in model.items() if name not in ("centre", "drive_bias")}
    assert len(old) == len(model) - 2
    network.description["model"] = json.dumps(old)
    save_network(network, tmp_path / "old.safetensors")
    x = torch.randn(5, 2, 7)
    again = load_network(tmp_path / "old.safetensors").eval()
    assert torch.equal(again(x)[0], network(x)[0])


def test_damaged_network_files_are_refused(tmp_path: Path) -> None:
    model, path = ModelConfig(hidden=(4,)), tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="no network file"):
        load_network(path)
    save_network(build(model, 7, 3, "each"), path)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load_network(path)
    path.write_bytes(whole.replace(b"spikebridge-network-1", b"spikebridge-network-9"))
    with pytest.raises(ValueError, match="this version reads 'spikebridge-network-1'"):
        load_network(path)
    flipped = bytearray(whole)
    flipped[-2] ^= 1  # of a weight, which is as good a number as before
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="does not match its checksum; restore it"):
        load_network(path)
    save_file({"w": torch.ones(1)}, path, {"format": "spikebridge-network-1", "model": "{}"})
    with pytest.raises(ValueError, match=r"lacks \['sizes'\]; restore it, or train again"):
        load_network(path)


def rewritten(path: Path, tensors: dict[str, torch.Tensor] | None = None, **parts: object) -> None:
    """A file of a network with other tensors or another description, and the right checksum."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = kept if tensors is None else kept | tensors
    for name, value in parts.items():
        metadata[name] = value if isinstance(value, str) else json.dumps(value)
    metadata["sha256"] = digest(tensors, metadata["model"])
    save_file(tensors, path, metadata)


MODEL: dict[str, object] = {"unit": "snu", "hidden": [4]}
SIZED: dict[str, object] = {"input_size": 7, "output_size": 3, "readout": "each"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": MODEL | {"glow": 1}}, "'glow', which this version does not know: a later"),
        ({"sizes": SIZED | {"depth": 1}}, "'depth', which this version does not know: a later"),
        ({"model": []}, "model is a list"),
        ({"model": None}, "model is a NoneType"),
        ({"model": "[" * 100_000}, "RecursionError"),
        ({"model": "{"}, "JSONDecodeError"),
        ({"model": MODEL | {"hidden": None}}, "hidden=None"),
        ({"model": MODEL | {"hidden": 5}}, "hidden=5"),
        ({"model": MODEL | {"hidden": [10**12]}}, "do not fit its own description"),
        ({"model": MODEL | {"hidden": [10**400]}}, "fits no network"),
        ({"model": MODEL | {"hidden": [40_000, 40_000]}}, "do not fit its own description"),
        ({"model": MODEL | {"hidden": [1] * 100_000}}, "names 100,000 layers"),
        ({"model": MODEL | {"norm": {"a": 1}}}, "norm={'a': 1}"),
        ({"model": MODEL | {"decay": 1e308}}, "decay=1e"),
        ({"model": MODEL | {"decay": 1e-300}}, "decay"),
        ({"model": MODEL | {"threshold": 1e308}}, "threshold"),
        ({"model": MODEL | {"threshold": float("nan")}}, "threshold=nan"),
        ({"model": MODEL | {"surrogate_width": 0}}, "surrogate_width=0"),
        ({"model": MODEL | {"reset": "sometimes"}}, "reset='sometimes'"),
        ({"model": MODEL | {"channels": [3]}}, "inputs of this task are no images"),
        ({"sizes": []}, "sizes is a list"),
        ({"sizes": {"input_size": 7}}, "output_size"),
        ({"sizes": SIZED | {"output_size": 10**11}}, "do not fit its own description"),
        ({"sizes": SIZED | {"output_size": 0}}, "output_size=0: it must be a whole number above 0"),
        ({"sizes": SIZED | {"input_size": -7}}, "input_size=-7"),
        ({"sizes": SIZED | {"input_size": True}}, "input_size=True"),
        ({"sizes": SIZED | {"input_size": 7.0}}, "input_size=7.0"),
        ({"sizes": SIZED | {"readout": "never"}}, "readout 'never' is not known"),
        ({"sizes": SIZED | {"symbols": "no"}}, "symbols='no'"),
        ({"sizes": SIZED | {"image": [1, 2, 2]}}, "image=.1, 2, 2"),
        ({"sizes": SIZED | {"image": [1, 7]}}, "image=.1, 7"),
        ({"sizes": SIZED | {"image": 7}}, "fits no network"),
    ],
)
def test_a_wrong_description_is_a_value_error_with_the_name_of_the_file(
    parts: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_network(build(ModelConfig(hidden=(4,)), 7, 3, "each"), path)
    rewritten(path, **parts)
    with pytest.raises(ValueError, match=message) as caught:
        load_network(path)
    assert str(path) in str(caught.value)


def test_a_small_file_takes_no_memory_for_what_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for unit in ("snu", "lstm", "relu"):
        save_network(build(ModelConfig(unit=unit, hidden=(4, 4)), 7, 3, "each"), path)
        rewritten(path, model={"unit": unit, "hidden": [60_000, 60_000]})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match="do not fit its own description"):
            load_network(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10  # KiB


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("readout.linear.bias", torch.tensor([1, 2, 3], dtype=torch.int8), "is of torch.int8"),
        ("readout.linear.bias", torch.zeros(3, dtype=torch.int64), "is of torch.int64"),
        ("readout.linear.bias", torch.zeros(3, dtype=torch.bool), "is of torch.bool"),
        ("readout.linear.bias", torch.zeros(3, dtype=torch.complex64), "is of torch.complex64"),
        ("readout.linear.bias", torch.zeros(3).to(torch.float8_e5m2), "is of torch.float8_e5m2"),
        ("readout.linear.bias", torch.tensor([0.0, math.nan, 1.0]), "a value that is not finite"),
        ("readout.linear.bias", torch.tensor([0.0, math.inf, 1.0]), "a value that is not finite"),
        ("readout.linear.bias", torch.zeros(3).double() + 1e300, "a value that is not finite"),
        ("layers.0.unit.fixed_decay", torch.tensor(2.0), "layers.0.unit has a decay outside"),
        ("layers.0.unit.fixed_decay", torch.tensor(-0.5), "layers.0.unit has a decay outside"),
        ("layers.0.array.weight", torch.zeros(7, 4), "do not fit its own description"),
        ("more", torch.zeros(1), "do not fit its own description"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(
    name: str, value: torch.Tensor, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_network(build(ModelConfig(hidden=(4,)), 7, 3, "each"), path)
    rewritten(path, {name: value})
    with pytest.raises(ValueError, match=message) as caught:
        load_network(path)
    assert name.rpartition(".")[0] in str(caught.value)
    assert str(path) in str(caught.value)


@models
def test_networks_load_from_other_floating_point_numbers(
    model: ModelConfig, tmp_path: Path
) -> None:
    network, path = build(model, 7, 3, "each").double(), tmp_path / "model.safetensors"
    save_network(network, path)
    again = load_network(path)
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, network.state_dict()[name].float()), name


def test_loading_draws_what_building_draws(tmp_path: Path) -> None:
    model, path = ModelConfig(hidden=(4,), recurrent=True), tmp_path / "model.safetensors"
    save_network(build(model, 7, 3, "each"), path)
    torch.manual_seed(1)
    build(model, 7, 3, "each")
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_network(path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["x" * 5000, "folder"])
def test_what_is_no_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=name):
        load_network(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "image", "message"),
    [
        ({"pool": 9}, (1, 8, 8), r"channels=\[4\]: a kernel of 5 does not fit into .* pool 9"),
        ({}, (1, 4, 4), "got input_size=64; give the one that the inputs have"),
        ({}, None, "the inputs of this task are no images; leave --channels out"),
    ],
)
def test_descriptions_that_do_not_fit_the_inputs_are_refused(
    settings: dict, image: tuple | None, message: str
) -> None:
    model = ModelConfig(hidden=(4,), channels=(4,), **settings)
    with pytest.raises(ConfigError, match=message):
        build(model, 64, 3, "mean", image=image)


def test_a_network_put_together_by_hand_says_that_it_cannot_be_saved(tmp_path: Path) -> None:
    unit = make_unit("snu", 4)
    network = Network([Layer(Dense(3, 4, unit), unit)], Readout(4, 2, "mean"))
    with pytest.raises(ValueError, match="put together by hand"):
        save_network(network, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_readouts_reduce_over_time() -> None:
    y = torch.randn(5, 2, 7)
    each = Readout(7, 3, "each")
    for reduce, expected in (("last", each(y)[-1]), ("mean", each(y).mean(0))):
        readout = Readout(7, 3, reduce)
        readout.load_state_dict(each.state_dict())
        torch.testing.assert_close(readout(y), expected)
        assert torch.equal(readout(y[:1]), each(y[0]))
        with pytest.raises(ValueError, match="at least one time step"):
            readout(y[:0])
    with pytest.raises(ValueError, match="is not known"):
        Readout(7, 3, "max")


@pytest.mark.parametrize("same_mask", [False, True])
def test_dropout_keeps_the_mean_and_may_keep_its_mask(same_mask: bool) -> None:
    dropout = Dropout(0.3, same_mask=same_mask)
    x = torch.ones(50, 40, 30)
    y = dropout(x)
    # 0.3 is rounded to 9830 / 32768 on a CPU.
    assert y.unique().tolist() == pytest.approx([0.0, 32768 / (32768 - 9830)])
    assert y.mean().item() == pytest.approx(1.0, abs=0.06 if same_mask else 0.01)
    assert bool((y == y[:1]).all()) == same_mask
    assert dropout.eval()(x) is x
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        Dropout(-0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Layer(Dense(3, 4), make_unit("snu", 5)), "drives 4 neurons, the unit has 5"),
        (lambda: Network([], Readout(1, 1, "last")), "at least one layer"),
        (lambda: Baseline("lif", 3, 4), "is not known; choose one of"),
        (
            lambda: Plain(Dense(3, 4), "elu"),
            r"'elu' is not known; choose one of \['relu', 'tanh'\]",
        ),
        (lambda: gain("elu"), r"unit='elu': no such layer; choose one of \['relu', 'tanh'\]"),
        (
            lambda: Layer(Dense(3, 4), make_unit("snu", 4), backend="cuda"),
            "backend='cuda' is not known",
        ),
        (lambda: Dense(0, 3), "in_features must be at least 1"),
        (lambda: Dense(3, 3)(torch.zeros(2, 4)), r"x must be \(..., 3\)"),
        (lambda: Conv2d((1, 2, 2), 1, 5), "does not fit into an image of 2 x 2"),
        (
            lambda: build(ModelConfig(hidden=(3,)), 2, 2, "each")(torch.zeros(1, 1, 2), [None] * 2),
            "one entry for each of 1 layers, got 2",
        ),
    ],
)
def test_bad_parts_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
