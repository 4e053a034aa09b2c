"""The factors of GRAPES: sums, kernel, when they are taken, and from which weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.grapes_models import (
    OPTIMISERS,
    B,
    I,
    N,
    T,
    bare,
    dense_stack,
    made,
    pair,
    published,
    same,
)
from helpers.own_units import Stepping, own_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikebridge.crossbar import pcm
from spikebridge.crossbar.network import to_crossbar
from spikebridge.learning import grapes
from spikebridge.learning.grapes_factors import Bank, absolute_sums
from spikebridge.nn.kernels import native
from spikebridge.nn.layers import Readout
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import (
    noisy_weights,
)
from spikebridge.settings.crossbar import CrossbarConfig

# The factor.

matrices = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.randn(
        (7, 9), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
)


@given(weight=matrices, scale=st.floats(1e-3, 1e3), order=st.permutations(range(7)))
@settings(max_examples=30, deadline=None)
def test_factors_are_bounded_and_follow_the_neurons_but_not_the_scale(
    weight: Tensor, scale: float, order: list[int]
) -> None:
    m = grapes.factor(weight)
    assert bool(((m >= 1) & (m <= 2)).all())
    assert m.max() == 2
    torch.testing.assert_close(grapes.factor(weight * -scale), m, rtol=1e-12, atol=0)
    assert torch.equal(grapes.factor(weight[order]), m[order])
    torch.testing.assert_close(m, published(weight), rtol=1e-12, atol=0)
    assert bool((grapes.factor(weight, None) > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4), (70, 3000), (2, 200_000), (5, 4, 3, 3), (4, 0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_in_pieces_are_sums(shape: tuple, dtype: torch.dtype, axis: int) -> None:
    weight = torch.randn(shape).to(dtype)
    weight = weight.to(memory_format=torch.channels_last) if len(shape) == 4 else weight
    over = [d for d in range(len(shape)) if d != axis]
    expected = weight.double().abs().sum(over)
    found = absolute_sums(weight, axis)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


# The kernel, against what torch does where there is none.

SETS = [] if native.missing else native._native.instruction_sets()


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    before = native._native.instruction_set()
    native._native.choose_instruction_set(request.param)
    yield
    native._native.choose_instruction_set(before)


@pytest.mark.parametrize("instruction_set", SETS, indirect=True)
@pytest.mark.usefixtures("instruction_set")
@given(
    rows=st.integers(1, 70),
    columns=st.sampled_from([1, 7, 16, 100, 511, 784, 1030]),
    axis=st.sampled_from([0, 1]),
    double=st.booleans(),
    rule=st.tuples(st.booleans(), st.just(0.5), st.just(1.5), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_the_kernel_gives_sums_and_factors_as_torch(
    rows: int, columns: int, axis: int, double: bool, rule: tuple, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight = weight if double else weight.float()
    sums, m = weight.new_full((2, weight.shape[axis]), math.nan)
    assert native.importance([(weight, axis, 1, 1)], sums, m, rule)
    bound = {"rtol": 1e-12 if double else 1e-6, "atol": 0.0}
    expected = weight.double().abs().sum(1 - axis)
    torch.testing.assert_close(sums.double(), expected, **bound)
    factors = 2 * expected / expected.max()
    factors = factors.clamp(0.5, 1.5) if rule[0] else factors
    factors = factors.mean().expand_as(factors) if rule[3] else factors
    torch.testing.assert_close(m.double(), factors, **bound)


@pytest.mark.parametrize("name", ["gru", "lstm", "conv2d", "conv snu recurrent", "embedding"])
@pytest.mark.parametrize("options", [{}, {"clip": None}, {"control": "gain"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_banks_with_and_without_the_kernel_agree(
    name: str, options: dict, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(name)[0].to(dtype)
    found = []
    for built in (True, False):
        if not built:
            monkeypatch.setattr(native, "_native", None)
        with grapes.attach(model, **options) as handle:
            found.append(handle.factors()["hidden"])
    bound = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(*found, rtol=bound, atol=0)


@pytest.mark.skipif(
    native.missing is not None,
    reason="no native kernel was built: there is none to compare with torch",
)
def test_the_kernel_leaves_what_it_cannot_read() -> None:
    sums = torch.zeros(4)
    for weight in (torch.ones(3, 4).t(), torch.ones(4, 3).double(), torch.ones(4, 3).bfloat16()):
        assert not native.importance([(weight, 0, 1, 1)], sums)
        assert torch.equal(
            absolute_sums(weight),
            torch.full((4,), 3.0, dtype=weight.dtype).to(
                torch.promote_types(weight.dtype, torch.float32)
            ),
        )
    assert not native.importance([(torch.ones(4, 4, 2), 1, 1, 1)], sums)
    assert not native.importance([(torch.ones(0, 4), 1, 1, 1)], sums)
    assert not sums.any()


@pytest.mark.parametrize("built", [True, False])
def test_weights_that_are_no_numbers_are_seen(built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not built:
        monkeypatch.setattr(native, "_native", None)
    model = pair()
    with torch.no_grad():
        model[0].weight[1, 2] = math.nan
    with grapes.attach(model) as handle:
        assert bool(handle.factors()["0"].isnan().all())


@pytest.mark.parametrize(("clip", "value"), [((1.0, 2.0), 1.0), ((0.5, 2.0), 0.5), (None, 1.0)])
@pytest.mark.parametrize("control", ["none", "gain"])
def test_weights_of_zero_have_the_lower_bound(clip: Any, value: float, control: Any) -> None:
    model = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2))
    nn.init.zeros_(model[0].weight)
    with grapes.attach(model, clip=clip, control=control) as handle:
        assert torch.equal(handle.factors()["0"], torch.full((N,), value))


@pytest.mark.parametrize("control", ["none", "gain"])
def test_outgoing_importance_multiplies_by_both_ends_of_a_weight(control: Any) -> None:
    model, x = dense_stack(), torch.randn(B, I).double()
    p = {k: published(model[k].weight.T.contiguous(), clip=None) for k in (2, 4)}
    if control == "gain":
        p = {k: v.mean().expand(len(v)) for k, v in p.items()}

    def found() -> dict[str, Tensor]:
        gradients = torch.autograd.grad(model(x).sum(), list(model.parameters()))
        return dict(zip((n for n, _ in model.named_parameters()), gradients, strict=True))

    plain = found()
    with grapes.attach(model, importance="outgoing", control=control) as handle:
        ours = found()
        assert handle.layers == ["2", "4"]
        assert torch.equal(handle.factors()["4"], torch.ones(5).double())
    expected = dict(plain)
    expected["2.weight"] = plain["2.weight"] * p[4][:, None] * p[2]
    expected["2.bias"] = plain["2.bias"] * p[4]
    expected["4.weight"] = plain["4.weight"] * p[2 + 2]  # P' of the output is 1
    same(ours, expected)


def test_outgoing_importance_of_neurons_with_several_drives() -> None:
    """All that goes out of a neuron counts, into whichever channel of the layer above."""
    names = pairwise([I, 7, 6, 5])
    hidden = [own_layer("gated", a, b, of=Stepping) for a, b in names]
    model = Network(hidden, Readout(5, 2, "each")).double()
    x = torch.randn(T, B, I).double()

    def found() -> dict[str, Tensor]:
        gradients = torch.autograd.grad(model(x)[0].sum(), list(model.parameters()))
        return dict(zip((n for n, _ in model.named_parameters()), gradients, strict=True))

    p = {k: published(hidden[k].array.weight.T.contiguous(), clip=None) for k in (1, 2)}
    plain = found()
    with grapes.attach(model, importance="outgoing"):
        ours = found()
    expected = dict(plain)
    for part in ("array.weight", "array.bias", "unit.threshold"):
        gradient = plain[f"layers.1.{part}"]
        rows = p[2].repeat(len(gradient) // 6).view(-1, *[1] * (gradient.dim() - 1))
        expected[f"layers.1.{part}"] = gradient * rows * (p[1] if part == "array.weight" else 1)
    expected["layers.2.array.weight"] = plain["layers.2.array.weight"] * p[2]
    same(ours, expected)


def test_outgoing_importance_follows_the_layer_above() -> None:
    model = dense_stack()
    with grapes.attach(model, importance="outgoing") as handle:
        before = handle.factors()["2"]
        optimizer = torch.optim.SGD([model[4].weight], 0.1)
        model(torch.randn(B, I).double()).sum().backward()
        optimizer.step()
        assert not torch.equal(handle.factors()["2"], before)
        expected = published(model[4].weight.T.contiguous(), clip=None)
        torch.testing.assert_close(handle.factors()["2"], expected)


# When factors are taken.


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Every computation of factors."""
    seen: list[list[int]] = []
    real = Bank.update

    def update(self: Bank, which: Any) -> None:
        seen.append(list(which))
        real(self, seen[-1])

    monkeypatch.setattr(Bank, "update", update)
    return seen


