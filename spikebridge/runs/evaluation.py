"""A trained network on a data set: loss, metric, activity, and a few examples to look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikebridge.base.archives import write_arrays
from spikebridge.base.chance import generator
from spikebridge.base.metrics import OF_NUMBERS, from_mean
from spikebridge.base.records import RunError, UsageError
from spikebridge.nn.network import load_network
from spikebridge.nn.units import SNUnit
from spikebridge.runs import rundir
from spikebridge.runs.results import Figure

if TYPE_CHECKING:
    from spikebridge.data.task import Batch, Task
    from spikebridge.nn.network import LayerTrace, Network, Observation
    from spikebridge.settings.config import Config

EXAMPLES = 6
LIKELIEST = 5


class Score(NamedTuple):
    """Loss and metric over a whole split."""

    loss: float
    metric: float
    largest_class: float = 0.0
    """The share of the most frequent class among what was judged; 0 where none is asked."""

    def baselines(self, task: Task) -> dict[str, float]:
        """The task's own, and the largest class where classes are asked."""
        largest = {"largest class": self.largest_class} if self.largest_class else {}
        return dict(task.baselines) | largest


class Activity(NamedTuple):
    """How much a network's hidden layers do, over real time steps only."""

    spikes_per_inference: float | None
    firing_rates: dict[str, float]
    mean_activity: dict[str, float]


def trained(directory: Path, task: str = "", lack: str = "") -> tuple[Config, Network]:
    """Settings and network of a run: of one that was cut off, with a warning, the best so far.

    Raises UsageError where there is no network yet, or one of another task than `task`, which has a
    `lack`, such as "writes no text"; RunError where it is damaged.
    """
    kind = f"finished run of `spikebridge train {task}`" if task else "finished run"
    rundir.check_network(directory, kind)
    config = rundir.read_config(directory)
    if task and task != config.task.NAME:
        raise UsageError(
            f"{directory}: it is a run of the task {config.task.NAME}, which {lack}; name one of "
            f"`spikebridge train {task}`"
        )
    try:
        return config, load_network(directory / rundir.MODEL)
    except (FileNotFoundError, ValueError) as error:
        raise RunError(str(error)) from error


@contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """No gradients, no dropout."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def evaluate(
    network: Network,
    task: Task,
    split: str,
    batch_size: int,
    generator: torch.Generator,
    *,
    batches: int | None = None,
) -> Score:
    """Loss and metric on a split, or on its first so many batches."""
    tally = Tally(task)
    for batch, seen in islice(passes(network, task, split, batch_size, generator), batches):
        tally.add(seen.output, batch)
    return tally.score()


def observe(
    network: Network, task: Task, split: str, batch_size: int, generator: torch.Generator
) -> tuple[Score, Activity]:
    """Loss, metric and activity on a split, in one pass."""
    tally, samples, cells = Tally(task), 0, 0
    sums: dict[str, float] = {}
    sizes: dict[str, int] = {}
    spiking: dict[str, bool] = {}
    for batch, seen in passes(network, task, split, batch_size, generator):
        tally.add(seen.output, batch)
        steps, width = batch.x.shape[:2]
        cells += steps * width if batch.mask is None else int(batch.mask.sum())
        # In a stream that never ends each step is a sample.
        samples += steps * width if task.carries_state else width
        for number, layer in enumerate(seen.layers, start=1):
            name = f"layer{number}"
            real = layer.y if batch.mask is None else layer.y * batch.mask[..., None]
            sums[name] = sums.get(name, 0.0) + float(real.abs().sum(dtype=torch.float64))
            sizes[name], spiking[name] = layer.y.shape[-1], layer.spiking
    means = {name: total / (cells * sizes[name]) for name, total in sums.items()}
    spikes = [total for name, total in sums.items() if spiking[name]]
    return tally.score(), Activity(
        spikes_per_inference=sum(spikes) / samples if spikes else None,
        firing_rates={name: mean for name, mean in means.items() if spiking[name]},
        mean_activity={name: mean for name, mean in means.items() if not spiking[name]},
    )


def judged_otherwise(
    network: Network, task: Task, batch_size: int, eval_seed: int
) -> dict[str, Figure]:
    """The test set as each of the task's views judges it."""
    return {
        name: Figure(
            view.metric,
            evaluate(network, view, "test", batch_size, generator(eval_seed, "test")).metric,
        )
        for name, view in task.views().items()
    }


def passes(
    network: Network, task: Task, split: str, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Batch, Observation]]:
    """Each batch with what the network did; the state goes on where the task's text does."""
    state = None
    with evaluating(network):
        for batch in task.batches(split, batch_size, generator):
            seen = network.observe(batch.x, state, mask=batch.mask)
            if task.carries_state:
                state = seen.state
            yield batch, seen


