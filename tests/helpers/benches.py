"""Cells, servers and clients of a bench."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from spikebridge.crossbar import pcm
from spikebridge.crossbar.bench.client import RemoteArray
from spikebridge.crossbar.bench.server import Server, serve
from spikebridge.crossbar.cells import SimulatedArray

SHAPE = (4, 6)


def simulated(cell: pcm.Cell = pcm.ACCUMULATION, shape: tuple[int, ...] = SHAPE) -> SimulatedArray:
    return SimulatedArray(shape, cell, seed=3, dead=0.1)


def once(counts: int = 1) -> Tensor:
    return torch.full(SHAPE, counts)


def connect(server: Server, **more: Any) -> RemoteArray:
    return RemoteArray(server.address, **({"timeout_s": 20.0, "retry_s": 0.3} | more))


def assert_equal_state(a: SimulatedArray, b: SimulatedArray) -> None:
    mine, other = a.state_dict(), b.state_dict()
    assert mine.keys() == other.keys()
    for name in mine:
        assert torch.equal(mine[name], other[name]), name


@pytest.fixture
def array() -> SimulatedArray:
    return simulated()


@pytest.fixture
def server(array: SimulatedArray) -> Iterator[Server]:
    with serve(array) as server:
        yield server
