"""What GRAPES costs: whole training steps with and without it, side by side.

    python benchmarks/grapes.py [--json docs/results/grapes-cpu.json] [--rounds 30] [--only mlp]
    python benchmarks/grapes.py --one-thread --only mlp
    python benchmarks/grapes.py --accuracy 5 [--json docs/results/grapes-refresh.json]

A step is forward, backward and the optimiser's update.  All rows of a table are one model, whose
factors are attached and detached: two models of equal shape differ by more, through where their
memory lies.  In each round every row takes a few steps, in an order that turns from round to round,
and its time is that of the fastest of them.  Ratios are medians of the ratios within a round, with
their quartiles; "plain again" says how far to trust them.  Before anything is timed the factors
must be those of the formula.  "every 100" takes the factors anew at every hundredth step; what is
timed is a step without that.

--one-thread counts that thread's processor time: for a machine that others use too.

--accuracy trains the first network on MNIST with so many seeds, three epochs of SGD at a rate of
0.1, with factors taken anew at every step, less often, and never after the start.  It gives the
test accuracy, and how it differs from that of every step with the same seed.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.data.images import read_mnist
from spikebridge.learning import grapes
from spikebridge.nn.network import build
from spikebridge.settings.model import ModelConfig

ROWS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "propagated": {"form": "propagated"},
    "local": {"form": "local"},
    "every 100": {"refresh_every": 100},
    "plain again": None,
}
EPOCHS, RATE, BATCH = 3, 0.1, 64
REFRESHED: dict[str, int | None] = {
    "every step": 1,
    "every 10": 10,
    "every 100": 100,
    "never": 1 << 40,
}
STEPS = 8
Step = Callable[[], None]


def mlp(batch: int = 64) -> tuple[nn.Module, Tensor]:
    """784-256-256-10 of ReLU, batch 64: the network of the GRAPES authors' code."""
    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers), torch.rand(batch, 784)


def mlp_512() -> tuple[nn.Module, Tensor]:
    """The same network, batch 512."""
    return mlp(512)


def snu() -> tuple[nn.Module, Tensor]:
    """784-256-256-10 of SNUs over 20 steps, batch 128."""
    model = build(ModelConfig(hidden=(256, 256), unit="snu", g="leaky_relu"), 784, 10, "mean")
    return model, (torch.rand(20, 128, 784) < 0.2).float()


def convolutions() -> tuple[nn.Module, Tensor]:
    """Two convolutions and two dense layers on images of 28 x 28, batch 64."""
    layers = [
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10)),
    ]
    return nn.Sequential(*layers), torch.rand(64, 1, 28, 28)


def lstm() -> tuple[nn.Module, Tensor]:
    """An LSTM of 128 units over 50 steps, batch 32."""
    return build(ModelConfig(hidden=(128,), unit="lstm"), 88, 10, "mean"), torch.rand(50, 32, 88)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": mlp,
    "mlp-512": mlp_512,
    "snu": snu,
    "convolutions": convolutions,
    "lstm": lstm,
}


def step_of(model: nn.Module, x: Tensor) -> Step:
    """A training step with plain SGD."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    target = torch.randint(10, (x.shape[-2] if x.dim() == 3 else x.shape[0],))

    def step() -> None:
        optimizer.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out if isinstance(out, Tensor) else out[0], target)
        loss.backward()
        optimizer.step()

    return step


def check(model: nn.Module, handle: grapes.Grapes) -> None:
    """Linear layers have the factors of the formula, or there is nothing to time."""
    for name, module in model.named_modules():
        if name in handle.layers and isinstance(module, nn.Linear):
            sums = module.weight.detach().double().abs().sum(1)
            expected = (2 * sums / sums.max()).clamp(1, 2).float()
            torch.testing.assert_close(handle.factors()[name], expected)


def timed(
    model: nn.Module, step: Step, options: dict[str, Any] | None, clock: Callable[[], float]
) -> float:
    """Seconds of a step, with GRAPES in this way or without."""
    handle = None if options is None else grapes.attach(model, **options)
    if handle is not None:
        check(model, handle)
    step()
    seconds = []
    for _ in range(STEPS):
        start = clock()
        step()
        seconds.append(clock() - start)
    if handle is not None:
        handle.detach()
    return min(seconds)


def table(name: str, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Medians and ratios of one model."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    step, names = step_of(model, x), list(ROWS)
    times: dict[str, list[float]] = {row: [] for row in names}
    for number in range(rounds):
        gc.collect()
        turn = number % len(names)
        for row in names[turn:] + names[:turn]:
            times[row].append(timed(model, step, ROWS[row], clock))
    result: dict[str, Any] = {}
    for row, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result[row] = {
            "step_s": statistics.median(seconds),
            "ratio": middle,
            "ratio_quartiles": [low, high],
        }
        print(
            f"{name:14}{row:12}{result[row]['step_s'] * 1e3:9.3f} ms"
            f"{middle:8.3f} ({low:.3f} to {high:.3f})",
            flush=True,
        )
    return {"model": (MODELS[name].__doc__ or "").strip(), "rows": result}


def trained(seed: int, refresh_every: int | None, data: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Share of test images that are named rightly; None is plain backpropagation."""
    torch.manual_seed(seed)
    model, _ = mlp()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    if refresh_every is not None:
        grapes.attach(model, refresh_every=refresh_every)
    x, y = data["train"]
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    x, y = data["test"]
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def accuracies(seeds: int) -> dict[str, Any]:
    """Test accuracies by how often the factors are taken anew, per cent."""
    images = read_mnist()
    data = {
        split: (
            torch.as_tensor(images[split].pixels).flatten(1).float() / 255,
            torch.as_tensor(images[split].labels).long(),
        )
        for split in ("train", "test")
    }
    result: dict[str, Any] = {}
    for name, every in (REFRESHED | {"plain": None}).items():
        found = [100 * trained(seed, every, data) for seed in range(seeds)]
        against = result.get("every step", {"accuracies": found})["accuracies"]
        changes = [a - b for a, b in zip(found, against, strict=True)]
        result[name] = {
            "accuracies": found,
            "mean": statistics.mean(found),
            "spread": statistics.stdev(found),
            "against_every_step": statistics.mean(changes),
            "against_every_step_spread": statistics.stdev(changes),
        }
        print(
            f"{name:12}{result[name]['mean']:8.2f} ± {result[name]['spread']:.2f} %; against every "
            f"step {statistics.mean(changes):+.2f} ± {statistics.stdev(changes):.2f} points",
            flush=True,
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="keep all figures there")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of each table, at least 2")
    parser.add_argument("--one-thread", action="store_true", help="its processor time; see above")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--accuracy", type=int, metavar="SEEDS", help="at least 2; see above")
    options = parser.parse_args()
    if options.accuracy:
        settings = {"epochs": EPOCHS, "rate": RATE, "batch": BATCH}
        found = settings | {"rows": accuracies(options.accuracy)}
        if options.json:
            measure.save(options.json, found)
        return
    clock = time.perf_counter
    if options.one_thread:
        torch.set_num_threads(1)
        clock = time.thread_time
    content = {name: table(name, options.rounds, clock) for name in options.only}
    if options.json:
        settings = {"rounds": options.rounds, "one_thread": options.one_thread}
        measure.save(options.json, settings | {"models": content})


if __name__ == "__main__":
    main()
