"""The measures of NeuroBench: examples by hand, every weight and input one by one, the command."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import tiny
from helpers.toy_texts import tiny as tiny_text
from helpers.toy_texts import write_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikebridge.base.records import RunError, UsageError
from spikebridge.cli import main as cli
from spikebridge.crossbar import pcm
from spikebridge.crossbar.network import to_crossbar
from spikebridge.data.task import Batch
from spikebridge.nn.layers import Baseline, Layer, Plain, Readout
from spikebridge.nn.network import Network, build
from spikebridge.nn.synapses import Conv2d, Dense, Embedding, Normalised, round_weights
from spikebridge.nn.units import KINDS, make_unit
from spikebridge.runs import rundir, training
from spikebridge.runs.hardware_results import Complexity, SynapticOperations
from spikebridge.settings.crossbar import CrossbarConfig
from spikebridge.settings.model import ModelConfig
from spikebridge.trained.complexity import complexity, first, of_run

NEVER, ALWAYS = 1e6, -1e6  # thresholds


def set_to(weight: nn.Parameter, values: Any) -> None:
    with torch.no_grad():
        weight.copy_(torch.as_tensor(values))


def spiking(array: Any, threshold: float = NEVER, **more: Any) -> Layer:
    return Layer(array, make_unit("snu", array.out_features, threshold=threshold), **more)


def ops(found: Complexity) -> tuple[float, float, float]:
    """Effective MACs, effective ACs, dense."""
    made = found.synaptic_operations
    return made.Effective_MACs, made.Effective_ACs, made.Dense


def alone(layer: Any, size: int, *batches: Any, **more: Any) -> tuple[float, float, float]:
    """Operations of one layer: its readout has no weight but zeros, and counts 1 x size dense."""
    readout = Readout(size, 1, "last")
    set_to(readout.linear.weight, torch.zeros(1, size))
    macs, acs, dense = ops(complexity(Network([layer], readout), batches, **more))
    return macs, acs, dense - size


# --- by hand ---


def test_a_dense_layer_by_hand() -> None:
    dense = Dense(3, 2)
    set_to(dense.weight, [[1.0, 0.0, -2.0], [0.0, 0.0, 3.0]])
    network = Network([spiking(dense)], Readout(2, 1, "last"))
    # Inputs reach 1, 0 and 2 neurons: 3 operations in the first step, 2 in the second.
    x = torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 0.0, -1.0]]])
    found = complexity(network, [x])
    assert found == Complexity(
        footprint=4 * (6 + 2 + 3) + 4,  # weights, thresholds, readout; the decay is a buffer
        parameter_count=6 + 2 + 3,
        connection_sparsity=0.375,  # three zeros of 6 + 2 weights; biases are none
        activation_sparsity=1.0,
        synaptic_operations=SynapticOperations(0.0, 5.0, 2 * 6 + 2),
        membrane_updates=4.0,
        samples=1,
    )
    assert found.to_dict()["synaptic_operations"] == {
        "Effective_MACs": 0.0,
        "Effective_ACs": 5.0,
        "Dense": 14.0,
    }
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    x[0, 0, 2] = 0.5  # the whole call of this step has multiplications now, the other has not
    assert ops(complexity(network, [x])) == (3.0, 2.0, 14.0)


def test_what_is_rounded_is_a_share_to_four_decimals() -> None:
    dense = Dense(7, 1)
    set_to(dense.weight, [[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    readout = Readout(1, 1, "last")
    set_to(readout.linear.weight, [[0.0]])
    network = Network([spiking(dense)], readout)
    assert complexity(network, [torch.zeros(1, 1, 7)]).connection_sparsity == 3 / 8
    set_to(dense.weight, [[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    network.readout = nn.Identity()
    assert complexity(network, [torch.zeros(1, 1, 7)]).connection_sparsity == 0.2857


def test_outputs_and_membranes_by_hand() -> None:
    dense = Dense(1, 2)
    set_to(dense.weight, [[1.0], [0.0]])
    layer = Layer(dense, make_unit("snu", 2, threshold=0.5, decay=0.5))
    found = complexity(Network([layer], Readout(2, 1, "last")), [torch.tensor([[[1.0]], [[0.0]]])])
    # s = (1, 0) and then, the spike having reset the first, (0, 0); y = (1, 0), (0, 0).
    assert found.activation_sparsity == 3 / 4
    assert found.membrane_updates == 2 + 1  # all of the first step, then what differs


def test_outputs_without_memory_by_hand() -> None:
    dense = Dense(1, 3)
    set_to(dense.weight, [[1.0], [0.0], [-2.0]])
    x = torch.tensor([[[1.0]], [[0.5]]])
    network = Network([Plain(dense, "relu")], Readout(3, 1, "last"))
    found = complexity(network, [x])
    assert found.activation_sparsity == 4 / 6
    assert found.membrane_updates == 0
    # Two weights that are not zero in either step; then one output of 0.5 into the readout.
    assert ops(found) == (2.0 + 1.0, 2.0, 2 * 3 + 3)


@pytest.mark.parametrize(
    ("at", "centre", "expected"),
    [((1, 1), 1.0, 9), ((1, 1), 0.0, 8), ((0, 0), 1.0, 4), ((0, 1), 1.0, 6), ((0, 1), 0.0, 5)],
)
def test_a_convolution_counts_less_at_its_padded_border(
    at: tuple[int, int], centre: float, expected: int
) -> None:
    weight = torch.ones(1, 1, 3, 3)
    weight[0, 0, 1, 1] = centre
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0][at] = 1.0
    for pool in (1, 3):  # before pooling
        conv = Conv2d((1, 3, 3), 1, 3, padding=1, pool=pool)
        set_to(conv.weight, weight)
        for array in (conv, Normalised(conv)):
            size = conv.out_features
            dense = 4 * 4 + 4 * 6 + 9
            assert alone(spiking(array), size, x.reshape(1, 1, 9)) == (0.0, expected, dense)


def test_a_recurrent_matrix_is_a_connection_at_every_step() -> None:
    layer = spiking(Dense(1, 2), ALWAYS, recurrent=True)
    set_to(layer.recurrent, [[0.0, 1.0], [1.0, 1.0]])
    x = torch.zeros(3, 1, 1)
    # Outputs of silence, then twice two spikes; three weights of four.
    assert alone(layer, 2, x) == (0.0, 6.0, 3 * (2 + 4))
    found = complexity(Network([layer], nn.Identity()), [x])
    assert found.connection_sparsity == round(1 / 6, 4)
    soft = Layer(Dense(1, 2), make_unit("softsnu", 2), recurrent=True)
    assert alone(soft, 2, x) == (8.0, 0.0, 18.0)
    assert complexity(Network([soft], nn.Identity()), [x]).membrane_updates == 0.0


CELLS = {  # of one input and one unit over two steps: effective, dense
    ("rnn", True): (1 + 2, 2 * 2),
    ("rnn", False): (1 + 2, 2 * 2),
    # Products of four gates; i g, then f c + i g; o tanh(c).
    ("lstm", True): ((4 + 1 + 1) + (8 + 2 + 1), 2 * (8 + 3)),
    ("lstm", False): ((4 + 1 + 1) + (8 + 2 + 1), 2 * (8 + 3)),
    # Products of three gates; r (H h + b), (1 - z) n, z h.
    ("gru", True): ((3 + 1 + 1 + 0) + (6 + 1 + 1 + 1), 2 * (6 + 3)),
    ("gru", False): ((3 + 0 + 1 + 0) + (6 + 1 + 1 + 1), 2 * (6 + 3)),
}


@pytest.mark.parametrize(("kind", "bias"), CELLS)
def test_cells_by_hand(kind: str, bias: bool) -> None:
    layer = Baseline(kind, 1, 1)
    layer.core = type(layer.core)(1, 1, bias=bias)
    for parameter in layer.parameters():
        set_to(parameter, torch.full_like(parameter, 0.5))
    effective, dense = CELLS[kind, bias]
    assert alone(layer, 1, torch.ones(2, 1, 1)) == (0.0, effective, dense)
    assert alone(layer, 1, 0.5 * torch.ones(2, 1, 1)) == (effective, 0.0, dense)
    network = Network([layer], nn.Identity())
    found = complexity(network, [torch.ones(2, 1, 1)])
    assert (found.activation_sparsity, found.membrane_updates) == (0.0, 0.0)  # there is no unit
    assert found.connection_sparsity == 0.0
    if bias:
        set_to(layer.core.bias_ih_l0, torch.zeros_like(layer.core.bias_ih_l0))
        count = found.parameter_count
        zeros = len(layer.core.bias_ih_l0)  # biases count as connections here
        again = complexity(network, [torch.ones(2, 1, 1)])
        assert again.connection_sparsity == round(zeros / count, 4)


def test_a_tied_readout_is_two_linear_maps() -> None:
    network = Network(
        [spiking(Dense(3, 2), ALWAYS)],
        Readout(2, 5, "each", tied=3),
        embedding=nn.Embedding(5, 3),
        tied=True,
    )
    found = complexity(network, [torch.tensor([[1], [4]])])
    # Of vectors 3 to 2; of spikes 2 to 3; of what comes out 3 to 5.
    assert ops(found) == (2 * (6 + 15), 2 * 6, 2 * (6 + 6 + 15))
    assert found.parameter_count == 15 + 6 + 2 + (6 + 3) + 5
    set_to(network.embedding.weight, torch.zeros(5, 3))
    found = complexity(network, [torch.tensor([[1], [4]])])
    assert found.connection_sparsity == round(15 / (6 + 6 + 15), 4)
    assert ops(found)[0] == 0.0


def test_an_embedding_is_looked_up_without_an_operation() -> None:
    layer = spiking(Embedding(7, 2))
    found = complexity(Network([layer], Readout(2, 1, "last")), [torch.tensor([[1], [4]])])
    assert ops(found) == (0.0, 0.0, 2.0)
    assert found.parameter_count == 14 + 2 + 3
    set_to(layer.array.weight, torch.zeros(7, 2))
    again = complexity(Network([layer], Readout(2, 1, "last")), [torch.tensor([[1], [4]])])
    assert again.connection_sparsity == 0.0


def test_rounded_weights_count_as_they_are_used() -> None:
    dense = Dense(3, 1)
    set_to(dense.weight, [[1.0, 0.2, -0.9]])
    network = Network([spiking(dense)], nn.Identity())
    round_weights(network, 2)  # to 1, 0 and -1
    found = complexity(network, [torch.ones(1, 1, 3)])
    assert found.connection_sparsity == round(1 / 3, 4)
    assert ops(found) == (0.0, 2.0, 3.0)
    assert found.footprint == 4 * (3 + 1 + 1)  # fewer bits are no smaller dtype


def test_a_readout_of_the_mean_is_one_call() -> None:
    network = Network([spiking(Dense(1, 2), ALWAYS)], Readout(2, 3, "mean"))
    assert ops(complexity(network, [torch.ones(4, 1, 1)])) == (0.0, 4 * 2 + 6, 4 * 2 + 6)


def test_converters_count_as_the_array_inside() -> None:
    network = build(ModelConfig(hidden=(4,)), 5, 3, "mean")
    x = (torch.rand(6, 2, 5) < 0.5).float()
    config = CrossbarConfig(adc_bits=8, dac_bits=8)
    chip = to_crossbar(network, pcm.ideal(), config)
    there = complexity(chip.network, [x])
    assert ops(there)[2] == ops(complexity(network, [x]))[2] == 6 * 20 + 12


# --- every weight and input, one by one ---


def count_linear(matrix: Tensor, x: Tensor) -> tuple[int, int, int]:
    """MACs, ACs and dense operations of a matrix (N, I) and one vector (I,)."""
    effective = 0
    for row, i in itertools.product(matrix.tolist(), range(len(x))):
        effective += row[i] != 0 and float(x[i]) != 0
    binary = all(v in (-1.0, 0.0, 1.0) for v in x.tolist())
    return (0, effective, matrix.numel()) if binary else (effective, 0, matrix.numel())


def count_conv(conv: Conv2d, x: Tensor) -> tuple[int, int, int]:
    channels, height, width = conv.in_shape
    image, side = x.reshape(conv.in_shape), conv.weight.shape[-1]
    rows, columns = ((n + 2 * conv.padding - side) // conv.stride + 1 for n in (height, width))
    effective = dense = 0
    out = range(conv.weight.shape[0])
    where = itertools.product(out, range(rows), range(columns), range(channels))
    for (o, r, c, i), (p, q) in itertools.product(where, itertools.product(range(side), repeat=2)):
        y, z = r * conv.stride + p - conv.padding, c * conv.stride + q - conv.padding
        if 0 <= y < height and 0 <= z < width:
            dense += 1
            effective += bool(conv.weight[o, i, p, q] != 0) and bool(image[i, y, z] != 0)
    binary = all(v in (-1.0, 0.0, 1.0) for v in x.tolist())
    return (0, effective, dense) if binary else (effective, 0, dense)


def count_cells(kind: str, core: Any, x: Tensor) -> tuple[int, int, int]:
    """x (T, I), by torch's cell and its real states, one product after the other."""
    cell = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[kind](
        core.input_size, core.hidden_size, dtype=torch.float64
    )
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        set_to(getattr(cell, name), getattr(core, f"{name}_l0"))
    cell.requires_grad_(False)
    n, width = core.hidden_size, core.input_size
    h, c = torch.zeros(1, n, dtype=torch.float64), torch.zeros(1, n, dtype=torch.float64)
    totals = [0, 0, 0]
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[kind]

    def terms(k: int, what: str) -> int:
        """Products (x or h) or biases (i or j) in gate row k that are not zero."""
        if what in "ij":
            return int(getattr(cell, {"i": "bias_ih", "j": "bias_hh"}[what])[k] != 0)
        weights, values = (cell.weight_ih, x[t]) if what == "x" else (cell.weight_hh, h[0])
        return sum(float(w) != 0 and float(v) != 0 for w, v in zip(weights[k], values, strict=True))

    def reached(k: int, sources: str = "xhij") -> bool:
        return any(terms(k, source) for source in sources)

    for t in range(len(x)):
        made = sum(terms(k, what) for k in range(gates * n) for what in "xh")
        for u in range(n):
            if kind == "lstm":
                kept = reached(n + u) and float(c[0, u]) != 0
                added = reached(u) and reached(2 * n + u)
                made += kept + added + (reached(3 * n + u) and (kept or added))
            elif kind == "gru":
                let_in = reached(u) and reached(2 * n + u, "hj")
                made += let_in + (let_in or reached(2 * n + u, "xi"))
                made += reached(n + u) and float(h[0, u]) != 0
        totals[2] += gates * n * (width + n) + (0 if kind == "rnn" else 3 * n)
        totals[all(v in (-1.0, 0.0, 1.0) for v in x[t].tolist())] += made
        given = (x[t].unsqueeze(0), (h, c) if kind == "lstm" else h)
        h, c = cell(*given) if kind == "lstm" else (cell(*given), c)
    return totals[0], totals[1], totals[2]


