"""What a step of one's own costs: the loop over it, the loop compiled by torch, and our kernel.

    python benchmarks/own_unit.py            prints the table, on one thread

The unit is an SNU written out as a user would write it, so that the kernel computes the same; times
are medians of processor time, of a forward and a backward pass over (T, B, N).  Compiling takes a
minute, once; --no-compile leaves it out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from spikebridge import Params, Rule, SNUnit, State, Unit, loop, scan


class Own(Unit):
    def step(self, state: State, drive: Tensor, params: Params) -> State:
        s = drive + params.decay * state.s * (1 - state.y)
        return State(self.rule.fire(s + params.bias), s)


def ms(run: Callable[[Tensor], Tensor], drive: Tensor, repeats: int) -> float:
    """Median processor milliseconds of a pass forwards and backwards, after one for warmth."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run(drive).sum().backward()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--sizes", type=int, nargs=3, default=[20, 64, 128], metavar=("T", "B", "N")
    )
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    drive = torch.randn(*args.sizes, requires_grad=True)
    own, ours = Own(args.sizes[2], Rule()), SNUnit(args.sizes[2], Rule())
    runs = {
        "kernel (the unit of ours)": lambda x: scan(ours, x, backend="native")[0],
        "loop": lambda x: loop(own, x).y,
    }
    if not args.no_compile:
        runs["loop, torch.compile"] = torch.compile(runs["loop"])
    print(f"(T, B, N) = {tuple(args.sizes)}, torch {torch.__version__}\n\n| path | ms | x kernel |")
    print("|---|---|---|")
    first = None
    for name, run in runs.items():
        taken = ms(run, drive, args.repeats)
        first = first or taken
        print(f"| {name} | {taken:.2f} | {taken / first:.1f} |", flush=True)


if __name__ == "__main__":
    main()
