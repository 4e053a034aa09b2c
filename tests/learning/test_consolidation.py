"""EWC and synaptic intelligence: by hand in numpy, on problems that are solved exactly, resumed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.learning.consolidation import EWC, SI

DOUBLE = torch.float64


def net(inputs: int = 5, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs)).to(DOUBLE)


def batch(count: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 5, dtype=DOUBLE), torch.randint(3, (count,))


def losses(model: nn.Module, x: Tensor, target: Tensor) -> Iterator[Tensor]:
    for one, label in zip(x.split(1), target.split(1), strict=True):
        yield F.cross_entropy(model(one), label)


def flat(values: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([value.detach().flatten() for value in values.values()]).numpy().copy()


def weights(model: nn.Module) -> np.ndarray:
    return flat(dict(model.named_parameters()))


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)


def fisher_by_hand(model: nn.Sequential, x: Tensor, target: Tensor) -> np.ndarray:
    """Backpropagation sample by sample, in numpy."""
    w1, b1, w2, b2 = (p.detach().numpy() for p in model.parameters())
    total = np.zeros(sum(p.size for p in (w1, b1, w2, b2)))
    for inputs, label in zip(x.numpy(), target.numpy(), strict=True):
        hidden = np.tanh(w1 @ inputs + b1)
        logits = w2 @ hidden + b2
        error = np.exp(logits) / np.exp(logits).sum()
        error[label] -= 1
        back = (w2.T @ error) * (1 - hidden**2)
        parts = (np.outer(back, inputs), back, np.outer(error, hidden), error)
        total += np.concatenate([part.ravel() for part in parts]) ** 2
    return total / len(x)


def test_ewc_is_what_the_paper_says_by_hand() -> None:
    model = net()
    ewc = EWC(model, 7.0)
    assert ewc.penalty().item() == 0
    fisher = np.zeros_like(weights(model))
    for _ in range(3):
        move(model)
        x, target = batch()
        fisher += fisher_by_hand(model, x, target)
        ewc.consolidate(losses(model, x, target))
    last = weights(model)
    move(model)
    moved = weights(model) - last
    assert ewc.penalty().item() == pytest.approx(3.5 * (fisher * moved**2).sum(), rel=1e-12)
    ewc.penalty().backward()
    slope = 7.0 * fisher * moved
    found = flat({name: p.grad for name, p in model.named_parameters()})
    np.testing.assert_allclose(found, slope, rtol=1e-9, atol=1e-13)


def test_labels_drawn_from_the_model_give_the_fisher_information() -> None:
    """Of a softmax regression it is known: E p_o (1 - p_o) x_i^2, with labels from p."""
    model = nn.Linear(2, 3, bias=False).to(DOUBLE)
    x = torch.randn(1, 2, dtype=DOUBLE).expand(800, 2)
    p = model(x[0]).softmax(0).detach()
    ewc = EWC(model, 1.0)
    drawn = torch.multinomial(p, 800, replacement=True)
    ewc.consolidate(losses(model, x, drawn))
    expected = (p * (1 - p))[:, None] * x[0] ** 2
    torch.testing.assert_close(ewc.importance["weight"], expected, rtol=0.2, atol=5e-3)


def minimise(model: nn.Module, objective) -> None:  # type: ignore[no-untyped-def]
    """To about the rounding error."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=100, tolerance_grad=1e-14, tolerance_change=1e-18
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)


def test_ewc_of_a_quadratic_loss_is_the_exact_posterior() -> None:
    """Linear regression with unit noise, orthogonal inputs: all tasks at once, or one by one."""
    each = 3
    model = nn.Linear(4, 1, bias=False).to(DOUBLE)
    ewc = EWC(model, strength=4 * each)
    x, answers = torch.eye(4, dtype=DOUBLE).repeat(each, 1), []
    for _ in range(4):
        y = torch.randn(4 * each, 1, dtype=DOUBLE)
        minimise(model, lambda y=y: (model(x) - y).square().sum() / 2 + ewc.penalty())
        answers.append(y.view(each, 4))
        pooled = torch.cat(answers).mean(0)
        torch.testing.assert_close(model.weight.detach()[0], pooled, rtol=1e-8, atol=1e-8)
        # One above or below what it expects: answers of a model of unit noise, whose squared
        # gradients are exactly its Fisher information x^2.
        noise = torch.ones_like(y)
        noise[::2] = -1
        drawn = model(x).detach() + noise
        ewc.consolidate(
            (model(one) - a).square().sum() / 2 for one, a in zip(x, drawn, strict=True)
        )


def si_steps(model: nn.Module, si: SI, optimizer: torch.optim.Optimizer, count: int) -> float:
    """Train on one batch; what its loss has fallen by."""
    x, target = batch()
    first = F.cross_entropy(model(x), target).item()
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        si.before_step()
        si.penalty().backward()
        optimizer.step()
        si.after_step()
    return first - F.cross_entropy(model(x), target).item()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_path_integral_is_what_the_loss_has_fallen_by(kind: str) -> None:
    """For small steps, whatever takes them; the error shrinks as the steps do."""
    errors = []
    for steps in (100, 400):
        torch.manual_seed(3)
        model = net()
        si = SI(model, 0.0)
        lr = 10 / steps
        if kind == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr)
        else:
            optimizer = torch.optim.Adam(model.parameters(), lr / 5)
        fell = si_steps(model, si, optimizer, steps)
        errors.append(abs(flat(si.path).sum() - fell) / fell)
        assert fell > 0.1
    assert errors[1] < 0.04
    assert errors[1] < errors[0] / 2.5