def one_by_one(network: Network, samples: list[Tensor]) -> Complexity:
    """From samples (T, I), each alone and without padding."""
    totals, zeros, outputs, updates = [0, 0, 0], 0, 0, 0
    for x in samples:
        with torch.no_grad():
            seen = network.eval().observe(x.unsqueeze(1), membranes=True)
        found = []
        for layer, trace in zip(network.layers, seen.layers, strict=True):
            y = trace.y[:, 0]
            if isinstance(layer, Baseline):
                kind = {"RNN_TANH": "rnn", "GRU": "gru", "LSTM": "lstm"}[layer.core.mode]
                found.append(count_cells(kind, layer.core, x))
            else:
                array = getattr(layer.array, "array", layer.array)
                count = count_conv if isinstance(array, Conv2d) else count_linear
                what = array if isinstance(array, Conv2d) else array.weight
                found += [count(what, v) for v in x]  # type: ignore[operator]
                last = torch.zeros_like(y[0])
                for t in range(len(x)):
                    if getattr(layer, "recurrent", None) is not None:
                        found.append(count_linear(layer.recurrent, last))
                    last = y[t]
                    outputs += len(last)
                    zeros += sum(v == 0 for v in last.tolist())
                    if layer.spiking:
                        s = trace.s[:, 0]
                        updates += len(last) if t == 0 else sum((s[t] != s[t - 1]).tolist())
            x = y
        into = {"each": x, "last": x[-1:], "mean": x.mean(0, keepdim=True)}[network.readout.reduce]
        found += [count_linear(network.readout.linear.weight, v) for v in into]
        totals = [a + sum(b) for a, b in zip(totals, zip(*found, strict=True), strict=True)]
    plain = [w for _, w in network.named_parameters() if w.dim() >= 2]
    plain += [w for n, w in network.named_parameters() if "core.bias" in n]
    weights = [v for w in plain for v in w.flatten().tolist()]
    held = [*network.parameters(), *network.buffers()]
    macs, acs, dense = (v / len(samples) for v in totals)
    return Complexity(
        sum(v.numel() * v.element_size() for v in held),
        sum(w.numel() for w in network.parameters()),
        round(weights.count(0.0) / len(weights), 4),
        zeros / outputs if outputs else 0.0,
        SynapticOperations(macs, acs, dense),
        updates / len(samples),
        len(samples),
    )


