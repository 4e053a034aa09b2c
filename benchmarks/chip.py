"""Accuracy against energy: networks on the digital chip beside dense int8 networks.

    python benchmarks/chip.py train DIR                trains the networks of the table, resumable
    python benchmarks/chip.py dense DIR                trains int8 perceptrons and GRUs
    python benchmarks/chip.py front DIR --out docs/results/chip-front

`train` takes about an hour of one core.  All are trained on 55,000 images of MNIST; which of them
stand on the front is decided on 5,000 others, the test set is only reported.  Energies are of the
40 nm tables of `spikebridge.energy`, nothing is calibrated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge import energy as silicon
from spikebridge.base.records import to_plain
from spikebridge.cli.progress import display
from spikebridge.data.images import distorted, read_mnist
from spikebridge.runs import environment, rundir, training
from spikebridge.runs.hardware_results import OnChip
from spikebridge.settings.config import preset
from spikebridge.studies.catalog.papers import ON_CHIP
from spikebridge.trained import on_chip

# Those of `spikebridge reproduce mnist-on-chip`, of which the widths are the front.
COMMON: dict[str, Any] = {
    name: value for name, value in ON_CHIP.items() if name not in ("weight_bits", "elastic")
} | {"epochs": 12, "dropout": 0.1, "dropout_in": 0.1, "activity": 0.3}
FREE = {"activity": 0.03, "dropout": 0.05, "dropout_in": 0.05}
BENT = {"elastic": 1.0, "epochs": 16}
NETWORKS: dict[str, dict[str, Any]] = {
    "w64-b4": {"hidden": (64, 64), "weight_bits": 4, "dropout": 0.05},
    "w128-b4": {"hidden": (128, 128), "weight_bits": 4},
    "w256-b2": {"hidden": (256, 256), "weight_bits": 2, "activity": 0.03},
    "w256-b4-elastic": {"hidden": (256, 256), "weight_bits": 4, **FREE, **BENT},
    "w512-b4-elastic": {"hidden": (512, 512), "weight_bits": 4, **FREE, **BENT},
    "w256-b4": {"hidden": (256, 256), "weight_bits": 4, "activity": 0.03},
    "w256-b8-rate": {"hidden": (256, 256), "coding": "rate", "activity": 0.03},
    "w128-b4-elastic": {"hidden": (128, 128), "weight_bits": 4, **FREE, **BENT, "epochs": 12},
    "w256-b4-quiet": {
        "hidden": (256, 256),
        "weight_bits": 4,
        **BENT,
        "epochs": 12,
        "activity": 1.0,
    },
}
STEPS = (1, 2, 4, 8)
LANES = (64, 256)
PERCEPTRONS = ((32,), (64,), (128,), (64, 64), (256, 256))
BENT_PERCEPTRONS = ((64,), (128,))
GRUS = (32, 64, 128)


def train(directory: Path) -> None:
    """The binary networks, each in a folder of its own."""
    with display() as progress:
        for name, settings in NETWORKS.items():
            config = preset("digits", "binary-di", "mnist", **{**COMMON, **settings})
            training.run(config, directory / name, resume=True, progress=progress(name))


def front(directory: Path, out: Path) -> None:
    """Every network with every number of steps and lanes, and the dense ones beside them."""
    points = []
    for name in NETWORKS:
        if not rundir.is_complete(directory / name):
            continue
        rated = rundir.read_config(directory / name).task.coding == "rate"
        for steps in STEPS if rated else (1,):
            chosen = None
            for lanes in LANES:
                plan = {"lanes": lanes, "max_steps": steps}
                if chosen is None:
                    valid = on_chip.measure(
                        directory / name, on_chip.ChipPlan(plan, split="valid", steps=steps)
                    )[1].integer
                _, chosen = on_chip.measure(directory / name, on_chip.ChipPlan(plan, steps=steps))
                points.append(_point(name, steps, lanes, valid, chosen))
                print(points[-1], flush=True)
    known = directory / "dense.json"
    dense = json.loads(known.read_text())["points"] if known.exists() else []
    content = {
        "command": f"python benchmarks/chip.py front DIR --out {out}",
        "environment": to_plain(replace(environment.collect(), command=())),
        "settings": {name: {**COMMON, **own} for name, own in NETWORKS.items()},
        "published": {"nJ": silicon.PUBLISHED, "note": "which network reaches which is unknown"},
        "points": points,
        "dense": dense,
    }
    rundir.write_json(out.with_suffix(".json"), json.loads(json.dumps(content, default=str)))
    draw(points, dense, out.with_suffix(".png"))


def _point(name: str, steps: int, lanes: int, valid: float, found: OnChip) -> dict[str, Any]:
    return {
        "network": name,
        "steps": steps,
        "lanes": lanes,
        "weight_bits": found.program.weight_bits,
        "valid": valid,
        "test": found.integer,
        "software": found.software,
        **{f"{end}_nJ": cost.total_pJ / 1e3 for end, cost in found.energy.ends.items()},
        **{name: found.each(name) for name in ("cycles", "spikes", "additions")},
    }


def efficient(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no other beats in both validation accuracy and energy, by rising energy."""
    best, found = -1.0, []
    for point in sorted(points, key=lambda p: p["nominal_nJ"]):
        if point["valid"] > best:
            best = point["valid"]
            found.append(point)
    return found


