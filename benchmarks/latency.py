"""What a time step costs at batch 1, as in streaming: one layer, and a network of three.

    python benchmarks/latency.py [--json docs/results/latency-cpu.json] [--rounds 51] [--no-compile]

"one layer" is 128-128 at T=B=1: a call without gradients, and one forward and backward.  "network"
is a step of three layers of N and a readout of 10, without gradients: ours, ours compiled by torch
(the time that its compilation took is given, not counted), nn.LSTM of equal width, and the chip's
integer engine with the weights of ours, rounded to 8 bits.  What fires is printed: an event-driven
engine's time depends on it, torch's does not.  States are handed on from step to step.

One thread.  All rows of a table are measured in turn, round after round, in one process.  Times are
medians over the rounds with their range; ratios, to nn.LSTM, are medians of the ratios within a
round.  Before anything is timed the compiled network must put out what the eager one does.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from spikebridge import SNU
from spikebridge.chip.compiler import compile as compile_for_chip
from spikebridge.chip.engine import Engine
from spikebridge.nn.network import build
from spikebridge.settings.model import ModelConfig

SIZES = {"128-128-128-128-10": (128, 128), "784-256-256-256-10": (784, 256)}
LAYERS, OUTPUTS = 3, 10
STEPS = 100  # of a row in a round
ACTIVITY = 0.1  # of the input
Timed = Callable[[], float]


class Stack(nn.Module):
    """Layers and a linear readout; (x, state) -> (output, state)."""

    def __init__(self, core: nn.Module, width: int) -> None:
        super().__init__()
        self.core, self.readout = core, nn.Linear(width, OUTPUTS)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.core(x, state)
        return self.readout(y), state


def spikes(inputs: int) -> Tensor:
    """(STEPS, 1, 1, I)."""
    return (torch.rand(STEPS, 1, 1, inputs) < ACTIVITY).float()


def stream(model: Any, state: Any, x: Tensor) -> Timed:
    """Seconds per step without gradients, each with the state of the one before."""

    def timed() -> float:
        after = state
        with torch.no_grad():
            start = time.perf_counter()
            for row in x:
                _, after = model(row, after)
            return (time.perf_counter() - start) / len(x)

    return timed


def trained(model: Any, state: Any, x: Tensor) -> Timed:
    """Seconds per step, forward and backward."""

    def timed() -> float:
        start = time.perf_counter()
        for row in x:
            model(row, state)[0].sum().backward()
        return (time.perf_counter() - start) / len(x)

    return timed


def silence(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return tree_map(torch.zeros_like, model(x[0])[1])


def layer_rows() -> dict[str, dict[str, Timed]]:
    """One layer: the table without gradients, and that with them."""
    x = spikes(128)
    layers: dict[str, Any] = {
        "SNU": SNU(128, 128),
        "SNU, recurrent": SNU(128, 128, recurrent=True),
        "nn.LSTM": nn.LSTM(128, 128),
    }
    starts = {name: silence(layer, x) for name, layer in layers.items()}
    return {
        "no gradients": {name: stream(layers[name], starts[name], x) for name in layers},
        "forward and backward": {name: trained(layers[name], starts[name], x) for name in layers},
    }


def engine_of(core: Any, inputs: int, width: int) -> Engine:
    """The chip's engine with these layers' weights, rounded."""
    network = build(ModelConfig(hidden=(width,) * LAYERS, unit="snu"), inputs, OUTPUTS, "each")
    for layer, like in zip(network.layers, core.layers, strict=True):
        layer.load_state_dict(like.state_dict())
    return Engine(compile_for_chip(network))


def compiled(model: Stack, state: Any, x: Tensor) -> tuple[Any, float]:
    """The model compiled by torch, and the seconds that took; SystemExit if it differs."""
    made = torch.compile(model)
    start = time.perf_counter()
    with torch.no_grad():
        ours, theirs = state, state
        for row in x:
            wanted, ours = model(row, ours)
            got, theirs = made(row, theirs)
            if not torch.allclose(got, wanted, atol=1e-5):
                raise SystemExit("the compiled network differs: nothing was timed")
    return made, time.perf_counter() - start


def network_rows(
    inputs: int, width: int, with_compiled: bool
) -> tuple[dict[str, Timed], dict[str, Any]]:
    """A step of three layers and a readout; and what fires, what compilation took."""
    x, core = spikes(inputs), SNU(inputs, width, LAYERS)
    ours, lstm = Stack(core, width), Stack(nn.LSTM(inputs, width, LAYERS), width)
    state, engine = silence(core, x), engine_of(core, inputs, width)
    events = [np.flatnonzero(row.numpy()) for row in x]
    fired = []
    for row in events:
        engine.step(row)
        fired.append([len(y) / width for y in engine.spikes])
    facts: dict[str, Any] = {"activity": [float(x.mean()), *np.mean(fired, 0).tolist()]}
    rows = {"nn.LSTM": stream(lstm, silence(lstm.core, x), x), "SNU": stream(ours, state, x)}
    if with_compiled:
        made, facts["compile_s"] = compiled(ours, state, x)
        rows["SNU, torch.compile"] = stream(made, state, x)

    def engines() -> float:
        step, start = engine.step, time.perf_counter()
        for row in events:
            step(row)
        return (time.perf_counter() - start) / len(events)

    return rows | {"engine, 8 bits": engines}, facts


def table(title: str, rows: Mapping[str, Timed], rounds: int) -> dict[str, dict[str, float]]:
    """Every row once a round; the first round warms up and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for round_ in range(rounds + 1):
        gc.collect()
        for name, timed in rows.items():
            seconds = timed()
            if round_:
                times[name].append(seconds)
    print(f"\n{title}", flush=True)
    found = {}
    for name, row in times.items():
        ratios = [a / b for a, b in zip(row, times["nn.LSTM"], strict=True)]
        found[name] = {
            "step_us": statistics.median(row) * 1e6,
            "step_us_low": min(row) * 1e6,
            "step_us_high": max(row) * 1e6,
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
        of = found[name]
        print(
            f"{name:24}{of['step_us']:9.1f} us ({of['step_us_low']:.1f} to "
            f"{of['step_us_high']:.1f}){of['ratio']:9.3g} of nn.LSTM "
            f"({of['ratio_low']:.3g} to {of['ratio_high']:.3g})",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="keep all figures there")
    parser.add_argument("--rounds", type=int, default=51, help="counted rounds")
    parser.add_argument(
        "--no-compile", action="store_true", help="without torch.compile, which needs a compiler"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = {
        name: table(f"one layer, 128-128, {name}", rows, options.rounds)
        for name, rows in layer_rows().items()
    }
    networks = {}
    for name, sizes in SIZES.items():
        rows, facts = network_rows(*sizes, with_compiled=not options.no_compile)
        shares = ", ".join(f"{share:.1%}" for share in facts["activity"])
        networks[name] = facts | {"rows": table(f"{name}, active: {shares}", rows, options.rounds)}
    if options.json:
        content = {"rounds": options.rounds, "steps": STEPS, "layer": layer, "networks": networks}
        measure.save(options.json, content)


if __name__ == "__main__":
    main()
