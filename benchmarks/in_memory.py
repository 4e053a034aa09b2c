"""Speed of the in-memory simulation: devices, training with the hardware in the loop, aihwkit.

    SPIKEBRIDGE_DATA=... python benchmarks/in_memory.py [--rounds 5] [--json FILE]

Devices: programming and reading ten million cells.  Training: an epoch on JSB, 88-150-88, on
52,800 cells over one in software.  Inference: the same SNU network on the same JSB pieces, its
two matrices programmed, aged by a day and compensated, in ours and in aihwkit's PCM model where
that is installed (`pip install --no-deps aihwkit==1.1.0`).  Rows take turns; medians and ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikebridge import data as tasks
from spikebridge.base.chance import generator
from spikebridge.base.records import to_plain
from spikebridge.crossbar import pcm
from spikebridge.crossbar.cells import SimulatedArray
from spikebridge.crossbar.network import to_crossbar
from spikebridge.nn.network import build
from spikebridge.runs import environment, rundir
from spikebridge.runs import training as experiment
from spikebridge.runs.evaluation import evaluating
from spikebridge.settings.config import override, preset
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig, PulseConfig

CELLS = 10_000_000
DAY_S = 86400.0


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def devices(rounds: int) -> dict[str, Any]:
    """Seconds to program and to read ten million cells."""
    found: dict[str, Any] = {}
    for cell in (pcm.ITERATIVE, pcm.ACCUMULATION, pcm.ideal()):
        array = SimulatedArray((CELLS,), cell)
        targets = torch.rand(CELLS) * (0.8 * cell.g_max_uS)
        counts = torch.ones(CELLS, dtype=torch.int64)
        times: dict[str, list[float]] = {"program": [], "read": [], "pulse": []}
        for _ in range(rounds):
            times["program"].append(seconds(lambda a=array, t=targets: a.program(t)))
            times["read"].append(seconds(array.read))
            if cell.pulse is not None:
                times["pulse"].append(seconds(lambda a=array, c=counts: a.pulse(c)))
        found[cell.name] = {f"{k}_s": statistics.median(v) for k, v in times.items() if v}
    return found


class _Epochs(experiment.Silent):
    """The seconds that training takes in each epoch, without validation."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.last = 0.0
        self.times: list[float] = []

    def batch(self, epoch: int, share: float) -> None:
        if share == 1.0:
            self.times.append(time.perf_counter() - self.started)

    def epoch(self, record: dict[str, Any]) -> None:
        self.started = time.perf_counter()


def training(rounds: int) -> dict[str, Any]:
    """Seconds of an epoch in software and on the cells, one epoch each in turn."""
    plain = preset("music", "snu", ema=0.0)
    cells = dataclasses.replace(
        plain,
        cells=CellConfig("accumulation"),
        crossbar=CrossbarConfig(w_max=0.8),
        pulses=PulseConfig(epsilon=0.133, refresh_every=5),
    )
    configs = {
        "software": plain,
        "52,800 cells": cells,
        "211,200 cells": override(cells, pairs=4, epsilon=0.033),
    }
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs.items():
            runs[name] = experiment._Run(config, Path(folder), _Epochs(), None)
        times: dict[str, list[float]] = {name: [] for name in configs}
        for number in range(rounds + 1):
            for name, run in runs.items():
                taken = seconds(lambda r=run, n=number: r._train(n + 1))
                if number:
                    times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, times["software"], strict=True))
        for name, values in times.items()
    }
    return {"epoch_s": medians, "over_software": ratios}


def inference(rounds: int) -> dict[str, Any]:
    """Seconds to program, age, compensate and test, ours and aihwkit's."""
    config = preset("music", "snu")
    task = tasks.load(config.task)
    torch.manual_seed(0)
    network = build(config.model, task.input_size, task.output_size, task.readout)
    batches = list(task.batches("test", 8, generator(0, "test")))
    rows: dict[str, Callable[[], None]] = {"spikebridge": lambda: _ours(network, batches)}
    try:
        import aihwkit

        rows[f"aihwkit {aihwkit.__version__}"] = lambda: _aihwkit(network, batches)
    except ImportError:
        print("aihwkit is not installed: its row is left out")
    times: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, row in rows.items():
            taken = seconds(row)
            if number:
                times[name].append(taken)
    base = times["spikebridge"]
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "over_ours": {
            name: statistics.median(a / b for a, b in zip(values, base, strict=True))
            for name, values in times.items()
        },
    }


def _ours(network: nn.Module, batches: list[Any]) -> None:
    config = CrossbarConfig(tile=512, dac_bits=8, adc_bits=8)
    chip = to_crossbar(network, pcm.ITERATIVE, config)
    chip.wait(DAY_S)
    chip.compensate()
    _test(chip.network, batches)


def _aihwkit(network: Any, batches: list[Any]) -> None:
    """The same network with aihwkit's layers in the places of the two matrices."""
    import copy

    from aihwkit.inference import GlobalDriftCompensation, PCMLikeNoiseModel
    from aihwkit.nn import AnalogLinear
    from aihwkit.simulator.configs import TorchInferenceRPUConfig

    config = TorchInferenceRPUConfig()
    config.noise_model = PCMLikeNoiseModel(g_max=25.0)
    config.drift_compensation = GlobalDriftCompensation()
    twin = copy.deepcopy(network)
    layers = []
    for owner, name in ((twin.layers[0], "array"), (twin.readout, "linear")):
        old = getattr(owner, name)
        bias = getattr(old, "bias", None)
        new = AnalogLinear(
            old.in_features, old.out_features, bias=bias is not None, rpu_config=config
        )
        new.set_weights(old.weight.detach(), None if bias is None else bias.detach())
        owner._modules[name] = new
        layers.append(new)
    twin.eval()
    for layer in layers:
        layer.program_analog_weights()
        layer.drift_analog_weights(DAY_S)
    _test(twin, batches)


def _test(network: Any, batches: list[Any]) -> None:
    with evaluating(network):
        for batch in batches:
            network(batch.x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"environment": to_plain(environment.collect())}
    for part in (devices, training, inference):
        found[part.__name__] = part(given.rounds)
        print(part.__name__, found[part.__name__], flush=True)
    if given.json:
        rundir.write_json(given.json, found)


if __name__ == "__main__":
    main()
