"""Peak memory of one training step against the number of steps T, each point in a fresh process.

    python benchmarks/memory.py [--json docs/results/memory-cpu.json]

Eight layers of 256 SNUs, B=4.  Rows: the Python loop; the kernel; the kernel with spikes kept as
bits; recompute=128; chunks of 256 steps with the state carried on (truncated backpropagation).
What the interpreter, torch and a step of 64 time steps hold is subtracted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

MODES = ["loop", "kernel", "spikes as bits", "recompute=128", "chunks of 256"]
STEPS = [256, 1024, 4096, 16384]
B, N, LAYERS = 4, 256, 8


def step(mode: str, steps: int) -> None:
    """One training step; its input is spikes."""
    import torch

    from spikebridge.nn.recompute import spikes_as_bits
    from spikebridge.nn.rnn import SNU

    torch.manual_seed(0)
    layer = SNU(
        N,
        N,
        num_layers=LAYERS,
        backend="loop" if mode == "loop" else "native",
        recompute=128 if mode.startswith("recompute") else 0,
    )
    chunk = 256 if mode.startswith("chunks") else steps
    state = None
    for _ in range(0, steps, chunk):
        x = (torch.rand(min(chunk, steps), B, N) > 0.9).float()
        with spikes_as_bits() if mode == "spikes as bits" else nullcontext():
            y, state = layer(x, state)
            loss = y.mean()
        del x, y
        loss.backward()
        state = state.detach()


def child(mode: str, steps: int) -> None:
    import measure

    step(mode, 64)
    before = measure.peak_bytes()
    start = time.perf_counter()
    step(mode, steps)
    seconds = time.perf_counter() - start
    peak = measure.peak_bytes()
    print(json.dumps({"peak_bytes": peak - before, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]))
        return
    import measure

    rows = []
    print(f"{LAYERS} layers of {N} SNUs, B={B}; one (T, B, N) buffer of T=16384 is 67 MB")
    for mode in MODES:
        for steps in STEPS:
            command = [sys.executable, __file__, "--child", mode, str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            rows.append({"mode": mode, "t": steps, **found})
            print(
                f"{mode:16} T={steps:6} {found['peak_bytes'] / 1e6:8.1f} MB"
                f" {found['seconds']:7.2f} s",
                flush=True,
            )
    if options.json:
        measure.save(options.json, {"layers": LAYERS, "b": B, "n": N, "rows": rows})


if __name__ == "__main__":
    main()
