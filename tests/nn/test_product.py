"""The product in reused memory equals torch's own, in every precision, with all its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.nn.kernels import native, product
from spikebridge.nn.kernels.product import linear

pytestmark = pytest.mark.skipif(
    native.missing is not None, reason=f"no kernel to compare: {native.missing}"
)
LARGE = (40, 8, 96)  # times 1024 columns: more than a small result


def results(run, x: Tensor, weight: Tensor, autocast: bool) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = run(*leaves)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, noise)]


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [LARGE, (320, 96), (1, 1, 96), (0, 3, 96)])
def test_values_and_gradients(shape, dtype, autocast, slow, monkeypatch) -> None:
    monkeypatch.setattr(product, "slow_bfloat16", lambda: slow)
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(1024, 96, dtype=dtype)
    ours, torchs = results(linear, x, weight, autocast), results(F.linear, x, weight, autocast)
    low = dtype == torch.bfloat16 or (autocast and dtype == torch.float32)
    bound = 2e-2 if low else 1e-5 if dtype == torch.float32 else 1e-13
    for a, b in zip(ours, torchs, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        scale = float(b.abs().max()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=bound * scale)


def test_in_float32_the_bfloat16_result_is_the_nearest(monkeypatch) -> None:
    monkeypatch.setattr(product, "slow_bfloat16", lambda: True)
    x, weight = torch.randn(LARGE), torch.randn(1024, 96)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, weight)
    assert torch.equal(y, F.linear(x, weight).bfloat16())


def test_second_derivatives_and_what_needs_no_gradient() -> None:
    x = torch.randn(24, 4, 5, dtype=torch.float64)
    weight = torch.randn(3000, 5, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad((linear(x, weight) ** 3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    (torchs,) = torch.autograd.grad((F.linear(x, weight) ** 3).sum(), weight, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(torchs.sum(), weight)[0])
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


def test_mixed_dtypes_are_refused_as_torch_refuses_them() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        linear(torch.randn(LARGE), torch.randn(1024, 96, dtype=torch.float64))
