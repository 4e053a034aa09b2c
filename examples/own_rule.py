"""A learning rule of your own: the Manhattan rule, by which only the sign of a gradient counts.

    spikebridge train digits --rule own_rule:Manhattan --optimizer sgd --lr 1e-4 --momentum 0

A rule is made with the network and a seed, and taken off again by `detach`.  One that needs no
backward pass has `learn(batch, loss)` too, which leaves gradients at the parameters and returns
the loss of the batch.
"""

from torch import nn

import spikebridge


class Manhattan:
    def __init__(self, network: nn.Module, *, seed: int) -> None:
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.hooks = [p.register_hook(lambda gradient: gradient.sign()) for p in parameters]

    def detach(self) -> None:
        for hook in self.hooks:
            hook.remove()


if __name__ == "__main__":
    settings = {"optimizer": "sgd", "lr": 1e-4, "momentum": 0.0, "epochs": 3}
    config = spikebridge.preset("digits", "snu", rule="own_rule:Manhattan", **settings)
    print(f"right on the test set: {spikebridge.run(config, 'runs/manhattan').test:.1%}")
