"""Less memory, the same numbers: spikes as bits, states recomputed, sequences in chunks."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from helpers import peaks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikebridge.nn.kernels import native
from spikebridge.nn.layers import Layer
from spikebridge.nn.recompute import pack, spikes_as_bits, unpack
from spikebridge.nn.rnn import SNU, SoftSNU
from spikebridge.nn.scan import scan
from spikebridge.nn.synapses import Conv2d, Dense, Embedding
from spikebridge.nn.units import KINDS, State, make_unit


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_spikes_come_back_from_their_bits(shape: list[int], dtype: torch.dtype, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=noise) > 0.7).to(dtype)
    bits = pack(x)
    assert bits is not None
    assert bits.nbytes == -(-x.numel() // 8)
    assert torch.equal(unpack(bits, x.shape, dtype), x)


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 4095, 4096, 9999])
def test_one_number_that_is_no_spike_is_not_lost(value: float, place: int) -> None:
    x = torch.zeros(10_000)
    x[place] = value
    assert pack(x) is None


def gradients_of(layer: nn.Module, x: Tensor, state: State | None = None) -> list[Tensor]:
    """Output, last state, and the gradients of input, state and parameters, of one fixed loss."""
    leaves = [] if not x.is_floating_point() else [x]
    leaves += [] if state is None else list(state)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    rest = list(leaves)
    if x.is_floating_point():
        x = rest.pop(0)
    y, last = layer(x, None if state is None else State(*rest))
    outputs = [y, *last]
    noise = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(v.shape, generator=noise).to(v.dtype) for v in outputs]
    trained = [p for p in layer.parameters() if p.requires_grad]
    grads = torch.autograd.grad(outputs, [*leaves, *trained], cotangents, allow_unused=True)
    return [*(v.detach() for v in outputs), *(g for g in grads if g is not None)]


def assert_same(one: list[Tensor], other: list[Tensor], bound: float) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        scale = max(float(b.abs().max()), 1.0) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=bound * scale)


@pytest.mark.parametrize("every", [1, 3, 7, 50])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_changes_no_value_and_no_gradient(
    kind: str, recurrent: bool, every: int
) -> None:
    own = {} if kind.startswith("binary-") else {"train_decay": True, "per_unit": True}
    unit = make_unit(kind, 24, **own)
    layer = Layer(Dense(40, 24, unit), unit, recurrent=recurrent).double()
    x = (torch.rand(17, 11, 40) > 0.6).double()
    start = layer(x[:2])[1].detach()
    usual = gradients_of(layer, x, start)
    layer.recompute = every
    assert_same(gradients_of(layer, x, start), usual, 1e-12)
    assert_same(gradients_of(layer, x + 0.1, None), _usual(layer, x + 0.1), 1e-12)


def _usual(layer: Layer, x: Tensor) -> list[Tensor]:
    every, layer.recompute = layer.recompute, 0
    try:
        return gradients_of(layer, x)
    finally:
        layer.recompute = every


@pytest.mark.parametrize("array", ["conv", "embedding"])
def test_recomputing_behind_any_array(array: str) -> None:
    if array == "conv":
        unit = make_unit("snu", 4 * 6 * 6)
        layer = Layer(Conv2d((2, 8, 8), 4, 3, unit=unit), unit, recompute=4)
        x = (torch.rand(10, 3, 128) > 0.5).float()
    else:
        unit = make_unit("softsnu", 12)
        layer = Layer(Embedding(30, 12), unit, recompute=4)
        x = torch.randint(0, 30, (10, 3))
    assert_same(gradients_of(layer, x), _usual(layer, x), 1e-5)


@pytest.mark.parametrize("kind", [SNU, SoftSNU])
def test_recomputing_under_autocast_and_in_an_lstm_place(kind) -> None:
    torch.manual_seed(3)
    layer = kind(48, 32, num_layers=2, bidirectional=True, recurrent=True, recompute=5)
    usual = kind(48, 32, num_layers=2, bidirectional=True, recurrent=True)
    usual.load_state_dict(layer.state_dict())
    x = torch.randn(13, 4, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(gradients_of(layer, x), gradients_of(usual, x), 2e-2)


@pytest.mark.parametrize("kind", [SNU, SoftSNU])
@pytest.mark.parametrize("leaf", [True, False], ids=["leaves", "updated"])
def test_gradients_of_lent_parameters_are_theirs(kind, leaf: bool) -> None:
    """torch.func.functional_call takes back what it lent before the backward pass runs."""
    x, found = torch.randn(7, 3, 5), []
    for every in (0, 2):
        torch.manual_seed(4)
        layer = kind(5, 6, recurrent=True, recompute=every, train_decay=True)
        own = {name: (3 * p.detach()).requires_grad_() for name, p in layer.named_parameters()}
        lent = own if leaf else {name: 2 * p for name, p in own.items()}
        y, _ = torch.func.functional_call(layer, lent, (x,))
        y.square().sum().backward()
        assert all(p.grad is None for p in layer.parameters())
        found.append([p.grad for p in own.values()])
    assert all(bool(grad.any()) for grad in found[0])
    assert_same(found[1], found[0], 1e-5)


def test_what_recomputing_refuses() -> None:
    unit = make_unit("snu", 4)
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="recompute must be a number of steps"):
            Layer(Dense(3, 4, unit), unit, recompute=wrong)
    x = torch.randn(5, 2, 3, requires_grad=True)
    y, _ = SoftSNU(3, 4, recompute=2, backend="loop")(x)
    (penalty,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivatives.*use recompute=0"):
        penalty.square().sum().backward()
    layer = Layer(Dense(3, 4, unit), unit, recompute=2)
    empty, _ = layer(torch.zeros(0, 2, 3))
    assert empty.shape == (0, 2, 4)


def test_spikes_kept_as_bits_change_no_gradient() -> None:
    torch.manual_seed(1)
    network = SNU(64, 64, num_layers=3, recurrent=True)
    x = (torch.rand(30, 8, 64) > 0.8).float()
    usual = gradients_of(network, x)
    with spikes_as_bits():
        assert_same(gradients_of(network, x), usual, 0)


@pytest.mark.skipif(native.missing is not None, reason=f"no kernel: {native.missing}")
@pytest.mark.parametrize("recurrent", [False, True])
def test_backward_keeps_one_buffer_and_the_output(recurrent: bool) -> None:
    unit, drive = make_unit("snu", 64), torch.randn(50, 4, 64, requires_grad=True)
    matrix = torch.randn(64, 64).mul_(0.1).requires_grad_() if recurrent else None
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y, _ = scan(unit, drive, matrix, backend="native")
    large = {x.data_ptr() for x in kept if x.numel() >= drive.numel()}
    assert len(large - {y.data_ptr()}) == 1  # the membranes; the drive is free to go
    assert (y.data_ptr() in large) == recurrent


MEASURE = """
import json, sys, torch
from measure import peak_bytes
from spikebridge.nn.rnn import SNU
mode, steps = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
layer = SNU(512, 512, recompute=256 if mode == "recompute" else 0)
x = torch.randn(1, 1, 512)

