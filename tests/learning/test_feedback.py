"""Feedback alignment, direct feedback alignment and random targets, against what they promise."""

from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence

from spikebridge.crossbar.network import to_crossbar
from spikebridge.crossbar.pcm import ideal
from spikebridge.learning import feedback, grapes
from spikebridge.learning.angles import angle_deg, angles_deg, gradients_of
from spikebridge.learning.model_layers import nodes
from spikebridge.nn.layers import Plain, Readout
from spikebridge.nn.network import Network, build
from spikebridge.nn.synapses import Conv2d, Dense, Normalised, round_weights
from spikebridge.settings.crossbar import CrossbarConfig
from spikebridge.settings.model import ModelConfig

# Another recording in the same format can be put in its place.
RECORDING = Path(
    os.environ.get(
        "SPIKEBRIDGE_GRAPES_VECTORS", Path(__file__).parents[1] / "data" / "grapes_authors.npz"
    )
)
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def network(unit: str = "softsnu", readout: str = "mean", **settings: object) -> Network:
    config = ModelConfig(unit=unit, **{"hidden": (6, 5), **settings})
    return build(config, 64, 4, readout, image=(1, 8, 8)).double()


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (4, 4, 4)),
        nn.Conv2d(4, 3, 3, padding=1, stride=2, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 6, 3, groups=3, padding="same"),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
        nn.AvgPool2d(2),
        nn.Flatten(1, 2),
        nn.Conv1d(4, 5, 1),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(5, 4),
    ).double()


def mlp() -> nn.Module:
    hidden = [nn.Linear(64, 7), nn.ReLU(inplace=True), nn.Linear(7, 6), nn.Tanh(), nn.Dropout(0.3)]
    return nn.Sequential(*hidden, nn.Linear(6, 4)).double()


def volumes() -> nn.Module:
    first = [nn.Unflatten(1, (1, 4, 4, 4)), nn.Conv3d(1, 2, 2), nn.ReLU()]
    return nn.Sequential(
        *first, nn.Conv3d(2, 3, 3, dilation=1), nn.Flatten(), nn.Linear(3, 4)
    ).double()


def plain_layers() -> Network:
    layers = [
        Plain(Conv2d((1, 8, 8), 2, 3, pool=3, padding=1), "tanh"),
        Plain(Normalised(Conv2d((2, 2, 2), 3, 2, padding=1, pool=2), centre=True), "relu"),
        Plain(Dense(3, 5, bias=True), "tanh"),
    ]
    return Network(layers, Readout(5, 4, "last"), dropout=0.2).double()  # type: ignore[arg-type]


FLAT: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "conv": convolutions, "volumes": volumes}
TIMED: dict[str, Callable[[], nn.Module]] = {
    "recurrent": lambda: network(recurrent=True, dropout=0.2),
    "spikes": lambda: network("snu", "last", recurrent=True, train_decay=True),
    "images": lambda: network(channels=(2, 3), stride=1, pool=2, hidden=(5,), norm=True),
    "each": lambda: network("snu", "each", norm=True, drive_bias=True),
    "plain": plain_layers,
}
SENDING = {**FLAT, **TIMED}
DIRECT = {
    **SENDING,
    "lstm": lambda: network("lstm"),
    "gru": lambda: network("gru", "last", dropout=0.2),
    "rnn": lambda: network("rnn", "each"),
}


def inputs_of(kind: str) -> Tensor:
    # Sides larger than what pooling uses, and sizes that cannot be taken for each other.
    shape = (3, 64) if kind in FLAT else (5, 3, 64)
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2


def output(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return y[0] if isinstance(y, tuple) else y


def loss_of(model: nn.Module, x: Tensor, handle: feedback.Feedback | None = None) -> Tensor:
    torch.manual_seed(3)  # of dropout
    y = output(model, x)
    classes = torch.arange(y[..., 0].numel()).reshape(y.shape[:-1]) % y.shape[-1]
    if handle is not None and handle.rule == "drtp":
        handle.target(classes)
    return F.cross_entropy(y.flatten(0, -2), classes.flatten())


def gradients(
    model: nn.Module, x: Tensor, handle: feedback.Feedback | None = None
) -> dict[str, Tensor]:
    return gradients_of(model, lambda: loss_of(model, x, handle))


def equal(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or EXACT))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {node.name: node.array.weight for node in nodes(model)[1:] if node.array is not None}


@pytest.mark.parametrize("kind", SENDING)
def test_through_the_weights_themselves_it_is_backpropagation(kind: str) -> None:
    model, x = SENDING[kind](), inputs_of(kind)
    exact = gradients(model, x)
    with feedback.attach(model, "fa", matrices=weights_of(model)) as handle:
        equal(gradients(model, x, handle), exact)
        assert handle.matrices().keys() == set(handle.layers[1:])
    with feedback.attach(model, "fa") as handle:
        found = gradients(model, x, handle)
    own = {name for name in exact if name.startswith(f"{handle.layers[-1]}.")}
    assert own
    for name in exact:
        assert torch.equal(found[name], exact[name]) == (name in own), name


