"""What spiking costs: beside the matrix product alone, torch's own recurrent layers and the peers.

    python benchmarks/speed.py [--json docs/results/speed-cpu.json] [--rounds 7] [--only layer]

Forward + backward with the gradient of the input, T=500, B=16.  The rows of a table are measured
in turn, round after round, in one process; times are medians, ratios are medians of the ratios
within a round, with their range.  Before anything is timed the kernel tests must be green and the
kernel must equal the loop on the operands of the tables; peers must fire the same spikes.

    python benchmarks/speed.py --only peers --rounds 3 --json docs/results/speed-peers-cpu.json

Other libraries on spikes of 10 % and on normal numbers, as they are and compiled by torch.
Peers that are installed take part: pip install 'spikebridge[bench]' --extra-index-url
https://download.pytorch.org/whl/cpu (without that address SpikingJelly's torchvision brings a CUDA
build of torch).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import peers
import torch
from measure import Row
from torch import nn

from spikebridge import data
from spikebridge.base.chance import generator
from spikebridge.nn.kernels import native, rescale
from spikebridge.nn.rnn import SNU, SoftSNU
from spikebridge.nn.scan import Backend, scan
from spikebridge.nn.synapses import Conv2d
from spikebridge.nn.units import Unit, make_unit
from spikebridge.runs import evaluation

T, B = 500, 16
Table = dict[str, Any]


def check(n: int, autocast: bool) -> None:
    """The kernel equals the loop here and now, or there is nothing to time."""
    torch.manual_seed(0)
    layer = peers.OurLayer(make_unit("snu", n), n)
    x, results = torch.randn(50, B, n, requires_grad=True), []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        drive = layer.array(x)
    for backend in ("native", "loop"):
        y, _ = scan(layer.unit, drive, backend=backend)
        leaves = [x, *layer.parameters()]
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, noise, retain_graph=True)])
    if not torch.equal(results[0][0], results[1][0]):
        raise SystemExit("the kernel's spikes differ from the loop's: nothing was timed")
    for ours, loops in zip(*results, strict=True):
        bound = (2e-2 if autocast else 1e-4) * float(loops.abs().max())
        torch.testing.assert_close(ours, loops, rtol=0, atol=bound)


def layer_tables(rounds: int) -> list[Table]:
    """Linear + SNU against the Linear alone, and the scan against the copy bandwidth."""
    tables = []
    for autocast in (False, True):
        for n in (512, 2048, 4096):
            check(n, autocast)
            linear, unit = nn.Linear(n, n), make_unit("snu", n)
            io = torch.bfloat16 if autocast else torch.float32
            both = peers.OurLayer(unit, n)
            rows = {
                "Linear": Row(linear, linear, autocast),
                "Linear + SNU": Row(both, both, autocast),
                "the scan alone": Row(_scan_of(unit), unit, dtype=io),
            }
            times = measure.in_turn(rows, (T, B, n), rounds)
            table = measure.summary(times, "Linear")
            copy = measure.copy_bandwidth(T * B * n, 2 * rounds)
            # Forward: drive, outputs, membranes; backward: cotangent, membranes, gradient.
            moved = T * B * n * (2 * io.itemsize + 4)
            for part in ("forward", "backward"):
                median = table["the scan alone"][f"{part}_s"]
                table["the scan alone"][f"{part}_GB_per_s"] = moved / median / 1e9
            whole = statistics.median(times["the scan alone"].total)
            name = "bf16 autocast" if autocast else "fp32"
            measure.show(f"Layer, N={n}, {name}", table, "Linear")
            share = 2 * moved / whole / 1e9 / copy
            print(f"copy {copy:.1f} GB/s; the scan reaches {share:.0%} of it")
            size = {"t": T, "b": B, "n": n, "precision": name}
            tables.append(
                size | {"copy_GB_per_s": copy, "scan_share_of_copy": share, "rows": table}
            )
    return tables


SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 1.0)


def sparse_tables(rounds: int, runs: Sequence[Path] = ()) -> list[Table]:
    """Linear + SNU against the Linear alone on spikes, by the share of neurons that fire.

    Both are asked for the same gradients on the same input: with that of the input, without it
    (a first layer), and the forward pass alone.  Random spikes, normal numbers (share 1), and
    what the layers of finished runs hand on.
    """
    tables = []
    for n, autocast in ((512, False), (2048, False), (4096, False), (512, True), (2048, True)):
        check(n, autocast)
        name = "bf16 autocast" if autocast else "fp32"
        print(f"\nSpikes, N={n}, {name}: of nn.Linear's time, making the indices included")
        for share in SHARES if n <= 2048 else (0.02, 0.1):
            torch.manual_seed(0)
            x = torch.randn(T, B, n) if share == 1 else (torch.rand(T, B, n) < share).float()
            tables.append({"precision": name, **_sparse_table(x, n, autocast, rounds)})
    for run in runs:
        for name, x in _recorded(run):
            print(f"\nSpikes of {name} of {run.name}")
            for n in (x.shape[-1], 512, 2048):
                tables.append({"of": f"{run.name}, {name}", **_sparse_table(x, n, False, rounds)})
    return tables


def _recorded(run: Path) -> list[tuple[str, torch.Tensor]]:
    """Outputs of the hidden layers of a run on its test data, about 8,000 rows each."""
    config, network = evaluation.trained(run)
    task = data.load(config.task)
    steps = getattr(config.task, "steps", 1)
    batches = evaluation.passes(network, task, "test", max(1, T * B // steps), generator(0, "test"))
    _, seen = next(iter(batches))
    return [(layer.name, layer.y.detach()) for layer in seen.layers if layer.spiking]


def _sparse_table(x: torch.Tensor, n: int, autocast: bool, rounds: int) -> Table:
    """A layer of n neurons behind x (T, B, I), beside nn.Linear alone."""
    torch.manual_seed(0)
    linear = nn.Linear(x.shape[-1], n)
    ours = peers.OurLayer(make_unit("snu", n), n, x.shape[-1])
    cotangent = torch.randn(*x.shape[:2], n)
    rows = {"Linear": Row(linear, linear, autocast), "Linear + SNU": Row(ours, ours, autocast)}
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in rows}
    for round_ in range(rounds + 1):
        for first in (False, True):
            for name, row in rows.items():
                leaf = x.detach().requires_grad_(not first)
                forward, backward = measure.once(row, leaf, cotangent)
                kinds = {"first layer": forward + backward}
                if not first:
                    kinds = {"forward": forward, "with the input's gradient": forward + backward}
                for kind, value in kinds.items() if round_ else ():
                    seconds[name].setdefault(kind, []).append(value)
    ratios = {}
    for kind, base in seconds["Linear"].items():
        each = [a / b for a, b in zip(seconds["Linear + SNU"][kind], base, strict=True)]
        ratios[kind] = {"median": statistics.median(each), "low": min(each), "high": max(each)}
    medians = {
        name: {kind: statistics.median(v) for kind, v in kinds.items()}
        for name, kinds in seconds.items()
    }
    share = float((x != 0).float().mean())
    said = ", ".join(f"{kind} {ratio['median']:.3f}" for kind, ratio in ratios.items())
    print(f"{share:6.1%} of {x.shape[-1]} to {n}: {said}", flush=True)
    size = {"t": x.shape[0], "b": x.shape[1], "inputs": x.shape[-1], "n": n, "share": share}
    return size | {"ratios": ratios, "seconds": medians}


# Channels and side of an image, channels out, kernel.
CONVOLUTIONS = ((1, 28, 32, 5), (32, 14, 64, 5), (64, 16, 64, 3))


def convolution_tables(rounds: int) -> list[Table]:
    """Sparse against dense convolutions of 640 images, by the share of pixels that are not zero."""
    tables = []
    for channels, side, outputs, kernel in CONVOLUTIONS:
        shape = (channels, side, side)
        for share in (0.05, 0.1, 0.2, 0.3):
            torch.manual_seed(0)
            x = (torch.rand(1, 640, channels * side**2) < share).float()
            rows = {}
            for kind in ("dense", "sparse"):
                array = Conv2d(shape, outputs, kernel, padding=kernel // 2, product=kind)
                rows[kind] = Row(array, array)
            table = measure.summary(measure.in_turn(rows, x, rounds), "dense")
            title = f"Convolution of {shape} to {outputs}, {kernel} x {kernel}, {share:.0%}"
            measure.show(title, table, "dense")
            size = {"in": shape, "channels": outputs, "kernel": kernel, "share": share}
            tables.append(size | {"rows": table})
    return tables


def _scan_of(unit: Any, backend: Backend = "native") -> Callable:
    return lambda drive: scan(unit, drive, backend=backend)[0]


def unit_tables(rounds: int) -> list[Table]:
    """The loop beside the kernel: of the SNU, with more state, with coupled neurons."""
    tables = []
    for t, b, n in ((20, 64, 128), (200, 32, 512), (T, B, 2048)):
        rows = {}
        for kind in ("snu", "adaptive-snu", "li-snu"):
            unit = make_unit(kind, n)
            _same_spikes(unit, torch.randn(20, b, n))
            for backend in ("loop", "native"):
                label = f"{kind}, {'loop' if backend == 'loop' else 'kernel'}"
                rows[label] = Row(_scan_of(unit, backend), unit)
        bases = {label: label.replace("loop", "kernel") for label in rows}
        table = measure.summary(measure.in_turn(rows, (t, b, n), rounds), "snu, kernel", bases)
        measure.show(f"Units, T={t} B={b} N={n}, fp32", table, "its kernel")
        tables.append({"t": t, "b": b, "n": n, "precision": "fp32", "rows": table})
    return tables


def _same_spikes(unit: Unit, drive: torch.Tensor) -> None:
    loop, kernel = (scan(unit, drive, backend=backend)[0] for backend in ("loop", "native"))
    if not torch.equal(loop, kernel):
        raise SystemExit(f"{unit.label}: the kernel's spikes differ from the loop's")


PEER_SHARES = (0.1, 1.0)  # of spikes, and normal numbers


def peer_tables(rounds: int) -> Table:
    """The same layer in other libraries, each in units of our layer with its dynamics.

    On random spikes and on normal numbers; the libraries as they are and compiled, whose seconds
    of compiling stand apart.
    """
    found, reasons = peers.available()
    for name, reason in reasons.items():
        print(f"{name} is left out: {reason}", flush=True)
    tables = []
    for n, low in ((512, False), (512, True), (2048, False), (2048, True)):
        check(n, low)
        rows, bases, compile_s = _peer_rows(found, n, low)
        for share in PEER_SHARES:
            torch.manual_seed(0)
            x = torch.randn(T, B, n) if share == 1 else (torch.rand(T, B, n) < share).float()
            table = measure.summary(measure.in_turn(rows, x, rounds), OURS[peers.gate], bases)
            what = "normal numbers" if share == 1 else f"{share:.0%} spikes"
            measure.show(f"Peers, N={n}, {'bf16' if low else 'fp32'}, {what}", table, "ours")
            for name, seconds in compile_s.items():
                table[name]["compile_s"] = seconds
            size = {"t": T, "b": B, "n": n, "precision": "bf16" if low else "fp32", "share": share}
            tables.append(size | {"rows": table, "fastest": _fastest(table)})
    return {"left_out": reasons, "versions": _versions(), "tables": tables}


OURS: dict[Callable[[int], Unit], str] = {
    peers.gate: "spikebridge, gate reset",
    peers.subtract: "spikebridge, subtract reset",
}


def _peer_rows(
    found: Mapping[str, peers.Peer], n: int, low: bool
) -> tuple[dict[str, Row], dict[str, str], dict[str, float]]:
    """Rows of ours and of the peers, ours that each peer is set against, seconds of compiling."""
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64  # which all peers share
    linear = nn.Linear(n, n)
    rows = {"Linear alone": Row(linear, linear, low)}
    bases: dict[str, str] = {}
    compile_s: dict[str, float] = {}
    for make, label in OURS.items():
        ours = peers.OurLayer(make(n), n)
        rows[label] = Row(ours, ours, low)
    # In bf16 under autocast and all of it cast; compiled in the mode that is the faster eagerly.
    modes = ("autocast", "cast") if low else ("",)
    ways = [(mode, False) for mode in modes] + [(modes[-1], True)]
    for name, peer in found.items():
        for mode, compiled in ways:
            label = ", ".join(filter(None, (name, mode, "compiled" if compiled else "")))
            row = _peer_row(peer, n, mode, compiled)
            try:
                seconds = _first_call(row, n)
                if compiled and not low and (apart := _apart(peer, row.module, n)) > 1e-2:
                    raise ValueError(f"its spikes are not the eager ones in {apart:.1%} of places")
            except Exception as error:  # whatever a library of this version does
                text = str(error).strip().splitlines() or [""]
                print(f"{label} is left out: {type(error).__name__}: {text[0]}", flush=True)
                continue
            rows[label], bases[label] = row, OURS[peer.ours]
            if compiled:
                compile_s[label] = seconds
                print(f"{label}: compiled in {seconds:.0f} s", flush=True)
    return rows, bases, compile_s


def _peer_row(peer: peers.Peer, n: int, mode: str, compiled: bool) -> Row:
    layer = peers.PeerLayer(peer, n, compiled)
    if mode == "cast":
        layer = layer.to(torch.bfloat16)
    dtype = torch.bfloat16 if mode == "cast" else torch.float32
    return Row(layer, layer, mode == "autocast", dtype)


def _first_call(row: Row, n: int) -> float:
    """Seconds of the first pass, forward and backward, in which torch compiles."""
    x = torch.randn(T, B, n).to(row.dtype).requires_grad_()
    start = time.perf_counter()
    measure.once(row, x, torch.randn(T, B, n))
    return time.perf_counter() - start


def _apart(peer: peers.Peer, layer: Any, n: int) -> float:
    """The share of places in which the spikes of a compiled layer are not those of the loop."""
    drive = layer.linear(torch.randn(T, B, n))
    return float((layer.neuron(drive) != peer.neuron()(drive)).float().mean())


def _fastest(table: Mapping[str, Mapping[str, float]]) -> str | None:
    """The library that is nearest to ours."""
    apart = ("spikebridge", "Linear", "plain")
    ratios = {name: row["ratio"] for name, row in table.items() if not name.startswith(apart)}
    fastest = min(ratios, key=ratios.__getitem__, default=None)
    if fastest:
        print(f"fastest library: {fastest}, {ratios[fastest]:.2f} times ours", flush=True)
    return fastest


def _versions() -> dict[str, str]:
    from importlib import metadata

    versions = {}
    for name in ("snntorch", "spikingjelly", "norse"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def recurrent_table(rounds: int) -> Table:
    """A recurrent layer of 512 against torch's own."""
    n = 512
    modules = {
        "nn.RNN(relu)": nn.RNN(n, n, nonlinearity="relu"),
        "nn.GRU": nn.GRU(n, n),
        "nn.LSTM": nn.LSTM(n, n),
        "SNU, recurrent": SNU(n, n, recurrent=True),
        "SoftSNU, recurrent": SoftSNU(n, n, recurrent=True),
    }
    rows = {name: Row(_first(module), module) for name, module in modules.items()}
    times = measure.in_turn(rows, (T, B, n), rounds)
    table = measure.summary(times, "nn.RNN(relu)")
    lstm = measure.summary(times, "nn.LSTM")
    for name, row in table.items():
        row["ratio_to_lstm"] = lstm[name]["ratio"]
    measure.show(f"Recurrent, N={n}, fp32", table, "nn.RNN(relu)")
    for name in ("SNU, recurrent", "SoftSNU, recurrent"):
        print(f"{name}: {table[name]['ratio_to_lstm']:.3f} of nn.LSTM")
    return {"t": T, "b": B, "n": n, "rows": table}


