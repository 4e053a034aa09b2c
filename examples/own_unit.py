"""A unit of your own: an SNU behind a synapse that leaks too; a state's s is (B, 2 N), s then i.

    i' = 0.5 i + drive,   s' = i' + decay s (1 - y),   y' = h(s' + b)

    spikebridge train digits --unit own_unit:SynapticUnit         in the folder of this file

Commands that only read a run import this module where it is named, because that runs its code:
SPIKEBRIDGE_MODULES=own_unit spikebridge evaluate RUN
"""

import torch
from torch import Tensor

from spikebridge import Dense, Layer, Params, Rule, State, Unit


class SynapticUnit(Unit):
    label = "synaptic SNU"  # in tables and figures

    @property
    def state_size(self) -> int:
        return 2 * self.size

    def membrane(self, state: State) -> Tensor:
        return state.s[..., : self.size]

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        s, current = state.s.split(self.size, dim=-1)
        current = 0.5 * current + drive
        s = current + params.decay * s * (1 - state.y)
        return State(self.rule.fire(s + params.bias), torch.cat([s, current], dim=-1))


if __name__ == "__main__":
    layer = Layer(Dense(10, 20), SynapticUnit(20, Rule()))
    y, state = layer(torch.rand(50, 3, 10))  # (T, B, I) to (T, B, N)
    print(f"{y.mean():.3f} spikes per neuron and step")