@pytest.mark.parametrize(
    ("kind", "rule"),
    [(kind, "fa") for kind in SENDING] + [(k, r) for k in DIRECT for r in ("dfa", "drtp")],
)
def test_forward_is_the_same_to_the_bit_and_detaching_restores(kind: str, rule: str) -> None:
    model, x = DIRECT[kind](), inputs_of(kind)
    running = copy.deepcopy(model.state_dict())
    plain, exact = loss_of(model, x), gradients(model, x)
    model.load_state_dict(running)
    handle = feedback.attach(model, rule)
    assert torch.equal(loss_of(model, x, handle), plain)
    found = gradients(model, x, handle)
    assert angle_deg(found, exact) > 1
    assert found[next(iter(exact))].ne(0).any()  # the error arrives at the first layer
    with torch.no_grad():
        hidden = loss_of(model, x, handle)
    assert hidden.grad_fn is None
    handle.detach()
    handle.detach()
    assert hooks_of(model) == 0
    for name, value in gradients(model, x).items():
        torch.testing.assert_close(value, exact[name], rtol=0, atol=0)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
@pytest.mark.parametrize("kind", ["mlp", "images"])
def test_matrices_depend_on_seed_and_name_alone(kind: str, rule: str) -> None:
    model, x = SENDING[kind](), inputs_of(kind)

    def drawn(model: nn.Module, seed: int, matrices: dict | None = None) -> tuple[dict, dict]:
        with feedback.attach(model, rule, seed=seed, matrices=matrices) as handle:
            return gradients(model, x, handle), handle.matrices()

    found, matrices = drawn(model, 4)
    torch.rand(7)  # whatever else was drawn
    again, same = drawn(model, 4)
    equal(found, again, rtol=0, atol=0)
    assert all(torch.equal(matrices[name], same[name]) for name in matrices)
    other, different = drawn(model, 5)
    assert angle_deg(found, other) > 1
    assert not any(torch.equal(matrices[name], different[name]) for name in matrices)
    equal(drawn(model, 5, matrices)[0], found, rtol=0, atol=0)
    for matrix in matrices.values():
        assert matrix.dtype == torch.float32
        assert matrix.std() > 0


def test_matrices_are_uniform_within_the_published_limits() -> None:
    model = nn.Sequential(nn.Linear(10, 200), nn.Linear(200, 300), nn.Linear(300, 40))
    x = torch.randn(5, 10)
    for rule, expected in {
        "fa": {"1": (300, 200), "2": (40, 300)},
        "dfa": {"0": (40, 200), "1": (40, 300)},
    }.items():
        with feedback.attach(model, rule) as handle:
            gradients(model, x, handle)
        assert {name: tuple(b.shape) for name, b in handle.matrices().items()} == expected
        for matrix in handle.matrices().values():
            limit = math.sqrt(6 / matrix.shape[1])
            assert 0.99 * limit < matrix.abs().max() <= limit
            assert float(matrix.std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)
            assert abs(float(matrix.mean())) < 0.02 * limit
    with feedback.attach(convolutions().float(), "fa") as handle:
        kernel = handle.matrices()["3"]
        assert kernel.shape == (6, 1, 3, 3)
        assert 0.8 * math.sqrt(6 / 9) < kernel.abs().max() <= math.sqrt(6 / 9)


# The formulas of the authors: delta = (B delta of the layer above, or B e) f'(a), dW = delta x^T.


def relu_network(sizes: tuple[int, ...]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        parts += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*parts[:-1]).double()


def forward_by_hand(model: nn.Sequential, x: np.ndarray) -> tuple[list, list, np.ndarray]:
    """Inputs x (B, I) and sums a (B, N) of each layer, and softmax of the outputs."""
    xs, sums = [], []
    for weight in (p.detach().numpy() for p in model.parameters()):
        xs.append(x)
        sums.append(x @ weight.T)
        x = np.maximum(sums[-1], 0)
    powers = np.exp(sums[-1] - sums[-1].max(1, keepdims=True))
    return xs, sums, powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
def test_gradients_equal_those_by_hand(rule: str) -> None:
    model = relu_network((6, 9, 8, 7, 4))
    x = torch.randn(5, 6, dtype=torch.float64)
    classes = torch.tensor([0, 3, 1, 1, 2])
    xs, sums, p = forward_by_hand(model, x.numpy())
    target = np.eye(4)[classes]
    with feedback.attach(model, rule, seed=1) as handle:
        if rule == "drtp":
            handle.target(classes)
        found = gradients_of(model, lambda: F.cross_entropy(model(x), classes))
        matrices = {name: b.double().numpy() for name, b in handle.matrices().items()}
    error = (p - target) / 5
    deltas = [error]
    for k in (2, 1, 0):  # the layers are "0", "2", "4", "6"
        if rule == "fa":
            sent = deltas[0] @ matrices[str(2 * (k + 1))]
        else:
            sent = (error if rule == "dfa" else -target / 5) @ matrices[str(2 * k)]
        deltas.insert(0, sent * (sums[k] > 0))
    for weight, delta, seen in zip(found.values(), deltas, xs, strict=True):
        np.testing.assert_allclose(weight.numpy(), delta.T @ seen, rtol=1e-12, atol=1e-14)