def _first(module: nn.Module) -> Callable:
    return lambda x: module(x)[0]


def scaling(rounds: int) -> dict[str, list[Table]]:
    """Microseconds per time step of the scan and of the recurrent layer, over T, B and N."""
    sweeps = {
        "T": [(t, 16, 512) for t in (100, 300, 1000, 3000, 10_000)],
        "B": [(500, b, 512) for b in (1, 4, 16, 64, 256)],
        "N": [(500, 16, n) for n in (128, 512, 2048, 8192)],
    }
    found: dict[str, list[Table]] = {}
    for name, shapes in sweeps.items():
        found[name] = []
        for t, b, n in shapes:
            unit, layer = make_unit("snu", n), None
            rows = {"scan": Row(_scan_of(unit), unit)}
            if n <= 512 and b <= 64:
                layer = SNU(n, n, recurrent=True)
                rows["recurrent layer"] = Row(_first(layer), layer)
            times = measure.in_turn(rows, (t, b, n), rounds)
            step = {k: statistics.median(v.total) / t * 1e6 for k, v in times.items()}
            found[name].append({"t": t, "b": b, "n": n, "us_per_step": step})
            print(
                f"T={t} B={b} N={n}: " + ", ".join(f"{k} {v:.1f} us/step" for k, v in step.items())
            )
    return found


