"""Drives normalised at each step: over the layer, and over the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

from spikebridge import SNU, SoftSNU
from spikebridge.base.records import ConfigError, UsageError
from spikebridge.chip.compiler import compile
from spikebridge.cli.main import parse
from spikebridge.crossbar.network import to_crossbar
from spikebridge.crossbar.pcm import ITERATIVE
from spikebridge.nn.network import build, load_network, save_network
from spikebridge.nn.norms import NORMS, LayerNormalised, normalised
from spikebridge.nn.synapses import Conv2d, Dense, Normalised, real_steps
from spikebridge.nn.units import make_unit
from spikebridge.settings.model import ModelConfig

EACH = pytest.mark.parametrize("norm", ["layer", "step"])
ARRAYS: dict[str, Any] = {
    "dense": lambda: Dense(16, 6),
    "conv": lambda: Conv2d((1, 4, 4), 3, 3, padding=1, pool=2),
}


def of(norm: str, kind: str = "dense") -> Any:
    made = normalised(norm, ARRAYS[kind]())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def test_over_the_layer_it_is_torchs_layer_norm() -> None:
    ours, theirs = of("layer"), nn.LayerNorm(6)
    with torch.no_grad():
        theirs.weight.copy_(ours.size)
        theirs.bias.copy_(ours.shift)
    x = torch.randn(5, 4, 16)
    torch.testing.assert_close(ours(x), theirs(ours.array(x)))
    assert set(ours.state_dict()) == {"size", "shift", "array.weight"}


@pytest.mark.parametrize("kind", ARRAYS)
def test_over_the_batch_it_is_torchs_batch_norm_of_each_step(kind: str) -> None:
    ours = of("step", kind)
    theirs = nn.BatchNorm1d(ours.groups, eps=ours.EPS, momentum=1.0, affine=False)
    x = torch.randn(5, 7, 16)
    raw = ours.array(x).unflatten(-1, (ours.groups, -1))
    wanted, means = [], []
    for step in raw:
        normal = theirs(step)
        wanted.append(normal * ours.size[:, None] + ours.shift[:, None])
        means.append(theirs.running_mean.clone())
    torch.testing.assert_close(ours(x), torch.stack(wanted).flatten(-2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.mean, torch.stack(means).mean(0) * ours.momentum)


@EACH
@pytest.mark.parametrize("kind", ARRAYS)
def test_a_drive_starts_at_the_size_that_the_unit_asks_for(norm: str, kind: str) -> None:
    array = ARRAYS[kind]()
    unit = make_unit("snu", array.out_features)
    made = normalised(norm, array, unit)
    drive = made(torch.rand(6, 32, 16)).detach()
    assert float(drive.mean()) == pytest.approx(0, abs=1e-3)
    assert float(drive.std()) == pytest.approx(unit.gain / 2, rel=2e-2)


@EACH
@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(norm: str, kind: str, masked: bool) -> None:
    made = of(norm, kind).double()
    made.momentum = 0.0  # running statistics are no part of the function
    x = torch.randn(3, 4, 16, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in made.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in made.parameters()]
    mask = torch.tensor([4, 3, 1])[:, None] > torch.arange(4)

    def call(x: Tensor, *leaves: Tensor) -> Tensor:
        given = dict(zip(names, leaves, strict=True))
        if not masked:
            return torch.func.functional_call(made, given, (x,))
        with real_steps(made, mask):
            return torch.func.functional_call(made, given, (x,))

    assert torch.autograd.gradcheck(call, (x, *leaves))


def test_several_currents_are_normalised_each_by_itself() -> None:
    unit = make_unit("snu", 3, memory="gate")
    ours = LayerNormalised(Dense(16, 6), unit)
    x = torch.randn(5, 4, 16)
    halves = [nn.functional.layer_norm(part, (3,)) for part in ours.array(x).split(3, -1)]
    torch.testing.assert_close(ours(x), torch.cat(halves, -1) * ours.size)
    torch.testing.assert_close(ours.size[:3], torch.full((3,), unit.gain / 2))
    torch.testing.assert_close(ours.size[3:], torch.full((3,), 0.5))  # as weights of gates


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("memory", "modulation"), [("gate", "none"), ("oscillation", "none"), ("gate", "output")]
)
def test_norms_delays_and_skips_go_together(norm: str, memory: str, modulation: str) -> None:
    layer = SoftSNU(
        5, 7, 3, memory=memory, modulation=modulation, norm=norm, delays=3, skip=True,
        recurrent=True, dtype=torch.float64,
    )  # fmt: skip
    x = torch.rand(9, 2, 5, dtype=torch.float64)
    layer(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    whole, last = layer.eval()(x)
    state, pieces = None, []
    for piece in x.split([1, 0, 3, 5]):
        y, state = layer(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), whole)
    torch.testing.assert_close(state, last)


@EACH
@pytest.mark.parametrize("kind", [SNU, SoftSNU])
def test_a_sequence_in_pieces_is_the_whole_one(norm: str, kind: type) -> None:
    layer = kind(5, 7, 2, norm=norm, recurrent=True, dtype=torch.float64, batch_first=True)
    x = torch.randn(3, 9, 5, dtype=torch.float64)
    for _ in range(3):
        layer(x)
    if norm == "step":
        layer.eval()
    whole, last = layer(x)
    for cuts in ([1] * 9, [4, 0, 5]):
        state, pieces = None, []
        for piece in x.split(cuts, 1):
            y, state = layer(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
        torch.testing.assert_close(state, last)
    loop = kind(5, 7, 2, norm=norm, recurrent=True, dtype=torch.float64, backend="loop")
    loop.load_state_dict(layer.state_dict())
    loop.train(layer.training)
    torch.testing.assert_close(loop(x.transpose(0, 1))[0].transpose(0, 1), whole)


@EACH
def test_packed_sequences_are_padded_ones_with_a_mask(norm: str) -> None:
    torch.manual_seed(0)
    layer = SNU(5, 7, norm=norm, dtype=torch.float64)
    sequences = [torch.randn(n, 5, dtype=torch.float64) for n in (6, 4, 4, 1)]
    mask = torch.arange(6)[:, None] < torch.tensor([6, 4, 4, 1])
    found, _ = pad_packed_sequence(layer(pack_sequence(sequences))[0])
    array: Any = layer.layers[0].array
    if norm == "step":  # those of before the call: a step with one sample takes them
        with torch.no_grad():
            array.mean.zero_()
            array.mean_square.fill_(1.0)
    with real_steps(layer, mask):
        padded = layer(pad_sequence(sequences))[0]
    torch.testing.assert_close(found[:4], padded[:4] * mask[:4, :, None])


def test_what_lies_at_padding_is_not_looked_at() -> None:
    x, mask = torch.randn(4, 3, 16), torch.tensor([4, 2, 1]) > torch.arange(4)[:, None]
    results = []
    for value in (0.0, float("nan"), float("inf")):
        torch.manual_seed(0)
        made = of("step")
        with real_steps(made, mask):
            drive = made(torch.where(mask[..., None], x, value))
        drive.square().sum().backward()
        results.append((drive.detach(), made.size.grad, made.mean, made.mean_square))
        assert not drive[~mask].any()
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_a_step_with_one_sample_takes_the_running_statistics() -> None:
    made = of("step")
    x = torch.randn(5, 1, 16)
    trained = made(x)
    assert torch.equal(made.mean, torch.zeros(6))
    torch.testing.assert_close(trained, made.eval()(x))


def test_in_use_a_step_is_weights_and_a_constant_drive() -> None:
    made = of("step")
    for _ in range(5):
        made(torch.randn(4, 8, 16))
    factor, constant = made.eval().folded()
    x = torch.randn(4, 8, 16)
    torch.testing.assert_close(made(x), made.array(x) * factor + constant)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(norm: str, dtype: torch.dtype) -> None:
    made, exact = of(norm).to(dtype), of(norm).double()
    exact.load_state_dict({k: v.double() for k, v in made.state_dict().items()})
    x = torch.randn(5, 8, 16).to(dtype)
    drive = made(x)
    assert drive.dtype == dtype
    drive.sum().backward()
    tolerance = {torch.bfloat16: 0.1, torch.float16: 1e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(drive.double(), exact(x.double()), rtol=tolerance, atol=tolerance)


@EACH
def test_recomputed_steps_are_the_same(norm: str) -> None:
    grads = []
    for recompute in (0, 3):
        torch.manual_seed(0)
        layer = SNU(5, 7, norm=norm, recurrent=True, recompute=recompute, dtype=torch.float64)
        x = torch.randn(8, 4, 5, dtype=torch.float64, requires_grad=True)
        y, _ = layer(x)
        (y * torch.linspace(0, 1, 8, dtype=torch.float64)[:, None, None]).sum().backward()
        grads.append([y, x.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@EACH
def test_no_steps_and_no_samples(norm: str) -> None:
    layer = SNU(5, 7, norm=norm)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert layer(torch.randn(0, 3, 5))[0].shape == (0, 3, 7)
    assert layer(torch.randn(4, 0, 5))[0].shape == (4, 0, 7)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@EACH
def test_networks_are_saved_and_exported(norm: str, tmp_path: Path) -> None:
    model = ModelConfig(hidden=(6, 5), channels=(2,), kernel_size=3, norm=norm)
    network = build(model, 16, 3, "each", image=(1, 4, 4))
    network(torch.randn(4, 3, 16))
    network.eval()
    save_network(network, tmp_path / "n.safetensors")
    x = torch.randn(4, 2, 16)
    again = load_network(tmp_path / "n.safetensors").eval()
    assert torch.equal(again(x)[0], network(x)[0])
    program = torch.export.export(network, (x,))
    torch.testing.assert_close(program.module()(x)[0], network(x)[0])


def test_switches_of_before_are_still_understood() -> None:
    assert ModelConfig(norm=True).norm == "batch"
    assert ModelConfig(norm=False).norm == "none"
    for words, norm in (
        (["--norm"], "batch"),
        (["--norm", "--centre"], "batch"),
        (["--no-norm"], "none"),
        (["--norm", "layer"], "layer"),
        (["--norm=step", "--hidden", "4"], "step"),
    ):
        assert parse(["train", "digits", *words]).model.norm == norm
    assert type(normalised(True, Dense(2, 3))) is Normalised
    assert type(normalised(False, Dense(2, 3))) is Dense


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "layer", "centre": True}, "centre=True: --norm layer takes the mean off"),
        ({"norm": "step", "unit": "gru"}, "norm=step: the drives of gru stay within"),
        ({"norm": "feature"}, "norm='feature': expected one of none, batch, layer, step"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=f"norm='x' is not known; choose one of .*{NORMS[-1]}"):
        SNU(2, 3, norm="x")
    with pytest.raises(ValueError, match='centre=True is for norm="batch"'):
        normalised("step", Dense(2, 3), centre=True)
    with pytest.raises(UsageError, match="norm=layer does not fold"):
        of("layer").folded()
    layer = SNU(2, 3, norm="batch")
    packed = pack_sequence([torch.randn(n, 2) for n in (3, 1)])
    with pytest.raises(ValueError, match='norm="batch" in training is over all real steps'):
        layer(packed)
    layer.eval()(packed)
    network = build(ModelConfig(hidden=(4,), norm="layer"), 5, 2, "mean")
    with pytest.raises(UsageError, match="layer1 is normalised over the layer"):
        compile(network)
    step = build(ModelConfig(hidden=(4,), norm="step"), 5, 2, "mean").eval()
    assert compile(step).layers[0].bias is not None


@EACH
def test_on_crossbars_they_stay_digital(norm: str) -> None:
    network = build(ModelConfig(hidden=(4,), norm=norm), 5, 2, "mean").eval()
    chip = to_crossbar(network, ITERATIVE)
    assert set(chip.crossbars) == {"layers.0.array.array.weight", "readout.linear.weight"}
    assert chip.network(torch.rand(3, 2, 5))[0].shape == (2, 2)
