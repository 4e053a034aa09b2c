"""The kernels on a GPU: first that they equal the loop, then what they cost.

    python benchmarks/gpu.py [--minutes 8] [--json gpu.json] [--only PART ...]

    proof      every unit with a GPU kernel (memories and modulations too), reset, g and surrogate,
               with and without a matrix, the dtypes in turn: outputs, states and all gradients
               against the loop; then from a CUDA graph
    scan       the scan alone as a share of the copy bandwidth; blocks, warps and stages are
               searched, and the fastest are used from there on
    layer      Linear + SNU against nn.Linear, snnTorch, SpikingJelly and Norse
    recurrent  T=1024, B=16, N=768 in bfloat16 beside nn.LSTM, called and from a CUDA graph

Nothing is timed unless the proof holds.  Rows of a table are measured in turn; times are medians of
CUDA events.  The JSON is written after every row, so that a run that is cut off keeps what was
done; a part begins only while there is time.  Without a GPU it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measure
import peers
import torch
from torch import Tensor, nn

from spikebridge.nn.gradients import FORMULAS, Surrogate
from spikebridge.nn.kernels.ops import STEPS
from spikebridge.nn.layers import Layer
from spikebridge.nn.rnn import SNU
from spikebridge.nn.scan import scan, unsupported
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import State, Unit, make_unit, state_dtype
from spikebridge.settings.names import MEMORIES, MODULATIONS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Of the largest entry: gradients are sums over time in the dtype of the state.
BOUND = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}
USUAL = 256, 4, 4  # block, warps and stages without a search
BLOCKS, WARPS, STAGES = (64, 128, 256, 512, 1024), (1, 2, 4, 8), (1, 2, 4, 6)
WIDTHS = (512, 2048, 4096, 16384)
T, B = 500, 16
SEQUENCE = (1024, 16, 768)  # T, B and N of the recurrent layer
DEVICE, BACKEND = "cuda", "triton"
SHARES = {"scan": 0.4, "layer": 0.8, "recurrent": 1.0}  # of the time, by when each part ends
Save = Callable[[], None]
Case = tuple[str, dict[str, Any]]


class Clock:
    """How much of the time is left to each part."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.begin()

    def begin(self) -> None:
        """The parts share what is left from here on."""
        self.start = time.monotonic()

    def before(self, part: str) -> bool:
        """Whether a part may go on."""
        return time.monotonic() < self.start + SHARES[part] * max(self.end - self.start, 0)


def cases() -> Iterator[Case]:
    """Each unit with what can be set of it; where there is no kernel, `unsupported` says why."""
    resets: list[dict[str, Any]] = [
        {"reset": "gate"}, {"reset": "none"}, {"reset": "subtract", "amount": 0.7},
        {"reset": "subtract", "subtract": "trained"},
    ]  # fmt: skip
    for kind, g, reset in itertools.product(
        ("snu", "softsnu"), ("identity", "relu", "leaky_relu", "elu"), resets
    ):
        yield kind, {"g": g, "threshold": 0.8, **reset}
    for formula in FORMULAS:
        surrogate = Surrogate(formula, width=0.6, height=0.8)
        yield "snu", {"surrogate": surrogate, "threshold": 0.8}
        yield "adaptive-snu", {"surrogate": surrogate}
        yield "li-snu", {"surrogate": surrogate}
    yield "binary-di", {}
    yield "binary-ci", {}
    # Memories and modulations, with two resets each, another two for the next.
    turn = itertools.cycle([*resets, {"reset": "lateral"}])
    for step, kind in itertools.product(STEPS[1:], ("snu", "softsnu")):
        parts = step.name.split("+")
        own = dict.fromkeys(("memory" for part in parts if part in MEMORIES), parts[0])
        own |= dict.fromkeys(("modulation" for part in parts if part in MODULATIONS), parts[-1])
        for _ in range(2):
            yield kind, {"g": "leaky_relu", "threshold": 0.8, **own, **next(turn)}


