"""How long waiting threads spin, and what that costs: on an idle machine and on a busy one.

    python benchmarks/threads.py [--out docs/results/threads-cpu.json] [--rounds 5] [--steps 40]

Two trainings, each in a process of its own with its setting of OpenMP: a spiking layer over 50 time
steps, and a small perceptron whose parallel regions are short.  The settings take turns, round
after round; first with nothing beside them, then beside as many endless loops as there are cores.
Every setting with equal threads must end with the same weights, bit for bit.
Run it on a quiet machine: what else runs counts as busy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spikebridge.base import processes
from spikebridge.runs import environment

SETTINGS: dict[str, dict[str, str]] = {
    "default of OpenMP": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    f"GOMP_SPINCOUNT={processes.SPINS}, ours": {"GOMP_SPINCOUNT": str(processes.SPINS)},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
ONE = "one thread"
WORK = ("snu", "perceptron")
BUSY = "while True: pass"


def train(work: str, steps: int) -> dict[str, Any]:
    """Seconds of a step, processor seconds of a step, and what the weights came to."""
    import torch
    from torch import nn

    from spikebridge.nn.rnn import SNU

    torch.manual_seed(0)
    x, target = torch.rand(50, 64, 128).round(), torch.randint(10, (64,))
    model: nn.Module = (
        SNU(128, 256) if work == "snu" else nn.Sequential(nn.Linear(128, 256), nn.ReLU())
    )
    readout = nn.Linear(256, 10)
    optimizer = torch.optim.Adam([*model.parameters(), *readout.parameters()], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        hidden = model(x)[0].mean(0) if work == "snu" else model(x[0])
        nn.functional.cross_entropy(readout(hidden), target).backward()
        optimizer.step()

    for _ in range(5):
        step()
    before, started, walls = _processor_s(), time.perf_counter(), []
    for _ in range(steps):
        step()
        walls.append(time.perf_counter())
    each = [b - a for a, b in zip([started, *walls], walls, strict=False)]
    digest = hashlib.sha256()
    for value in [*model.parameters(), *readout.parameters()]:
        digest.update(value.detach().numpy().tobytes())
    return {
        "median_s": statistics.median(each),
        "mean_s": statistics.fmean(each),
        "processor_s": (_processor_s() - before) / steps,
        "threads": torch.get_num_threads(),
        "weights": digest.hexdigest(),
    }


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(setting: str, work: str, steps: int) -> dict[str, Any]:
    """One training in a process of its own."""
    known = {name: value for name, value in os.environ.items() if name not in processes.WAITING}
    known.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, __file__, "--child", work, "--steps", str(steps)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=known | SETTINGS[setting]
    )
    return json.loads(done.stdout)


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many endless loops beside what is measured."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def table(loops: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """A row for each training and setting, medians and ranges over the rounds."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with busy(loops):
        for _ in range(rounds):
            for work in WORK:
                for setting in SETTINGS:
                    one = measured(setting, work, steps)
                    found.setdefault((work, setting), []).append(one)
    return [_row(work, setting, loops, runs) for (work, setting), runs in found.items()]


def _row(work: str, setting: str, loops: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    means = [run["mean_s"] for run in runs]
    return {
        "work": work,
        "setting": setting,
        "busy_loops": loops,
        "threads": runs[0]["threads"],
        "step_s": statistics.median(means),
        "step_low_s": min(means),
        "step_high_s": max(means),
        "median_step_s": statistics.median(run["median_s"] for run in runs),
        "processor_s": statistics.median(run["processor_s"] for run in runs),
        "weights": sorted({run["weights"] for run in runs}),
    }


def check(rows: list[dict[str, Any]]) -> None:
    """Equal threads give equal bits, whatever the threads do while they wait."""
    for work in WORK:
        alike = {
            weights
            for row in rows
            if row["work"] == work and row["setting"] != ONE
            for weights in row["weights"]
        }
        if len(alike) != 1:
            raise SystemExit(f"{work}: settings with equal threads gave {len(alike)} results")


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        beside = f"beside {row['busy_loops']} loops" if row["busy_loops"] else "idle"
        print(
            f"{row['work']:11}{beside:15}{row['setting']:32}{row['step_s'] * 1e3:9.2f} ms "
            f"({row['step_low_s'] * 1e3:.2f} to {row['step_high_s'] * 1e3:.2f})"
            f"{row['processor_s'] * 1e3:9.2f} ms of processors",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(train(options.child, options.steps)))
        return
    rows = []
    for loops in (0, environment.cores()):
        rows += (part := table(loops, options.rounds, options.steps))
        show(part)
    check(rows)
    if options.out:
        import measure

        settings = {"rounds": options.rounds, "steps": options.steps, "settings": SETTINGS}
        measure.save(options.out, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
