"""Files of before: thresholds named as their negative, states with the membrane first."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spikebridge import SNU, load_network
from spikebridge.runs import checkpoint
from spikebridge.settings.config import TrainConfig
from spikebridge.learning.consolidation import SI
from spikebridge.settings.model import ModelConfig
from spikebridge.nn.network import Network, build
from spikebridge.runs.optimizers import make_optimizer
from spikebridge.nn.scan import loop
from spikebridge.nn.units import State, make_unit

BEFORE = Path(__file__).parents[1] / "data" / "before"
MODEL = ModelConfig(
    unit="snu", hidden=(6, 5), threshold=0.7, recurrent=True, train_decay=True, g="leaky_relu"
)


@pytest.fixture(scope="module")
def expected() -> dict:
    return torch.load(BEFORE / "expected.pt")


def go_on(network: Network, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    for _ in range(4):
        optimizer.zero_grad()
        network(x)[0].square().sum().backward()
        optimizer.step()


def test_a_network_file_loads() -> None:
    network = load_network(BEFORE / "model.safetensors")
    thresholds = [layer.unit.threshold for layer in network.layers]
    assert all(torch.equal(t, torch.full_like(t, 0.7)) for t in thresholds)


def test_a_training_goes_on_from_a_checkpoint(expected: dict) -> None:
    """Moments included: the threshold is trained, the earlier version trained its negative."""
    network = build(MODEL, 4, 3, "mean")
    train = TrainConfig(optimizer="adam", lr=1e-2, schedule="constant", weight_decay=0.0)
    optimizer = make_optimizer(train, list(network.parameters()))
    path, data = BEFORE / "checkpoint.safetensors", torch.Generator()
    found = checkpoint.restore(path, network, optimizer, data, {})
    for weights in (found.best, found.average):
        assert weights.keys() == network.state_dict().keys()
        assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())
    go_on(network, optimizer, expected["x"])
    torch.testing.assert_close(network(expected["x"])[0].detach(), expected["output"])
    for name, value in expected["trained"].items():
        now = name.replace("unit.bias", "unit.threshold")
        value = -value if now != name else value
        torch.testing.assert_close(network.state_dict()[now], value, rtol=1e-5, atol=1e-6)


def test_states_and_state_dicts_go_on(expected: dict) -> None:
    states = torch.load(BEFORE / "state.pt")
    assert isinstance(states["state"], State)
    layer = SNU(4, 5, 2, threshold=0.4, recurrent=True, g="identity", decay=0.8, reset="gate")
    layer.load_state_dict(expected["layer"])
    y, last = layer(expected["x"], states["state"])
    torch.testing.assert_close(y, expected["y"])
    torch.testing.assert_close(last.s, expected["s"])
    unit = make_unit("adaptive-snu", 4, threshold=0.4)
    unit.load_state_dict(expected["unit"])
    trace = loop(unit, expected["x"], None, states["adaptive"])
    torch.testing.assert_close(trace.y, expected["adaptive_y"])
    torch.testing.assert_close(trace.s, expected["adaptive_s"])
    torch.testing.assert_close(trace.state.s[:, 4:], expected["adaptive_a"])


def test_states_of_today_are_kept_as_they_are() -> None:
    state = State(torch.zeros(1, 2, 3), torch.ones(1, 2, 3))
    again = pickle.loads(pickle.dumps(state))
    assert torch.equal(again.y, state.y)
    assert torch.equal(again.s, state.s)
    assert State(s=state.s, y=state.y)[0] is state.y


def test_what_holds_weights_back_is_read_by_todays_names() -> None:
    network = build(MODEL, 4, 3, "mean")
    si = SI(network, 0.1)
    si.path["layers.0.unit.threshold"].fill_(0.3)
    old = {k.replace("unit.threshold", "unit.bias"): v for k, v in si.state_dict().items()}
    old["anchor.layers.0.unit.bias"] = torch.full((6,), -0.9)
    si.load_state_dict(old)
    assert si.anchor["layers.0.unit.threshold"].unique().item() == pytest.approx(0.9)
    assert si.path["layers.0.unit.threshold"].unique().item() == pytest.approx(0.3)
