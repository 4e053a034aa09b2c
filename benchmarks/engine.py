"""What an event costs: the chip's engine beside torch's dense layers, step by step at batch 1.

    python benchmarks/engine.py [--json docs/results/engine-cpu.json] [--rounds 201]

784-1024-1024-10, weights of 8 bits, thresholds set so that about 2 % of every layer fire; what
really fires is printed.  torch runs the same network in fp32: three nn.Linear and two thresholds,
without gradients, at the number of threads that serves it best; ours has one.  All rows are
measured in turn, round after round, in one process; times are medians over the rounds, ratios are
medians of the ratios within a round, with their range; on a machine that others use too, the best
round of each row tells more, and the ratio of the best ones is given as well.  Before anything is
timed the engine must equal the definition (numpy), whose own time is shown too.  At the end:
10,000 samples of one step with as many ones as MNIST pictures have, as one batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from torch import Tensor, nn

from spikebridge.chip.bounds import bits_for, bounds
from spikebridge.chip.engine import Engine
from spikebridge.chip.golden import Golden
from spikebridge.chip.program import ChipConfig, Program, ProgramLayer

SIZES = (784, 1024, 1024, 10)
ACTIVITY = 0.02
PICTURE = 0.19  # share of pixels of MNIST that are above zero
# Steps of a round: so few that most rounds pass before another process gets its turn.
STEPS = {"engine": 200, "torch": 4, "numpy": 4}
BATCH = 10_000


def network(rng: np.random.Generator) -> Program:
    """Random weights of 8 bits, leaks of 0.5 to 0.95; thresholds still to be found."""
    layers = []
    for number, (inputs, neurons) in enumerate(pairwise(SIZES)):
        weight = np.clip(rng.normal(0, 32, (inputs, neurons)).round(), -128, 127)
        zero = np.zeros(neurons, np.int64)
        layers.append(
            ProgramLayer(
                f"layer {number}",
                weight.astype(np.int32),
                bias=zero,
                threshold=zero,
                decay=rng.integers(128, 244, neurons),
                amount=zero,
                scale=np.ones(neurons),
                inputs=inputs,
                slope=26,
                reduce="each" if neurons == SIZES[-1] else None,
            )
        )
    return Program(tuple(layers), 8, 8, 4, 32, 0, ChipConfig()).check()


def inputs_of(rng: np.random.Generator, steps: int, share: float = ACTIVITY) -> np.ndarray:
    return rng.random((steps, SIZES[0])) < share


def calibrated(program: Program, rng: np.random.Generator) -> Program:
    """The program with one threshold per layer that about 2 % of its neurons pass."""
    for number in range(len(program.layers) - 1):
        low, high = 0, 1 << 24
        while high - low > 64:
            middle = (low + high) // 2
            shifted = _with_threshold(program, number, middle)
            fires = activity(shifted, inputs_of(rng, 400))[number]
            low, high = (middle, high) if fires > ACTIVITY else (low, middle)
        program = _with_threshold(program, number, high)
    ends = [bounds(layer, 8, 4, program.chip.max_steps) for layer in program.layers]
    widest = max(bits_for(int(low.min()), int(high.max())) for low, high, _ in ends)
    if not all(settled for _, _, settled in ends):
        raise SystemExit("the membranes of this network have no bound")
    return replace(program, membrane_bits=widest).check()


def _with_threshold(program: Program, number: int, value: int) -> Program:
    layers = list(program.layers)
    layers[number] = replace(layers[number], threshold=np.full(SIZES[number + 1], value))
    return replace(program, layers=tuple(layers))


def activity(program: Program, x: np.ndarray) -> list[float]:
    """Share of the neurons of each hidden layer that fire, over the second half of the steps."""
    engine, found = Engine(program), []
    for step, row in enumerate(x):
        engine.step(np.flatnonzero(row))
        if step >= len(x) // 2:
            found.append([len(y) for y in engine.spikes])
    return [n / size for n, size in zip(np.mean(found, 0), SIZES[1:], strict=False)]


def must_be_equal(program: Program, x: np.ndarray) -> None:
    engine, golden = Engine(program, "native"), Golden(program)
    for row in x:
        events = np.flatnonzero(row)
        if not np.array_equal(engine.step(events), golden.step(events).outputs):
            raise SystemExit("the engine differs from the definition: nothing was timed")


class Dense(nn.Module):
    """The same network in torch: products with all inputs, spiking or not."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in program.layers:
            linear = nn.Linear(*layer.weight.shape)
            linear.weight.data = torch.from_numpy(layer.weight.T.astype(np.float32))
            linear.bias.data.zero_()
            self.layers.append(linear)
        self.thresholds = [float(layer.threshold[0]) / 16 for layer in program.layers[:-1]]

    def forward(self, x: Tensor) -> Tensor:
        for linear, threshold in zip(self.layers, self.thresholds, strict=False):
            x = (linear(x) > threshold).float()
        return self.layers[-1](x)