@pytest.mark.parametrize("name", OPTIMISERS)
def test_factors_are_taken_once_in_a_step_of_any_optimiser(name: str, updates: list) -> None:
    model, x = nn.Sequential(nn.Linear(I, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(B, I)
    parameters = [p for p in model.parameters() if p.dim() == 2 or name != "Muon"]
    optimizer = getattr(torch.optim, name)(parameters, lr=0.05)
    with grapes.attach(model) as handle:
        updates.clear()
        for _ in range(3):
            before = model[0].weight.detach().clone()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = model(x).square().sum()
                loss.backward()
                return loss

            if name == "LBFGS":
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            assert not torch.equal(before, model[0].weight)
            torch.testing.assert_close(handle.factors()["0"], published(model[0].weight))
        assert len(updates) == 3
    optimizer.step(closure)
    assert len(updates) == 3


def test_two_models_and_accumulated_gradients_do_not_meddle(updates: list) -> None:
    models = [nn.Sequential(nn.Linear(I, 8), nn.Tanh(), nn.Linear(8, 2)).double() for _ in "ab"]
    halves = torch.randn(2, B, I).double()
    handles = [grapes.attach(model) for model in models]
    whole = torch.autograd.grad(models[0](halves.flatten(0, 1)).sum(), models[0][0].weight)[0]
    other = torch.optim.SGD(models[1].parameters(), 0.1)
    losses = [models[0](half).sum() for half in halves]
    models[1](halves[0]).sum().backward()
    updates.clear()
    for loss in losses:
        loss.backward()
        other.step()
    assert updates == [[0], [0]]  # only those of the second model
    torch.testing.assert_close(models[0][0].weight.grad, whole)
    for handle in handles:
        handle.detach()


def test_each_layer_may_have_an_optimiser_of_its_own(updates: list) -> None:
    model = nn.Sequential(nn.Linear(I, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2)).double()
    x = torch.randn(B, I).double()
    expected = None
    for in_backward in (False, True):
        twin = copy.deepcopy(model)
        with grapes.attach(twin):
            for parameter in twin.parameters():
                optimizer = torch.optim.SGD([parameter], 0.1)
                if in_backward:  # each updates as soon as its gradient is there
                    parameter.register_post_accumulate_grad_hook(
                        lambda _, optimizer=optimizer: optimizer.step()
                    )
            twin(x).square().sum().backward()
            if not in_backward:
                for parameter in twin.parameters():
                    parameter.data -= 0.1 * parameter.grad
                expected = list(twin.parameters())
        updates.clear()
    for a, b in zip(twin.parameters(), expected, strict=True):
        torch.testing.assert_close(a, b)


def _transposed(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data.t()  # where it lay, and read in another order


def _moved(layer: nn.Linear) -> None:
    layer.weight.data = torch.randn_like(layer.weight)


def _replaced(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def _reshaped(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data.view(N * N)[: (N - 1) * N].view(N, N - 1)


@pytest.mark.parametrize("change", [_transposed, _moved, _replaced, _reshaped])
def test_weights_are_read_where_they_lie_now(change: Callable) -> None:
    model = nn.Sequential(nn.Linear(N, N), nn.ReLU(), nn.Linear(N, 2))
    with grapes.attach(model) as handle:
        handle.refresh()
        change(model[0])
        handle.refresh()
        torch.testing.assert_close(handle.factors()["0"], published(model[0].weight))


def test_a_change_between_forward_and_backward_is_an_error() -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)), torch.randn(B, I)
    handle = grapes.attach(model)
    loss = model(x).sum()
    handle.refresh()
    with pytest.raises(RuntimeError, match="between forward and backward"):
        loss.backward()
    with handle:
        loss = model(x).sum()
    with pytest.raises(RuntimeError, match="between forward and backward"):
        loss.backward()


@pytest.mark.parametrize("form", ["propagated", "local"])
@pytest.mark.parametrize("assign", [False, True])
def test_loading_weights_takes_their_factors(form: Any, assign: bool) -> None:
    model, other = (nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)).double() for _ in "ab")
    x = torch.randn(B, I).double()
    with grapes.attach(other, form=form):
        expected = torch.autograd.grad(other(x).square().sum(), list(other.parameters()))
    with grapes.attach(model, form=form) as handle:
        model.load_state_dict(other.state_dict(), assign=assign)
        torch.testing.assert_close(handle.factors()["0"], published(other[0].weight))
        for p in model.parameters():
            p.requires_grad_(True)
        ours = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert bare(model)


def test_weights_changed_by_hand_need_refresh_and_frozen_ones_may_thaw() -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)).double(), torch.randn(B, I).double()
    model[0].requires_grad_(False)
    with grapes.attach(model, form="local") as handle:
        assert not model[0].weight.requires_grad
        model[0].requires_grad_(True)
        with torch.no_grad():
            model[0].weight[0] *= 3
        handle.refresh()
        m = published(model[0].weight)
        torch.testing.assert_close(handle.factors()["0"], m)
        ours = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    torch.testing.assert_close(
        ours, torch.autograd.grad(model(x).sum(), model[0].weight)[0] * m[:, None]
    )