def proof(chosen: Iterable[Case], found: dict[str, Any], save: Save, whole: bool = False) -> None:
    """Every kernel against the loop; SystemExit with what differs where one does.

    whole: each case in every dtype, for which the compiler of the kernels takes four times as long.
    """
    found |= {"cases": 0, "left_to_the_loop": {}}
    for number, (kind, options) in enumerate(chosen):
        # In turn, in another order after each four, since resets come in fours too.
        turns = [(DTYPES[(number + number // 4 + r) % 4], bool(r)) for r in (0, 1)]
        for dtype, recurrent in itertools.product(DTYPES, (False, True)) if whole else turns:
            own = {} if kind.startswith("binary-") else {"train_decay": True, "per_unit": True}
            unit = make_unit(kind, 37, **own, **options).to(DEVICE, state_dtype(dtype))
            drive = torch.zeros(1, 1, 37 * unit.drives, dtype=dtype, device=DEVICE)
            reason = unsupported(unit, drive, BACKEND)
            if reason is not None:
                found["left_to_the_loop"][f"{kind} {unit.rule.reset}"] = reason
                continue
            label = f"{kind} {options} {dtype} {'recurrent' if recurrent else ''}"
            wrong = differs(unit, dtype, recurrent, seed=number)
            if wrong is not None:
                found["differs"] = f"{label}: {wrong}"
                save()
                raise SystemExit(f"{found['differs']}\nnothing was timed")
            found["cases"] += 1
    save()
    print(f"{found['cases']} cases equal the loop", flush=True)


def differs(unit: Unit, dtype: torch.dtype, recurrent: bool, seed: int) -> str | None:
    """What is not as in the loop, in words; None where all is."""
    t, b, n = 9, 3, unit.size
    torch.manual_seed(seed)
    wide = state_dtype(dtype)
    y = torch.rand(b, n, dtype=wide)
    y = (y > 0.5).to(wide) if unit.spiking else y
    # Of the layer's outputs to all currents, or to the first.  Sums of eighths are exact in any
    # order, so that spikes must be equal, not close.
    rows = n * (unit.drives if seed % 2 else 1)
    matrix = (torch.randn(rows, n, dtype=wide) * 2).round() / 8 if recurrent else None
    given = [torch.randn(t, b, n * unit.drives, dtype=dtype) * 2, y]
    given += [torch.randn(b, unit.state_size, dtype=wide)]
    given += [] if matrix is None else [matrix]
    results = []
    for run in ("loop", BACKEND):
        leaves = [x.to(DEVICE).detach().requires_grad_() for x in given]
        out, last = scan(
            unit, leaves[0], leaves[3] if recurrent else None, State(leaves[1], leaves[2]),
            backend=run,
        )  # fmt: skip
        noise = torch.Generator().manual_seed(1)
        parts = [out, last.y, last.s]
        grads = [torch.randn(x.shape, generator=noise).to(DEVICE, x.dtype) for x in parts]
        leaves += [p for p in unit.parameters() if p.requires_grad]
        results.append([x.detach() for x in parts])
        results[-1] += torch.autograd.grad(parts, leaves, grads, materialize_grads=True)
    names = ["y", "last y", "last s", "grad of drive", "grad of y0", "grad of s0"]
    names += ["grad of matrix"] * recurrent
    names += [f"grad of {name}" for name, p in unit.named_parameters() if p.requires_grad]
    for name, expected, got in zip(names, *results, strict=True):
        if got.dtype != expected.dtype:
            return f"{name} is {got.dtype}, in the loop {expected.dtype}"
        scale = max(float(expected.abs().max()), 1.0)
        spikes = unit.spiking and name in ("y", "last y")
        # That of the matrix is a product of two factors that are rounded.
        bound = 0.0 if spikes else BOUND[dtype] * scale * (1 + (name == "grad of matrix"))
        apart = float((got.double() - expected.double()).abs().max())
        if not apart <= bound:  # so that NaN is wrong too
            return f"{name} is {apart:.2e} apart, {bound:.2e} are allowed"
    return None


def graph_proof(found: dict[str, Any], save: Save) -> None:
    """Forward and backward from a CUDA graph, on new numbers, equal to the call."""
    for recurrent in (False, True):
        layer = SNU(64, 64, recurrent=recurrent, device="cuda")
        x = torch.randn(20, 8, 64, device="cuda")
        step = captured(layer, x)
        x.copy_(torch.randn_like(x))
        replayed = [value.clone() for value in step()]
        y = layer(x)[0]
        called = [y, *torch.autograd.grad(y.sum(), list(layer.parameters()))]
        for got, expected in zip(replayed, called, strict=True):
            torch.testing.assert_close(got, expected.detach())
    found["graph_capture"] = True
    save()
    print("a CUDA graph gives what a call gives", flush=True)


def captured(layer: nn.Module, x: Tensor, backward: bool = True) -> Callable[[], list[Tensor]]:
    """A replay of the layer on x: its output and, with `backward`, the parameters' gradients."""

    def run() -> list[Tensor]:
        if not backward:
            with torch.no_grad():
                return [layer(x)[0]]
        y = layer(x)[0]
        return [y.detach(), *torch.autograd.grad(y.sum(), list(layer.parameters()))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and lets cuBLAS take its memory
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> list[Tensor]:
        graph.replay()
        return result

    return replay


def milliseconds(call: Callable[[], Any]) -> float:
    """Of one call, by the clock of the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median of each call over the rounds; two more warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 2):
        for name, call in calls.items():
            taken = milliseconds(call)
            if round_ >= 2:
                times[name].append(taken)
    return {name: statistics.median(each) for name, each in times.items()}


@contextmanager
def launched(block: int, warps: int, stages: int) -> Iterator[None]:
    """The kernels with this block, warps and stages, for a while."""
    from spikebridge.nn.kernels import triton as kernels

    before = kernels.BLOCK, kernels.LAUNCH["num_warps"], kernels.STAGES
    try:
        kernels.BLOCK, kernels.LAUNCH["num_warps"], kernels.STAGES = block, warps, stages
        yield
    finally:
        kernels.BLOCK, kernels.LAUNCH["num_warps"], kernels.STAGES = before


def training(call: Callable[[Tensor], Tensor], x: Tensor, parameters: list) -> Callable[[], Any]:
    """Forward and backward, the gradient of x included."""

    def run() -> None:
        y = call(x)
        torch.autograd.grad(y, [x, *parameters], torch.ones_like(y), allow_unused=True)

    return run


def scan_calls(unit: Unit, drive: Tensor) -> dict[str, Callable[[], Any]]:
    """The scan forward, as in training, and with its backward pass."""
    leaf = drive.detach().requires_grad_()

    def call(x: Tensor) -> Tensor:
        return scan(unit, x, backend=BACKEND)[0]

    return {"forward": lambda: call(leaf), "forward + backward": training(call, leaf, [])}


def scan_part(clock: Clock, found: dict[str, Any], save: Save) -> None:
    """Shares of the copy bandwidth, each with the best block, warps and stages."""
    found["rows"] = []
    for dtype, n in itertools.product((torch.float32, torch.bfloat16), WIDTHS):
        unit, drive = make_unit("snu", n, device=DEVICE), torch.randn(T, B, n, device=DEVICE)
        drive = drive.to(dtype)
        other = torch.empty_like(drive)
        copy_ms = in_turn({"copy": lambda o=other, d=drive: o.copy_(d)}, 10)["copy"]
        copy = 2 * drive.nbytes / copy_ms / 1e6
        calls, tried = scan_calls(unit, drive), []
        for setting in sorted(itertools.product(BLOCKS, WARPS, STAGES), key=from_usual):
            if not clock.before("scan") or (tried and len(tried) >= 24):
                break
            with launched(*setting):
                tried.append({"setting": setting, **in_turn(calls, 5)})
        if not tried:
            break
        best = min(tried, key=lambda row: row["forward + backward"])
        # Forward: drive, outputs, membranes; backward: cotangent, membranes, gradient.
        moved = T * B * n * (2 * dtype.itemsize + 4)
        row = {
            "n": n, "dtype": str(dtype), "copy_GB_per_s": copy, "best": best, "tried": len(tried),
            "share_forward": moved / best["forward"] / 1e6 / copy,
            "share_both": 2 * moved / best["forward + backward"] / 1e6 / copy,
        }  # fmt: skip
        found["rows"].append(row)
        save()
        print(f"scan N={n} {dtype}: {row['share_both']:.0%} of the copy, {best}", flush=True)


def from_usual(setting: tuple[int, int, int]) -> float:
    """How far from today's block, warps and stages: the search begins near them."""
    return sum(abs(a.bit_length() - b.bit_length()) for a, b in zip(setting, USUAL, strict=True))


def layer_part(clock: Clock, found: dict[str, Any], save: Save, tuned: tuple) -> None:
    """Linear + SNU forward and backward, in units of nn.Linear."""
    available, reasons = peers.available()
    found |= {"left_out": reasons, "rows": []}
    for n, low in itertools.product(WIDTHS, (False, True)):
        if not clock.before("layer"):
            return
        t = T if n < 16384 else T // 5
        x, unit = torch.randn(t, B, n, device=DEVICE), peers.gate(n)
        modules: dict[str, nn.Module] = {"nn.Linear": nn.Linear(n, n)}
        modules["spikebridge"] = Outputs(Layer(Dense(n, n, unit), unit, backend=BACKEND))
        modules |= {name: peers.PeerLayer(peer, n) for name, peer in available.items()}
        calls = {}
        for name, module in modules.items():
            cast = torch.bfloat16 if low else torch.float32
            module.to(DEVICE, cast)
            leaf = x.detach().to(cast).requires_grad_()
            calls[name] = training(module, leaf, list(module.parameters()))
        with launched(*tuned):
            times, failed = survivors(calls, 5)
        row = {"n": n, "t": t, "b": B, "dtype": str(cast), "ms": times, "failed": failed}
        row["ratio"] = {name: ms / times["nn.Linear"] for name, ms in times.items()}
        found["rows"].append(row)
        save()
        print(f"layer N={n} {cast}: {row['ratio']}", flush=True)


def survivors(calls: dict[str, Callable], rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """Times of the calls that work, and why each other one does not."""
    failed = {}
    for name, call in list(calls.items()):
        try:
            milliseconds(call)  # waits for its end, where a GPU reports what went wrong
        except Exception as error:  # whatever a library does on a GPU
            failed[name] = f"{type(error).__name__}: {str(error).strip()[:200]}"
            del calls[name]
    return in_turn(calls, rounds), failed


class Outputs(nn.Module):
    """What a layer puts out, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def recurrent_part(clock: Clock, found: dict[str, Any], save: Save, tuned: tuple) -> None:
    """T=1024, B=16, N=768 in bfloat16 beside nn.LSTM; ours from a CUDA graph too."""
    x, n = torch.randn(SEQUENCE, device=DEVICE, dtype=torch.bfloat16), SEQUENCE[-1]
    ours = SNU(n, n, recurrent=True, device=DEVICE, backend=BACKEND).to(torch.bfloat16)
    lstm = nn.LSTM(n, n, device=DEVICE, dtype=torch.bfloat16)
    modules = {"spikebridge": ours, "nn.LSTM": lstm}
    found["rows"] = {}
    with launched(*tuned):
        for part in ("forward", "forward + backward"):
            if not clock.before("recurrent"):
                return
            calls: dict[str, Callable] = {}
            for name, module in modules.items():
                calls[name] = _eager(module, x, part != "forward")
            calls["spikebridge, CUDA graph"] = captured(ours, x, part != "forward")
            found["rows"][part] = in_turn(calls, 10)
            save()
            print(f"recurrent, {part}: {found['rows'][part]} ms", flush=True)


def _eager(module: nn.Module, x: Tensor, backward: bool) -> Callable[[], Any]:
    if backward:
        return training(lambda z: module(z)[0], x.detach().requires_grad_(), [*module.parameters()])

    def run() -> None:
        with torch.no_grad():
            module(x)

    return run


def measured(options: argparse.Namespace) -> None:
    """The proof, then each part while there is time."""
    clock = Clock(options.minutes)
    content: dict[str, Any] = {
        "minutes": options.minutes, "gpu": torch.cuda.get_device_name(), "proof": {},
    }  # fmt: skip

    def save() -> None:
        measure.save(options.json, content)

    torch.backends.cuda.matmul.allow_tf32 = False
    proof(cases(), content["proof"], save, options.every_dtype)
    graph_proof(content["proof"], save)
    clock.begin()
    tuned: tuple = USUAL
    for part in options.only:
        content[part] = {}
        if part == "scan":
            scan_part(clock, content[part], save)
            rows = content[part]["rows"]
            tuned = rows[-1]["best"]["setting"] if rows else tuned
        else:
            PARTS[part](clock, content[part], save, tuned)


PARTS: dict[str, Callable] = {
    "scan": scan_part,
    "layer": layer_part,
    "recurrent": recurrent_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="no part begins later")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--every-dtype", action="store_true", help="prove each case in all dtypes")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU that torch sees (torch.cuda.is_available()); nothing was measured")
        sys.exit(2)
    measured(options)


if __name__ == "__main__":
    main()
