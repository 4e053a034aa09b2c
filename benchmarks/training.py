"""Whole training: the same networks in ours, in the other libraries and in nn.LSTM.

    python benchmarks/training.py [--json docs/results/training-cpu.json] [--rounds 3]
                                  [--only mnist-1024 ...] [--eager | --compiled]

All rows of a network have equal dynamics, equal first weights, equal batches, loss and optimiser,
and are trained in turn, round after round, in one process.  The first weights come from a short
training of ours with a price on activity, so that neurons fire as often as in a trained network;
beside it the same training without the price, with the validation scores of both.  Seconds per
epoch are medians over the rounds of a few batches, times the batches of an epoch; drawing the
batches is part of them.  Peak memory is that of a process of its own, less what it held before.

A row is left out where its spikes are not those of ours.  Of compiled rows torch compiles the
neurons, ten steps at a time; the seconds of their first three steps stand apart.
Rows with "window" have a surrogate that is zero beyond a window around the threshold: our products
then leave out what it multiplies.
Peers that are installed take part, see speed.py; real data lie under $SPIKEBRIDGE_DATA.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import measure
import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge import data
from spikebridge.base.chance import generator
from spikebridge.data.task import Batch, Task
from spikebridge.nn.gradients import Surrogate
from spikebridge.nn.layers import Layer, Readout, handed_on
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import Conv2d, Dense
from spikebridge.nn.units import make_unit
from spikebridge.settings.tasks import DigitsConfig, MusicConfig, TaskConfig

KERNEL, POOL = 5, 2
LR = 2e-3
APART = 1e-2  # share of spikes that may differ: sums in another order decide near the threshold
COMPILED = ", compiled"
COMPILE_S, COMPILED_STEPS = 180, 3  # a row that takes longer, or more, is left out


@dataclass(frozen=True)
class Case:
    """A network and what it is trained on.

    Args:
        task: the data.
        hidden: neurons of the dense layers.
        batch_size: B.
        batches: timed in a round.
        first: batches of training before anything is timed.
        price: factor on the sum of the firing rates of the layers in the loss.
        channels: of convolutions of 5 x 5 with pooling by 2, before the dense layers.
        recurrent: the dense layers have a matrix from their outputs to their drive.
    """

    task: TaskConfig
    hidden: tuple[int, ...]
    batch_size: int
    batches: int
    first: int
    price: float
    channels: tuple[int, ...] = ()
    recurrent: bool = False


RATES = DigitsConfig(data="mnist", coding="rate", steps=20)
ROWS = DigitsConfig(data="mnist", coding="rows")
SMALL = DigitsConfig(data="digits8x8", coding="rate", steps=4)
CASES = {
    "mnist-256": Case(RATES, (256, 256), 128, 8, 430, 0.8),
    "mnist-1024": Case(RATES, (1024, 1024), 128, 3, 100, 0.8),
    "mnist-conv": Case(RATES, (), 128, 2, 60, 0.8, channels=(8, 16)),
    "jsb-150": Case(MusicConfig(), (150,), 8, 29, 290, 0.0),
    "recurrent-512": Case(ROWS, (512,), 128, 4, 100, 0.0, recurrent=True),
}
TINY = {
    "tiny": Case(SMALL, (16, 16), 32, 2, 3, 0.1),
    "tiny-conv": Case(SMALL, (16,), 32, 2, 3, 0.1, channels=(4,)),
    "tiny-recurrent": Case(
        DigitsConfig(data="digits8x8", coding="rows"), (16,), 32, 2, 3, 0.1, recurrent=True
    ),
}
ALL = CASES | TINY
Answer = tuple[Tensor, list[Tensor]]  # the output, and the spikes of each hidden layer


class Ours(nn.Module):
    """The network of a case in spikebridge."""

    def __init__(self, case: Case, task: Task, reset: str, surrogate: Surrogate) -> None:
        super().__init__()
        layers, shape, features = [], task_image(task), task.input_size
        for channels in case.channels:
            sized = Conv2d(shape, channels, KERNEL, padding=KERNEL // 2, pool=POOL)
            unit = self.unit(sized.out_features, reset, surrogate)
            array = Conv2d(shape, channels, KERNEL, padding=KERNEL // 2, pool=POOL, unit=unit)
            layers.append(Layer(array, unit))
            shape, features = array.out_shape, array.out_features
        for size in case.hidden:
            unit = self.unit(size, reset, surrogate)
            layers.append(Layer(Dense(features, size, unit), unit, recurrent=case.recurrent))
            features = size
        self.network = Network(layers, Readout(features, task.output_size, task.readout))

    @staticmethod
    def unit(size: int, reset: str, surrogate: Surrogate) -> Any:
        """The thresholds stay as they are, since those of the libraries do."""
        return make_unit(
            "snu", size, decay=peers.DECAY, threshold=1.0, reset=reset, surrogate=surrogate,
            bias=False,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Answer:
        spikes, layers = [], list(self.network.layers)
        for layer, behind in zip(layers, [*layers[1:], None], strict=True):
            x = layer(x)[0]
            if behind is not None:  # a price on spikes is seen by the layer only, too
                handed_on(x, layer, behind)
            spikes.append(x)
        return self.network.readout(x), spikes

    def weights(self) -> list[Tensor]:
        """Array and recurrent matrix of each layer, then the readout's weight and bias."""
        found = []
        for layer in self.network.layers:
            found += [w for w in (layer.array.weight, layer.recurrent) if w is not None]
        return [*found, self.network.readout.linear.weight, self.network.readout.linear.bias]