CONTENTS = ("convolution", "normalised", "recurrent", "relu", "rnn", "gru", "lstm")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Network, list[Tensor]]:
    """A network of one or two hidden layers and samples of different lengths.

    Weights and inputs are few binary digits, so that sums are exact in any order, and often zero.
    """
    torch.manual_seed(draw(st.integers(0, 10**6)))
    content = draw(st.sampled_from(CONTENTS))
    readout = draw(st.sampled_from(("last", "mean", "each")))
    features, size = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    unit = draw(st.sampled_from([kind for kind in KINDS if kind != "softsnu"]))
    layers: list[Any] = []
    if content in Baseline.KINDS:
        layers.append(Baseline(content, features, size))
    else:
        array: Any = Dense(features, size)
        if content == "convolution":
            padding, stride = draw(st.integers(0, 2)), draw(st.integers(1, 2))
            shape = (draw(st.integers(1, 2)), 3, 4)
            array = Conv2d(shape, size, 3, stride=stride, padding=padding)
        features, size = array.in_features, array.out_features
        if content == "normalised":
            array = Normalised(array)
        made = make_unit(unit, size, threshold=0.5)
        if content == "relu":
            layers.append(Plain(array, "relu"))
        else:
            layers.append(Layer(array, made, recurrent=content == "recurrent"))
    if draw(st.booleans()):
        kind = draw(st.sampled_from(("snu", "softsnu")))
        layers.append(Layer(Dense(size, 2), make_unit(kind, 2, decay=0.5, threshold=0.5)))
        size = 2
    network = Network(layers, Readout(size, 2, readout)).double()
    share = draw(st.sampled_from((0.0, 0.3, 0.8)))
    for value in network.parameters():
        if value.requires_grad:
            coarse = torch.randint(-4, 5, value.shape) / 4
            set_to(value, coarse * (torch.rand(value.shape) >= share))
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    most = draw(st.integers(1, 2))  # inputs of 2 are no accumulates
    samples = [torch.randint(-most, most + 1, (n, features)).double() for n in lengths]
    if readout != "each":  # such tasks have samples of one length
        samples = [s[:1].expand(3, -1) * torch.tensor([[1.0], [0.0], [1.0]]) for s in samples]
    return network, samples


