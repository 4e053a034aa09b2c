"""Learning online against backpropagation through time: memory, time, and angles of gradients.

    python benchmarks/online.py memory|cost|angles [--save|--draw]      (data: $SPIKEBRIDGE_DATA)

memory: the peak of one sequence of T steps, each point in a fresh process; 88-150-88 SNUs, B=8, a
loss at every step, inputs that are made step by step.  What the interpreter, torch and a sequence
of 20 steps hold is subtracted.

cost: milliseconds of processor time per step of a sequence of 128, in blocks of 32, B=8, 88 inputs,
one thread: backpropagation, eligibilities as they are chosen and, where that makes a difference,
all of them derived ("derived") take turns; "step": steps one at a time.  Least of the rounds.

angles: between the gradients of OSTL or e-prop and those of backpropagation, on batches of the JSB
chorales, while backpropagation trains; 1 to 3 hidden layers of 32 SNUs.

--save writes docs/results/online-*.json and draws pictures of memory and angles (needs matplotlib),
--draw draws them from what is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
STEPS = [100, 300, 1_000, 3_000, 10_000]
MODES = {"bptt": "backpropagation", "ostl": "OSTL"}
NOTES, HIDDEN, B = 88, 150, 8

WIDTH, SONGS, UPDATES = 32, 8, [0, 10, 30, 100, 300]
COLOURS = {1: "#808080", 2: "#0072B2", 3: "#D55E00"}


def sequence(mode: str, network: Any, steps: int) -> None:
    """The gradients of one sequence: predict the next frame of random notes."""
    import torch
    import torch.nn.functional as F

    from spikebridge.learning.online import Online

    noise = torch.Generator().manual_seed(0)

    def frames() -> Iterator[torch.Tensor]:
        for _ in range(steps):
            yield (torch.rand(B, NOTES, generator=noise) < 0.1).float()

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nats = F.binary_cross_entropy_with_logits(output, target, reduction="sum")
        return nats / (steps * B)

    if mode == "bptt":
        x = torch.stack(list(frames()))
        loss(network(x)[0], x).backward()
    else:
        now: list[torch.Tensor] = []

        def heard() -> Iterator[torch.Tensor]:
            for x in frames():
                now[:] = [x]
                yield x

        Online(network).sequence(heard(), lambda output, t: loss(output, now[0]))


def child(mode: str, steps: int) -> None:
    import measure
    import torch
    import torch.fx.experimental.symbolic_shapes  # which backward imports; before it is measured

    import spikebridge.learning.online  # noqa: F401
    from spikebridge import build
    from spikebridge.settings.model import ModelConfig

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = ModelConfig(hidden=(HIDDEN,), g="leaky_relu", train_decay=True)
    network = build(model, NOTES, NOTES, "each")
    sequence("bptt", network, 20)
    before = measure.peak_bytes()
    start, used = time.perf_counter(), time.process_time()
    sequence(mode, network, steps)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    peak = measure.peak_bytes()
    print(json.dumps({"peak_bytes": peak - before, "seconds": seconds, "cpu_seconds": cpu}))


def memory() -> dict[str, Any]:
    rows = []
    for mode in MODES:
        for steps in STEPS:
            command = [sys.executable, __file__, "child", mode, str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"mode": mode, "t": steps, **json.loads(done.stdout)})
            print(
                f"{MODES[mode]:16} T={steps:6} {rows[-1]['peak_bytes'] / 1e6:8.1f} MB"
                f" {rows[-1]['cpu_seconds'] / steps * 1e3:7.3f} ms of CPU per step",
                flush=True,
            )
    return {"n": HIDDEN, "inputs": NOTES, "b": B, "rows": rows}


COSTS = [  # unit, neurons, recurrent, rule
    ("snu", HIDDEN, False, "ostl"),
    ("softsnu", HIDDEN, False, "ostl"),
    ("snu", HIDDEN, True, "eprop"),
    ("snu", WIDTH, True, "ostl"),
    ("adaptive-snu", HIDDEN, False, "ostl"),
    ("adaptive-snu", HIDDEN, True, "eprop"),
    ("adaptive-snu", WIDTH, True, "ostl"),
]
ROUNDS, LENGTH = 5, 128


def cost() -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    rows = []
    for unit, size, recurrent, rule in COSTS:
        ways = _ways(unit, size, recurrent, rule)
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                start = time.thread_time()
                run()
                taken[way].append((time.thread_time() - start) / LENGTH * 1e3)
        least = {way: min(times) for way, times in taken.items()}
        row = {"unit": unit, "n": size, "recurrent": recurrent, "rule": rule, "ms": least}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"inputs": NOTES, "b": B, "t": LENGTH, "rows": rows}


def _ways(unit: str, size: int, recurrent: bool, rule: Any) -> dict[str, Any]:
    """The gradients of one batch, formed in each of the ways that there are."""
    import torch

    from spikebridge import build
    from spikebridge.data.task import Batch
    from spikebridge.learning.online import Online
    from spikebridge.learning.online_one_state import OneState
    from spikebridge.settings.model import ModelConfig

    torch.manual_seed(0)
    network = build(
        ModelConfig(unit=unit, hidden=(size,), recurrent=recurrent, train_decay=True),
        NOTES,
        NOTES,
        "each",
    )
    batch = Batch((torch.rand(LENGTH, B, NOTES) < 0.1).float(), torch.zeros(LENGTH, B), None)

    def loss(output: torch.Tensor, part: Batch) -> torch.Tensor:
        return output.square().mean()

    def back() -> None:
        loss(network(batch.x)[0], batch).backward()

    chosen, derived = Online(network, rule), Online(network, rule, eligibilities="derived")
    ways: dict[str, Any] = {
        "bptt": back,
        "auto": lambda: chosen.learn(batch, loss),
        "auto, step": lambda: chosen.learn(batch, loss, block=1),
    }
    if chosen.layers[0].kind is OneState:
        ways["derived"] = lambda: derived.learn(batch, loss)
        ways["derived, step"] = lambda: derived.learn(batch, loss, block=1)
    return ways


def angles() -> dict[str, Any]:
    """Angles in degrees, as means over some batches of validation songs."""
    import torch

    from spikebridge.data.music import Music
    from spikebridge.settings.tasks import MusicConfig

    torch.set_num_threads(1)
    music, rows = Music(MusicConfig()), []
    for recurrent in (False, True):
        for depth in (1, 2, 3):
            rows += _while_training(music, depth, recurrent)
    return {"width": WIDTH, "b": SONGS, "rows": rows}


def _while_training(music: Any, depth: int, recurrent: bool) -> list[dict[str, Any]]:
    import torch

    from spikebridge import build
    from spikebridge.settings.model import ModelConfig

    torch.manual_seed(depth)
    model = ModelConfig(
        hidden=(WIDTH,) * depth, recurrent=recurrent, g="identity", train_decay=True
    )
    network = build(model, NOTES, NOTES, "each")
    network.readout.start_at(music.prior)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    data, rows, done = torch.Generator().manual_seed(0), [], 0
    while True:
        for batch in music.batches("train", SONGS, data):
            if done in UPDATES:
                found = _compare(music, network, recurrent)
                rows += [
                    {"layers": depth, "recurrent": recurrent, "update": done, **row}
                    for row in found
                ]
                print(depth, "recurrent" if recurrent else "feed-forward", done, found, flush=True)
            if done == UPDATES[-1]:
                return rows
            optimizer.zero_grad()
            music.loss(network(batch.x)[0], batch).backward()
            optimizer.step()
            done += 1


def _compare(music: Any, network: Any, recurrent: bool) -> list[dict[str, Any]]:
    import torch

    from spikebridge.learning.angles import angle_deg, gradients_of
    from spikebridge.learning.online import Online

    rules = ["ostl", "eprop"] if recurrent else ["ostl"]
    sums: dict[str, list[dict[str, float]]] = {rule: [] for rule in rules}
    batches = list(music.batches("valid", SONGS, torch.Generator()))[:3]
    for batch in batches:
        through = gradients_of(network, lambda b=batch: music.loss(network(b.x)[0], b))
        for rule in rules:
            network.zero_grad()
            Online(network, rule).learn(batch, music.loss)
            found = {name: p.grad.clone() for name, p in network.named_parameters()}
            parts = {"hidden": "layers."} | {
                f"layer{n + 1}": f"layers.{n}." for n in range(len(network.layers))
            }
            sums[rule].append(
                {
                    part: angle_deg(_under(found, prefix), _under(through, prefix))
                    for part, prefix in parts.items()
                }
            )
    return [
        {
            "rule": rule,
            "loss": float(music.loss(network(batches[0].x)[0], batches[0]).detach()),
            "deg": {p: sum(r[p] for r in found) / len(found) for p in found[0]},
        }
        for rule, found in sums.items()
    ]


def _under(gradients: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name: g for name, g in gradients.items() if name.startswith(prefix)}


def draw_memory(found: dict[str, Any]) -> None:
    plt = _pyplot()
    figure, grid = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for mode, colour, marker in (("bptt", "#808080", "v"), ("ostl", "#0072B2", "o")):
        part = [row for row in found["rows"] if row["mode"] == mode]
        x = [row["t"] for row in part]
        grid[0].plot(
            x, [r["peak_bytes"] / 1e6 for r in part], marker=marker, color=colour, label=MODES[mode]
        )
        per_step = [row["cpu_seconds"] / row["t"] * 1e3 for row in part]
        grid[1].plot(x, per_step, marker=marker, color=colour, label=MODES[mode])
    grid[0].set_yscale("log")
    grid[1].set_yscale("log")
    grid[0].set_ylabel("peak memory of a sequence, MB")
    grid[1].set_ylabel("CPU time per step, ms")
    for axes in grid:
        axes.set_xscale("log")
        axes.set_xlabel("time steps T")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].legend(frameon=False)
    figure.suptitle(
        f"{found['inputs']}-{found['n']}-{found['inputs']} SNUs, B={found['b']}, fp32, a loss at "
        "every step",
        fontsize=11,
    )
    figure.savefig(RESULTS / "online-memory.png", dpi=110)
    plt.close(figure)


def draw_angles(found: dict[str, Any]) -> None:
    plt = _pyplot()
    figure, grid = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, layout="constrained")
    panels = [
        (False, "ostl", "feed-forward: OSTL = e-prop"),
        (True, "ostl", "recurrent: OSTL"),
        (True, "eprop", "recurrent: e-prop"),
    ]
    for axes, (recurrent, rule, title) in zip(grid, panels, strict=True):
        for depth, colour in COLOURS.items():
            part = [
                row
                for row in found["rows"]
                if (row["recurrent"], row["rule"], row["layers"]) == (recurrent, rule, depth)
            ]
            x = [row["update"] for row in part]
            label = f"{depth} layer" + ("s" if depth > 1 else "")
            axes.plot(x, [r["deg"]["hidden"] for r in part], marker="o", color=colour, label=label)
            if depth > 1:
                axes.plot(x, [r["deg"]["layer1"] for r in part], ":", marker=".", color=colour)
        axes.axhline(90, color="#B0B0B0", linewidth=1)
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xlim(-2, 500)
        axes.set_xlabel("updates")
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("angle to backpropagation's gradient, degrees")
    grid[0].set_ylim(-3, 95)
    grid[0].legend(frameon=False)
    figure.suptitle(
        f"All hidden layers of {found['width']} SNUs (dotted: the first of them alone), "
        "JSB chorales",
        fontsize=11,
    )
    figure.savefig(RESULTS / "online-angles.png", dpi=110)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=["memory", "cost", "angles"])
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    path = RESULTS / f"online-{options.study}.json"
    study, draw = {
        "memory": (memory, draw_memory),
        "cost": (cost, None),
        "angles": (angles, draw_angles),
    }[options.study]
    found = json.loads(path.read_text(encoding="utf-8")) if options.draw else study()
    if options.save:
        import measure

        measure.save(path, found)
    if draw is not None and (options.save or options.draw):
        draw(found)


if __name__ == "__main__":
    main()
