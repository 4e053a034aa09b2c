"""A unit of your own: a neuron behind a synapse that itself leaks, y' = h(s' + b).

    i' = 0.5 i + drive,   s' = g(i' + decay s keep(y)),   a state's s is (B, 2 N): s, then i

    spikebridge train digits --unit own_unit:SynapticUnit      in the folder of this file

Commands that read such a run import this module only where it is named:
SPIKEBRIDGE_MODULES=own_unit spikebridge evaluate RUN.
"""

import torch
from torch import Tensor

import spikebridge
from spikebridge.nn.units import Params, State, Unit, membrane


class SynapticUnit(Unit):
    label = "synaptic SNU"  # in tables and figures

    @property
    def memory(self) -> int:
        return 2 * self.size

    def membrane(self, state: State) -> Tensor:
        return state.s[..., : self.size]

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        s, current = state.s.split(self.size, dim=-1)
        current = 0.5 * current + drive
        s = membrane(self.rule, s, state.y, current, params)
        return State(self.rule.fire(s + params.bias), torch.cat([s, current], dim=-1))


if __name__ == "__main__":
    layer = spikebridge.Layer(spikebridge.Dense(10, 20), SynapticUnit(20, spikebridge.Rule()))
    y, state = layer(torch.rand(50, 3, 10))  # (T, B, I) to (T, B, N)
    print(f"{y.mean():.3f} spikes per neuron and step")