def recorded(case: str) -> dict[str, Tensor]:
    with np.load(RECORDING) as file:
        return {
            name.split("/")[1]: torch.from_numpy(file[name])
            for name in file.files
            if name.startswith(f"{case}/")
        }


def recorded_model(record: dict[str, Tensor], case: str) -> tuple[nn.Sequential, dict[str, Tensor]]:
    depth = sum(name.startswith("w") for name in record)
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[case.split("_")[1]]
    parts: list[nn.Module] = []
    for k in range(depth):
        outputs, inputs = record[f"w{k}"].shape
        parts += [nn.Linear(inputs, outputs, bias=False, dtype=torch.float64), activation()]
        parts[-2].weight = nn.Parameter(record[f"w{k}"].clone())
    # Theirs is (inputs, outputs), ours has the shape of the weight.
    matrices = {str(2 * k): record[f"B{k}"].T for k in range(1, depth)}
    return nn.Sequential(*parts[:-1]), matrices


def check_recording(model: nn.Sequential, record: dict[str, Tensor]) -> None:
    y = model(record["x"].unsqueeze(0))
    torch.testing.assert_close(y.softmax(1)[0], record["output"], rtol=1e-12, atol=1e-15)
    F.cross_entropy(y, record["target"].unsqueeze(0)).backward()
    for k, module in enumerate(m for m in model if isinstance(m, nn.Linear)):
        torch.testing.assert_close(module.weight.grad, record[f"grad{k}"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", ["FA_relu", "FA_tanh"])
def test_gradients_equal_those_of_the_authors(case: str) -> None:
    record = recorded(case)
    model, matrices = recorded_model(record, case)
    feedback.attach(model, "fa", matrices=matrices)
    check_recording(model, record)


@pytest.mark.parametrize("first", ["grapes", "feedback"])
@pytest.mark.parametrize("case", ["FAgrapes_relu", "FAgrapes_tanh"])
def test_with_grapes_gradients_equal_those_of_the_authors(case: str, first: str) -> None:
    """The factor acts on the error that arrives, whichever of the two is attached first."""
    record = recorded(case)
    model, matrices = recorded_model(record, case)
    attach = [
        lambda: grapes.attach(model, clip=None),
        lambda: feedback.attach(model, "fa", matrices=matrices),
    ]
    handles = [make() for make in (attach if first == "grapes" else reversed(attach))]
    check_recording(model, record)
    for handle in handles:
        handle.detach()


@pytest.mark.parametrize("first", ["grapes", "feedback"])
def test_direct_feedback_with_grapes_by_hand(first: str) -> None:
    """The authors' form: dW[i, k] = P'[i] (B e)[i] f'(a[i]) P[k] x[k], no P below the first."""
    model = relu_network((6, 9, 8, 7, 4))
    x, classes = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    xs, sums, p = forward_by_hand(model, x.numpy())
    attach = [
        lambda: grapes.attach(model, importance="outgoing"),
        lambda: feedback.attach(model, "dfa", seed=1),
    ]
    handles = [make() for make in (attach if first == "grapes" else reversed(attach))]
    found = gradients_of(model, lambda: F.cross_entropy(model(x), classes))
    direct = next(h for h in handles if isinstance(h, feedback.Feedback))
    matrices = {name: b.double().numpy() for name, b in direct.matrices().items()}
    for handle in handles:
        handle.detach()
    error = (p - np.eye(4)[classes]) / 5
    weights = [w.detach().numpy() for w in model.parameters()]
    outgoing = [2 * np.abs(w).sum(0) / np.abs(w).sum(0).max() for w in weights]
    for k, name in enumerate(found):
        delta = error if k == 3 else error @ matrices[str(2 * k)] * (sums[k] > 0)
        expected = delta.T @ xs[k]
        if k in (1, 2):
            above = outgoing[k + 1] if k == 1 else 1.0
            expected *= np.multiply.outer(above * np.ones(len(expected)), outgoing[k])
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-12, atol=1e-14)


def linear_stack(depth: int) -> list[nn.Linear]:
    sizes = [*[6, 5, 7, 4][:depth], 3]
    return [nn.Linear(a, b, bias=False).double() for a, b in pairwise(sizes)]


class Memoryless(nn.Module):
    """A linear layer behind the interface of `Layer`."""

    spiking = False

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        return self.linear(x), state


@pytest.mark.parametrize("reduce", ["mean", "last", "each"])
def test_in_a_linear_network_products_of_weights_give_backpropagation(reduce: str) -> None:
    """Time is taken together as the readout takes it; direct errors are then the exact ones."""
    stack = linear_stack(4)
    readout = Readout(4, 3, reduce).double()
    model = Network([Memoryless(m) for m in stack[:3]], readout)  # type: ignore[misc]
    x = torch.randn(5, 2, 6, dtype=torch.float64)
    exact = gradients(model, x)
    down, matrices = readout.linear.weight.detach(), {}
    for k in (2, 1, 0):
        matrices[f"layers.{k}.linear"] = down
        down = down @ stack[k].weight.detach()
    with feedback.attach(model, "dfa", matrices=matrices) as handle:
        equal(gradients(model, x, handle), exact)


class OverTime(nn.Module):
    """Layers over a whole sequence (T, B, 6), or called step by step."""

    def __init__(self, by_step: bool, batch_first: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear_stack(3))
        self.by_step, self.batch_first = by_step, batch_first

    def forward(self, x: Tensor) -> Tensor:
        first, second, out = self.layers
        if self.by_step:
            return out(torch.stack([second(first(step)) for step in x]).mean(0))
        if self.batch_first:
            return out(second(first(x.transpose(0, 1))).mean(1))
        return out(second(first(x)).mean(0))


@pytest.mark.parametrize("how", [(True, False), (False, False), (False, True)])
def test_where_nothing_says_how_time_is_taken_every_step_gets_its_share(how: tuple) -> None:
    model = OverTime(*how)
    x = torch.randn(5, 2, 6, dtype=torch.float64)
    exact = gradients(model, x)
    _, second, out = (m.weight.detach() for m in model.layers)
    with feedback.attach(model, "dfa", matrices={"layers.0": out @ second, "layers.1": out}) as h:
        equal(gradients(model, x, h), exact)


def test_time_that_could_be_either_dimension_is_an_error() -> None:
    model, x = OverTime(False), torch.randn(5, 5, 6, dtype=torch.float64)
    with (
        feedback.attach(model, "dfa"),
        pytest.raises(ValueError, match="use a batch of another size"),
    ):
        model(x)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
def test_several_forward_passes_before_one_backward_pass(rule: str) -> None:
    model, classes = mlp().eval(), torch.tensor([0, 1, 2])
    one, other = torch.randn(2, 3, 64, dtype=torch.float64)

    def both() -> Tensor:
        parts = [F.cross_entropy(model(x), classes) for x in (one, other)]
        return parts[0] + parts[1]

    with feedback.attach(model, rule) as handle:
        if rule == "drtp":
            handle.target(classes)
        together = gradients_of(model, both)
        for x in (one, other):
            if rule == "drtp":
                handle.target(classes)
            F.cross_entropy(model(x), classes).backward()
        equal({name: p.grad for name, p in model.named_parameters()}, together)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_a_forward_pass_that_breaks_off_leaves_nothing(rule: str) -> None:
    model, x = mlp().eval(), inputs_of("mlp")
    with feedback.attach(model, rule) as handle:
        clean = gradients(model, x, handle)
        model[3].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(x)
        model[3]._forward_pre_hooks.clear()
        model[:3](x)  # never gets to the output
        equal(gradients(model, x, handle), clean, rtol=0, atol=0)


def test_steps_with_a_state_each_learn_from_their_own_error() -> None:
    """Stepping through time equals one call: a layer's state carries, nothing else does."""
    model = network("softsnu", "each", recurrent=True)
    x = inputs_of("each")
    target = torch.randn(5, 3, 4, dtype=torch.float64)

    def stepping() -> Tensor:
        state, total = None, torch.zeros((), dtype=torch.float64)
        for t in range(5):
            y, state = model(x[t : t + 1], state)
            total = total + (y[0] * target[t]).sum()
        return total

    with feedback.attach(model, "dfa"):
        whole = gradients_of(model, lambda: (model(x)[0] * target).sum())
        equal(gradients_of(model, stepping), whole)


def test_frozen_layers_still_pass_the_error_on() -> None:
    for rule in ("fa", "dfa"):
        model, x = mlp().eval(), inputs_of("mlp")
        with feedback.attach(model, rule) as handle:
            free = gradients(model, x, handle)
            model[2].requires_grad_(False)
            model[5].requires_grad_(False)
            found = gradients(model, x, handle)
        assert found.keys() == {"0.weight", "0.bias"}
        equal(found, {name: free[name] for name in found})


def test_branches_and_skips() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.block = nn.Linear(64, 6).double(), nn.Linear(6, 6).double()
            self.out = nn.Linear(12, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            h = self.into(x).tanh()
            return self.out(torch.cat([h + self.block(h).relu(), h], -1))

    model, x = Residual(), inputs_of("mlp")
    exact = gradients(model, x)
    with feedback.attach(model, "fa", matrices=weights_of(model)) as handle:
        equal(gradients(model, x, handle), exact)
    with feedback.attach(model, "dfa") as handle:
        found = gradients(model, x, handle)
        b = {name: m.double() for name, m in handle.matrices().items()}
    h = model.into(x).tanh()
    y = output(model, x)
    e = torch.autograd.grad(F.cross_entropy(y, torch.arange(3)), y)[0]
    wide = e @ b["block"]  # what both halves of the input of `out` receive
    delta = (wide[:, :6] + wide[:, 6:] + e @ b["into"]) * (1 - h**2)
    torch.testing.assert_close(found["into.weight"], delta.T @ x, **EXACT)


def test_an_embedding_before_the_first_layer_receives_too() -> None:
    config = ModelConfig(unit="softsnu", hidden=(6, 5), embedding=7)
    model = build(config, 9, 4, "mean", symbols=True).double()
    x = torch.randint(9, (5, 3))
    exact = gradients(model, x)
    weights = {node.name: node.array.weight for node in nodes(model)}  # type: ignore[union-attr]
    with feedback.attach(model, "fa", matrices=weights) as handle:
        equal(gradients(model, x, handle), exact)
    with feedback.attach(model, "dfa") as handle:
        assert gradients(model, x, handle)["embedding.weight"].ne(0).any()
        assert handle.matrices()["input"].shape == (4, 7)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_weights_that_are_rounded_or_on_a_crossbar(rule: str) -> None:
    model, x = network(hidden=(6, 5)), inputs_of("recurrent")
    round_weights(model, 4)
    before = loss_of(model, x)
    with feedback.attach(model, rule) as handle:
        assert torch.equal(loss_of(model, x, handle), before)
        assert gradients(model, x, handle)["layers.0.array.parametrizations.weight.original"].any()
    for settings in ({}, {"adc_bits": 8, "dac_bits": 8}):
        plain = nn.Sequential(
            nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)
        )
        chip = to_crossbar(plain, ideal(64), CrossbarConfig(**settings))
        dense = x[0].float()
        names = [name for name, p in chip.network.named_parameters() if p.requires_grad]
        exact = gradients(chip.network, dense)
        assert len(nodes(chip.network)) == 3
        matrices = {n.name: n.array.weight for n in nodes(chip.network)[1:]}  # type: ignore[union-attr]
        with feedback.attach(chip.network, rule, matrices=matrices if rule == "fa" else None) as h:
            found = gradients(chip.network, dense, h)
        if rule == "fa":
            equal(found, exact, rtol=1e-4, atol=1e-6)
        assert all(found[name].any() for name in names)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
def test_states_that_are_computed_twice(rule: str) -> None:
    x = inputs_of("recurrent")
    torch.manual_seed(5)
    kept = build(ModelConfig(unit="softsnu", hidden=(6, 5), recurrent=True), 64, 4, "mean")
    twice = build(
        ModelConfig(unit="softsnu", hidden=(6, 5), recurrent=True), 64, 4, "mean", recompute=2
    )
    twice.load_state_dict(kept.state_dict())
    found = []
    for model in (kept.double(), twice.double()):
        with feedback.attach(model, rule) as handle:
            found.append(gradients(model, x, handle))
    equal(*found)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_mixed_precision(rule: str) -> None:
    model, x = network().float(), inputs_of("recurrent").float()
    with feedback.attach(model, rule) as handle:
        full = gradients(model, x, handle)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            handle.detach()
            plain = output(model, x)
            handle = feedback.attach(model, rule)
            assert torch.equal(output(model, x), plain)
            low = gradients(model, x, handle)
    assert angle_deg(full, low) < 5
    assert all(g.dtype == torch.float32 for g in low.values())


# The compiler reads it of every tensor, and means to keep quiet about that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    ("kind", "rule", "backend"),
    [("mlp", "dfa", "aot_eager"), ("mlp", "fa", "aot_eager"), ("recurrent", "dfa", "eager")],
)
def test_under_torch_compile(kind: str, rule: str, backend: str) -> None:
    model, x = SENDING[kind]().eval(), inputs_of(kind)
    with feedback.attach(model, rule) as handle:
        eager = gradients(model, x, handle)
        compiled = torch.compile(model, backend=backend)
        for _ in range(2):
            found = gradients_of(model, lambda: loss_of(compiled, x, handle))
            equal(found, eager)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_a_graph_that_was_compiled_before_follows_attaching_and_detaching(rule: str) -> None:
    model, x = mlp().eval(), inputs_of("mlp")
    compiled = torch.compile(model, backend="aot_eager")

    def found() -> dict[str, Tensor]:
        return gradients_of(model, lambda: loss_of(compiled, x))

    plain = found()
    equal(plain, gradients(model, x))
    handle = feedback.attach(model, rule)
    eager = gradients(model, x)
    assert angle_deg(eager, plain) > 1
    equal(found(), eager)
    handle.detach()
    equal(found(), plain)
    torch.compiler.reset()


