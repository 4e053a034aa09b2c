"""What a step of one's own costs: the loop over it, the loop compiled by torch, and our kernel.

    python benchmarks/own_unit.py            prints the table, on one thread

The unit is an SNU written out as a user would write it, so that the kernel computes the same.
Times are of the processor, of a forward and a backward pass over (T, B, N): the shortest of many
and the median, since other programs on the machine only add to them.  Compiling
takes half a minute at the first size, less at others; --no-compile leaves it out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from spikebridge import Params, Rule, SNUnit, State, Unit, scan
from spikebridge.nn.scan import Backend


class Own(Unit):
    def step(self, state: State, drive: Tensor, params: Params) -> State:
        s = drive + params.decay * state.s * (1 - state.y)
        return State(self.rule.fire(s + params.bias), s)


def ms(run: Callable[[Tensor], Tensor], drive: Tensor, repeats: int) -> tuple[float, float]:
    """Least and median processor milliseconds of a pass forwards and backwards, after a first."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run(drive).sum().backward()
        times.append(1e3 * (time.process_time() - start))
    return min(times[1:]), statistics.median(times[1:])


SIZES = [(20, 64, 128), (200, 64, 128), (200, 32, 512)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--size", type=int, nargs=3, action="append", metavar=("T", "B", "N"))
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread\n")
    print("| (T, B, N) | path | first call, s | least ms | median ms | x kernel (least) |")
    print("|---|---|---|---|---|---|")
    for size in args.size or SIZES:
        own, ours = Own(size[2], Rule()), SNUnit(size[2], Rule())
        runs: dict[str, Callable[[Tensor], Tensor]] = {
            "kernel (the unit of ours)": partial(_outputs, ours, "native"),
            "loop": partial(_outputs, own, "loop"),
        }
        if not args.no_compile:
            runs['backend="compiled"'] = partial(_outputs, own, "compiled")
        _measure(tuple(size), runs, args.repeats)


def _outputs(unit: Unit, backend: Backend, drive: Tensor) -> Tensor:
    return scan(unit, drive, backend=backend)[0]


def _measure(
    size: tuple[int, ...], runs: dict[str, Callable[[Tensor], Tensor]], repeats: int
) -> None:
    kernel = None
    for name, run in runs.items():
        drive = torch.randn(*size, requires_grad=True)
        start = time.perf_counter()
        run(drive).sum().backward()
        first = time.perf_counter() - start
        least, median = ms(run, drive, repeats)
        kernel = kernel or least
        times = f"{first:.2f} | {least:.2f} | {median:.2f} | {least / kernel:.1f}"
        print(f"| {size} | {name} | {times} |", flush=True)


if __name__ == "__main__":
    main()
