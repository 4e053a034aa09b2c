"""What a network does with its first batch, where that cannot be what the user wants."""

from __future__ import annotations

from collections.abc import Iterator

from spikebridge.base.chance import generator
from spikebridge.data.task import Batch, Task
from spikebridge.nn.network import Network
from spikebridge.nn.synapses import Normalised
from spikebridge.runs.evaluation import evaluating
from spikebridge.settings.model import ModelConfig

__all__ = ["remarks"]

# The root mean square of inputs that are not 0 for which weights are drawn is about 1.
SMALL, LARGE = 0.01, 10.0
_SCALE = "divide inputs by their standard deviation in the training data, after taking off the mean"


def remarks(network: Network, task: Task, model: ModelConfig, batch_size: int) -> list[str]:
    """Sentences with a remedy on inputs of another size than 1, and on layers that never fire."""
    batch = next(iter(task.batches("train", batch_size, generator(0, "examples"))))
    return [*_sizes(batch, model), *_silent(network, batch, model)]


def _sizes(batch: Batch, model: ModelConfig) -> Iterator[str]:
    if not batch.x.is_floating_point() or model.norm != "none":
        return
    x = batch.x if batch.mask is None else batch.x[batch.mask]
    x = x[x != 0].double()
    if not len(x):
        yield "all inputs of the first batch are 0: nothing can be learnt from them; check the data"
        return
    size = float(x.square().mean().sqrt())
    if size > LARGE:
        # A spike is a spike however large the drive: only the signs of weights are left.
        yield (
            f"inputs are large, {size:.3g} in root mean square where about 1 is meant: units "
            f"saturate; {_SCALE}, or pass --norm"
        )
    elif size < SMALL:
        yield (
            f"inputs are small, {size:.3g} in root mean square where about 1 is meant: they hardly "
            f"reach a unit; {_SCALE}"
        )


def _silent(network: Network, batch: Batch, model: ModelConfig) -> Iterator[str]:
    norms = [part for part in network.modules() if isinstance(part, Normalised)]
    momenta = [part.momentum for part in norms]
    with evaluating(network):
        for part in norms:  # as in training, by the sizes of the batch, which it forgets again
            part.training, part.momentum = True, 0.0
        seen = network.observe(batch.x, mask=batch.mask)
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum
    for layer in seen.layers:
        y = layer.y if batch.mask is None else layer.y[batch.mask]
        if layer.spiking and not bool((y != 0).any()):
            # From 0.1 up weights are drawn in proportion to the threshold: it changes little there.
            first = "pass --norm, " if model.norm == "none" else ""
            yield (
                f"no spike in the first batch: no neuron of {layer.name} fires; scale the inputs "
                f"to about 1, {first}or lower --threshold below "
                f"0.1 (now {model.threshold:g})"
            )
            return  # what follows a silent layer is silent, too
