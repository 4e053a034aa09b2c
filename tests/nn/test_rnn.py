"""SNU and SoftSNU keep the contract of torch.nn.LSTM."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from spikebridge import SNU, SoftSNU, State

T, B, F, H = 6, 3, 5, 4
kinds = pytest.mark.parametrize("kind", [SNU, SoftSNU], ids=lambda k: k.__name__)
VARIANTS = list(itertools.product([1, 3], [False, True], [False, True]))
variants = pytest.mark.parametrize(("num_layers", "bidirectional", "recurrent"), VARIANTS)


@kinds
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_shapes_are_those_of_an_lstm(
    kind, num_layers: int, batch_first: bool, bidirectional: bool, single: bool
) -> None:
    arguments = (F, H, num_layers, True, batch_first, 0.0, bidirectional)
    shape = (T, F) if single else (B, T, F) if batch_first else (T, B, F)
    x = torch.randn(shape)
    expected, (h, _) = nn.LSTM(*arguments)(x)
    y, state = kind(*arguments)(x)
    assert y.shape == expected.shape
    assert state.s.shape == state.y.shape == h.shape


@kinds
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("recurrent", [False, True])
def test_the_state_carries_on_where_the_sequence_was_cut(
    kind, num_layers: int, recurrent: bool
) -> None:
    layer = kind(F, H, num_layers, recurrent=recurrent)
    x = torch.randn(T, B, F) * 3
    whole, after = layer(x)
    first, state = layer(x[:2])
    second, last = layer(x[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last.s, after.s)


@kinds
@variants
@pytest.mark.parametrize("given", [False, True], ids=["silence", "state"])
def test_packed_sequences_equal_each_sequence_alone(
    kind, num_layers: int, bidirectional: bool, recurrent: bool, given: bool
) -> None:
    layer = kind(F, H, num_layers, bidirectional=bidirectional, recurrent=recurrent)
    sequences = [torch.randn(t, F) * 3 for t in (3, 7, 1, 7, 5)]
    rows = num_layers * (1 + bidirectional)
    state = State(torch.randint(2, (rows, 5, H)).float(), torch.randn(rows, 5, H))
    packed = pack_sequence(sequences, enforce_sorted=False)
    y, last = layer(packed, state if given else None)
    padded, lengths = pad_packed_sequence(y)
    assert lengths.tolist() == [3, 7, 1, 7, 5]
    for b, x in enumerate(sequences):
        start = State(state.y[:, b], state.s[:, b]) if given else None
        alone, end = layer(x, start)
        torch.testing.assert_close(padded[: len(x), b], alone)
        torch.testing.assert_close(last.s[:, b], end.s)
        torch.testing.assert_close(last.y[:, b], end.y)


@kinds
def test_gradients_reach_packed_inputs_and_no_padding(kind) -> None:
    x = (torch.randn(7, 2, F) * 3).requires_grad_()
    packed = pack_padded_sequence(x, torch.tensor([7, 4]))
    y, _ = kind(F, H)(packed)
    y.data.sum().backward()
    assert x.grad[:4].abs().sum() > 0
    assert torch.equal(x.grad[4:, 1], torch.zeros(3, F))


@kinds
def test_two_training_steps_a_copy_and_a_state_dict(kind) -> None:
    layer = kind(F, H, 2, dropout=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for batch in (B, B + 2):  # nothing of the first batch is remembered
        optimizer.zero_grad()
        layer(torch.randn(T, batch, F) * 3)[0].sum().backward()
        optimizer.step()
    other = kind(F, H, 2, dropout=0.5)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(T, 1, F)
    for twin in (other, copy.deepcopy(layer)):
        assert torch.equal(twin.eval()(x)[0], layer.eval()(x)[0])


@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(kind, dtype: torch.dtype) -> None:
    layer = kind(F, H, 2, dtype=dtype, train_decay=True)
    y, state = layer(torch.randn(T, B, F, dtype=dtype) * 3)
    y.sum().backward()
    y, _ = layer(torch.randn(T, B, F, dtype=dtype), state)
    assert y.dtype == dtype
    assert all(p.grad is not None and p.dtype == dtype for p in layer.parameters())
    zeros = torch.zeros(2, B, H, dtype=dtype)  # as for torch.nn.LSTM
    x = torch.randn(T, B, F, dtype=dtype)
    assert torch.equal(layer(x, (zeros, zeros))[0], layer(x)[0])


@kinds
@pytest.mark.parametrize("decay", [0.99, 0.995, 0.999])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_trained_decay_stays_below_one_in_few_bits(
    kind, dtype: torch.dtype, decay: float
) -> None:
    unit = kind(F, H, decay=decay, train_decay=True, dtype=dtype).layers[0].unit
    assert unit.decay.item() == pytest.approx(decay, abs=1e-4)
    unit.decay.backward()
    assert unit.decay_logit.grad.item() == pytest.approx(decay * (1 - decay), rel=0.02)


@kinds
def test_a_missing_number_stays_in_the_membrane(kind) -> None:
    x = torch.ones(T, B, F)
    x[1, 0, 2] = torch.nan
    y, state = kind(F, H)(x)
    if kind is SNU:
        assert bool(y.isfinite().all())
    assert bool(state.s[:, 0].isnan().all())
    assert bool(state.s[:, 1:].isfinite().all())


@kinds
@pytest.mark.parametrize("recurrent", [False, True])
def test_under_autocast_spikes_are_bfloat16_and_the_state_is_not(kind, recurrent: bool) -> None:
    layer = kind(F, H, 2, recurrent=recurrent)
    x = (torch.randn(T, B, F) * 3).requires_grad_()
    loop = kind(F, H, 2, recurrent=recurrent, backend="loop")
    loop.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x)
        later, _ = layer(x, state)
        expected, expected_state = loop(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state.s, expected_state.s, rtol=0, atol=1e-2)
    assert y.dtype == later.dtype == torch.bfloat16
    assert state.s.dtype == state.y.dtype == torch.float32
    (y.float().sum() + later.float().sum()).backward()
    assert x.grad.dtype == torch.float32
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


@kinds
def test_functional_gradients(kind) -> None:
    layer = kind(F, H)
    x = torch.randn(T, B, F) * 3
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(p):
        return torch.func.functional_call(layer, p, (x,))[0].sum()

    found = torch.func.grad(loss)(parameters)
    layer(x)[0].sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-5, atol=1e-6)


@kinds
@pytest.mark.parametrize("recurrent", [False, True])
def test_it_compiles_into_one_graph_for_every_length_and_batch(kind, recurrent: bool) -> None:
    torch._dynamo.reset()
    layer = kind(F, H, 2, recurrent=recurrent)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    after_first = None
    for t, b in ((6, 3), (7, 3), (100, 8), (13, 2)):
        x = (torch.randn(t, b, F) * 3).requires_grad_()
        y, _ = compiled(x)
        expected, _ = layer(x)
        torch.testing.assert_close(y, expected)
        grads = [torch.autograd.grad(out.sum(), x)[0] for out in (y, expected)]
        torch.testing.assert_close(*grads)
        after_first = after_first or counter.frame_count
        assert counter.frame_count == after_first


@kinds
@pytest.mark.parametrize("recurrent", [False, True])
def test_it_exports_with_any_length_and_batch(kind, recurrent: bool) -> None:
    layer = kind(F, H, 2, recurrent=recurrent).eval()
    free = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    exported = torch.export.export(layer, (torch.randn(T, B, F),), dynamic_shapes={"x": free})
    nodes = len(exported.graph.nodes)
    assert nodes < 60  # one node a layer, not one a time step
    for t, b in ((9, 4), (50, 2)):
        x = torch.randn(t, b, F) * 3
        torch.testing.assert_close(exported.module()(x)[0], layer(x)[0])


def test_dropout_acts_between_layers_in_training_only() -> None:
    layer = SNU(F, 50, 2, dropout=0.5)
    x = torch.randn(T, B, F) * 3
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    with pytest.warns(UserWarning, match="num_layers=1 has nothing between"):
        one = SNU(F, 50, 1, dropout=0.5)
    assert torch.equal(one(x)[0], one(x)[0])


def test_parameter_counts_are_those_of_the_paper() -> None:
    """n (m + 1) feed-forward, n (m + n + 1) recurrent, against 4 n (m + n + 1) of an LSTM."""
    for recurrent, expected in ((False, 13_350), (True, 35_850)):
        layer = SNU(88, 150, recurrent=recurrent)
        assert sum(p.numel() for p in layer.parameters()) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SNU(F, H, 0), "num_layers must be at least 1"),
        (lambda: SNU(F, 0), "at least one unit"),
        (lambda: SNU(0, H), "in_features must be at least 1"),
        (lambda: SNU(F, H, dropout=1.1), r"must be a number in \[0, 1\]"),
        (lambda: SNU(F, H)(torch.zeros(T, B, F + 1)), r"x must be \(..., 5\)"),
        (lambda: SNU(F, H)(torch.zeros(F)), r"x must be \(T, B, 5\)"),
        (
            lambda: SNU(F, H)(torch.zeros(T, B, F), State(torch.zeros(B, H), torch.zeros(B, H))),
            r"state must be \(y, s\), each \(1, 3, 4\)",
        ),
        (
            lambda: SNU(F, H)(torch.zeros(T, B, F), (None, None)),
            r"each \(1, 3, 4\), got \[None, None",
        ),
        (lambda: SNU(F, H)(torch.zeros(T, F), (None, None)), r"each \(1, 4\), got \[None, None"),
        (
            lambda: SNU(F, H)(torch.zeros(T, B, F, dtype=torch.float64)),
            r"x is torch.float64 and the layer torch.float32; give x.to\(torch.float32\)",
        ),
        (
            lambda: SNU(F, H)(pack_sequence([torch.zeros(2, F, dtype=torch.int64)])),
            "x is torch.int64 and the layer torch.float32",
        ),
    ],
)
def test_bad_calls_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="SNU has no argument 'nonlinearity'; its neurons have g,"):
        SNU(F, H, nonlinearity="tanh")