def rows(program: Program, x: np.ndarray) -> dict[str, Callable[[], float]]:
    """Per row what gives seconds per time step."""
    events, floats = [np.flatnonzero(row) for row in x], torch.from_numpy(x).float()
    engine, golden, dense = Engine(program, "native"), Golden(program), Dense(program)

    def ours() -> float:
        step, given = engine.step, events * (STEPS["engine"] // len(events))
        start = time.perf_counter()
        for row in given:
            step(row)
        return (time.perf_counter() - start) / len(given)

    def torchs(threads: int) -> float:
        torch.set_num_threads(threads)
        given = [floats[i % len(floats)][None] for i in range(STEPS["torch"])]
        with torch.no_grad():
            dense(given[0])
            start = time.perf_counter()
            for row in given:
                dense(row)
            return (time.perf_counter() - start) / len(given)

    def numpys() -> float:
        start = time.perf_counter()
        for row in events[: STEPS["numpy"]]:
            golden.step(row)
        return (time.perf_counter() - start) / STEPS["numpy"]

    found: dict[str, Callable[[], float]] = {"engine, 1 thread": ours}
    for threads in range(1, (torch.get_num_threads()) + 1):
        found[f"torch fp32, threads: {threads}"] = lambda threads=threads: torchs(threads)
    return found | {"numpy (definition)": numpys}


def in_turn(timed: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every row once a round; the first round warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in timed}
    for round_ in range(rounds + 1):
        for name, call in timed.items():
            seconds = call()
            if round_:
                found[name].append(seconds)
    return found


def table(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    made = {}
    for name, row in times.items():
        ratios = [a / b for a, b in zip(row, times[base], strict=True)]
        median, best = statistics.median(row), min(row) / min(times[base])
        made[name] = {
            "step_s": median,
            "step_s_best": min(row),
            "steps_per_s": 1 / median,
            "ratio": statistics.median(ratios),
            "ratio_of_best": best,
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
        print(
            f"{name:28}{median * 1e6:10.1f} us{1 / median:12,.0f} steps/s"
            f"{made[name]['ratio']:9.1f} x ({min(ratios):.1f} to {max(ratios):.1f});"
            f" best round {min(row) * 1e6:,.1f} us, {best:.1f} x",
            flush=True,
        )
    return made


def batch(program: Program, rng: np.random.Generator, rounds: int) -> dict[str, float]:
    """Seconds for a data set of one-step samples, one thread."""
    engine, found = Engine(program, "native"), []
    x = inputs_of(rng, BATCH, PICTURE)[None]
    for round_ in range(rounds + 1):
        start = time.perf_counter()
        engine.run(x, threads=1)
        if round_:
            found.append(time.perf_counter() - start)
    seconds = statistics.median(found)
    print(
        f"{BATCH:,} samples of 1 step, {x.mean():.0%} ones: {seconds:.3f} s, "
        f"best {min(found):.3f} s",
        flush=True,
    )
    return {
        "samples": BATCH,
        "input_activity": float(x.mean()),
        "seconds": seconds,
        "seconds_best": min(found),
        "samples_per_s": BATCH / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="keep all figures there")
    parser.add_argument("--rounds", type=int, default=201, help="counted rounds")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    program = calibrated(network(rng), rng)
    x = inputs_of(rng, 100)
    must_be_equal(program, x[:30])
    fires = [float(x.mean()), *activity(program, inputs_of(rng, 1000))]
    print("activity:", ", ".join(f"{share:.2%}" for share in fires), flush=True)
    base = "engine, 1 thread"
    times = in_turn(rows(program, x), options.rounds)
    found = table(times, base)
    others = [name for name in found if name.startswith("torch")]
    best = min(others, key=lambda name: found[name]["step_s_best"])
    print(
        f"best of torch: {best}, {found[best]['ratio']:.1f} times the engine's time "
        f"({found[best]['ratio_of_best']:.1f} times in the best rounds)"
    )
    content: dict[str, Any] = {
        "sizes": SIZES,
        "weight_bits": 8,
        "membrane_bits": program.membrane_bits,
        "activity": fires,
        "rounds": options.rounds,
        "rows": found,
        "torch_best": best,
        "batch": batch(program, rng, max(3, options.rounds // 20)),
    }
    if options.json:
        measure.save(options.json, content)


if __name__ == "__main__":
    main()
