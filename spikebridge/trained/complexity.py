"""How much a network holds and does, in the measures of NeuroBench.

Source of all definitions: NeuroBench 2.3.0 (its code), Yik et al., "The neurobench framework for
benchmarking neuromorphic computing algorithms and systems", 2025.

**What a call is.**  NeuroBench adds up the calls of each layer, one per batch and time step.  Our
layers take (T, B, I) at once; one sample at one step is a call here, and a layer's pass over T
steps is the sum of T x B of them.  A call has accumulates (ACs) where all its inputs are in
{-1, 0, 1}, else multiplications with addition (MACs).  Figures are those of NeuroBench with
batches of one sample, so they do not depend on how samples are put into batches, and padding,
which does, counts nowhere.

**What is counted.**  Effective operations: those whose input and weight are both other than zero;
dense ones: all, as if neither were ever zero.  Biases are no operations.  A convolution counts
before pooling, and less at a border that is padded.  A matrix H of a recurrent layer is a
connection of its own with the layer's last outputs as input, at each step: the first, from silence,
has no effective operations and all the dense ones.  A tied readout is two linear maps.  Looking up
a row of an embedding is no operation.  RNN, GRU and LSTM count their products, and the
element-wise ones that make the new state: c = f c + i g and h = o tanh(c), or
n = tanh(.. + r (..)) and h = (1 - z) n + z h.  Their kind, AC or MAC, is decided by x alone, not
by h, as there.  Gates count as zero where nothing reaches them: no active product and no bias.

**Where this departs from NeuroBench**, each time because of a fault there:

    whole layers    nn.RNN, nn.GRU and nn.LSTM raise there; here they count as their cells would,
                    step by step
    states          Dense takes the states (h, c) of an LSTM as they are there; as ones here
    GRU             its candidate n there lacks the inputs' part, 1 - z is 0 where z counted exactly
                    one product, and a cell without biases raises; none of that here (no difference
                    where biases are not exactly zero)
    sums            float32 there, whole numbers of any size here
    batches         sparsity of activations is a mean of the batches' there, the share of all
                    outputs here (no difference where samples are equally long)
    streams         step 0 of every batch updates all membranes there; here, where batches carry
                    state on, that of the first one only

Where c of an LSTM is zero is read from h = o tanh(c), which is right unless o tanh(c) underflows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from spikebridge import data as tasks
from spikebridge.base.chance import generator
from spikebridge.base.records import UsageError
from spikebridge.crossbar.converters import Converted
from spikebridge.data.task import Batch
from spikebridge.nn.layers import Layer, Plain, Readout
from spikebridge.nn.network import Network, Observation
from spikebridge.nn.synapses import Conv2d, Dense, Embedding
from spikebridge.runs import rundir
from spikebridge.runs.evaluation import evaluating, trained
from spikebridge.runs.hardware_results import (
    Complexity,
    Measured,
    SynapticOperations,
    load_complexity,
)

__all__ = ["Complexity", "complexity", "of_run"]

SOURCE = "definitions of NeuroBench 2.3.0 (Yik et al. 2025)"


def complexity(
    network: Network, batches: Iterable[Tensor | Batch], *, carries_state: bool = False
) -> Complexity:
    """Measure a network on samples, one forward pass in all.

    Args:
        network: of our layers, or of RNN, GRU and LSTM; evaluated without dropout, its layers of
            units in the loop, which alone hands out membranes.
        batches: inputs, each (T, B, I), or (T, B) symbols, or a task's `Batch`; what the mask of a
            `Batch` leaves out does not count.
        carries_state: each batch goes on where the last one stopped, and each step is a sample.

    Raises ValueError where there is no sample, and for a module with a weight matrix that no
    definition covers.

    Source: NeuroBench 2.3.0, Yik et al. 2025; see the module for where this departs from it.
    """
    _check_known(network)
    tally = _Tally()
    state: tuple[Any, ...] | None = None
    with evaluating(network), ExitStack() as stack:
        for hook in _hooks(network, tally):
            stack.callback(hook.remove)
        for batch in batches:
            x, tally.mask = (batch, None) if isinstance(batch, Tensor) else (batch.x, batch.mask)
            seen = network.observe(x, state, membranes=True, mask=tally.mask)
            _add_layers(network, tally, seen, state)
            tally.samples += x.shape[1] * (x.shape[0] if carries_state else 1)
            state = seen.state if carries_state else None
        zeros, weights = _connections(network)
    if tally.samples == 0:
        raise ValueError("batches: complexity is measured on at least one sample, got none")
    count, held = tally.samples, (*network.parameters(), *network.buffers())
    return Complexity(
        footprint=sum(v.numel() * v.element_size() for v in held),
        parameter_count=sum(p.numel() for p in network.parameters()),
        connection_sparsity=round(zeros / max(weights, 1), 4),
        activation_sparsity=tally.zeros / max(tally.outputs, 1),
        synaptic_operations=SynapticOperations(
            tally.macs / count, tally.acs / count, tally.dense / count
        ),
        membrane_updates=tally.updates / count,
        samples=count,
    )


class _Tally:
    """Whole sums over all samples, and the mask (T, B) of the batch under way."""

    def __init__(self) -> None:
        self.macs = self.acs = self.dense = 0
        self.zeros = self.outputs = self.updates = self.samples = 0
        self.mask: Tensor | None = None

    def real(self, values: Tensor) -> Tensor:
        """values (T, B, N) or (B, N) as rows (R, N), without padding.

        A row per sample, as a readout of the last step is given, has none.
        """
        rows = values.reshape(-1, values.shape[-1])
        if self.mask is None or len(rows) != self.mask.numel():
            return rows
        return rows[self.mask.flatten()]

    def products(self, active: Tensor, fan_out: Tensor, accumulates: Tensor) -> None:
        """Effective operations of inputs (R, I) bool that reach so many outputs each, (I,)."""
        every = int((active.sum(0) * fan_out).sum())
        cheap = every if bool(accumulates.all()) else 0
        if not cheap and bool(accumulates.any()):
            cheap = int((active[accumulates].sum(0) * fan_out).sum())
        self.acs += cheap
        self.macs += every - cheap

    def elementwise(self, each: Tensor, accumulates: Tensor) -> None:
        """Effective operations of each call, (R,)."""
        every, cheap = int(each.sum()), int(each[accumulates].sum())
        self.acs += cheap
        self.macs += every - cheap

    def connection(self, x: Tensor, fan_out: Tensor, dense: int) -> None:
        """Calls of a linear map: x (T, B, I) or (B, I)."""
        rows = self.real(x)
        active = rows != 0
        self.products(active, fan_out, _binary(rows, active))
        self.dense += dense * len(rows)


def _binary(rows: Tensor, active: Tensor) -> Tensor:
    """Which rows (R, I) hold nothing but -1, 0 and 1, (R,) bool."""
    return ((rows.abs() == 1) | ~active).all(-1)


def _hooks(network: Network, tally: _Tally) -> Iterator[Any]:
    """Let the tally count what every connection is given."""
    for module in network.modules():
        if isinstance(module, Converted | Dense | Conv2d | nn.Linear):
            reach = _reach(module.array if isinstance(module, Converted) else module)
            yield module.register_forward_pre_hook(
                lambda _, given, reach=reach: tally.connection(given[0], *reach)
            )
        elif isinstance(module, nn.RNNBase):
            cell = _Cell(module)
            yield module.register_forward_hook(
                lambda _, given, output, cell=cell: cell.add(tally, *given, y=output[0])
            )
        elif isinstance(module, Readout) and module.bias is not None and network.embedding:
            reach = _reach_of(network.embedding.weight)
            yield module.linear.register_forward_hook(
                lambda _, given, output, reach=reach: tally.connection(output, *reach)
            )


def _reach_of(matrix: Tensor) -> tuple[Tensor, int]:
    """How many outputs each input of a matrix (N, I) reaches, (I,), and all its products."""
    return (matrix != 0).sum(0), matrix.numel()


def _reach(array: Any) -> tuple[Tensor, int]:
    """The same of an array.

    The sum of all outputs of a linear map is a sum over its inputs, each times what it reaches:
    the layer is not run again for each batch, with the same result to the last unit.
    """
    if not isinstance(array, Conv2d):
        return _reach_of(array.weight)
    weight = array.weight
    side = weight.shape[-1]
    rows, columns = ((n + 2 * array.padding - side) // array.stride + 1 for n in array.in_shape[1:])
    ones = weight.new_ones((1, weight.shape[0], rows, columns), dtype=torch.float64)
    reached = []
    for binary in ((weight != 0).double(), torch.ones_like(weight, dtype=torch.float64)):
        back = conv2d_input(
            (1, *array.in_shape), binary, ones, stride=array.stride, padding=array.padding
        )
        reached.append(back.round().long().flatten())
    return reached[0], int(reached[1].sum())


class _Cell:
    """One layer of torch's RNN, GRU or LSTM, counted as NeuroBench counts the cell of its kind."""

    GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}  # noqa: RUF012
    ELEMENTWISE = {"RNN": 0, "GRU": 3, "LSTM": 3}  # noqa: RUF012

    def __init__(self, core: Any) -> None:
        self.kind = type(core).__name__
        plain = core.num_layers == 1 and not (
            core.bidirectional or core.batch_first or core.proj_size
        )
        if self.kind not in self.GATES or not plain:
            raise ValueError(
                f"{core}: operations are counted of one time-major layer of torch's RNN, GRU or "
                "LSTM in one direction, without a projection; stack spikebridge.nn.layers.Baseline"
            )
        weights = core.all_weights[0]
        self.into, self.back = weights[0] != 0, weights[1] != 0  # (G N, I) and (G N, N) bool
        none = torch.zeros_like(self.into[:, 0])
        self.bias_in: Tensor = weights[2] != 0 if core.bias else none
        self.bias_back: Tensor = weights[3] != 0 if core.bias else none
        size, gates = core.hidden_size, self.GATES[self.kind]
        self.dense = gates * size * (core.input_size + size) + self.ELEMENTWISE[self.kind] * size

    def add(self, tally: _Tally, x: Tensor, state: Any = None, *, y: Tensor) -> None:
        """Calls with x (T, B, I), a state of torch's or None, and outputs y (T, B, N)."""
        first_h, first_c = state if isinstance(state, tuple) else (state, None)
        h = tally.real(_before(y, None if first_h is None else first_h[0])) != 0
        rows = tally.real(x)
        active = rows != 0
        accumulates = _binary(rows, active)
        tally.products(active, self.into.sum(0), accumulates)
        tally.products(h, self.back.sum(0), accumulates)
        tally.dense += self.dense * len(rows)
        if self.kind == "LSTM":
            c = tally.real(_before(y, None if first_c is None else first_c[0])) != 0
            tally.elementwise(self._of_lstm(active, h, c), accumulates)
        elif self.kind == "GRU":
            tally.elementwise(self._of_gru(active, h), accumulates)

    def _of_lstm(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        """Products of c = f c + i g and h = o tanh(c) in each call, (R,)."""
        both = self.bias_in | self.bias_back
        reached = _reached(both, (x, self.into), (h, self.back))
        i, f, g, o = reached.chunk(4, -1)
        kept, added = f & c, i & g
        return kept.sum(-1) + added.sum(-1) + (o & (kept | added)).sum(-1)

    def _of_gru(self, x: Tensor, h: Tensor) -> Tensor:
        """Products of n = tanh(.. + r (H h + b)) and h = (1 - z) n + z h in each call, (R,)."""
        size = h.shape[-1]
        both = self.bias_in | self.bias_back
        gates, candidate = slice(2 * size), slice(2 * size, None)
        reached = _reached(both[gates], (x, self.into[gates]), (h, self.back[gates]))
        r, z = reached.chunk(2, -1)
        let_in = r & _reached(self.bias_back[candidate], (h, self.back[candidate]))
        n = let_in | _reached(self.bias_in[candidate], (x, self.into[candidate]))
        return let_in.sum(-1) + n.sum(-1) + (z & h).sum(-1)


def _reached(bias: Tensor, *parts: tuple[Tensor, Tensor]) -> Tensor:
    """Which of N sums (R, N) have a term: a bias (N,), or an active input (R, I) with a weight.

    Where all have a bias, as after any training, there is no product to take.
    """
    result = bias.expand(len(parts[0][0]), -1)
    if bool(bias.all()):
        return result
    for active, weights in parts:
        result = result | ((active.float() @ weights.float().T) > 0)
    return result


def _before(values: Tensor, first: Tensor | None, fill: float = 0.0) -> Tensor:
    """values (T, B, N) a step later; before the first step `first` (B, N), or the fill."""
    if first is None:
        first = values.new_full(values.shape[1:], fill)
    return torch.cat([first.to(values.dtype).unsqueeze(0), values])[:-1]


def _add_layers(
    network: Network, tally: _Tally, seen: Observation, state: tuple[Any, ...] | None
) -> None:
    """What layers of units did: recurrent products, outputs, membranes."""
    states = state or (None,) * len(network.layers)
    for layer, trace, before in zip(network.layers, seen.layers, states, strict=True):
        if not isinstance(layer, Layer | Plain):
            continue
        if isinstance(layer, Layer) and layer.recurrent is not None:
            last = _before(trace.y, None if before is None else before.y)
            tally.connection(last, *_reach_of(layer.recurrent))
        y = tally.real(trace.y)
        tally.outputs += y.numel()
        tally.zeros += y.numel() - int(y.count_nonzero())
        if layer.spiking and trace.s is not None:
            # Nothing equals nan: without a state before it, the first step changes all.
            last = _before(trace.s, None if before is None else before.s, float("nan"))
            tally.updates += int(tally.real(trace.s != last).sum())


def _connections(network: Network) -> tuple[int, int]:
    """Weights that are zero, and all of them."""
    result: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, Dense | Conv2d | nn.Linear):
            result.append(module.weight)
        elif isinstance(module, nn.RNNBase):
            result += [weight for weights in module.all_weights for weight in weights]
        elif isinstance(module, Layer) and module.recurrent is not None:
            result.append(module.recurrent)
    if network.tied and network.embedding is not None:
        result.append(network.embedding.weight)
    return sum(int((v == 0).sum()) for v in result), sum(v.numel() for v in result)


