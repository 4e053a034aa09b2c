"""Memory cells of your own: what pulses do to a conductance, and what a write, time and reads do.

    spikebridge train digits --cells own_cell:FILAMENT --epochs 5     in the folder of this file
    spikebridge program RUN --cells own_cell:FILAMENT

Commands that only read such a run want SPIKEBRIDGE_MODULES=own_cell before them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import spikebridge
from spikebridge.crossbar import Cell


@dataclass(frozen=True)
class Steps:
    """SET pulses that add a tenth of what is left to 100 uS, give or take a tenth of that."""

    history_start: float = 0.0  # nothing beside the conductance is kept of earlier pulses

    def mean_step_uS(self, g_uS: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        return 0.1 * (100.0 - g_uS), history

    def step(self, g_uS: Tensor, history: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return g_uS + 0.1 * (100.0 - g_uS) * (1 + 0.1 * noise), history


FILAMENT = Cell("filament", g_max_uS=100.0, g_min_uS=5.0, reset_uS=5.0, pulse=Steps())

if __name__ == "__main__":
    layer = spikebridge.SNU(10, 20)
    spikebridge.to_crossbar(layer, FILAMENT)
    print(f"{layer(torch.rand(50, 3, 10))[0].mean():.3f} spikes per neuron and step")
