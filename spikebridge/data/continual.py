"""Tasks that follow each other: images with pixels in other orders, or some of the classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spikebridge.base.records import require
from spikebridge.data.images import Digits, Images, read
from spikebridge.data.task import Batch, Task
from spikebridge.settings.tasks import DigitsConfig

__all__ = ["Part", "permuted", "split"]


class Part(Task):
    """One task of a sequence.

    Args:
        data: its images.
        outputs: O, of the network that learns all tasks.
        order: (P,) where each of an image's P pixels is taken from; None leaves them.
        classes: the outputs that are asked; None for all.
    """

    name = "digits"

    def __init__(
        self,
        data: Digits,
        outputs: int,
        *,
        order: Tensor | None = None,
        classes: tuple[int, ...] | None = None,
    ) -> None:
        self.data, self.order = data, order
        self.input_size, self.readout, self.image = data.input_size, data.readout, data.image
        self.output_size = outputs
        self.asked = None if classes is None else torch.tensor(classes)

    def size(self, split: str) -> int:
        """Number of images of a split."""
        return self.data.size(split)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of x (T, B, I), target (B,) int64 of all classes, mask None."""
        batches = self.data.batches(split, batch_size, generator)
        return batches if self.order is None else map(self._reordered, batches)

    def _reordered(self, batch: Batch) -> Batch:
        x = batch.x
        if len(self.order) == x.shape[-1]:  # type: ignore[arg-type]
            return batch._replace(x=x[..., self.order])
        # Row by row an image lies along time: its pixels change rows too.
        rows = x.transpose(0, 1).flatten(1)[:, self.order].view(x.shape[1], x.shape[0], -1)
        return batch._replace(x=rows.transpose(0, 1).contiguous())

    def answers(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Output (n, O) and target (n,); where masked, of the task's own classes alone."""
        output, target = super().answers(output, batch)
        if self.asked is None:
            return output, target
        return output.index_select(1, self.asked), torch.searchsorted(self.asked, target)


def permuted(config: DigitsConfig, tasks: int, seed: int) -> list[Part]:
    """Tasks whose pixels come in orders drawn from the seed; the first one's as they are.

    Source: Goodfellow et al. 2013, arXiv 1312.6211.  Raises DataError.
    """
    data = Digits(config)
    rows = data.steps if config.serial else 1
    drawn = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(rows * data.input_size, generator=drawn) for _ in range(tasks - 1)]
    return [Part(data, data.output_size, order=order) for order in (None, *orders)]


def split(config: DigitsConfig, tasks: int, *, masked: bool) -> list[Part]:
    """Tasks of some classes each, in the order of their numbers.

    Source: Zenke et al. 2017; van de Ven and Tolias 2019, arXiv 1904.07734: masked outputs are
    task-incremental learning, all outputs class-incremental.

    Raises DataError, and ConfigError where tasks would have fewer than two classes or not as many.
    """
    images = read(config)
    classes = 1 + max(int(part.labels.max()) for part in images.values())
    require(
        classes % tasks == 0 and classes >= 2 * tasks,
        f"tasks={tasks}: {classes} classes cannot be shared evenly among so many, at least 2 for "
        f"each; pass --tasks {_divisor(classes, tasks)}",
    )
    each = classes // tasks
    parts = []
    for first in range(0, classes, each):
        own = {
            name: part.take(((part.labels >= first) & (part.labels < first + each)).nonzero()[0])
            for name, part in images.items()
        }
        asked = tuple(range(first, first + each)) if masked else None
        parts.append(Part(Digits(config, _whole(own)), classes, classes=asked))
    return parts


def _whole(images: dict[str, Images]) -> dict[str, Images]:
    for name, part in images.items():
        require(
            len(part.labels) > 0,
            f"protocol=split: a task has no images to {name}; use data with images of all classes",
        )
    return images


def _divisor(classes: int, tasks: int) -> int:
    """The number of tasks nearest to the wanted one that is possible."""
    possible = [count for count in range(2, classes // 2 + 1) if classes % count == 0]
    return min(possible, key=lambda count: abs(count - tasks), default=2)