class Heads(nn.Module):
    """One body under layers that are registered in another order than they are called in."""

    def __init__(self, order: str) -> None:
        super().__init__()
        for name in order.split():
            sizes = {"body": (64, 7), "head": (7, 4), "other": (7, 3)}[name]
            self.add_module(name, nn.Linear(*sizes).double())

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).tanh()
        self.second = self.other(h) if hasattr(self, "other") else h
        return self.head(h)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
@pytest.mark.parametrize("order", ["head body", "body head other"])
def test_an_output_layer_that_is_not_registered_last_is_named(order: str, rule: str) -> None:
    model, x = Heads(order), inputs_of("mlp")
    with feedback.attach(model, rule) as handle:
        assert handle.layers[-1] == order.split()[-1]
        assert f"output={handle.layers[-1]!r}" in repr(handle)
        if rule == "fa":
            found = gradients(model, x, handle)
            b = handle.matrices()["head"].double()
        else:
            with pytest.raises(RuntimeError, match=r"^head: .* attach\(.., output='head'\)"):
                gradients(model, x, handle)
    with feedback.attach(model, rule, output="head") as handle:
        assert handle.layers == (*[name for name in order.split() if name != "head"], "head")
        if rule != "fa":
            found = gradients(model, x, handle)
            b = handle.matrices()[handle.layers[-2]].double()
        equal(gradients(model, x, handle), found)
    h = model.body(x).tanh()
    y = model.head(h)
    classes = torch.arange(3)
    e = torch.autograd.grad(F.cross_entropy(y, classes), y)[0]
    sent = -F.one_hot(classes, 4).double() / 3 if rule == "drtp" else e
    torch.testing.assert_close(found["head.weight"], e.T @ h, **EXACT)
    torch.testing.assert_close(found["body.weight"], ((sent @ b) * (1 - h**2)).T @ x, **EXACT)