def chunk(n):
    return x.expand(n, 1, 512)

layer(chunk(500))[0].sum().backward()  # what torch needs once
if mode == "chunks":
    state = None
    for begin in range(0, steps, 500):
        y, state = layer(chunk(500), state)
        y.mean().backward()
        state = state.detach()
else:
    layer(chunk(steps))[0].mean().backward()
finite = all(bool(p.grad.isfinite().all()) for p in layer.parameters())
print(json.dumps({"peak": peak_bytes(), "finite": finite}))
"""


@cache
def measured(mode: str, steps: int) -> dict[str, Any]:
    return peaks.run(MEASURE, mode, steps)


def test_a_hundred_thousand_steps_train() -> None:
    found = measured("all", 100_000)
    assert found["finite"]
    buffer = 100_000 * 512 * 4
    # Drive, output, membranes and their gradients: what a Linear alone holds, and two more.
    assert found["peak"] < 7 * buffer + 600e6


def test_memory_is_flat_in_the_length_chunk_by_chunk() -> None:
    short, long = measured("chunks", 2_000), measured("chunks", 100_000)
    assert long["finite"]
    assert long["peak"] - short["peak"] < 20e6  # one (T, B, N) buffer of the whole: 205 MB


def test_recomputing_holds_less() -> None:
    assert measured("recompute", 100_000)["peak"] < measured("all", 100_000)["peak"] - 100e6
