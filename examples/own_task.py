"""A task of your own in 20 lines: the adding problem (Hochreiter and Schmidhuber 1997).

    python examples/own_task.py            about 20 seconds on one core
    python examples/own_task.py FOLDER     writes the run to FOLDER instead of runs/adding-snu-0

Each sample is a sequence of random numbers, two of which are marked; their sum is to be said at the
end.  To always answer the mean is off by 1 standard deviation.  Afterwards FOLDER holds the run as
any other: `spikebridge report FOLDER` writes its page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import spikebridge
from spikebridge.config import Config, TrainConfig
from spikebridge.model_config import ModelConfig
from spikebridge.rundir import Result
from spikebridge.task_configs import OwnConfig
from spikebridge.tasks.base import Batch, Task, sample_batches

STEPS = 20


class Adding(Task):
    """Say the sum of the two marked numbers, in standard deviations of that sum."""

    input_size, output_size = 2, 1  # the number and whether it is marked; the sum
    readout = "last"
    metric = "rmse"

    def __init__(self, samples: int = 4000) -> None:
        generator = torch.Generator().manual_seed(0)
        self.splits = {}
        for split, count in {"train": samples, "valid": 500, "test": 500}.items():
            number = torch.rand(STEPS, count, generator=generator)
            places = torch.rand(STEPS, count, generator=generator).topk(2, dim=0).indices
            marked = torch.zeros(STEPS, count).scatter_(0, places, 1.0)
            total = (number * marked).sum(0, keepdim=True).t()  # two uniform numbers: sd 6 ** -0.5
            self.splits[split] = torch.stack([number, marked], -1), (total - 1) * 6**0.5

    def size(self, split: str) -> int:
        return len(self.splits[split][1])

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        x, y = self.splits[split]  # (T, n, I), (n, O)
        for i in sample_batches(self.size(split), split, batch_size, generator):
            yield Batch(x[:, i], y[i], None)


def main(directory: str | Path, epochs: int = 25, samples: int = 4000) -> Result:
    """Train a small network on it."""
    config = Config(
        task=OwnConfig(data="adding"),
        model=ModelConfig(unit="snu", hidden=(64, 64), decay=0.9),
        train=TrainConfig(epochs=epochs, lr=1e-2, schedule="onecycle", threads=1),
    )
    result = spikebridge.run(config, directory, overwrite=True, task=Adding(samples))
    print(f"error on the test set: {result.test:.2f} standard deviations; without learning: 1")
    print(f"run: {directory}")
    return result


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/adding-snu-0")