def batched(samples: list[Tensor], size: int) -> Iterator[Batch]:
    """Samples (T, I) side by side, padded with what must not count, and their mask."""
    for k in range(0, len(samples), size):
        part = samples[k : k + size]
        steps = max(map(len, part))
        x = torch.full((steps, len(part), part[0].shape[1]), 7.0, dtype=part[0].dtype)
        mask = torch.zeros(steps, len(part), dtype=torch.bool)
        for b, sample in enumerate(part):
            x[: len(sample), b] = sample
            mask[: len(sample), b] = True
        yield Batch(x, torch.zeros(len(part)), None if bool(mask.all()) else mask)


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(1, 5))
def test_as_one_by_one_whatever_the_batches(case: tuple[Network, list[Tensor]], size: int) -> None:
    network, samples = case
    expected = one_by_one(network, samples)
    assert complexity(network, batched(samples, size)) == expected
    assert complexity(network, batched(samples, 1)) == expected


@pytest.mark.parametrize("unit", ["snu", "rnn", "lstm"])
def test_streams_do_not_know_where_they_were_cut(unit: str) -> None:
    network = build(ModelConfig(unit=unit, hidden=(5, 4), recurrent=unit == "snu"), 3, 2, "each")
    x = (torch.rand(12, 2, 3) < 0.5).float()
    whole = complexity(network, [x], carries_state=True)
    assert whole.samples == 24
    assert complexity(network, x.split(5), carries_state=True) == whole
    assert complexity(network, [x]).synaptic_operations.Dense == pytest.approx(
        12 * whole.synaptic_operations.Dense
    )