@pytest.mark.parametrize("form", ["propagated", "local"])
def test_a_model_that_becomes_double_has_double_factors(form: Any) -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)), torch.randn(B, I).double()
    with grapes.attach(model, form=form):
        model.double()
        ours = torch.autograd.grad(model(x).square().sum(), model[0].weight)[0]
    with grapes.attach(model, form=form):
        expected = torch.autograd.grad(model(x).square().sum(), model[0].weight)[0]
    assert torch.equal(ours, expected)


# Weights that are not what is trained.


def test_what_a_crossbar_held_counts_and_nothing_is_read_again() -> None:
    plain = nn.Sequential(nn.Linear(I, N), nn.ReLU(), nn.Linear(N, 2))
    chip = to_crossbar(plain, pcm.ACCUMULATION, CrossbarConfig())
    model, x = chip.network, torch.randn(B, I)
    crossbar = chip.crossbars["0.weight"]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with grapes.attach(model) as handle:
        reads: list[Tensor] = []
        read = crossbar.cell_array.read
        crossbar.cell_array.read = lambda: reads.append(read()) or reads[-1]  # type: ignore[assignment]
        model(x).square().sum().backward()
        held = crossbar.held
        optimizer.step()
        assert len(reads) == 1  # that of the forward pass
        torch.testing.assert_close(handle.factors()["0"], published(held))


