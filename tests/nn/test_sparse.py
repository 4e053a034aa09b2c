"""The product over what is not zero equals the dense one, in values and in all gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import spikebridge
from spikebridge.nn.gradients import Surrogate
from spikebridge.nn.kernels import native, product, sparse
from spikebridge.nn.kernels.product import linear
from spikebridge.nn.synapses import Dense, round_weights

pytestmark = pytest.mark.skipif(
    native.missing is not None, reason=f"no kernel to compare: {native.missing}"
)
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2}
DTYPES = [*BOUNDS]


def spikes(shape: tuple[int, ...], share: float, dtype: torch.dtype, ones: bool = True) -> Tensor:
    x = (torch.rand(shape) < share).to(dtype)
    return x if ones else x * torch.randn(shape).to(dtype)


def gradients(run, x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def forced(x: Tensor, weight: Tensor) -> Tensor:
    return linear(x, weight, "sparse")


def assert_like_dense(x: Tensor, weight: Tensor) -> None:
    """Against the dense product in float64, as close as the dtype can be."""
    grad = torch.randn(*x.shape[:-1], len(weight), dtype=torch.float64).to(x.dtype)
    ours = gradients(forced, x, weight, grad)
    dense = gradients(F.linear, x.double(), weight.double(), grad)
    for a, b in zip(ours, dense, strict=True):
        assert a.dtype == x.dtype
        scale = float(b.abs().max()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=BOUNDS[x.dtype] * scale + 1e-30)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ones", [True, False], ids=["spikes", "numbers"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 1.0])
@pytest.mark.parametrize("shape", [(9, 7, 130, 150), (1100, 64, 129), (1, 1, 1), (0, 3, 5, 4)])
def test_values_and_gradients(shape, share, ones, dtype) -> None:
    *rows, inputs, outputs = shape
    weight = torch.randn(outputs, inputs).to(dtype)
    assert_like_dense(spikes((*rows, inputs), share, dtype, ones), weight)


@pytest.mark.parametrize("name", native._native.instruction_sets() if native._native else [])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(name, dtype) -> None:
    before = native.instruction_set()
    native._native.choose_instruction_set(name)
    try:
        for ones in (True, False):
            assert_like_dense(spikes((600, 200), 0.1, dtype, ones), torch.randn(300, 200).to(dtype))
    finally:
        native._native.choose_instruction_set(before)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 1300),
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 300),
    share=st.floats(0, 1),
    ones=st.booleans(),
)
def test_any_size(rows, inputs, outputs, share, ones) -> None:
    assert_like_dense(
        spikes((rows, inputs), share, torch.float32, ones), torch.randn(outputs, inputs)
    )


@pytest.mark.parametrize("poisoned", [False, True])
def test_strides_and_memory_that_was_used_before(poisoned, monkeypatch) -> None:
    monkeypatch.setattr(native, "POISON", poisoned)
    monkeypatch.setattr(native, "BUFFER_BYTES", 1)
    weight = torch.randn(70, 90).mT  # (90, 70), not contiguous
    assert_like_dense(spikes((5, 300, 70), 0.1, torch.float32).transpose(0, 1), weight)
    assert_like_dense(spikes((70, 300), 0.1, torch.float32).mT, weight)
    assert_like_dense(spikes((300, 140), 0.1, torch.float32)[:, 70:], weight)
    x = spikes((300, 70), 0.1, torch.float32)
    (ours,) = torch.autograd.grad(forced(x, w := weight.clone().requires_grad_()).sum(), w)
    torch.testing.assert_close(ours, x.sum(0).expand(90, 70))  # a gradient of stride 0


def test_the_number_of_threads_changes_nothing() -> None:
    x, weight, grad = (
        spikes((900, 700), 0.1, torch.float32),
        torch.randn(300, 700),
        torch.randn(900, 300),
    )
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([forced(x, weight), sparse.weight_gradient(sparse.mark(x), x, grad)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_among_inputs_reach_the_result(dtype, value) -> None:
    x, weight = spikes((40, 70), 0.1, dtype), torch.randn(30, 70).to(dtype)
    x[3, 5] = value
    grad = torch.randn(40, 30).to(dtype)
    y, _, of_weight = gradients(forced, x, weight, grad)
    dense, _, dense_weight = gradients(F.linear, x, weight, grad)
    for a, b in ((y, dense), (of_weight, dense_weight)):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isinf(), b.isinf())


def test_weights_of_silent_inputs_are_not_read() -> None:
    x, weight = torch.zeros(40, 70), torch.randn(30, 70)
    x[:20, 1] = 1.0
    weight[:, 0], weight[:, 1] = math.nan, math.inf
    y = forced(x, weight)
    assert torch.equal(y[:20], torch.full((20, 30), math.inf))
    assert torch.equal(y[20:], torch.zeros(20, 30))
    grad = torch.randn(40, 30)
    grad[39] = math.nan  # of a row without a spike
    assert not gradients(forced, x, weight, grad)[2].isnan().any()


def test_negative_zero_is_silent_and_the_smallest_number_is_not() -> None:
    x = torch.zeros(2, 64)
    x[0], x[1, 63] = -0.0, torch.finfo(torch.float32).smallest_normal
    marks = sparse.mark(x)
    assert (marks.total, marks.ones) == (1, False)
    assert sparse.mark(x[:1]).total == 0
    assert marks.bits.tolist() == [[0], [-(2**63)]]


def test_second_derivatives_go_through_the_dense_product() -> None:
    x = spikes((30, 20), 0.2, torch.float64).requires_grad_()
    weight = torch.randn(8, 20, dtype=torch.float64, requires_grad=True)

    def second(run) -> tuple[Tensor, ...]:
        of_x, of_weight = torch.autograd.grad(
            (run(x * 1.0, weight) ** 3).sum(), (x, weight), create_graph=True
        )
        return torch.autograd.grad((of_weight**2).sum() + (of_x**2).sum(), (x, weight))

    for a, b in zip(second(forced), second(F.linear), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck() -> None:
    x = spikes((12, 7), 0.4, torch.float64, ones=False)
    weight = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    # Only the weight: numbers that are zero become marked as soon as they are moved.
    assert torch.autograd.gradcheck(lambda w: forced(x, w), (weight,))
    assert torch.autograd.gradgradcheck(lambda w: forced(x, w), (weight,))


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("ones", [True, False])
def test_autocast(slow, ones, monkeypatch) -> None:
    monkeypatch.setattr(product, "slow_bfloat16", lambda: slow)
    x, weight = spikes((200, 96), 0.1, torch.float32, ones), torch.randn(40, 96)
    grad = torch.randn(200, 40)

    def low(run):
        def under(*operands: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run(*operands)

        return gradients(under, x, weight, grad)

    for a, b in zip(low(forced), low(F.linear), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2 * float(b.abs().max()))


def test_auto_chooses_by_density_and_size(monkeypatch) -> None:
    calls: list[int] = []
    times = sparse.times
    monkeypatch.setattr(sparse, "times", lambda *call: (calls.append(1), times(*call))[1])
    weight = torch.randn(512, 512)

    def taken(x: Tensor) -> bool:
        calls.clear()
        torch.testing.assert_close(
            linear(x, weight), F.linear(x, weight), rtol=1e-4, atol=1e-4 * 512**0.5
        )
        return bool(calls)

    assert taken(spikes((400, 512), 0.1, torch.float32))
    assert not taken(spikes((400, 512), 0.9, torch.float32))
    assert not taken(spikes((4, 512), 0.1, torch.float32))
    # Silent in the rows that are looked at, dense in the others.
    x = torch.ones(640, 512)
    x[:: len(x) // sparse._SAMPLED] = 0
    x[1::2] = 1
    assert sparse.share(x) == 0
    assert not taken(x)


def test_what_cannot_serve_is_named() -> None:
    x, weight = spikes((8, 6), 0.5, torch.float32), torch.randn(3, 6)
    with pytest.raises(ValueError, match="product='csr' is not known"):
        linear(x, weight, "csr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="product='csr' is not known"):
        Dense(6, 3, product="csr")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="float16"):
        linear(x.half(), weight.half(), "sparse")
    with pytest.raises(RuntimeError, match="make them equal"):
        linear(x.double(), weight, "sparse")
    with pytest.raises(RuntimeError, match="meta"):
        linear(x.to("meta"), weight.to("meta"), "sparse")
    with pytest.raises(RuntimeError, match=r"traced, transformed"):
        torch.func.vmap(lambda row: linear(row, weight, "sparse"))(x)
    torch.testing.assert_close(
        torch.func.vmap(lambda row: linear(row, weight))(x), F.linear(x, weight)
    )


def test_a_weight_changed_in_between_is_noticed() -> None:
    weight = torch.randn(5, 6, requires_grad=True)
    y = linear(spikes((8, 6), 0.5, torch.float32).requires_grad_(), weight, "sparse")
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_spikes_are_kept_as_bits() -> None:
    weight = torch.randn(16, 1024, requires_grad=True)
    x = spikes((2000, 1024), 0.1, torch.float32)
    before = native.buffer_use()[0]
    y = linear(native.empty((2000, 1024), torch.float32).copy_(x), weight, "sparse")
    kept = native.buffer_use()[0] - before
    assert kept < x.numel() * 4 / 8  # the bits, 32 times smaller, and nothing of x itself
    (ours,) = torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(ours, x.sum(0).expand(16, 1024))


def test_a_product_of_spikes_with_themselves() -> None:
    x = spikes((70, 70), 0.2, torch.float32).requires_grad_()
    ours, dense = (torch.autograd.grad(run(x, x).sum(), x)[0] for run in (forced, F.linear))
    torch.testing.assert_close(ours, dense)


def test_inputs_changed_afterwards_do_not_change_the_gradient() -> None:
    x, weight = spikes((300, 70), 0.1, torch.float32), torch.randn(30, 70, requires_grad=True)
    wanted = x.sum(0).expand(30, 70).clone()
    y = linear(x, weight, "sparse")
    x.zero_()
    torch.testing.assert_close(torch.autograd.grad(y.sum(), weight)[0], wanted)


@pytest.mark.parametrize("mode", ["auto", "sparse"])
def test_compiled(mode) -> None:
    layer = Dense(512, 100, product=mode)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for rows in (400, 600):
        x, grad = spikes((rows, 512), 0.1, torch.float32), torch.randn(rows, 100)
        results = []
        for each in (run, layer):
            leaf = x.clone().requires_grad_()
            results.append([*torch.autograd.grad(each(leaf), (leaf, layer.weight), grad)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_small_product_is_compiled_without_the_op() -> None:
    targets: list[str] = []

    def look(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    layer = Dense(512, 100)
    for rows, op in ((4, False), (400, True)):
        torch.compiler.reset()
        targets.clear()
        torch.compile(layer, fullgraph=True, backend=look, dynamic=False)(torch.zeros(rows, 512))
        assert any("spikebridge" in target for target in targets) == op


def test_the_ops_keep_the_rules_of_ops() -> None:
    x, weight = spikes((6, 5), 0.5, torch.float64), torch.randn(3, 5, dtype=torch.float64)
    for mode in ("auto", "sparse"):
        arguments = (x.clone().requires_grad_(), weight.clone().requires_grad_(), mode, x.dtype)
        torch.library.opcheck(torch.ops.spikebridge.linear, arguments)
        grad = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
        weights = torch.ops.spikebridge.linear_weights
        torch.library.opcheck(weights, (grad, arguments[0], mode))


def test_exported(tmp_path) -> None:
    x = spikes((400, 512), 0.1, torch.float32)
    for mode, op in (("auto", "aten.linear"), ("sparse", "spikebridge.linear")):
        layer = Dense(512, 100, product=mode)
        program = torch.export.export(layer, (x,))
        assert any(op in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x), layer(x))


def test_rounded_weights_hooks_and_checkpoints() -> None:
    layer, dense = (Dense(512, 100, product=mode) for mode in ("sparse", "dense"))
    dense.load_state_dict(layer.state_dict())
    x, grad, results = spikes((400, 512), 0.1, torch.float32), torch.randn(400, 100), []
    for each in (layer, dense):
        round_weights(each, 4)
        seen: list[Tensor] = []
        each.register_full_backward_hook(lambda *call, to=seen: to.append(call[2][0]))
        leaf = x.clone().requires_grad_()
        y = checkpoint(each, leaf, use_reentrant=False)
        of_x = torch.autograd.grad(y, leaf, grad)[0]
        results.append([y.detach(), of_x, *seen])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_network_trains_alike_with_either() -> None:
    x, losses = spikes((20, 16, 300), 0.1, torch.float32), []
    for mode in ("sparse", "dense"):
        torch.manual_seed(0)
        net = spikebridge.SNU(300, 200, num_layers=2)
        for part in net.modules():
            if isinstance(part, Dense):
                part.product = mode
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss = (net(x)[0].mean(0) - 0.1).square().sum()
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert isinstance(net, nn.Module)


def gradients_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    y, _ = net(x)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, [*net.parameters()], noise)]


@pytest.mark.parametrize("surrogate", ["window", "triangle", "tanh_prime"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_gradients_only_where_a_surrogate_is_not_zero(surrogate, recurrent, monkeypatch) -> None:
    calls: list[int] = []
    inner = sparse.input_gradient
    monkeypatch.setattr(
        sparse, "input_gradient", lambda *call: (calls.append(call[0].total), inner(*call))[1]
    )
    x = spikes((40, 16, 256), 0.1, torch.float32)
    torch.manual_seed(3)
    net = spikebridge.SNU(256, 512, 3, surrogate=Surrogate(surrogate, 0.2), recurrent=recurrent)
    ours = gradients_of(net, x)
    assert bool(calls) == (surrogate != "tanh_prime")
    assert all(0 < total < 0.35 * 40 * 16 * 512 for total in calls)
    calls.clear()
    monkeypatch.setattr(product, "_source", lambda x: None)
    for a, b in zip(ours, gradients_of(net, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    assert not calls


def test_whoever_can_see_a_gradient_gets_all_of_it(monkeypatch) -> None:
    monkeypatch.setattr(sparse, "input_gradient", lambda *call: pytest.fail("left some out"))
    x = spikes((40, 16, 256), 0.1, torch.float32)
    net = spikebridge.SNU(256, 512, 2, surrogate=Surrogate("window", 0.2))
    seen: list[Tensor] = []
    handle = net.layers[0].register_forward_hook(
        lambda module, given, output: output[0].register_hook(seen.append) and None
    )
    gradients_of(net, x)
    assert (seen[0] != 0).float().mean() > 0.9
    handle.remove()
    # The outputs of a layer of the user's own chain.
    first, second = (
        spikebridge.SNU(512, 512, surrogate=Surrogate("window", 0.2)) for _ in range(2)
    )
    y, _ = first(spikes((40, 16, 512), 0.1, torch.float32))
    (of_y,) = torch.autograd.grad(second(y)[0].sum(), y)
    assert (of_y != 0).float().mean() > 0.9


def test_marks_near_the_threshold() -> None:
    for dtype in (torch.float32, torch.float64):
        s, bias = torch.randn(37, 150, dtype=dtype), torch.randn(150, dtype=dtype)
        s[0, 0], s[1, 1] = math.nan, bias[1] * -1 + 0.5
        marks = sparse.mark_near(s, bias, 0.5)
        near = (s + bias).abs() <= 0.5
        assert marks.total == int(near.sum())
        assert torch.equal(sparse.unmarked(marks, torch.bool), near)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(700, 130, 150), (1, 1, 1), (5, 70, 300)])
def test_gradients_of_inputs_at_some_places(shape, dtype) -> None:
    rows, inputs, outputs = shape
    places = torch.rand(rows, inputs) < 0.3
    grad, weight = torch.randn(rows, outputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    ours = sparse.input_gradient(sparse.mark(places.to(dtype)), grad, weight)
    dense = (grad.double() @ weight.double()) * places
    assert ours.dtype == dtype
    bound = BOUNDS[dtype] * float(dense.abs().max()) + 1e-30
    torch.testing.assert_close(ours.double(), dense, rtol=0, atol=bound)
