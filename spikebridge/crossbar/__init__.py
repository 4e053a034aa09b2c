"""In-memory computing: weights as conductances of phase-change cells, in a simulation or a lab.

`spikebridge.to_crossbar` puts a network on cells: those of a model (`pcm.ITERATIVE`, your own
`Cell`, or `from_table` with measured curves), or any `CellArray` of yours.  `serve` and
`RemoteArray` lead to one over the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikebridge.base.doors import lazy

if TYPE_CHECKING:
    from spikebridge.crossbar import pcm
    from spikebridge.crossbar.bench.client import RemoteArray
    from spikebridge.crossbar.bench.server import serve
    from spikebridge.crossbar.cells import CellArray, SimulatedArray
    from spikebridge.crossbar.matrix import Crossbar
    from spikebridge.crossbar.measured import from_table, read_table
    from spikebridge.crossbar.network import CrossbarNetwork
    from spikebridge.crossbar.pcm import Cell

__all__ = [
    "Cell",
    "CellArray",
    "Crossbar",
    "CrossbarNetwork",
    "RemoteArray",
    "SimulatedArray",
    "from_table",
    "pcm",
    "read_table",
    "serve",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "bench.client": "RemoteArray",
        "bench.server": "serve",
        "cells": "CellArray SimulatedArray",
        "matrix": "Crossbar",
        "measured": "from_table read_table",
        "network": "CrossbarNetwork",
        "pcm": "Cell pcm",
    },
)
