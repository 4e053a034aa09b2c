"""What training minimises on a batch: a loss on the outputs, and a price on activity.

Validation and test are judged by the task's own loss, whatever a network was trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.base.chance import generator
from spikebridge.base.records import UsageError
from spikebridge.data.task import Batch, Task
from spikebridge.settings.config import TrainConfig

if TYPE_CHECKING:
    from spikebridge.nn.network import LayerTrace, Network


class Drawn(NamedTuple):
    """The outputs that a batch is trained on."""

    among: Tensor  # (K,) int64, each once: the batch's own targets and what was drawn
    target: Tensor  # (n,) int64, where in `among` each target stands
    log_expected: Tensor  # (K,) log of how often an output is expected among those drawn

    def loss(self, output: Tensor) -> Tensor:
        """Cross-entropy in nats, corrected for how the outputs were drawn; output (..., K).

        Each output stands for as many as its chance to be here says; the right one, which is here
        for certain, for itself alone: the sum over all outputs is then estimated without bias.
        """
        logits = output.flatten(0, -2).float() - self.log_expected
        own = self.log_expected[self.target].unsqueeze(1)
        logits = logits.scatter_add(1, self.target.unsqueeze(1), own)
        return F.cross_entropy(logits, self.target)


class Sampler:
    """Draws outputs by their frequency in training: sampled softmax.

    Source: Jean, Cho, Memisevic, Bengio 2015, "On using very large target vocabulary for neural
    machine translation"; the correction is that of Bengio and Senécal 2008.

    Args:
        frequencies: (O,) shares, summing to 1.
        count: draws per batch, with replacement; the batch's targets come on top.
    """

    def __init__(self, frequencies: Tensor, count: int) -> None:
        shares = frequencies.double().clamp(1e-9, 1 - 1e-9)
        self.shares, self.count = (shares / shares.sum()), count

    def draw(self, target: Tensor, generator: torch.Generator) -> Drawn:
        """The outputs for a batch with these targets, any shape, int64."""
        actual = torch.multinomial(self.shares, self.count, replacement=True, generator=generator)
        flat = target.flatten()
        among, where = torch.unique(torch.cat([flat, actual]), return_inverse=True)
        # Chance of not being among them: neither by a draw nor as some sample's target.
        missed = (self.count + len(flat)) * torch.log1p(-self.shares[among])
        expected = -torch.expm1(missed)
        return Drawn(among, where[: len(flat)], expected.clamp_min(1e-12).log().float())


class Objective:
    """The loss of a run.

    Args:
        train: loss, activity, sampled, precision.
        task: whose batches come.

    Raises UsageError where the task does not go with the loss that was asked for.
    """

    def __init__(self, train: TrainConfig, task: Task) -> None:
        self.train, self.task = train, task
        self.sampler = self._sampler() if train.sampled else None
        if train.loss == "squared_hinge" and not has_classes(task):
            raise UsageError(
                "loss=squared_hinge: it tells one class from the others, and the targets of "
                f"{task.name} are no classes; pass --loss task"
            )

    def __call__(
        self, network: Network, batch: Batch, state: Any, data: torch.Generator
    ) -> tuple[Tensor, Any]:
        """The loss on a batch, and the state after it; `data` draws outputs where it samples."""
        low = self.train.precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            drawn = None if self.sampler is None else self.sampler.draw(batch.target, data)
            among = None if drawn is None else drawn.among
            seen = network.observe(batch.x, state, among=among, mask=batch.mask, inner=True)
            if drawn is not None:
                loss = drawn.loss(seen.output)
            elif self.train.loss == "squared_hinge":
                loss = squared_hinge(*self.task.answers(seen.output, batch))
            else:
                loss = self.task.loss(seen.output, batch)
            if self.train.activity:
                loss = loss + self.train.activity * activity(seen.layers, batch.mask)
        return loss, seen.state

    def _sampler(self) -> Sampler:
        frequencies = getattr(self.task, "frequencies", None)
        if frequencies is None:
            raise UsageError(
                f"sampled={self.train.sampled}: drawing among outputs is for texts; "
                "leave --sampled out"
            )
        return Sampler(frequencies, self.train.sampled)


def has_classes(task: Task) -> bool:
    """Whether a task's targets are classes."""
    first = next(iter(task.batches("valid", 1, generator(0, "valid"))))
    return not first.target.is_floating_point()


def squared_hinge(output: Tensor, target: Tensor) -> Tensor:
    """mean(max(0, 1 - t y)^2) over all n outputs of all O classes, t = 1 for the class, else -1.

    Args:
        output: (n, O) y.
        target: (n,) int64.

    Source: Yin et al. 2017, their code.
    """
    sign = torch.full_like(output, -1.0).scatter_(1, target.unsqueeze(1), 1.0)
    return (1 - sign * output).clamp_min(0).square().mean()


def activity(layers: tuple[LayerTrace, ...], mask: Tensor | None = None) -> Tensor:
    """The mean of y^2 over neurons, samples and steps of each layer, summed over layers.

    Of spikes that is how often a neuron fires.  mask (T, B) is True at real steps; others do not
    count.  Source: Yin et al. 2017, their code.
    """
    means = []
    for layer in layers:
        y = layer.y if mask is None else layer.y[mask]
        means.append(y.float().square().mean())
    return torch.stack(means).sum()
