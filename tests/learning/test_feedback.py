"""Laws of feedback alignment: backpropagation through the weights, gradients of the authors."""

from __future__ import annotations

import copy
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.feedback_models import (
    SENDING,
    convolutions,
    equal,
    gradients,
    hooks_of,
    inputs_of,
    linear_stack,
    loss_of,
    network,
    weights_of,
)
from torch import Tensor, nn

from spikebridge.learning import feedback, grapes
from spikebridge.learning.angles import angle_deg, gradients_of
from spikebridge.nn.layers import Readout
from spikebridge.nn.network import Network

# Another recording in the same format can be put in its place.
RECORDING = Path(
    os.environ.get(
        "SPIKEBRIDGE_GRAPES_VECTORS", Path(__file__).parents[1] / "data" / "grapes_authors.npz"
    )
)
DIRECT = {
    **SENDING,
    "lstm": lambda: network("lstm"),
    "gru": lambda: network("gru", "last", dropout=0.2),
    "rnn": lambda: network("rnn", "each"),
}


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
