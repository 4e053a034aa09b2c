"""The convolution over pixels that are not zero equals the dense one, with all its gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.nn.kernels import convolution, native, sparse
from spikebridge.nn.kernels.convolution import conv2d
from spikebridge.nn.synapses import Conv2d

pytestmark = pytest.mark.skipif(
    native.missing is not None, reason=f"no kernel to compare: {native.missing}"
)
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
# (M, C, H, W), C', k, stride, padding
SHAPES = {
    "plain": ((7, 3, 9, 8), 5, 3, 1, 1),
    "strided": ((5, 2, 12, 12), 17, 5, 2, 2),
    "wide": ((3, 1, 6, 6), 64, 3, 1, 0),
    "points": ((4, 4, 7, 7), 40, 1, 1, 0),
    "steps over the kernel": ((2, 2, 9, 9), 3, 2, 3, 0),
    "padding beyond the kernel": ((2, 2, 5, 5), 3, 3, 1, 3),
    "empty": ((0, 2, 5, 5), 3, 3, 1, 1),
}


def pixels(shape: tuple[int, ...], dtype: torch.dtype, ones: bool, share: float = 0.2) -> Tensor:
    x = (torch.rand(shape) < share).to(dtype)
    return x if ones else x * torch.randn(shape).to(dtype)


def results(run, x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


@pytest.mark.parametrize("name", native._native.instruction_sets() if native._native else [])
@pytest.mark.parametrize("dtype", [*BOUNDS], ids=str)
@pytest.mark.parametrize("ones", [True, False], ids=["spikes", "numbers"])
@pytest.mark.parametrize("shape", [*SHAPES])
def test_values_and_gradients(shape, ones, dtype, name, monkeypatch) -> None:
    size, outputs, kernel, stride, padding = SHAPES[shape]
    x, weight = pixels(size, dtype, ones), torch.randn(outputs, size[1], kernel, kernel).to(dtype)
    dense = F.conv2d(x.double(), weight.double(), stride=stride, padding=padding)
    grad = torch.randn(dense.shape).to(dtype)
    before = native.instruction_set()
    native._native.choose_instruction_set(name)
    monkeypatch.setattr(native, "POISON", True)
    monkeypatch.setattr(native, "BUFFER_BYTES", 1)
    try:
        ours = results(
            lambda *operands: conv2d(*operands, None, stride, padding, "sparse"), x, weight, grad
        )
    finally:
        native._native.choose_instruction_set(before)
    reference = results(
        lambda *operands: F.conv2d(*operands, stride=stride, padding=padding),
        x.double(),
        weight.double(),
        grad,
    )
    for a, b in zip(ours, reference, strict=True):
        assert a.dtype == dtype
        scale = float(b.abs().max()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=BOUNDS[dtype] * scale + 1e-30)


def test_second_derivatives_threads_and_nan() -> None:
    x = pixels((6, 2, 6, 6), torch.float64, True).requires_grad_()
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def second(run) -> tuple[Tensor, ...]:
        first = torch.autograd.grad((run(x * 1.0, weight) ** 3).sum(), weight, create_graph=True)
        return torch.autograd.grad(first[0].square().sum(), (x, weight))

    forced = second(lambda *operands: conv2d(*operands, None, 1, 1, "sparse"))
    for a, b in zip(forced, second(lambda *operands: F.conv2d(*operands, padding=1)), strict=True):
        torch.testing.assert_close(a, b)
    before, seen, data = torch.get_num_threads(), [], pixels((40, 2, 9, 9), torch.float32, True)
    kernel, grad = torch.randn(5, 2, 3, 3), torch.randn(40, 5, 9, 9)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            seen.append(results(lambda *o: conv2d(*o, None, 1, 1, "sparse"), data, kernel, grad))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][2], seen[1][2])
    data[3, 1, 4, 4] = math.nan
    ours = conv2d(data, kernel, None, 1, 1, "sparse").isnan()
    assert torch.equal(ours, F.conv2d(data, kernel, padding=1).isnan())


@pytest.mark.parametrize("autocast", [False, True])
def test_the_array_chooses_by_share_and_size(autocast, monkeypatch) -> None:
    calls: list[int] = []
    inner = convolution._forward
    monkeypatch.setattr(convolution, "_forward", lambda *call: (calls.append(1), inner(*call))[1])
    for share, few, wanted in ((0.04, False, True), (0.5, False, False), (0.04, True, False)):
        calls.clear()
        array = Conv2d((8, 12, 12), 8 if few else 32, 3, padding=1, pool=2, bias=True)
        dense = Conv2d((8, 12, 12), 8 if few else 32, 3, padding=1, pool=2, product="dense")
        dense.bias = array.bias
        dense.load_state_dict(array.state_dict())
        with torch.no_grad():
            array.bias.fill_(0.3)
        x = pixels((10, 8, 8 * 144), torch.float32, True, share)
        outputs = []
        for each in (array, dense):
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = each(leaf)
            y.float().square().sum().backward()
            outputs.append([y.detach(), leaf.grad])
        assert bool(calls) == wanted
        for a, b in zip(*outputs, strict=True):
            assert a.dtype == b.dtype
            bound = (3e-2 if autocast else 1e-5) * float(b.abs().max())
            torch.testing.assert_close(a, b, rtol=0, atol=bound)
    assert sparse.LEAST_WORK > 10 * 8 * 144 * 9


def test_what_cannot_serve_is_named() -> None:
    x, weight = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3)
    with pytest.raises(RuntimeError, match="float16"):
        conv2d(x.half(), weight.half(), None, 1, 0, "sparse")
    with pytest.raises(ValueError, match="product='csr' is not known"):
        Conv2d((1, 4, 4), 2, 3, product="csr")  # type: ignore[arg-type]
    compiled = torch.compile(
        lambda a: conv2d(a, weight, None, 1, 0), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), F.conv2d(x, weight))