def test_converters_in_front_of_a_layer_hide_nothing() -> None:
    plain = nn.Sequential(nn.Linear(I, N), nn.ReLU(), nn.Linear(N, 2))
    chip = to_crossbar(plain, pcm.ITERATIVE, CrossbarConfig(adc_bits=8, dac_bits=8))
    x = torch.randn(B, I)
    name = "0.array.parametrizations.weight.original"
    gradient = []
    for gain in (None, "gain"):
        state = torch.get_rng_state()
        handle = grapes.attach(chip.network, control=gain) if gain else None
        torch.set_rng_state(state)
        chip.network(x).sum().backward()
        gradient.append(dict(chip.network.named_parameters())[name].grad.clone())
        chip.network.zero_grad()
    assert handle is not None
    assert handle.layers == ["0"]
    handle.detach()
    assert float(handle._nodes[0].M.min()) == 1
    assert gradient[0].norm() < gradient[1].norm()


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_the_older_norms_are_read_as_the_next_call_will_have_them(norm: Callable) -> None:
    """Their attribute `weight` is that of the last call until the next one."""
    layers = norm(nn.Linear(I, N).double()), nn.Linear(N, 2).double()
    model, x = nn.Sequential(*layers), torch.randn(B, I).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with grapes.attach(model) as handle:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            buffers = [b.clone() for b in model.buffers()]
            found, old = handle.factors()["0"], published(model[0].weight)
            assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
            model(x)
            torch.testing.assert_close(found, published(model[0].weight), rtol=1e-12, atol=0)
            assert not torch.allclose(found, old)


def test_noise_on_weights_is_drawn_as_without_factors() -> None:
    results = []
    for attached in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2))
        noisy_weights(model, 0.1)
        original = model[0].parametrizations.weight.original
        optimizer = torch.optim.SGD([p for p in model.parameters() if p is not original], 1e-9)
        handle = grapes.attach(model) if attached else None
        outs = []
        for _ in range(2):
            out = model(torch.ones(1, I))
            out.sum().backward()
            optimizer.step()
            if handle is not None:
                handle.refresh()
            outs.append(out.detach())
        results.append(torch.cat(outs))
        if handle is not None:
            torch.testing.assert_close(handle.factors()["0"], published(original))
            assert model[0].parametrizations.weight.training
            handle.detach()
    assert torch.allclose(results[0], results[1], atol=1e-5)