def test_a_network_is_left_as_it_was() -> None:
    network = build(ModelConfig(hidden=(4,), dropout=0.5), 3, 2, "mean")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    complexity(network, [torch.ones(2, 2, 3)])
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


# --- errors ---


def test_it_takes_a_sample() -> None:
    network = build(ModelConfig(hidden=(4,)), 3, 2, "mean")
    for none in ([], [torch.ones(2, 0, 3)]):
        with pytest.raises(ValueError, match="at least one sample, got none"):
            complexity(network, none)
    assert not any(m._forward_pre_hooks for m in network.modules())


class Own(nn.Module):
    in_features, out_features = 3, 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_what_nothing_defines_is_refused() -> None:
    network = Network([spiking(Own())], Readout(2, 1, "last"))
    with pytest.raises(ValueError, match=r"layers\.0\.array\.weight of a Own: there is no"):
        complexity(network, [torch.ones(2, 1, 3)])
    for more in ({"num_layers": 2}, {"bidirectional": True}, {"batch_first": True}):
        layer = Baseline("lstm", 3, 2)
        layer.core = nn.LSTM(3, 2, **more)
        with pytest.raises(ValueError, match="one time-major layer"):
            complexity(Network([layer], nn.Identity()), [torch.ones(2, 1, 3)])