def test_si_is_what_the_paper_says_by_hand() -> None:
    model = net()
    si = SI(model, 0.7, damping=0.05)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    omega = np.zeros_like(weights(model))
    anchor = weights(model)
    for _ in range(3):
        path = np.zeros_like(omega)
        x, target = batch()
        for _ in range(4):
            before = weights(model)
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            slope = flat({name: p.grad for name, p in model.named_parameters()})
            si.before_step()
            si.penalty().backward()
            both = flat({name: p.grad for name, p in model.named_parameters()})
            np.testing.assert_allclose(both - slope, 1.4 * omega * (before - anchor), atol=1e-14)
            optimizer.step()
            si.after_step()
            path -= slope * (weights(model) - before)
        moved = weights(model) - anchor
        omega, anchor = np.maximum(omega + path / (moved**2 + 0.05), 0), weights(model)
        si.consolidate()
        np.testing.assert_allclose(flat(si.importance), omega, rtol=1e-12, atol=1e-16)
        assert si.penalty().item() == 0
    move(model)
    expected = 0.7 * (omega * (weights(model) - anchor) ** 2).sum()
    assert si.penalty().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [EWC, SI])
def test_a_strong_penalty_holds_what_mattered_and_leaves_the_rest_free(kind: type) -> None:
    """The first task reads the first input alone: of that input the weight stays."""
    model = nn.Linear(2, 1, bias=False).to(DOUBLE)
    one = kind(model, 1e4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    first = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    for _ in range(60):
        optimizer.zero_grad()
        ((model(first) - 1).square().sum() / 2).backward()
        if kind is SI:
            one.before_step()
        optimizer.step()
        if kind is SI:
            one.after_step()
    if kind is SI:
        one.consolidate()
    else:
        one.consolidate([(model(first) - model(first).detach() - 1).square().sum() / 2])
    held = model.weight.detach()[0, 0].item()
    both = torch.tensor([[1.0, 1.0]], dtype=DOUBLE)
    minimise(model, lambda: (model(both) - 5).square().sum() / 2 + one.penalty())
    assert model.weight[0, 0].item() == pytest.approx(held, abs=0.01)
    assert model(both).item() == pytest.approx(5, abs=1e-4)


@pytest.mark.parametrize("kind", [EWC, SI])
def test_nothing_of_the_model_is_changed(kind: type) -> None:
    model, (x, target) = net(), batch()
    before, output = weights(model), model(x)
    one = kind(model, 3.0)
    one.penalty().item()
    one.consolidate(*([losses(model, x, target)] if kind is EWC else []))
    assert (weights(model) == before).all()
    assert torch.equal(model(x), output)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", [EWC, SI])
def test_pull_adds_the_gradient_of_the_penalty(kind: type) -> None:
    model = net()
    one = kind(model, 3.0)
    for name in one.importance:
        one.importance[name].uniform_(0, 2)
    move(model)
    one.penalty().backward()
    expected = flat({name: p.grad for name, p in model.named_parameters()})
    assert np.abs(expected).min() > 0
    model.zero_grad()
    one.pull()
    for _ in range(2):  # into nothing, and then on top
        found = flat({name: p.grad for name, p in model.named_parameters()})
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        one.pull()
        expected = 2 * expected


@pytest.mark.parametrize("kind", [EWC, SI])
def test_a_state_that_is_loaded_goes_on_with_the_same_bits(kind: type) -> None:
    model = net()
    one = kind(model, 2.0)
    for _ in range(2):
        x, target = batch()
        if kind is SI:
            si_steps(model, one, torch.optim.SGD(model.parameters(), 0.1), 3)
        one.consolidate(*([losses(model, x, target)] if kind is EWC else []))
        move(model)
    other = kind(model, 2.0)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.penalty(), one.penalty())
    assert other.tasks == 2
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    with pytest.raises(ValueError, match="same model and method"):
        kind(net(outputs=2), 2.0).load_state_dict(one.state_dict())


def test_parameters_that_a_loss_does_not_reach_are_free() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "left": nn.Linear(2, 2)})
    for p in model["left"].parameters():
        p.requires_grad_(False)
    model["idle"] = nn.Linear(2, 2)
    x = torch.randn(3, 2)
    ewc, si = EWC(model, 1.0), SI(model, 1.0)
    assert not any(name.startswith("left") for name in ewc.importance)
    model["used"](x).square().sum().backward()
    si.before_step()
    torch.optim.SGD(model.parameters(), 0.1).step()
    si.after_step()
    si.consolidate()
    ewc.consolidate([model["used"](x[:1]).square().sum()])
    for one in (ewc, si):
        assert one.importance["used.weight"].sum() > 0
        assert one.importance["idle.weight"].sum() == 0
        assert one.penalty().isfinite()


def test_what_makes_no_sense_is_refused() -> None:
    model = net()
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not negative"):
            EWC(model, strength)
    with pytest.raises(ValueError, match="above 0"):
        SI(model, 1.0, damping=0.0)
    with pytest.raises(ValueError, match="no parameters"):
        SI(nn.ReLU(), 1.0)
    with pytest.raises(ValueError, match="at least one sample"):
        EWC(model, 1.0).consolidate([])
    with pytest.raises(ValueError, match="not finite"):
        EWC(model, 1.0).consolidate([model(batch()[0]).sum() * float("inf")])
    with pytest.raises(RuntimeError, match="before_step"):
        SI(model, 1.0).after_step()