def dense(directory: Path) -> None:
    """Perceptrons and GRUs of 8-bit weights and activations; what is there already is kept."""
    images = read_mnist()
    data = {
        name: (torch.from_numpy(part.pixels) / 255.0, torch.from_numpy(part.labels).long())
        for name, part in images.items()
    }
    path = directory / "dense.json"
    points = json.loads(path.read_text())["points"] if path.exists() else []
    todo: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (_name(hidden, bent), partial(_perceptron, hidden, data, bent))
        for bent, several in ((0.0, PERCEPTRONS), (BENT["elastic"], BENT_PERCEPTRONS))
        for hidden in several
    ]
    todo += [(f"int8 GRU {size}, rows", partial(_gru, size, data)) for size in GRUS]
    for name, make in todo:
        if name not in [point["network"] for point in points]:
            torch.manual_seed(0)
            points.append({"network": name, **make()})
            print(points[-1], flush=True)
            rundir.write_json(path, {"points": points})


def _name(hidden: tuple[int, ...], bent: float) -> str:
    sizes = "-".join(map(str, (784, *hidden, 10)))
    return f"int8 MLP {sizes}" + (", elastic" if bent else "")


class Perceptron(nn.Module):
    """ReLU layers; in integers after `rounded`."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.limits = [1.0] * len(self.layers)  # of activations, for their 8 bits
        self.rounds = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        self.active = []
        for number, layer in enumerate(self.layers):
            if self.rounds:
                step = self.limits[number] / 255
                x = (x / step).round().clamp(0, 255) * step
            self.active.append(float((x > 0).float().sum(1).mean()))
            x = layer(F.dropout(x, 0.1, self.training))
            if number + 1 < len(self.layers):
                x = x.relu()
        return x


class Gru(nn.Module):
    """A GRU that reads an image row by row."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.core, self.readout = nn.GRU(28, hidden), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        last = self.core(x.transpose(0, 1))[0][-1]
        return self.readout(F.dropout(last, 0.1, self.training))


Data = dict[str, tuple[Tensor, Tensor]]


