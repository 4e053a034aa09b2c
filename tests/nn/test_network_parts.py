"""Parts of networks beyond layers: scaled drives, rounded weights, averages, embeddings, skips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spikebridge.base.records import ConfigError
from spikebridge.nn import layers
from spikebridge.nn.kernels import native, rescale
from spikebridge.nn.layers import Baseline, Layer, Readout
from spikebridge.nn.network import build, load_network, operations, save_network
from spikebridge.nn.scan import scan
from spikebridge.nn.synapses import Conv2d, Dense, Normalised, Rounded, round_weights
from spikebridge.nn.units import make_unit
from spikebridge.runs.optimizers import Average
from spikebridge.settings.config import preset
from spikebridge.settings.model import ModelConfig
from spikebridge.studies.search import space

CONV = ModelConfig(channels=(4, 6), kernel_size=3, hidden=(12,), norm=True)
WORDS = ModelConfig(
    unit="softsnu",
    recurrent=True,
    hidden=(10, 8),
    embedding=6,
    embedding_scale=3.0,
    tied=True,
    read_all=True,
    g="identity",
    decay=0.3,
    decay_to=0.9,
)


def spikes(*shape: int, p: float = 0.3) -> torch.Tensor:
    return (torch.rand(shape) < p).float()


# --- drives of one size ---

_INSTRUCTIONS = () if native.missing is not None else native._native.instruction_sets()

CENTRE = pytest.mark.parametrize("centre", [False, True])


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 1), (4, 2, 7), (2, 6, 3)])
def test_a_scaled_drive_in_reused_memory_is_the_plain_one(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, size = (torch.randn(n, dtype=torch.double) for n in (shape, shape[1:2]))
    grad, found = torch.randn(shape, dtype=torch.double), []
    for served in (True, False):
        monkeypatch.setattr(rescale, "_served", lambda _, served=served: served)
        leaves = [x.clone().requires_grad_(), size.clone().requires_grad_()]
        y, mean_square = rescale.rescaled(*leaves, 1e-6)
        assert not served or not mean_square.requires_grad
        found.append([y, mean_square, *torch.autograd.grad(y, leaves, grad)])
        for wanted in leaves:  # one of the two may be frozen
            wanted.requires_grad_(False)
            other = leaves[0] if wanted is leaves[1] else leaves[1]
            y, _ = rescale.rescaled(*leaves, 1e-6)
            (alone,) = torch.autograd.grad(y, other, grad, create_graph=True)
            torch.testing.assert_close(alone.detach(), found[-1][2 + (other is leaves[1])])
            wanted.requires_grad_()
        torch.autograd.gradcheck(lambda *own: rescale.rescaled(*own, 1e-6)[0], leaves)
        torch.autograd.gradgradcheck(lambda *own: rescale.rescaled(*own, 1e-6)[0], leaves)
    for short, plain in zip(*found, strict=True):
        torch.testing.assert_close(short.detach(), plain.detach())


def test_second_derivatives_where_the_drive_depends_on_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, size, found = torch.randn(6, 3, 2).double(), torch.rand(3).double() + 0.5, []
    for served in (True, False):
        monkeypatch.setattr(rescale, "_served", lambda _, served=served: served)
        own = size.clone().requires_grad_()
        y, _ = rescale.rescaled(x * own.square().unsqueeze(1), own, 1e-6)
        y, _ = rescale.rescaled(y.tanh(), own, 1e-6)
        (first,) = torch.autograd.grad(y.pow(3).sum(), own, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), own)
        many = torch.randn(4, *y.shape, generator=torch.Generator().manual_seed(1)).double()
        y, _ = rescale.rescaled(x * own.square().unsqueeze(1), own, 1e-6)
        (batched,) = torch.autograd.grad(y, own, many, is_grads_batched=True)
        found.append([first.detach(), second, batched])
    for short, plain in zip(*found, strict=True):
        torch.testing.assert_close(short, plain)


@pytest.mark.skipif(native.missing is not None, reason=f"no memory pool: {native.missing}")
def test_large_drives_take_the_way_over_reused_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], rescale._Rescaled.apply
    monkeypatch.setattr(rescale._Rescaled, "apply", lambda *a: (calls.append(1), real(*a))[1])
    scaled = Normalised(Dense(4, 64))
    for rows, expected in ((8, 0), (8192, 1)):
        scaled(torch.randn(rows, 4))
        assert len(calls) == expected
    scaled.eval()(torch.randn(8192, 4))
    assert len(calls) == 1


@pytest.mark.skipif(native.missing is not None, reason=f"no kernel: {native.missing}")
@pytest.mark.parametrize("instructions", _INSTRUCTIONS)
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300, 300, 1), (33, 5, 600), (9, 20, 49), (3000, 2, 13)])
def test_scaling_rounds_nothing_but_its_result(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    instructions: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rescale, "_served", lambda _: True)
    monkeypatch.setattr(native, "POISON", True)
    monkeypatch.setattr(native, "BUFFER_BYTES", 0)  # small results are poisoned too
    wide = torch.promote_types(dtype, torch.float32)
    x, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    size = torch.rand(shape[1], dtype=wide) + 0.5
    found = []
    chosen, threads = native.instruction_set(), torch.get_num_threads()
    try:
        native._native.choose_instruction_set(instructions)
        for count in (1, 3):
            torch.set_num_threads(count)
            leaves = [x.clone().requires_grad_(), size.clone().requires_grad_()]
            y, mean_square = rescale.rescaled(*leaves, 1e-6)
            found.append([y.detach(), mean_square, *torch.autograd.grad(y, leaves, grad)])
    finally:
        torch.set_num_threads(threads)
        native._native.choose_instruction_set(chosen)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)
    exact = [x.double().requires_grad_(), size.double().requires_grad_()]
    y, mean_square = rescale._formula(*exact, 1e-6)
    truth = [y.detach(), mean_square, *torch.autograd.grad(y, exact, grad.double())]
    for value, right in zip(found[0], truth, strict=True):
        # Half of the last place, and what the sums lose.
        eps = torch.finfo(value.dtype).eps / 2 + 4 * torch.finfo(wide).eps
        largest = float(right.abs().max())
        assert value.dtype == (dtype if value.shape == shape else wide)
        torch.testing.assert_close(
            value.double(), right, rtol=eps, atol=8 * torch.finfo(wide).eps * largest
        )


@CENTRE
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_scaled_drive_has_the_learned_size(kind: str, centre: bool) -> None:
    unit = make_unit("snu", 98 if kind == "conv" else 20)
    array = Conv2d((1, 7, 7), 2, 3, padding=1) if kind == "conv" else Dense(49, 20)
    scaled = Normalised(array, unit, centre=centre)
    drive = scaled(spikes(6, 32, 49)).detach()
    sizes = drive.reshape(-1, scaled.groups, drive.shape[-1] // scaled.groups)
    found = sizes.square().mean((0, 2)).sqrt()
    torch.testing.assert_close(found, scaled.size.detach(), rtol=1e-3, atol=1e-4)
    if centre:
        assert float(sizes.mean((0, 2)).abs().max()) < 1e-5
        with torch.no_grad():
            scaled.shift.copy_(torch.linspace(-1, 1, scaled.groups))
        shifted = scaled(spikes(6, 32, 49)).detach().reshape(sizes.shape)
        torch.testing.assert_close(shifted.mean((0, 2)), scaled.shift.detach())


def test_a_centred_drive_is_torchs_batch_norm() -> None:
    ours = Normalised(Dense(9, 5), centre=True, momentum=0.3)
    theirs = nn.BatchNorm1d(5, eps=ours.EPS, momentum=0.3)
    with torch.no_grad():
        ours.shift.normal_()
        theirs.weight.copy_(ours.size)
        theirs.bias.copy_(ours.shift)
    for _ in range(4):
        x = spikes(6, 50, 9)
        raw = ours.array(x).flatten(0, 1)
        torch.testing.assert_close(ours(x).flatten(0, 1), theirs(raw))
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    # Theirs keeps the variance that is unbiased.
    torch.testing.assert_close(ours.mean_square, theirs.running_var, rtol=2e-2, atol=0)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x).flatten(0, 1), theirs(raw), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("own", ["centre", "bias", "neither"])
def test_what_it_folds_into(kind: str, own: str) -> None:
    """Weights and a constant drive; of a memoryless unit, weights and a threshold."""
    bias = own == "bias"
    if kind == "conv":
        array, twin = (Conv2d((1, 7, 7), 3, 3, padding=1, pool=2, bias=b) for b in (bias, True))
    else:
        array, twin = (Dense(49, 27, bias=b) for b in (bias, True))
    scaled = Normalised(array, centre=own == "centre")
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    for _ in range(60):
        scaled(spikes(4, 16, 49))
    factor, constant = (value.detach() for value in scaled.eval().folded())
    assert factor.shape == constant.shape == (scaled.groups,)
    with torch.no_grad():
        twin.weight.copy_(array.weight * factor.view(-1, *[1] * (array.weight.dim() - 1)))
        twin.bias.copy_(constant)
    x = spikes(4, 5, 49)
    torch.testing.assert_close(twin(x), scaled(x))
    assert bool(constant.any()) == (own != "neither")
    unit, moved = make_unit("binary-di", 27), make_unit("binary-di", 27)
    with torch.no_grad():
        moved.threshold.sub_(constant.repeat_interleave(27 // scaled.groups))
        twin.bias.zero_()
    assert torch.equal(scan(moved, twin(x))[0], scan(unit, scaled(x))[0])


def test_a_bias_that_the_mean_would_take_off_is_refused() -> None:
    with pytest.raises(ValueError, match=r"make the array with bias=False, the shift stands"):
        Normalised(Dense(3, 4, bias=True), centre=True)


def test_in_use_it_is_a_factor_on_the_weights() -> None:
    scaled = Normalised(Dense(30, 8))
    for _ in range(200):
        scaled(spikes(4, 64, 30))
    scaled.eval()
    folded = Dense(30, 8)
    factor = scaled.size * (scaled.mean_square + scaled.EPS).rsqrt()
    with torch.no_grad():
        folded.weight.copy_(scaled.array.weight * factor[:, None])
    x = spikes(4, 5, 30)
    torch.testing.assert_close(scaled(x), folded(x))
    assert not scaled(torch.zeros(2, 3, 30)).any()  # silence stays silence
    scaled.train()
    x = spikes(4, 64, 30)
    torch.testing.assert_close(scaled(x), folded(x), rtol=0.2, atol=0.2)


@CENTRE
def test_gradients_of_a_scaled_drive(centre: bool) -> None:
    scaled = Normalised(Dense(4, 3), centre=centre).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in scaled.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in scaled.parameters()]
    scaled.momentum = 0.0  # the running mean is no part of the function

    def call(x: torch.Tensor, *leaves: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(scaled, dict(zip(names, leaves, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *leaves))


# --- rounded weights ---


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_rounded_weights_lie_on_few_levels(bits: int, seed: int) -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))
    rounded = Rounded(bits)(weight)
    levels = 2 ** (bits - 1) - 1
    for row, full in zip(rounded, weight, strict=True):
        scale = full.abs().max() / levels
        steps = row / scale
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        assert len(row.unique()) <= 2 * levels + 1
        assert float((row - full).abs().max()) <= float(scale) / 2 * 1.001
        assert float(row.abs().max()) == pytest.approx(float(full.abs().max()), rel=1e-5)


def test_rows_that_are_compared_share_a_scale() -> None:
    weight = torch.tensor([[1.0, -0.2], [0.1, 0.3]])
    rounded = Rounded(3, shared=True)(weight)
    torch.testing.assert_close(rounded, torch.tensor([[1.0, -1 / 3], [0.0, 1 / 3]]))


def test_the_gradient_passes_the_rounding_straight_through() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    factor = torch.randn(3, 4)
    (Rounded(3)(weight) * factor).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)
    assert not Rounded(4)(torch.zeros(2, 3)).any()
    with pytest.raises(ValueError, match="2 to 16 bits, got 1"):
        Rounded(1)


def test_every_matrix_is_rounded_and_nothing_else() -> None:
    model = ModelConfig(unit="snu", recurrent=True, hidden=(6, 5), weight_bits=3)
    network = build(model, 7, 4, "mean")
    kinds = [m for m in network.modules() if isinstance(m, Rounded)]
    assert len(kinds) == 2 + 2 + 1  # arrays, recurrent matrices, readout
    for layer in network.layers:
        for matrix in (layer.array.weight, layer.recurrent):
            assert all(len(row.unique()) <= 7 for row in matrix)
    assert network.layers[0].unit.threshold.unique().item() == 1.0


def test_weights_of_few_bits_still_learn() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(Dense(20, 2))
    round_weights(layer, 2)
    x = torch.randn(256, 20)
    target = (x[:, 0] > 0).long()
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    for _ in range(150):
        loss = nn.functional.cross_entropy(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((layer(x).argmax(1) == target).float().mean()) > 0.85


# --- averages ---


def test_an_average_of_still_weights_is_those_weights() -> None:
    network = nn.Linear(3, 2)
    average = Average(network, 0.99)
    for _ in range(5):
        average.update()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(average.values[name], value)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.01, 0.999), steps=st.integers(1, 40))
def test_an_average_is_the_recurrence_that_it_states(share: float, steps: int) -> None:
    network = nn.Linear(1, 1, bias=False).double()
    average = Average(network, share)
    expected = float(network.weight.detach())
    for n in range(1, steps + 1):
        with torch.no_grad():
            network.weight.fill_(float(n))
        average.update()
        kept = min(share, (1 + n) / (10 + n))
        expected = kept * expected + (1 - kept) * n
    assert float(average.values["weight"]) == pytest.approx(expected)
    with average.applied():
        assert network.weight.item() == pytest.approx(expected)
    assert network.weight.item() == steps


def test_an_average_covers_running_statistics() -> None:
    network = build(CONV, 64, 3, "mean", image=(1, 8, 8))
    average = Average(network, 0.5)
    network(spikes(3, 4, 64))
    average.update()
    name = "layers.0.array.mean_square"
    assert not torch.equal(average.values[name], network.state_dict()[name])
    assert not torch.equal(average.values[name], torch.ones(4))


# --- networks ---


def test_a_convolutional_network_from_a_description(tmp_path: Path) -> None:
    network = build(CONV, 64, 3, "mean", image=(1, 8, 8))
    x = spikes(5, 2, 64)
    sizes = [layer.unit.size for layer in network.layers]
    assert sizes == [4 * 4 * 4, 6 * 2 * 2, 12]
    assert operations(network) == 4 * 16 * 9 + 6 * 4 * 4 * 9 + 24 * 12
    network.eval()
    save_network(network, tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors").eval()
    assert torch.equal(network(x)[0], again(x)[0])
    with pytest.raises(ConfigError, match=r"channels=\[4, 6\]: the inputs of this task are no"):
        build(CONV, 64, 3, "mean")


def test_pooled_drives_are_means_of_squares() -> None:
    plain = Conv2d((2, 6, 6), 3, 3, padding=1)
    pooled = Conv2d((2, 6, 6), 3, 3, padding=1, pool=2)
    pooled.load_state_dict(plain.state_dict())
    x = torch.randn(4, 72)
    wanted = nn.functional.avg_pool2d(plain(x).view(4, 3, 6, 6), 2).flatten(1)
    torch.testing.assert_close(pooled(x), wanted)
    with pytest.raises(ValueError, match="and pool 9; use a smaller kernel or pool"):
        Conv2d((2, 6, 6), 3, 3, padding=1, pool=9)


def test_a_network_of_words(tmp_path: Path) -> None:
    found: list[list[torch.Tensor]] = []
    network = build(WORDS, 50, 50, "each", symbols=True).eval()
    x = torch.randint(0, 50, (7, 3))
    output, state = network(x)
    assert output.shape == (7, 3, 50)
    assert network.readout.linear.in_features == 18  # both layers
    first, middle = network(x[:4])
    second, _ = network(x[4:], middle)
    torch.testing.assert_close(torch.cat([first, second]), output)
    among = torch.tensor([3, int(x[0, 0]), 49, 7]).unique()
    some = network(x, among=among)[0]
    torch.testing.assert_close(some, output[..., among])
    for chosen in (some, output[..., among]):  # a word of x may be one of those, or be there twice
        network.zero_grad()
        chosen.square().sum().backward(retain_graph=True)
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(*found)
    save_network(network, tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors").eval()
    assert torch.equal(again(x)[0], output)
    assert len(state) == 2
    spread = network.layers[0].unit.decay
    torch.testing.assert_close(spread, torch.linspace(0.3, 0.9, 10))


def test_a_tied_network_has_one_matrix() -> None:
    network = build(WORDS, 50, 50, "each", symbols=True)
    count = sum(p.numel() for p in network.parameters())
    core = 6 * 10 + 10 * 10 + 10 * 8 + 8 * 8 + 10 + 8
    assert count == 50 * 6 + core + (18 * 6 + 6) + 50
    untied = ModelConfig(**{**vars(WORDS), "tied": False})
    assert sum(p.numel() for p in build(untied, 50, 50, "each", symbols=True).parameters()) == (
        50 * 6 + core + 18 * 50 + 50
    )
    with pytest.raises(ValueError, match="a tied readout needs the embedding's matrix"):
        Readout(4, 9, "each", tied=3)(torch.zeros(1, 1, 4))
    with pytest.raises(ConfigError, match="the inputs of this task are no symbols"):
        build(WORDS, 50, 50, "each")


def test_the_readout_starts_at_the_prior() -> None:
    prior = torch.linspace(-2, 1, 50)
    for tied in (True, False):
        model = ModelConfig(**{**vars(WORDS), "tied": tied})
        network = build(model, 50, 50, "each", symbols=True)
        network.readout.start_at(prior)
        with torch.no_grad():
            for weight in (network.readout.linear.weight, network.embedding.weight):
                weight.zero_()
            network.readout.linear.bias.copy_(prior if not tied else torch.zeros(6))
        torch.testing.assert_close(
            network(torch.zeros(1, 1, dtype=torch.long))[0][0, 0].detach(), prior
        )


def test_dropped_recurrent_weights() -> None:
    unit = make_unit("softsnu", 6)
    layer = Layer(Dense(4, 6), unit, recurrent=True, dropout_recurrent=0.5)
    x = torch.randn(5, 2, 4)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    whole = Layer(Dense(4, 6), make_unit("softsnu", 6), recurrent=True)
    whole.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x)[0], whole(x)[0])
    with pytest.raises(ValueError, match="recompute=2 does not go with dropout_recurrent"):
        Layer(Dense(4, 6), unit, recurrent=True, dropout_recurrent=0.5, recompute=2)
    with pytest.raises(ValueError, match="dropout_recurrent must be in"):
        Layer(Dense(4, 6), unit, recurrent=True, dropout_recurrent=1.0)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_dropped_recurrent_weights_of_baselines(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer with dropped weights is torch's own with these weights; gradients included."""
    layer = Baseline(kind, 4, 6, dropout_recurrent=0.5)
    x = torch.randn(5, 2, 4)
    assert not torch.equal(layer(x)[0], layer(x)[0])

    matrix = layer.core.weight_hh_l0
    factors = 2.0 * (torch.rand(matrix.shape) < 0.5)
    monkeypatch.setattr(layers, "kept", lambda shape, p, dtype: factors)
    plain = Baseline(kind, 4, 6)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        plain.core.weight_hh_l0.mul_(factors)
    y, after = layer(x)
    expected, expected_after = plain(x)
    torch.testing.assert_close((y, after), (expected, expected_after))
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(matrix.grad, plain.core.weight_hh_l0.grad * factors)
    torch.testing.assert_close(layer.core.weight_ih_l0.grad, plain.core.weight_ih_l0.grad)

    layer.eval()
    monkeypatch.undo()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x)[0], plain(x)[0])
    with pytest.raises(ValueError, match="dropout_recurrent must be in"):
        Baseline(kind, 4, 6, dropout_recurrent=1.0)


@pytest.mark.parametrize("unit", ["recurrent-softsnu", "rnn", "gru", "lstm"])
def test_every_recurrent_unit_can_drop_recurrent_weights(unit: str) -> None:
    config = preset("music", unit, "jsb", dropout_recurrent=0.5)
    network = build(config.model, 88, 88, "each")
    assert [layer.dropout_recurrent for layer in network.layers] == [0.5]
    assert space("music", unit)["dropout_recurrent"] == [0.0, 0.25, 0.5]
    assert "dropout_recurrent" not in space("music", "softsnu")
