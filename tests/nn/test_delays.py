"""Trained axonal delays: what is on its way lies in the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from spikebridge import SNU, SoftSNU
from spikebridge.base.records import ConfigError, UsageError
from spikebridge.chip.compiler import compile
from spikebridge.cli.main import parse
from spikebridge.learning.online import Online
from spikebridge.nn import delays as module
from spikebridge.nn.delays import Delays, delayed
from spikebridge.nn.kernels import native
from spikebridge.nn.layers import Layer
from spikebridge.nn.network import build, load_network, save_network
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import make_unit
from spikebridge.settings.model import ModelConfig

DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12}


def by_hand(whole: Tensor, delays: Tensor, steps: int, training: bool) -> Tensor:
    """One neuron and one step after another."""
    late = []
    for t in range(steps, len(whole)):
        row = []
        for n, d in enumerate(delays):
            if training:
                k = min(int(d.detach().floor()), steps - 1)
                f = d - k
                row.append((1 - f) * whole[t - k, :, n] + f * whole[t - k - 1, :, n])
            else:
                row.append(whole[t - int(d.detach().round()), :, n])
        late.append(torch.stack(row, -1))
    return torch.stack(late)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "steps", "piece"),
    [((9, 3, 5), 1, 1), ((5, 3, 17), 4, 1 << 18), ((3, 4, 8), 7, 40), ((1, 2, 6), 3, 1 << 18)],
)
def test_shifts_are_the_definition(
    shape: tuple[int, ...], steps: int, piece: int, dtype: torch.dtype, training: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "_PIECE", piece)
    monkeypatch.setattr(native, "POISON", True)
    monkeypatch.setattr(native, "BUFFER_BYTES", 0)
    count, batch, size = shape
    # Outputs that lie apart in memory, and delays at both ends.
    whole = torch.randn(batch, count + steps, 2 * size, dtype=dtype).transpose(0, 1)[..., ::2]
    d = torch.rand(size, dtype=dtype) * steps
    d[0], d[-1] = 0, steps
    results = []
    for way in ("hand", "auto", "loop"):
        leaf, own = whole.clone().requires_grad_(), d.clone().requires_grad_()
        if way == "hand":
            late = by_hand(leaf, own, steps, training)
        elif way == "auto":
            late = delayed(leaf[:steps], leaf[steps:], own, training)
        else:
            k = own.detach().floor().clamp(max=steps - 1) if training else own.detach().round()
            late = module._gathered(leaf[:steps], leaf[steps:], k, own - k if training else None)
        leaves = [leaf, own] if training else [leaf]
        weights = torch.linspace(-1, 1, late.numel(), dtype=dtype).view(late.shape)
        results.append([late, *torch.autograd.grad(late, leaves, weights)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=DTYPES[dtype], atol=DTYPES[dtype])


def test_gradients() -> None:
    y, before = torch.randn(5, 2, 4, dtype=torch.double), torch.randn(3, 2, 4, dtype=torch.double)
    leaves = [t.requires_grad_() for t in (before, y, torch.tensor([0.3, 1.7, 2.4, 0.9]).double())]

    def call(before: Tensor, y: Tensor, d: Tensor) -> Tensor:
        return delayed(before, y, d, True)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("kind", [SNU, SoftSNU])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["auto", "loop"])
def test_a_sequence_in_pieces_is_the_whole_one(kind: type, training: bool, backend: str) -> None:
    made = {"recurrent": True, "backend": backend, "dtype": torch.float64}
    layer = kind(5, 7, 2, delays=3, batch_first=True, **made).train(training)
    x = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True)
    whole, last = layer(x)
    wanted = torch.autograd.grad(whole.sum() + last.s.sum(), [x, *layer.parameters()],
                                 allow_unused=not training)  # fmt: skip
    assert last.y.shape == (2, 2, 7)
    assert last.s.shape == (2, 2, 7 * 4)
    for cuts in ([1] * 9, [4, 0, 5]):
        state, pieces = None, []
        for piece in x.split(cuts, 1):
            y, state = layer(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
        torch.testing.assert_close(state, last)
        total = torch.cat(pieces, 1).sum() + state.s.sum()
        found = torch.autograd.grad(total, [x, *layer.parameters()], allow_unused=not training)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)
    assert layer(x[:, :0])[0].shape == (2, 0, 7)


def test_outputs_come_later_by_whole_steps_in_use() -> None:
    torch.manual_seed(0)
    plain, late = SNU(5, 40), SNU(5, 40, delays=6)
    late.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(20, 3, 5) * 2
    y, _ = plain(x)
    found, _ = late.eval()(x)
    steps = late.layers[0].delays.delays.round().long()
    assert set(steps.tolist()) == set(range(7))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    for n, k in enumerate(steps.tolist()):
        assert torch.equal(found[k:, :, n], y[: 20 - k, :, n])
        assert not found[:k, :, n].any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_are_each_by_itself(bidirectional: bool) -> None:
    layer = SNU(5, 7, 2, delays=3, bidirectional=bidirectional, dtype=torch.float64)
    sequences = [torch.rand(n, 5, dtype=torch.float64) for n in (4, 7, 2)]
    packed, last = layer(pack_sequence(sequences, enforce_sorted=False))
    padded, _ = pad_packed_sequence(packed)
    for n, one in enumerate(sequences):
        y, state = layer(one)
        torch.testing.assert_close(padded[: len(one), n], y)
        torch.testing.assert_close((last.y[:, n], last.s[:, n]), tuple(state))


@pytest.mark.parametrize("backend", ["auto", "loop"])
def test_recomputed_steps_are_the_same(backend: Any) -> None:
    results = []
    for recompute in (0, 3):
        torch.manual_seed(0)
        layer = SNU(5, 7, recurrent=True, delays=4, recompute=recompute, backend=backend).double()
        x = torch.rand(8, 2, 5, dtype=torch.float64, requires_grad=True)
        y, last = layer(x)
        ((y * torch.arange(8.0).view(8, 1, 1)).sum() + last.s.sum()).backward()
        results.append([y, x.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_delays_are_learnt() -> None:
    """A spike train to be met 4 steps later."""
    torch.manual_seed(0)
    part = Delays(1, 8)
    with torch.no_grad():
        part.logit.fill_(-1.0)
    optimiser = torch.optim.Adam(part.parameters(), 0.05)
    y = torch.rand(60, 16, 1)
    y = (y + y.roll(1, 0) + y.roll(2, 0)) / 3  # neighbours are alike, or there is no slope
    for _ in range(150):
        late, _ = part(y, torch.zeros(16, 8))
        loss = (late[10:] - y[6:-4]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(part.delays.detach()) == pytest.approx(4, abs=0.1)


def test_dtypes_and_autocast() -> None:
    layer = SNU(5, 7, delays=3)
    x = torch.rand(6, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x)
    assert y.dtype == torch.bfloat16
    assert state.s.dtype == torch.float32
    half = SNU(5, 7, delays=3, dtype=torch.bfloat16)
    y, state = half(x.bfloat16())
    y.float().sum().backward()
    assert half(x.bfloat16(), state)[0].dtype == torch.bfloat16


def test_networks_are_saved_traced_and_exported(tmp_path: Path) -> None:
    network = build(
        ModelConfig(hidden=(6, 6, 6), delays=4, skip=True, recurrent=True), 5, 2, "each"
    )
    x = torch.rand(7, 3, 5)
    seen = network.observe(x, membranes=True)
    torch.testing.assert_close(seen.output, network(x)[0])
    torch.testing.assert_close(seen.state, network(x)[1])
    network.eval()
    save_network(network, tmp_path / "n.safetensors")
    again = load_network(tmp_path / "n.safetensors").eval()
    assert torch.equal(again(x)[0], network(x)[0])
    program = torch.export.export(network, (x,))
    torch.testing.assert_close(program.module()(x)[0], network(x)[0])
    given = dict(network.named_parameters())
    called = torch.func.functional_call(network, given, (x,))[0]
    torch.testing.assert_close(called, network(x)[0])


def test_what_they_do_not_go_with_is_refused_by_name() -> None:
    for unit in ("gru", "relu"):
        with pytest.raises(ConfigError, match=f"delays=3: {unit} .*leave --delays out"):
            ModelConfig(unit=unit, delays=3)
    with pytest.raises(ValueError, match="delays must be at least 1 step, or 0 for none, got -2"):
        SNU(5, 7, delays=-2)
    with pytest.raises(TypeError, match="delays must be a whole number"):
        SNU(5, 7, delays=1.5)
    network = build(ModelConfig(hidden=(6,), delays=3), 5, 2, "mean")
    with pytest.raises(UsageError, match=r"outputs of layer1 come later.*--delays 0"):
        compile(network)
    with pytest.raises(ValueError, match="no eligibilities are known for its delays"):
        Online(network)
    layer = Layer(Dense(5, 6), make_unit("snu", 6), delays=3)
    state = layer.unit.initial_state(2, torch.float32)
    with pytest.raises(ValueError, match=r"state.s must be \(B, 24\), 6 of the unit"):
        layer(torch.rand(4, 2, 5), state)
    snu = SNU(5, 6, delays=3)
    with pytest.raises(ValueError, match=r"\(y, s\), \(1, 2, 6\) and \(1, 2, 24\), got"):
        snu(torch.rand(4, 2, 5), (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6)))
    assert parse(["train", "digits", "--delays", "4"]).model.delays == 4