class Theirs(nn.Module):
    """The same network around the unit of another library."""

    def __init__(self, name: str, case: Case, task: Task) -> None:
        super().__init__()
        peer = peers.PEERS[name.removesuffix(COMPILED)]
        compiled = name.endswith(COMPILED)
        self.scale, self.readout_of = peer.scale, task.readout
        self.arrays, self.matrices = nn.ModuleList(), nn.ParameterList()
        self.neurons: list[Callable] = []
        shape, features, pad = task_image(task), task.input_size, KERNEL // 2
        for channels in case.channels:
            self.arrays.append(Images(shape, channels, pad))
            shape = (channels, shape[1] // POOL, shape[2] // POOL)
            features = channels * shape[1] * shape[2]
            self.neurons.append(peer.neuron(compiled))
        for size in case.hidden:
            self.arrays.append(nn.Linear(features, size, bias=False))
            features = size
            if case.recurrent:
                self.matrices.append(nn.Parameter(torch.empty(size, size)))
            self.neurons.append((peer.recurrent if case.recurrent else peer.neuron)(compiled))
        self.readout = nn.Linear(features, task.output_size)

    def forward(self, x: Tensor) -> Answer:
        spikes = []
        for number, (array, neuron) in enumerate(zip(self.arrays, self.neurons, strict=True)):
            drive = array(x)
            x = neuron(drive, self.matrices[number]) if len(self.matrices) else neuron(drive)
            spikes.append(x)
        return self.readout(reduced(x, self.readout_of)), spikes

    def weights(self) -> list[Tensor]:
        found = []
        for number, array in enumerate(self.arrays):
            found += [array.weight, *self.matrices[number : number + 1]]
        return [*found, self.readout.weight, self.readout.bias]


class Images(nn.Module):
    """A convolution on flattened images, its drive averaged over squares."""

    def __init__(self, shape: Sequence[int], channels: int, padding: int) -> None:
        super().__init__()
        self.shape, self.padding = tuple(shape), padding
        self.weight = nn.Parameter(torch.empty(channels, shape[0], KERNEL, KERNEL))

    def forward(self, x: Tensor) -> Tensor:
        images = x.reshape(-1, *self.shape)
        drive = F.avg_pool2d(F.conv2d(images, self.weight, padding=self.padding), POOL)
        return drive.reshape(*x.shape[:-1], -1)


class Lstm(nn.Module):
    """torch's LSTM of equal width and depth, with the same readout."""

    def __init__(self, case: Case, task: Task) -> None:
        super().__init__()
        self.core = nn.LSTM(task.input_size, case.hidden[0], len(case.hidden))
        self.readout, self.readout_of = (
            nn.Linear(case.hidden[0], task.output_size),
            task.readout,
        )

    def forward(self, x: Tensor) -> Answer:
        return self.readout(reduced(self.core(x)[0], self.readout_of)), []


def reduced(y: Tensor, how: str) -> Tensor:
    """(T, B, N) to what the readout maps."""
    return y if how == "each" else y.mean(0) if how == "mean" else y[-1]


def task_image(task: Task) -> tuple[int, int, int]:
    return getattr(task, "image", None) or (1, 1, task.input_size)


LIBRARIES = [name for name in peers.PEERS if not name.startswith("plain")]
SURROGATES = {"": Surrogate(), ", window": Surrogate("window", width=0.5)}
OURS = {
    f"spikebridge, {reset} reset{name}": (reset, surrogate)
    for reset in ("gate", "subtract")
    for name, surrogate in SURROGATES.items()
}
LSTM = "nn.LSTM"


def like(name: str) -> str:
    """Our row with the dynamics of a row."""
    peer = peers.PEERS.get(name.removesuffix(COMPILED))
    subtracts = peer.ours is peers.subtract if peer is not None else "subtract" in name
    reset = "subtract" if subtracts else "gate"
    return f"spikebridge, {reset} reset, window"


@dataclass
class Row:
    """A network in training."""

    network: Any
    optimizer: torch.optim.Optimizer
    price: float
    seconds: list[float] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def step(self, task: Task, batch: Batch) -> None:
        """One update, as anyone would write it."""
        self.optimizer.zero_grad()
        output, spikes = self.network(batch.x)
        loss = task.loss(output, batch)
        if self.price and spikes:
            loss = loss + self.price * sum(y.mean() for y in spikes)
        loss.backward()
        self.optimizer.step()

    def firing(self, batch: Batch) -> float | None:
        """The share of neurons and steps with a spike."""
        spikes = self.network(batch.x)[1]  # with a graph: torch would compile anew without it
        count = sum(y.numel() for y in spikes)
        return sum(float(y.detach().sum()) for y in spikes) / count if spikes else None


def make(name: str, case: Case, task: Task, first: Sequence[Tensor] | None) -> Row:
    """The row of a name; first are the weights of ours that it begins with."""
    torch.manual_seed(0)
    if name == LSTM:
        network: Any = Lstm(case, task)
    elif name in OURS:
        network = Ours(case, task, *OURS[name])
    else:
        network = Theirs(name, case, task)
    if first is not None and name != LSTM:
        with torch.no_grad():
            *inner, weight, bias = network.weights()
            for own, given in zip([*inner, weight, bias], first, strict=True):
                own.copy_(given)
            for own in inner:
                own.div_(getattr(network, "scale", 1.0))
    optimizer = torch.optim.Adam(network.parameters(), LR, fused=True)
    return Row(network, optimizer, case.price)


def stream(case: Case, task: Task, seed: int) -> Iterator[Batch]:
    """Training batches without end."""
    draws = torch.Generator().manual_seed(seed)
    while True:
        yield from task.batches("train", case.batch_size, draws)


def first_training(case: Case, task: Task, price: float) -> tuple[list[Tensor], dict[str, Any]]:
    """Weights of ours after some batches, with what validation says of them."""
    row = make("spikebridge, gate reset, window", case, task, None)
    row.price = price
    for batch in islice(stream(case, task, 0), case.first):
        row.step(task, batch)
    scores, counts, rates = 0.0, 0, []
    for batch in islice(task.batches("valid", case.batch_size, generator(0, "valid")), 20):
        with torch.no_grad():
            score, count = task.score(row.network(batch.x)[0], batch)
        scores, counts = scores + score, counts + count
        rates.append(row.firing(batch))
    weights = [weight.detach().clone() for weight in row.network.weights()]
    about = {"price": price, task.metric: scores / counts, "firing": statistics.mean(rates)}
    return weights, about


def joined(case: Case, task: Task, first: list[Tensor], names: list[str]) -> tuple[dict, dict]:
    """The rows that can be trained and fire our spikes, and why each other one does not."""
    batch = next(stream(case, task, 1))
    rows: dict[str, Row] = {}
    reasons: dict[str, str] = {}
    with torch.no_grad():
        ours = {name: make(name, case, task, first).network(batch.x)[1] for name in OURS}
    for name in names:
        try:
            row = make(name, case, task, first)
            if name.endswith(COMPILED):
                row.about["compile_s"] = compiled(row, task, batch)
            same = make(name.removesuffix(COMPILED), case, task, first)
            with torch.no_grad():
                theirs = same.network(batch.x)[1]
            pairs = list(zip(theirs, ours[like(name)] if theirs else [], strict=True))
            apart = max((float((a != b).float().mean()) for a, b in pairs), default=0.0)
            if apart > APART:
                raise ValueError(f"its spikes differ from ours in {apart:.1%} of the places")
            row.about["spikes_apart"] = apart
            rows[name] = row
        except Exception as error:  # whatever a library of this version does
            text = str(error).strip().splitlines() or [""]
            reasons[name] = f"{type(error).__name__}: {text[0][:200]}"
            print(f"{name} is left out: {reasons[name]}", flush=True)
    return rows, reasons


def compiled(row: Row, task: Task, batch: Batch) -> float:
    """Seconds of the first steps, in which torch compiles.

    Raises RuntimeError where it takes too long, compiles nothing or does not come to an end: a
    module that keeps its state is another one to torch at each step.
    """
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    start = time.perf_counter()
    for _ in range(COMPILED_STEPS):
        row.step(task, batch)
        if (took := time.perf_counter() - start) > COMPILE_S:
            raise RuntimeError(f"torch compiled it for {took:.0f} s")
    graphs = counters["stats"]["unique_graphs"]
    if graphs == before:
        raise RuntimeError("torch compiled nothing of it")
    row.step(task, batch)
    if counters["stats"]["unique_graphs"] > graphs:
        raise RuntimeError(f"torch compiles it anew after {COMPILED_STEPS} steps")
    return took


def timed(case: Case, task: Task, rows: Mapping[str, Row], rounds: int) -> list[float]:
    """Trains the rows in turn, and gives the seconds of drawing a batch of each round."""
    batches, drawing = stream(case, task, 2), []
    for round_ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        drawn = list(islice(batches, case.batches))
        drawing.append((time.perf_counter() - start) / case.batches)
        for row in rows.values():
            gc.collect()
            start = time.perf_counter()
            for batch in drawn:
                row.step(task, batch)
            if round_:
                row.seconds.append((time.perf_counter() - start) / case.batches)
    for row in rows.values():
        row.about["firing"] = row.firing(drawn[-1])
    return drawing[1:]


def summary(rows: Mapping[str, Row], drawing: list[float], epoch: int) -> dict[str, Any]:
    """Medians over the rounds; the ratio is the median of the rounds' own, drawing included."""
    found = {}
    whole = {
        name: [step + draw for step, draw in zip(row.seconds, drawing, strict=True)]
        for name, row in rows.items()
    }
    for name, row in rows.items():
        ratios = [a / b for a, b in zip(whole[name], whole[like(name)], strict=True)]
        found[name] = {
            "epoch_s": statistics.median(whole[name]) * epoch,
            "step_s": statistics.median(row.seconds),
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            **row.about,
        }
    return found


def memories(case: str, names: Sequence[str], first: list[Tensor]) -> dict[str, int]:
    """Peak bytes of training each row, in a process of its own, two at a time."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "first.pt"
        torch.save(first, weights)

        def peak(name: str) -> int:
            command = [sys.executable, __file__, "--child", case, name, str(weights)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return dict(zip(names, pool.map(peak, names), strict=True))


def child(case_name: str, name: str, weights: str) -> None:
    """Peak memory of three training steps, less what the process held before."""
    case = ALL[case_name]
    task = data.load(case.task)
    row = make(name, case, task, torch.load(weights))
    batch = next(stream(case, task, 3))
    few = batch._replace(
        x=batch.x[:2, :2],
        target=batch.target[:2, :2] if batch.target.dim() > 1 else batch.target[:2],
        mask=None if batch.mask is None else batch.mask[:2, :2],
    )
    row.step(task, few)  # imports, and the state of the optimiser
    before = measure.peak_bytes()
    for _ in range(3):
        row.step(task, batch)
    print(json.dumps({"peak_bytes": measure.peak_bytes() - before}))


def run(name: str, rounds: int, kinds: str, memory: bool) -> dict[str, Any]:
    """All that is measured of a case."""
    case = ALL[name]
    task = data.load(case.task)
    torch._dynamo.reset()  # nothing of the networks before counts towards the limit
    torch._dynamo.config.recompile_limit = 128  # which all layers of all libraries share
    first, priced = first_training(case, task, case.price)
    about = {"trained": [priced]}
    if case.price:
        about["trained"].append(first_training(case, task, 0.0)[1])
    names = [like(""), like("subtract")] if kinds == "compiled" else [*OURS, *LIBRARIES]
    if kinds != "eager":
        names += [library + COMPILED for library in LIBRARIES]
    if kinds != "compiled" and not case.channels and len(set(case.hidden)) == 1:
        names.append(LSTM)
    rows, reasons = joined(case, task, first, names)
    drawing = timed(case, task, rows, rounds)
    epoch = -(-task.size("train") // case.batch_size)
    table = summary(rows, drawing, epoch)
    weighed = [like(""), *(row for row in rows if row in LIBRARIES or row == LSTM)]
    for row, peak in memories(name, weighed if memory else [], first).items():
        table[row]["peak_bytes"] = peak
    about |= {
        "batches_of_an_epoch": epoch, "batches_timed": case.batches * rounds,
        "batch_size": case.batch_size, "drawing_s": statistics.median(drawing),
        "left_out": reasons, "rows": table,
    }  # fmt: skip
    show(name, about)
    return about


def joined_with(kept: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A case with the compiled rows of a run of their own, whose ratios are to ours in that run."""
    reasons = {row: why for row, why in kept["left_out"].items() if not row.endswith(COMPILED)}
    rows = {row: found for row, found in kept["rows"].items() if not row.endswith(COMPILED)}
    added = {row: found for row, found in new["rows"].items() if row.endswith(COMPILED)}
    return kept | {"rows": rows | added, "left_out": reasons | new["left_out"]}


def fastest(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The library that is nearest to ours."""
    libraries = [row for row in rows if row not in OURS and row != LSTM]
    return min(libraries, key=lambda row: rows[row]["ratio"], default=None)


def show(name: str, about: Mapping[str, Any]) -> None:
    print(
        f"\n{name}: {about['batches_of_an_epoch']} batches an epoch, "
        f"{about['batches_timed']} timed\n{'':40}{'s / epoch':>10}{'x ours':>8}"
        f"{'firing':>9}{'MB':>8}"
    )
    for row, found in about["rows"].items():
        firing, peak = found["firing"], found.get("peak_bytes")
        print(
            f"{row:40}{found['epoch_s']:10.2f}{found['ratio']:8.2f}"
            f"{'' if firing is None else f'{firing:.1%}':>9}"
            f"{'' if peak is None else f'{peak / 1e6:.0f}':>8}"
            + (f"  compiled in {found['compile_s']:.0f} s" if "compile_s" in found else ""),
            flush=True,
        )
    for trained in about["trained"]:
        print("  first weights: " + ", ".join(f"{k} {v:.4g}" for k, v in trained.items()))


def versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in ("snntorch", "spikingjelly", "norse"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="keep all figures there")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds of each network")
    parser.add_argument("--only", nargs="+", choices=list(ALL), default=list(CASES))
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--eager", dest="kinds", action="store_const", const="eager", default="all",
        help="leave compiled rows out",
    )  # fmt: skip
    kinds.add_argument(
        "--compiled", dest="kinds", action="store_const", const="compiled",
        help="compiled rows beside ours only; the other rows of the file stay",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="leave peaks of memory out")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    content: dict[str, Any] = {"rounds": options.rounds, "versions": versions(), "cases": {}}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text(encoding="utf-8"))["cases"]
        if options.kinds == "compiled" or set(options.only) != set(CASES):
            content["cases"] = kept
    for name in options.only:
        found = run(name, options.rounds, options.kinds, not options.no_memory)
        if options.kinds == "compiled" and name in content["cases"]:
            found = joined_with(content["cases"][name], found)
        found["fastest_library"] = fastest(found["rows"])
        content["cases"][name] = found
        if options.json:
            measure.save(options.json, content)


if __name__ == "__main__":
    main()
