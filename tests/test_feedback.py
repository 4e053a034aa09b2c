"""Feedback alignment, direct feedback alignment and random targets, against what they promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spikebridge.learning.angles import angle_deg, angles_deg, gradients_of


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