# --- runs ---


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    training.run(tiny(epochs=1), directory)
    return directory


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


def test_the_command(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = rundir.read_result(done)
    assert spikebridge(f"complexity {done}") == 0
    said = capsys.readouterr().out
    found = json.loads((done / rundir.COMPLEXITY).read_text())
    assert (found["split"], found["per"]) == ("test", "sample")
    assert found["parameter_count"] == result.parameters
    # The same samples and draws as those that the run was tested on.
    assert result.spikes_per_inference is not None
    spikes = (1 - found["activation_sparsity"]) * 4 * 8
    assert spikes == pytest.approx(result.spikes_per_inference, rel=1e-9)
    assert found["synaptic_operations"]["Dense"] == 4 * 64 * 8 + 8 * 10
    assert f"{found['samples']:,} samples of the test split" in said
    assert "NeuroBench 2.3.0" in said
    assert f"{found['synaptic_operations']['Effective_ACs']:,.1f}  per sample" in said
    assert f"written: {done / rundir.COMPLEXITY}" in said
    assert not [path for path in done.iterdir() if path.name.endswith(".part")]


def test_the_command_as_json(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge(f"complexity {done} --samples 300 --split valid --json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said.pop("report") == str(done / rundir.REPORT)
    assert said == json.loads((done / rundir.COMPLEXITY).read_text())
    assert (said["samples"], said["split"]) == (300, "valid")


def test_of_a_stream_each_step_is_a_sample(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts")
    training.run(tiny_text(folder, epochs=1), tmp_path / "run")
    found = of_run(tmp_path / "run", samples=25)
    assert (found.per, found.samples) == ("word", 25)
    symbols = rundir.read_json(tmp_path / "run" / rundir.SYMBOLS, "")["symbols"]
    assert found.synaptic_operations.Dense == 12 * 16 + 16 * 16 + 16 * 12 + 12 * len(symbols)


def test_the_first_samples() -> None:
    def halves() -> Iterator[Batch]:
        for _ in range(2):
            yield Batch(torch.ones(4, 3, 1), torch.zeros(3), torch.ones(4, 3, dtype=torch.bool))

    shapes = [(b.x.shape[:2], b.mask.shape) for b in first(halves(), 5, stream=False)]
    assert shapes == [((4, 3), (4, 3)), ((4, 2), (4, 2))]
    assert [len(b.x) for b in first(halves(), 12, stream=True)] == [4]
    assert [len(b.x) for b in first(halves(), 17, stream=True)] == [4, 2]  # whole steps of three


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("complexity nowhere", "nowhere: there is no complete run in it"),
        ("complexity nowhere --samples -1", "samples=-1: 0 (all) or more"),
        ("complexity nowhere --split train", "train"),
    ],
)
def test_the_command_refuses(
    line: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert spikebridge(line) == 2
    assert message in capsys.readouterr().err


def test_what_is_refused_of_a_run(done: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose test or valid"):
        of_run(done, "train")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in (rundir.RESULT, rundir.CONFIG):
        (damaged / name).write_text((done / name).read_text())
    with pytest.raises(RunError, match="no network file"):
        of_run(damaged)
    (damaged / rundir.MODEL).write_bytes(b"not a network")
    with pytest.raises(RunError, match="not a whole safetensors file"):
        of_run(damaged)
    assert not (damaged / rundir.COMPLEXITY).exists()
