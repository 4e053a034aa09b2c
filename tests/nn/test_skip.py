"""Skip connections: what goes into a layer goes on into the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from spikebridge import SNU, SoftSNU
from spikebridge.base.records import ConfigError, UsageError
from spikebridge.chip.compiler import compile
from spikebridge.cli.main import parse
from spikebridge.learning import feedback
from spikebridge.learning.online import Online
from spikebridge.nn.network import build, load_network, save_network
from spikebridge.nn.recompute import spikes_as_bits
from spikebridge.settings.model import ModelConfig


def by_hand(layers: Any, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of each layer."""
    inputs, outputs = [], []
    for layer in layers:
        inputs.append(x)
        y, _ = layer(x)
        outputs.append(y)
        x = y + x if x.shape == y.shape else y
    return inputs, outputs


@pytest.mark.parametrize("unit", ["snu", "softsnu", "gru", "relu"])
@pytest.mark.parametrize("width", [6, 5])
def test_a_network_adds_inputs_to_outputs(unit: str, width: int) -> None:
    network = build(ModelConfig(unit=unit, hidden=(6, 6, 6), skip=True), width, 2, "each")
    x = torch.rand(7, 3, width)
    _, outputs = by_hand(network.layers, x)
    seen = network.observe(x, membranes=True)
    for layer, y in zip(seen.layers, outputs, strict=True):
        torch.testing.assert_close(layer.y, y)
    torch.testing.assert_close(seen.output, network.readout(outputs[-1]))


@pytest.mark.parametrize("kind", [SNU, SoftSNU])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("backend", ["auto", "loop"])
def test_a_stack_adds_inputs_to_outputs(kind: type, bidirectional: bool, backend: str) -> None:
    layer = kind(8, 4, 3, bidirectional=bidirectional, skip=True, backend=backend).double()
    x = torch.rand(7, 3, 8, dtype=torch.float64)
    if not bidirectional:
        torch.testing.assert_close(layer(x)[0], by_hand(layer.layers, x)[1][-1])
        pieces, state = [], None
        for piece in x.split([1, 0, 4, 2]):
            y, state = layer(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces), layer(x)[0])
    packed = pad_packed_sequence(layer(pack_sequence([x[:, 0], x[:4, 1]]))[0])[0]
    torch.testing.assert_close(packed[:, 0], layer(x[:, :1])[0][:, 0])
    torch.testing.assert_close(packed[:4, 1], layer(x[:4, 1:2])[0][:, 0])


def test_batch_first() -> None:
    first = SNU(4, 4, 2, skip=True, batch_first=True)
    other = SNU(4, 4, 2, skip=True)
    other.load_state_dict(first.state_dict())
    x = torch.rand(7, 3, 4)
    torch.testing.assert_close(first(x.transpose(0, 1))[0].transpose(0, 1), other(x)[0])


def test_gradients() -> None:
    layer = SoftSNU(3, 3, 3, skip=True, recurrent=True, backend="loop", dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def call(x: Tensor, *leaves: Tensor) -> Tensor:
        given = dict(zip(names, leaves, strict=True))
        return torch.func.functional_call(layer, given, (x,))[0]

    assert torch.autograd.gradcheck(call, (x, *leaves))


@pytest.mark.parametrize("product", ["dense", "sparse"])
@pytest.mark.parametrize("way", ["plain", "recompute", "bits"])
def test_sums_of_spikes_are_numbers_in_every_product(product: str, way: str) -> None:
    """Large enough for sparse products and for gradients that leave places out."""
    results = []
    for chosen, backend in (("dense", "loop"), (product, "auto")):
        torch.manual_seed(0)
        layer = SNU(
            96, 96, 3, skip=True, backend=backend, surrogate="triangle",
            recompute=5 if way == "recompute" and backend == "auto" else 0, dtype=torch.float64,
        )  # fmt: skip
        for part in layer.layers:
            part.array.product = chosen
        x = (torch.rand(20, 40, 96) < 0.1).double().requires_grad_()
        if way == "bits" and backend == "auto":
            with spikes_as_bits():
                y, _ = layer(x)
        else:
            y, _ = layer(x)
        (y * torch.linspace(-1, 1, 96, dtype=torch.float64)).sum().backward()
        results.append([y, x.grad, *(p.grad for p in layer.parameters())])
        with torch.no_grad():
            inputs, _ = by_hand(layer.layers, x)
        assert set(inputs[2].unique().tolist()) >= {0.0, 1.0, 2.0}
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_falls_on_outputs_alone() -> None:
    network = build(ModelConfig(hidden=(6, 6), skip=True, dropout=0.5), 6, 2, "each")
    network.dropout.p = 1.0
    seen: list[Tensor] = []
    network.layers[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.rand(5, 2, 6)
    network(x)
    assert torch.equal(seen[0], x)


def test_files_symbols_and_images(tmp_path: Path) -> None:
    embedded = build(
        ModelConfig(hidden=(6, 6), embedding=6, skip=True), 9, 2, "each", symbols=True
    )  # fmt: skip
    table = build(ModelConfig(hidden=(6, 6, 6), skip=True), 6, 2, "each", symbols=True)
    for network in (embedded, table):
        save_network(network, tmp_path / "n.safetensors")
        again = load_network(tmp_path / "n.safetensors")
        symbols = torch.randint(6, (4, 3))
        assert again.skip
        assert torch.equal(again(symbols)[0], network(symbols)[0])
    model = ModelConfig(hidden=(4,), channels=(2, 2), stride=1, kernel_size=3, skip=True)
    network = build(model, 32, 2, "each", image=(2, 4, 4))
    assert network(torch.rand(3, 2, 32))[0].shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": (6, 5)}, r"hidden=\[6, 5\] are added to one another.*pass equal numbers"),
        ({"hidden": (6,)}, r"hidden=\[6\] leaves no next layer"),
        ({"hidden": (6, 6)}, r"nothing to connect.*\(inputs and neurons: 5 6, 6 6\); give a third"),
    ],
)
def test_widths_that_do_not_agree_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ModelConfig(skip=True, **settings), 5, 2, "mean")
    with pytest.raises(ConfigError, match="nothing to connect"):
        build(ModelConfig(skip=True, hidden=(6, 6)), 6, 2, "mean", symbols=True)
    for layers in (1, 2):
        with pytest.raises(ValueError, match=f"nothing to connect with num_layers={layers}, 5 in"):
            SNU(5, 6, layers, skip=True)
    assert parse(["train", "digits", "--skip", "--hidden", "4", "4"]).model.skip


def test_what_they_do_not_go_with_is_refused_by_name() -> None:
    network = build(ModelConfig(hidden=(6, 6, 6), skip=True), 5, 2, "mean")
    with pytest.raises(UsageError, match=r"its layers get sums of spikes; .*--no-skip"):
        compile(network)
    with pytest.raises(ValueError, match="skip connections go past it"):
        Online(network)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_feedback_reaches_all_layers(rule: Any) -> None:
    network = build(ModelConfig(unit="softsnu", hidden=(6, 6, 6), skip=True), 5, 3, "mean")
    feedback.attach(network, rule)
    output, _ = network(torch.rand(4, 8, 5))
    nn.functional.cross_entropy(output, torch.randint(3, (8,))).backward()
    assert all(bool(p.grad.any()) for p in network.parameters())
