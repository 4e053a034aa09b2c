"""A task of your own in 20 lines: exclusive or of two spikes that come some time apart.

    python examples/own_task.py            about 10 seconds on one core; writes runs/xor
    python examples/own_task.py FOLDER     writes the run to FOLDER instead

One of two lines spikes once in the first half of the time and one of them once in the second half,
among noise on a third: was it the same line?  No single step tells, so that the network has to
remember; without that it is right by chance, 50 %.  What lies in the folder is a run as any other:
`spikebridge report runs/xor` writes its page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import spikebridge
from spikebridge import Config, ModelConfig, Result, TrainConfig
from spikebridge.data import Batch, OwnConfig, Task, sample_batches

STEPS = 20


class DelayedXor(Task):
    """Class 1 where the two spikes came on different lines, class 0 where on the same."""

    input_size, output_size = 3, 2

    def __init__(self, samples: int = 3000) -> None:
        generator = torch.Generator().manual_seed(0)
        self.splits = {}
        for split, n in {"train": samples, "valid": 500, "test": 500}.items():
            line = torch.randint(2, (2, n), generator=generator)
            time = torch.randint(STEPS // 2, (2, n), generator=generator)
            x = torch.zeros(STEPS, n, 3)
            x[time[0], torch.arange(n), line[0]] = 1
            x[STEPS // 2 + time[1], torch.arange(n), line[1]] = 1
            x[..., 2] = (torch.rand(STEPS, n, generator=generator) < 0.1).float()
            self.splits[split] = x, line[0] ^ line[1]  # (T, n, I), (n,)

    def size(self, split: str) -> int:
        return len(self.splits[split][1])

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        x, y = self.splits[split]
        for i in sample_batches(self.size(split), split, batch_size, generator):
            yield Batch(x[:, i], y[i], None)


def main(directory: str | Path, epochs: int = 15, samples: int = 3000) -> Result:
    """Train a small network on it."""
    config = Config(
        task=OwnConfig(data="xor"),
        model=ModelConfig(unit="snu", hidden=(64, 64), decay=0.95),
        train=TrainConfig(epochs=epochs, lr=1e-2, schedule="onecycle", threads=1),
    )
    result = spikebridge.run(config, directory, overwrite=True, task=DelayedXor(samples))
    print(f"right on the test set: {result.test:.1%}, by chance 50 %; run: {directory}")
    return result


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/xor")