def _fit(model: nn.Module, data: Data, epochs: int, lr: float, bent: float = 0.0) -> None:
    x, y = data["train"]
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    steps = epochs * -(-len(y) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(128):
            seen = distorted(x[batch], bent, draws) if bent else x[batch]
            loss = F.cross_entropy(model(seen), y[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def _test(model: nn.Module, data: Data, split: str) -> float:
    x, y = data[split]
    with torch.no_grad():
        pairs = zip(x.split(1000), y.split(1000), strict=True)
        hits = sum(int((model(some).argmax(1) == right).sum()) for some, right in pairs)
    return hits / len(y)


def _round_weights(model: nn.Module) -> None:
    """Each row of a matrix to 8 bits, symmetric."""
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 2:
                step = value.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
                value.copy_((value / step).round() * step)


def _perceptron(hidden: tuple[int, ...], data: Data, bent: float) -> dict[str, Any]:
    sizes = (784, *hidden, 10)
    model = Perceptron(sizes)
    _fit(model, data, 16 if bent else 15, 2e-3, bent)
    software = _test(model, data, "test")
    _round_weights(model)
    x = data["train"][0][:5000].flatten(1)
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            model.limits[number] = float(x.max())
            x = layer(x).relu()
    model.rounds = True
    valid, test = (_test(model, data, split) for split in ("valid", "test"))
    with torch.no_grad():
        model(data["test"][0])
    found = {"valid": valid, "test": test, "software": software, "active": model.active}
    every = _priced(silicon.mlp_counts(sizes))
    some = _priced(silicon.mlp_counts(sizes, model.active))
    return {**found, **every, "skipping_zeros": some}


def _gru(hidden: int, data: Data) -> dict[str, Any]:
    model = Gru(hidden)
    _fit(model, data, 8, 5e-3)
    software = _test(model, data, "test")
    _round_weights(model)  # activations stay as they are, in its favour
    found = {"valid": _test(model, data, "valid"), "test": _test(model, data, "test")}
    costs = _priced(silicon.gru_counts(28, hidden, 28, 10))
    return {**found, "software": software, **costs}


def _priced(work: silicon.DenseWork) -> dict[str, float]:
    ends = zip(("low", "nominal", "high"), silicon.dense_span(work), strict=True)
    return {f"{name}_nJ": energy.total_pJ / 1e3 for name, energy in ends}


def draw(points: list[dict[str, Any]], others: list[dict[str, Any]], path: Path) -> None:
    """Test error against energy per image, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.5), dpi=150, layout="constrained")
    axes = figure.subplots()

    def error(point: dict[str, Any]) -> float:
        return 100 * (1 - point["test"])

    for lanes, marker in zip(LANES, "os", strict=True):
        mine = [p for p in points if p["lanes"] == lanes]
        axes.plot(
            [p["nominal_nJ"] for p in mine], [error(p) for p in mine], marker,
            color="#882255", alpha=0.45, label=f"binary DI, {lanes} lanes",
        )  # fmt: skip
    best = efficient(points)
    axes.plot(
        [p["nominal_nJ"] for p in best], [error(p) for p in best], "-", color="#882255",
        label="not beaten on validation",
    )  # fmt: skip
    for kind, colour in (("MLP", "#0072B2"), ("GRU", "#E69F00")):
        mine = [p for p in others if kind in p["network"]]
        axes.plot(
            [p["nominal_nJ"] for p in mine], [error(p) for p in mine], "D", color=colour,
            label=f"dense int8 {kind}",
        )  # fmt: skip
        for p in mine:
            if "skipping_zeros" in p:
                axes.plot(
                    p["skipping_zeros"]["nominal_nJ"], error(p), "D", color=colour, mfc="none"
                )
    axes.plot([], [], "D", color="#0072B2", mfc="none", label="the same, skipping zeros")
    axes.axvspan(48.4, 773, color="#808080", alpha=0.12, label="published: 48.4 to 773 nJ, > 98 %")
    axes.set(xscale="log", yscale="log", xlabel="energy per image (nJ), 40 nm, itrs-lop, 200 MHz",
             ylabel="test error on MNIST (%)")  # fmt: skip
    axes.set_yticks([1, 1.5, 2, 3, 5], ["1", "1.5", "2", "3", "5"])
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.grid(color="#dddddd")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for p in best:
        label = f"{p['network']}, T={p['steps']}" if "rate" in p["network"] else p["network"]
        axes.annotate(label, (p["nominal_nJ"], error(p)), xytext=(4, 4),
                      textcoords="offset points", fontsize=7)  # fmt: skip
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    rundir.replace(path, lambda part: figure.savefig(part, format="png"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("train", "dense", "front"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--out", type=Path, default=Path("chip-front"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "front":
        front(given.directory, given.out)
    else:
        {"train": train, "dense": dense}[given.what](given.directory)


if __name__ == "__main__":
    main()