def _check_known(network: Network) -> None:
    """ValueError for a weight matrix whose operations nothing here would count."""
    known = (Dense, Conv2d, Embedding, nn.Embedding, nn.Linear, nn.RNNBase, Layer)
    for path, module in network.named_modules():
        if isinstance(module, known) or "parametrizations" in path.split("."):
            continue
        for name, value in module.named_parameters(recurse=False):
            if value.dim() >= 2:
                raise ValueError(
                    f"{path}.{name} of a {type(module).__name__}: there is no definition of its "
                    "operations; make it of Dense, Conv2d or torch.nn.Linear"
                )


def kept(directory: Path, split: str, samples: int) -> Measured | None:
    """What `of_run` has written there for the same samples; None where it has not."""
    known = load_complexity(directory)
    return known if known and (known.split, known.asked) == (split, samples) else None


@rundir.owned("complexity")
def of_run(directory: Path, split: str = "test", samples: int = 0) -> Measured:
    """Measure the network of a finished run; written to its complexity.json and returned.

    Args:
        directory: of the run.
        split: "test" or "valid"; the inputs are those that the run itself is judged on.
        samples: how many of its first samples; 0 = all.

    Raises UsageError where there is no complete run, or for what cannot be asked for; RunError
    where its network is damaged.
    """
    if split not in ("test", "valid"):
        raise UsageError(f"split={split!r}: choose test or valid; pass --split test")
    if samples < 0:
        raise UsageError(f"samples={samples}: 0 (all) or more; pass --samples 2000")
    config, network = trained(directory)
    task = tasks.load(config.task)
    judge = generator(config.train.eval_seed, split)
    batches: Iterable[Batch] = task.batches(split, config.train.batch_size, judge)
    if samples:
        batches = first(batches, samples, stream=task.carries_state)
    result = complexity(network, batches, carries_state=task.carries_state)
    per = config.task.step_name()
    content = Measured(**vars(result), source=SOURCE, split=split, per=per, asked=samples)
    rundir.write_json(directory / rundir.COMPLEXITY, content)
    return content


def first(batches: Iterable[Batch], samples: int, *, stream: bool) -> Iterator[Batch]:
    """The inputs of the first samples; of parallel streams as many whole steps as hold them."""
    left = samples
    for batch in batches:
        x, mask = batch.x, batch.mask
        if stream:
            x = x[: -(-left // x.shape[1])]
            left -= x.shape[0] * x.shape[1]
        else:
            x, mask = x[:, :left], None if mask is None else mask[:, :left]
            left -= x.shape[1]
        yield batch._replace(x=x, mask=mask)
        if left <= 0:
            return