def test_an_error_past_the_output_layer_is_refused_only_where_it_would_be_lost() -> None:
    model, x = Heads("body other head"), inputs_of("mlp")
    with feedback.attach(model, "dfa"):
        loss = model(x).sum()
        with pytest.raises(RuntimeError, match=r"^other: .* none from the output layer 'head'"):
            (loss + model.second.sum()).backward()
        model.body(x).square().sum().backward()  # there is nothing before the first layer
        model.requires_grad_(False)
        model.other.requires_grad_(True)
        model(x)
        model.second.sum().backward()  # nor anything that learns
    with pytest.raises(
        ValueError, match=r"output='heads' is no layer.*\['body', 'other', 'head'\]"
    ):
        feedback.attach(model, output="heads")
    assert hooks_of(model) == 0


class Echo(nn.RNN):
    """Its state is a part of its very outputs."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y, _ = super().forward(x, state)
        return y, y[-1:]


class Echoes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Echo(64, 6), Echo(6, 5), nn.Linear(5, 4)]).double()

    def forward(self, x: Tensor, states: Any = (None, None)) -> tuple[Tensor, Any]:
        first, second, out = self.layers
        y, low = first(x, states[0])
        y, high = second(y, states[1])
        return out(y), (low, high)


@pytest.mark.parametrize("kind", ["network", "echoes"])
def test_errors_that_a_state_brings_back_are_no_outsiders(kind: str) -> None:
    """Of a loss at the last step: what earlier steps handed out has led to no output."""
    model = Echoes() if kind == "echoes" else network("softsnu", "each", recurrent=True)
    x = inputs_of("each")

    def stepping() -> Tensor:
        y, state = model(x[:1])
        for t in range(1, 5):
            y, state = model(x[t : t + 1], state)
        return y.square().sum()

    with feedback.attach(model, "dfa"):
        whole = gradients_of(model, lambda: model(x)[0][-1].square().sum())
        equal(gradients_of(model, stepping), whole)


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
def test_checkpoints_give_the_same_or_are_refused(rule: str) -> None:
    model, classes = mlp().eval(), torch.tensor([0, 2, 1])
    x = inputs_of("mlp").requires_grad_()

    def found(cuts: list[int], reentrant: bool) -> dict[str, Tensor]:
        if rule == "drtp":
            handle.target(classes)

        def loss() -> Tensor:
            y = x
            for part in (model[a:b] for a, b in pairwise(cuts)):
                y = torch.utils.checkpoint.checkpoint(part, y, use_reentrant=reentrant)
            return F.cross_entropy(model[cuts[-1] :](y), classes)

        return gradients_of(model, loss)

    with feedback.attach(model, rule) as handle:
        plain = found([0], reentrant=False)
        equal(found([0, 2, 5], reentrant=False), plain)
        equal(found([0, 6], reentrant=True), plain)  # the error of the output is sent inside
        if rule == "fa":
            equal(found([0, 2, 5], reentrant=True), plain)
            return
        with pytest.raises(RuntimeError, match=r"^2: a reentrant .* pass use_reentrant=False"):
            found([0, 2, 5], reentrant=True)
        with pytest.raises(RuntimeError, match=r"^0: a reentrant .* pass use_reentrant=False"):
            found([0, 2], reentrant=True)


def test_gradients_of_single_samples_by_torch_func() -> None:
    model, x, classes = mlp().eval(), inputs_of("mlp"), torch.tensor([0, 2, 1])
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), t[None])

    single = vmap(grad(loss), (None, 0, 0))
    with feedback.attach(model, "fa"):
        found = single(parameters, x, classes)
        batch = gradients_of(model, lambda: F.cross_entropy(model(x), classes))
        equal({name: g.mean(0) for name, g in found.items()}, batch)
    with (
        feedback.attach(model, "dfa"),
        pytest.raises(RuntimeError, match=r'call backward\(\), or use rule="fa"'),
    ):
        single(parameters, x, classes)


def test_a_copy_of_the_model_is_plain() -> None:
    model, x = mlp().eval(), inputs_of("mlp")
    exact = gradients(model, x)
    for rule in ("fa", "dfa"):
        with feedback.attach(model, rule) as handle:
            assert angle_deg(gradients(model, x, handle), exact) > 1
            equal(gradients(pickle.loads(pickle.dumps(model)), x), exact)
            equal(gradients(copy.deepcopy(model), x), exact)


def test_drtp_targets() -> None:
    model, x = mlp().eval(), inputs_of("mlp")
    classes = torch.tensor([2, 0, 1])

    def found(told: Tensor) -> dict[str, Tensor]:
        handle.target(told)
        return gradients_of(model, lambda: F.cross_entropy(model(x), classes))

    handle = feedback.attach(model, "drtp")
    by_class = found(classes)
    equal(by_class, found(F.one_hot(classes, 4).double()))
    equal(by_class, found(F.one_hot(classes, 4).bool()))
    equal(by_class, found(F.one_hot(classes, 4)))
    many = found(torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]))
    assert angle_deg(by_class, many) > 1
    with pytest.raises(RuntimeError, match=r"call target\(classes\) on the handle"):
        F.cross_entropy(model(x), classes).backward()
    for wrong in (torch.tensor([1, 2]), torch.ones(3, 5), torch.ones(4), torch.tensor(1)):
        with pytest.raises(ValueError, match="do not fit outputs"):
            found(wrong)
    with pytest.raises(ValueError, match="classes from 0 to 3, got 1 to 4"):
        found(torch.tensor([4, 1, 1]))
    equal(by_class, found(classes))
    handle.detach()
    with (
        feedback.attach(model, "dfa") as other,
        pytest.raises(ValueError, match="learns from the loss alone"),
    ):
        other.target(classes)


def test_drtp_of_outputs_over_time() -> None:
    model, x = network("softsnu", "each"), inputs_of("each")
    classes = torch.tensor([2, 0, 1])
    with feedback.attach(model, "drtp") as handle:
        found = []
        for told in (classes, classes.expand(5, 3)):
            handle.target(told)
            found.append(gradients_of(model, lambda: output(model, x).sum()))
    equal(*found)


class TestErrors:
    def test_of_settings(self) -> None:
        model = mlp()
        with pytest.raises(ValueError, match=r"rule='bp' is not known; choose one of \['fa'"):
            feedback.attach(model, "bp")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no layer that a learning rule knows"):
            feedback.attach(nn.ReLU())
        with pytest.raises(ValueError, match=r"matrices for \['x'\] fit no layer"):
            feedback.attach(model, matrices={"x": torch.ones(2)})
        with pytest.raises(ValueError, match=r"has shape \(7, 6\), this model.*need \(6, 7\)"):
            feedback.attach(model, matrices={"2": torch.ones(7, 6)})
        with pytest.raises(ValueError, match="run the model once"):
            feedback.attach(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)))
        with pytest.raises(ValueError, match="skip names '5', the output layer"):
            feedback.attach(model, skip=["5"])
        with pytest.raises(ValueError, match=r"skip=\['x'\] are no layers.*are \['0', '2', '5'\]"):
            feedback.attach(model, skip=["x"])
        assert hooks_of(model) == 0
        with (
            feedback.attach(model, "dfa", matrices={"0": torch.ones(4, 8)}),
            pytest.raises(ValueError, match=r"has shape \(4, 8\).*need \(4, 7\)"),
        ):
            model(inputs_of("mlp"))

    def test_of_a_second_feedback(self) -> None:
        model = mlp()
        for part in (model, model[2]):
            with (
                feedback.attach(model, "dfa"),
                pytest.raises(ValueError, match="has a feedback already; detach that one first"),
            ):
                feedback.attach(part)
        feedback.attach(model).detach()

    def test_of_layers_that_cannot_send(self) -> None:
        for unit in ("lstm", "gru", "rnn"):
            model = network(unit)
            x = inputs_of("lstm")
            with feedback.attach(model):
                with torch.no_grad():
                    model(x)
                with pytest.raises(ValueError, match=r'layers.1: .* use rule="dfa", or .* skip='):
                    model(x)
            plain, own = gradients(model, x), weights_of(model)
            own.pop("layers.1", None)
            with feedback.attach(model, skip=["layers.1"], matrices=own) as handle:
                assert handle.layers == ("layers.0", "readout.linear")
                equal(gradients(model, x, handle), plain)
            one = network(unit, hidden=(6,))
            exact = gradients(one, x)
            with feedback.attach(one, matrices=weights_of(one)) as handle:
                equal(gradients(one, x, handle), exact)

    def test_of_inputs_without_a_place_for_errors(self) -> None:
        model, x = mlp(), inputs_of("mlp")
        hidden = torch.ones(3, 7, dtype=torch.float64, requires_grad=True)
        with feedback.attach(model), pytest.raises(ValueError, match=r"layer\(x\)"):
            model[2](input=hidden)
        packed = pack_padded_sequence(torch.ones(4, 2, 3, requires_grad=True), [4, 2])
        lstm = nn.Sequential(nn.LSTM(3, 4))
        with feedback.attach(lstm, "dfa"), pytest.raises(ValueError, match="pad them instead"):
            lstm(packed)
        folded = nn.Sequential(
            nn.Linear(64, 6), nn.Flatten(0, 1), nn.Linear(6, 5), nn.Unflatten(0, (5, 3))
        )
        folded.append(nn.Linear(5, 2))
        with feedback.attach(folded, "dfa"), pytest.raises(ValueError, match="hold samples"):
            folded(x.float().expand(5, 3, 64))

    def test_of_a_readout_of_some_outputs(self) -> None:
        model = network()
        with feedback.attach(model), pytest.raises(ValueError, match="leave among out"):
            model(inputs_of("recurrent"), among=torch.tensor([1, 2]))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    x, t = torch.from_numpy(pixels).float()[order] / 16, torch.from_numpy(classes).long()[order]
    return x[:1400], t[:1400], x[1400:], t[1400:]


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
def test_digits_are_learned_and_weights_align(rule: str) -> None:
    """Lillicrap et al.: weights come to meet the feedback, and its updates those of BP."""
    x, t, x_test, t_test = digits()
    model = nn.Sequential(
        nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 60), nn.Tanh(), nn.Linear(60, 10)
    )
    handle = feedback.attach(model, rule)

    def hidden_angle() -> float:
        sides = []
        for attached in (True, False):
            if not attached:
                handle.detach()
            elif rule == "drtp":
                handle.target(t)
            sides.append(gradients_of(model, lambda: F.cross_entropy(model(x), t)))
        hidden = [[g for name, g in side.items() if not name.startswith("4")] for side in sides]
        return angle_deg(*hidden)

    before = hidden_angle()
    handle = feedback.attach(model, rule)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(10):
        for rows in torch.randperm(1400).split(50):
            optimiser.zero_grad()
            if rule == "drtp":
                handle.target(t[rows])
            F.cross_entropy(model(x[rows]), t[rows]).backward()
            optimiser.step()
    accuracy = float((model(x_test).argmax(1) == t_test).float().mean())
    after = hidden_angle()
    assert accuracy > 0.9
    assert before > 85
    assert after < (85 if rule == "drtp" else 60)


class TestAngles:
    def test_of_known_vectors_even_tiny_ones(self) -> None:
        x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        a, b = {"w": x, "v": x}, {"w": 3 * x, "v": y}
        assert angles_deg(a, b) == pytest.approx({"w": 0.0, "v": 90.0})
        overall = math.degrees(math.acos(3 / (math.sqrt(2) * math.sqrt(10))))
        assert angle_deg(a, b) == pytest.approx(overall)
        assert angle_deg([x * 1e-30], [-x * 1e-30]) == pytest.approx(180.0)
        assert math.isnan(angle_deg([x], [0 * y]))
        tilted = torch.tensor([1.0, 1e-9], dtype=torch.float64)
        assert angle_deg([x.double()], [tilted]) == pytest.approx(math.degrees(1e-9))

    def test_of_gradients_which_stay_as_they_are(self) -> None:
        net, x = nn.Linear(3, 2), torch.randn(4, 3)
        net.weight.grad = kept = torch.ones(2, 3)
        found = gradients_of(net, lambda: net(x)[:, 0].sum())
        assert net.weight.grad is kept
        assert net.bias.grad is None
        torch.testing.assert_close(found["weight"][0], x.sum(0))
        assert gradients_of(net, lambda: (net.weight**2).sum())["bias"].eq(0).all()

    def test_only_of_the_same_parameters(self) -> None:
        with pytest.raises(ValueError, match="give both the same names"):
            angle_deg({"a": torch.ones(2)}, {"b": torch.ones(2)})
        with pytest.raises(ValueError, match="give both the same shape"):
            angle_deg([torch.ones(2)], [torch.ones(3)])
