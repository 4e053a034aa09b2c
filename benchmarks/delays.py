"""What trained delays cost: a layer with them over the same layer without, side by side.

python benchmarks/delays.py [--rounds 10]

Forward and backward of one layer of spiking units behind spikes of density 0.1 ("sparse") and
behind numbers ("dense"), one thread, its processor time, the least of all rounds.
"""

from __future__ import annotations

import argparse
import time

import torch

from spikebridge import SNU

STEPS = 100
SHAPES = [(16, 256), (64, 256), (32, 512), (16, 1024), (64, 1024)]


def seconds(layer: SNU, x: torch.Tensor) -> float:
    """Of a forward and a backward pass."""
    start = time.thread_time()
    y, _ = layer(x)
    y.backward(torch.ones_like(y))
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("input   (T, B, N)          none      D=8     D=25    ratios")
    for batch, size in SHAPES:
        for kind in ("sparse", "dense"):
            x = torch.rand(STEPS, batch, size)
            x = (x < 0.1).float() if kind == "sparse" else x
            x.requires_grad_()
            layers = {delays: SNU(size, size, delays=delays) for delays in (0, 8, 25)}
            best = dict.fromkeys(layers, float("inf"))
            for _ in range(rounds):
                for delays, layer in layers.items():
                    best[delays] = min(best[delays], seconds(layer, x))
            times = "".join(f"{1e3 * value:7.2f}ms" for value in best.values())
            ratios = "  ".join(f"{best[d] / best[0]:.2f}" for d in (8, 25))
            print(f"{kind:7s} ({STEPS}, {batch}, {size})".ljust(24), times, " ", ratios, flush=True)


if __name__ == "__main__":
    main()
