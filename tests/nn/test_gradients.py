"""Laws of the places where backward is not the derivative of forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spikebridge
from spikebridge.nn.gradients import FORMULAS, Surrogate, forward_as, modulate
from spikebridge.nn.kernels import native

ROOT = Path(spikebridge.__file__).parents[1]
finite = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(("width", "height"), [(1.0, 1.0), (0.3, 0.5), (2.5, 3.0)])
def test_the_coded_gradient_is_the_numeric_derivative_of_the_stated_function(
    formula: str, width: float, height: float
) -> None:
    surrogate = Surrogate(formula, width, height)
    # Irregular points, none within a step of the kinks of "window" and "triangle".
    x = torch.linspace(-4 * width, 4 * width, 1237, dtype=torch.float64) + 1e-4
    step = 1e-6
    x = x[((x.abs() - width).abs() > 10 * step) & (x.abs() > 10 * step)]
    numeric = (surrogate.smooth(x + step) - surrogate.smooth(x - step)) / (2 * step)
    torch.testing.assert_close(surrogate.grad(x), numeric, atol=1e-7 * height / width, rtol=1e-6)


@pytest.mark.parametrize("formula", FORMULAS)
def test_height_is_the_peak_and_width_the_scale(formula: str) -> None:
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    assert Surrogate(formula, 0.7, 0.4).grad(torch.zeros(1)).item() == pytest.approx(0.4)
    torch.testing.assert_close(
        Surrogate(formula, 2.0, 0.4).grad(x), 0.4 * Surrogate(formula).grad(x / 2)
    )


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_forward_is_the_step_and_backward_the_stated_gradient(
    formula: str, dtype: torch.dtype
) -> None:
    surrogate = Surrogate(formula, 0.5, 0.8)
    x = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0, float("nan")], dtype=dtype, requires_grad=True)
    spikes = surrogate(x)
    assert spikes.dtype == dtype
    assert spikes.tolist() == [0, 0, 0, 1, 1, 0]
    spikes[:5].sum().backward()
    torch.testing.assert_close(x.grad[:5], surrogate.grad(x.detach()[:5]))


def test_the_paper_surrogate_is_one_minus_tanh_squared() -> None:
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(Surrogate().grad(x), 1 - torch.tanh(x) ** 2)


def test_a_relaxed_surrogate_is_smooth_in_both_directions() -> None:
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Surrogate("arctan", 0.7, 1.3).relax(), (x,))


@given(soft=finite, hard=finite)
def test_forward_as_has_the_value_of_one_and_the_gradient_of_the_other(
    soft: float, hard: float
) -> None:
    a = torch.tensor([soft], requires_grad=True)
    b = torch.tensor([hard], requires_grad=True)
    out = forward_as(a * 3, b * 7)
    assert out.item() == (b * 7).item()
    out.backward()
    assert a.grad.item() == 3
    assert b.grad is None


def test_forward_as_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match="agree in shape and dtype"):
        forward_as(torch.zeros(3), torch.zeros(1))


@given(factor=finite)
def test_modulate_scales_the_gradient_and_nothing_else(factor: float) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    y = modulate(x, factor)
    assert torch.equal(x, y)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, factor))


def test_modulate_takes_one_factor_per_neuron_and_passes_it_no_gradient() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    factor = torch.tensor([1.0, 2.0, 0.5], requires_grad=True)
    modulate(x, factor).sum().backward()
    assert torch.equal(x.grad, factor.detach().expand(4, 3))
    assert factor.grad is None
    with pytest.raises(ValueError, match="does not broadcast"):
        modulate(x, torch.ones(4))


def test_gradients_work_under_functional_transforms() -> None:
    x = torch.randn(5)
    grad = torch.func.grad(lambda v: Surrogate()(v).sum())(x)
    torch.testing.assert_close(grad, Surrogate().grad(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("superspike",), "not known; choose one of"),
        (("window", 0.0), "width must be positive"),
        (("window", float("nan")), "width must be positive"),
        (("window", 1.0, -1.0), "height must be positive"),
    ],
)
def test_bad_surrogates_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Surrogate(*arguments)


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
def test_the_kernel_has_the_surrogates_of_the_package() -> None:
    assert set(native.H_CODES) == {"sigmoid", *FORMULAS}
    assert native._native.surrogates == list(native.H_CODES)


def test_a_surrogate_stands_in_three_files() -> None:
    sources = [
        path for folder in ("spikebridge", "native") for path in ROOT.glob(f"{folder}/**/*.*")
    ]
    texts = {path: path.read_text() for path in sources if path.suffix in (".py", ".h", ".cpp")}
    for name in ("fast_sigmoid", "sigmoid_prime"):  # no words, and no setting begins with them
        holders = {str(path.relative_to(ROOT)) for path, text in texts.items() if name in text}
        assert holders == {
            "spikebridge/settings/surrogates.py",
            "native/pointwise.h",
            "spikebridge/nn/kernels/triton_units.py",
        }