class Scaled(nn.Module):
    """Drives scaled to a root mean square, channel by channel."""

    def __init__(self, channels: int, by: Callable[..., Any]) -> None:
        super().__init__()
        self.size, self.by = nn.Parameter(torch.rand(channels) + 0.5), by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.by(x, self.size, 1e-6)[0]


def rescale_tables(rounds: int) -> list[Table]:
    """Scaling the drives of convolutions of 128 digits, two steps: kernel beside torch."""
    tables = []
    for dtype in (torch.float32, torch.bfloat16):
        for channels, pixels in ((32, 14 * 14), (64, 7 * 7), (32, 28 * 28)):
            rows = {}
            for name, by in (("torch", rescale._formula), ("kernel", rescale.rescaled)):
                scaled = Scaled(channels, by)
                rows[name] = Row(scaled, scaled, dtype=dtype)
            shape = (2 * 128, channels, pixels)
            table = measure.summary(measure.in_turn(rows, shape, 5 * rounds), "torch")
            measure.show(f"Scaling (samples, channels, pixels) {shape}, {dtype}", table, "torch")
            tables.append({"shape": shape, "dtype": str(dtype), "rows": table})
    return tables


def tests_are_green() -> str:
    """The kernel tests, run now; nothing is timed when one fails."""
    tests = [
        "tests/nn/test_kernel.py",
        "tests/nn/test_sparse.py",
        "tests/nn/test_kernel_units.py",
        "tests/nn/test_rnn.py",
        "tests/nn/test_network_parts.py",
    ]
    print("Running the kernel tests ...", flush=True)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *tests],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"tests are not green, nothing was timed:\n{done.stdout[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


SECTIONS: dict[str, Callable[..., Any]] = {
    "recurrent": recurrent_table,
    "layer": layer_tables,
    "sparse": sparse_tables,
    "convolution": convolution_tables,
    "units": unit_tables,
    "peers": peer_tables,
    "scaling": scaling,
    "rescale": rescale_tables,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="keep all figures there")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each table")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument(
        "--run", type=Path, nargs="*", default=[], help="finished runs whose spikes are taken too"
    )
    options = parser.parse_args()
    if native.missing is not None:
        raise SystemExit(native.missing)
    rounds = options.rounds
    content: dict[str, Any] = {}
    if options.json and options.json.exists() and len(options.only) < len(SECTIONS):
        content = json.loads(options.json.read_text(encoding="utf-8"))  # the other tables stay
    content |= {"rounds": rounds, "tests": tests_are_green()}
    for name in options.only:
        content[name] = SECTIONS[name](rounds, *([options.run] if name == "sparse" else []))
        if options.json:
            measure.save(options.json, content)


if __name__ == "__main__":
    main()
