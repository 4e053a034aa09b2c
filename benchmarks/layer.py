"""What a layer of spiking units costs beside its matrix product: forward + backward, side by side.

    python benchmarks/layer.py [--t 500] [--b 16] [--n 512 2048] [--repeats 9] [--json FILE]

Linear and Linear + SNU are measured in turn, round after round, the slow rows after them, in one
process; medians are shown, and ratios are medians over the rounds.  The gradient of the input is
included.  First the kernel is checked against the loop on the very operands; with a difference
nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from spikebridge.kernels import native
from spikebridge.scan import scan
from spikebridge.units import make_unit

Case = Callable[[], Tensor]


def cases(t: int, b: int, n: int) -> tuple[dict[str, Case], Tensor, list[Tensor]]:
    """The rows, the cotangent of the output, and everything that receives a gradient."""
    torch.manual_seed(0)
    linear, unit = nn.Linear(n, n), make_unit("snu", n)
    x = torch.randn(t, b, n, requires_grad=True)
    drive = linear(x).detach().requires_grad_()
    rows: dict[str, Case] = {
        "Linear": lambda: linear(x),
        "Linear + SNU": lambda: scan(unit, linear(x), backend="native")[0],
        "Linear + SNU, loop": lambda: scan(unit, linear(x), backend="loop")[0],
        "SNU scan alone": lambda: scan(unit, drive, backend="native")[0],
    }
    leaves = [x, drive, *linear.parameters(), *unit.parameters()]
    if n <= 1024:
        lstm = nn.LSTM(n, n)
        rows["nn.LSTM"] = lambda: lstm(x)[0]
        leaves += list(lstm.parameters())
    return rows, torch.randn(t, b, n), leaves


def check(rows: dict[str, Case], cotangent: Tensor, leaves: list[Tensor]) -> None:
    """The kernel equals the loop here and now, or there is nothing to time."""
    results = []
    for name in ("Linear + SNU", "Linear + SNU, loop"):
        y = rows[name]()
        results.append([y.detach(), *torch.autograd.grad(y, leaves[:1] + leaves[2:5], cotangent)])
    kernel, loop = results
    if not torch.equal(kernel[0], loop[0]):
        raise SystemExit("the kernel's spikes differ from the loop's: nothing was timed")
    for a, b in zip(kernel[1:], loop[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def seconds(case: Case, cotangent: Tensor, leaves: list[Tensor]) -> tuple[float, float]:
    for leaf in leaves:
        leaf.grad = None
    start = time.perf_counter()
    y = case()
    middle = time.perf_counter()
    y.backward(cotangent)
    return middle - start, time.perf_counter() - middle


def copy_bandwidth(like: Tensor, repeats: int) -> float:
    """GB/s of a plain copy, read and written bytes counted."""
    to, found = torch.empty_like(like), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        to.copy_(like)
        found.append(2 * like.nbytes / (time.perf_counter() - start) / 1e9)
    return statistics.median(found[1:])


def measure(t: int, b: int, n: int, repeats: int) -> dict:
    rows, cotangent, leaves = cases(t, b, n)
    check(rows, cotangent, leaves)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    # What is compared closely runs in turn; the slow rows would fragment the memory between.
    pair, others = ["Linear", "Linear + SNU", "SNU scan alone"], list(rows)
    for names in (pair, [name for name in others if name not in pair]):
        for round_ in range(repeats + 1):
            for name in names:
                found = seconds(rows[name], cotangent, leaves)
                if round_:  # the first warms up
                    times[name].append(found)
    base = [sum(pair) for pair in times["Linear"]]
    table = {
        name: {
            "forward_s": statistics.median(f for f, _ in pairs),
            "backward_s": statistics.median(b for _, b in pairs),
            "ratio_to_linear": statistics.median(
                sum(pair) / one for pair, one in zip(pairs, base, strict=True)
            ),
        }
        for name, pairs in times.items()
    }
    size = {"t": t, "b": b, "n": n, "repeats": repeats}
    return size | {"copy_GB_per_s": copy_bandwidth(cotangent, repeats), "rows": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--t", type=int, default=500)
    parser.add_argument("--b", type=int, default=16)
    parser.add_argument("--n", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "instruction_set": native.instruction_set(),
        "torch": torch.__version__,
    }
    print(f"T={options.t} B={options.b} fp32  {machine}")
    sizes = []
    for n in options.n:
        found = measure(options.t, options.b, n, options.repeats)
        sizes.append(found)
        print(f"\nN={n}, copy {found['copy_GB_per_s']:.1f} GB/s")
        print(f"{'':22}{'forward':>10}{'backward':>10}{'x Linear':>10}")
        for name, row in found["rows"].items():
            print(
                f"{name:22}{row['forward_s'] * 1e3:8.1f}ms{row['backward_s'] * 1e3:8.1f}ms"
                f"{row['ratio_to_linear']:10.2f}"
            )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "sizes": sizes}, indent=1))


if __name__ == "__main__":
    main()
