"""A task of your own: did two spikes, some time apart, come on the same of two lines?

In the folder of this file: spikebridge train own --task-class own_task:DelayedXor --data xor
"""

import torch

import spikebridge
from spikebridge.data import Batch, Task, sample_batches


class DelayedXor(Task):
    input_size, output_size = 3, 2  # two lines, and noise on a third

    def __init__(self, samples=3000):
        self.splits, generator = {}, torch.Generator().manual_seed(0)
        for split, n in {"train": samples, "valid": 500, "test": 500}.items():
            x = (torch.rand(20, n, 3, generator=generator) < torch.tensor([0, 0, 0.1])).float()
            line, time = (torch.randint(high, (2, n), generator=generator) for high in (2, 10))
            x[time[0], torch.arange(n), line[0]] = 1
            x[10 + time[1], torch.arange(n), line[1]] = 1
            self.splits[split] = x, line[0] ^ line[1]  # (T, n, I), (n,)

    def size(self, split):
        return len(self.splits[split][1])

    def batches(self, split, batch_size, generator):
        x, y = self.splits[split]
        for i in sample_batches(self.size(split), split, batch_size, generator):
            yield Batch(x[:, i], y[i], None)


def main(directory="runs/xor", epochs=15, samples=3000):
    settings = {"hidden": (64, 64), "decay": 0.95, "lr": 1e-2, "schedule": "onecycle"}
    config = spikebridge.preset("own", "snu", "xor", epochs=epochs, threads=1, **settings)
    return spikebridge.run(config, directory, overwrite=True, task=DelayedXor(samples))


if __name__ == "__main__":
    print(f"right on the test set: {main().test:.1%}, by chance 50 %")