class Tally:
    """Running sums of the loss and of the metric."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.loss = self.total = 0.0
        self.losses = self.count = 0
        self.classes = torch.zeros(task.output_size if task.metric == "accuracy" else 0).long()

    def add(self, output: Tensor, batch: Batch) -> None:
        if batch.counted == 0:  # of what has no answer the mean would be nan
            return
        self.loss += float(self.task.loss(output, batch)) * batch.counted
        self.losses += batch.counted
        total, count = self.task.score(output, batch)
        self.total += total
        self.count += count
        if len(self.classes) and not batch.target.is_floating_point():
            per_step = batch.mask is not None and batch.target.dim() == 2
            classes = batch.target[batch.mask] if per_step else batch.target.flatten()
            self.classes += torch.bincount(classes[classes >= 0], minlength=len(self.classes))

    def score(self) -> Score:
        mean = self.total / self.count
        known = int(self.classes.sum())
        largest = float(self.classes.max()) / known if known else 0.0
        return Score(self.loss / self.losses, from_mean(self.task.metric, mean), largest)


def write_examples(
    path: Path, network: Network, task: Task, batch_size: int, generator: torch.Generator
) -> None:
    """A few test samples with what every layer did, as plain arrays (T, E, ...) in an .npz file."""
    batches = iter(task.batches("test", batch_size, generator))
    if task.symbols and task.carries_state:
        arrays, layers = _of_symbols(network, batches)
    else:
        arrays, layers = _of_numbers(network, task, batches)
    for number, layer in enumerate(layers, start=1):
        arrays[f"layer{number}_y"] = layer.y
        if layer.s is not None:
            arrays[f"layer{number}_s"] = layer.s
    own = (getattr(layer, "unit", None) for layer in network.layers)
    for number, (unit, layer) in enumerate(zip(own, layers, strict=False), start=1):
        if isinstance(unit, SNUnit) and layer.spiking:  # that of an adaptive unit moves
            arrays[f"layer{number}_threshold"] = unit.threshold.detach().float().cpu()
    plain = {name: np.ascontiguousarray(value.numpy()) for name, value in arrays.items()}
    if task.output_names:
        plain["output_names"] = np.array(task.output_names)
    write_arrays(path, plain)


def _of_numbers(
    network: Network, task: Task, batches: Iterator[Batch]
) -> tuple[dict[str, Tensor], tuple[LayerTrace, ...]]:
    batch = next(batches)
    chosen = _chosen(batch)
    x = batch.x[:, chosen].contiguous()
    mask = None if batch.mask is None else batch.mask[:, chosen]
    with evaluating(network):
        seen = network.observe(x, membranes=True, mask=mask)
    steps, count = x.shape[:2]
    full = torch.full((count,), steps)
    arrays = {
        "x": x,
        "output": _as_answers(task, seen.output, batch.target),
        "target": batch.target[:, chosen] if task.readout == "each" else batch.target[chosen],
        "length": full if mask is None else mask.sum(0),
    }
    return arrays, seen.layers


def _of_symbols(
    network: Network, batches: Iterator[Batch]
) -> tuple[dict[str, Tensor], tuple[LayerTrace, ...]]:
    """The first stretches of a text as examples; of all outputs only the likeliest few are kept.

    output holds the probability of the right symbol and then those of the likeliest, whose numbers
    are in `top`.
    """
    first = next(batches)
    parts = [first, *islice(batches, EXAMPLES - 1)]
    parts = [part for part in parts if len(part.x) == len(first.x)]
    x = torch.cat([part.x[:, :1] for part in parts])
    target = torch.cat([part.target[:, :1] for part in parts])
    with evaluating(network):
        seen = network.observe(x, membranes=True)

    def side_by_side(value: Tensor) -> Tensor:
        """(E T, 1, ...) to (T, E, ...)."""
        return value[:, 0].unflatten(0, (len(parts), -1)).transpose(0, 1)

    chances = seen.output.softmax(-1)
    likeliest = chances.topk(min(LIKELIEST, chances.shape[-1]), -1)
    right = chances.gather(-1, target.unsqueeze(-1))
    arrays = {
        "x": side_by_side(x.unsqueeze(-1)),
        "output": side_by_side(torch.cat([right, likeliest.values], -1)),
        "target": side_by_side(target),
        "top": side_by_side(likeliest.indices),
        "length": torch.full((len(parts),), len(first.x)),
    }
    layers = [
        layer._replace(
            y=side_by_side(layer.y), s=None if layer.s is None else side_by_side(layer.s)
        )
        for layer in seen.layers
    ]
    return arrays, tuple(layers)


def _as_answers(task: Task, output: Tensor, target: Tensor) -> Tensor:
    """Outputs as what they stand for: the numbers themselves, or probabilities."""
    if not target.is_floating_point():
        return output.softmax(-1)
    return output if task.metric in OF_NUMBERS else output.sigmoid()


def _chosen(batch: Batch) -> list[int]:
    """The first samples; of digits, the first of each class as far as that goes."""
    numbers = list(range(batch.x.shape[1]))
    if batch.target.dim() == 1:
        classes = batch.target.tolist()
        numbers.sort(key=lambda i: (classes[:i].count(classes[i]), i))
    return sorted(numbers[:EXAMPLES])
