"""Targets of DRTP, errors, and what feedback learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.feedback_models import (
    equal,
    gradients,
    hooks_of,
    inputs_of,
    mlp,
    network,
    output,
    weights_of,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from spikebridge.learning import feedback
from spikebridge.learning.angles import angle_deg, angles_deg, gradients_of


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
