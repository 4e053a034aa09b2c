"""How many neurons of trained networks lie where a surrogate of compact support is not zero.

    python benchmarks/support.py [--epochs 2] [--json docs/results/support.json]

Trains the presets of MNIST (784-256-256-10) and JSB with a window and with a triangle as surrogate,
of two widths, with and without a price on activity, for a few epochs, one seed.  On batches of the
test data, over real steps: the share of a layer's outputs that are spikes, which is what products
forward sum over, and the share of membranes within the surrogate's width of the threshold, where
alone the gradient of an output counts.  Outside it the product of the layer behind leaves the
gradient out, where no dropout lies between.  Real data lie under $SPIKEBRIDGE_DATA.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor

from spikebridge import data
from spikebridge.base.chance import generator
from spikebridge.nn.layers import Layer
from spikebridge.runs import evaluation, training
from spikebridge.settings.config import Config, preset

TASKS: dict[str, dict[str, Any]] = {
    "mnist": {"task": "digits", "data": "mnist"},
    "jsb": {"task": "music", "data": "jsb"},
    "tiny": {"task": "digits", "data": "digits8x8", "hidden": (16, 16)},
}
SURROGATES = ("window", "triangle")
WIDTHS = (1.0, 0.5)
PRICES = (0.0, 0.5)
BATCHES = 8  # of the test data


def configs(name: str, epochs: int) -> Iterator[Config]:
    settings = {"unit": "snu", "epochs": epochs, **TASKS[name]}
    for surrogate in SURROGATES:
        for width in WIDTHS:
            for price in PRICES if name != "jsb" else PRICES[:1]:  # JSB's neurons must fire
                chosen = {"surrogate": surrogate, "surrogate_width": width, "activity": price}
                yield preset(**settings, **chosen)


def shares(config: Config, directory: Path) -> list[dict[str, Any]]:
    """Of each hidden layer of a finished run: the share of spikes, and that inside the support."""
    _, network = evaluation.trained(directory)
    task = data.load(config.task)
    counts: dict[str, list[int]] = {}
    batches = task.batches("test", config.train.batch_size, generator(0, "test"))
    with evaluation.evaluating(network):
        for batch in islice(batches, BATCHES):
            seen = network.observe(batch.x, membranes=True, mask=batch.mask)
            for trace, layer in zip(seen.layers, network.layers, strict=True):
                assert isinstance(layer, Layer)
                assert trace.s is not None
                inside = near(layer, trace.s)
                real = slice(None) if batch.mask is None else batch.mask
                found = (int(trace.y[real].count_nonzero()), int(inside[real].sum()))
                sums = counts.setdefault(trace.name, [0, 0, 0])
                for place, value in enumerate((*found, trace.y[real].numel())):
                    sums[place] += value
    return [
        {"layer": name, "spikes": spikes / total, "inside": inside / total}
        for name, (spikes, inside, total) in counts.items()
    ]


def near(layer: Layer, s: Tensor) -> Tensor:
    """Where the surrogate of a layer is not zero, for its membranes s (T, B, N)."""
    surrogate = layer.unit.rule.surrogate
    return (s + layer.unit.params(s.dtype).bias).abs() <= surrogate.width


def measured(name: str, epochs: int) -> list[dict[str, Any]]:
    rows = []
    for config in configs(name, epochs):
        with tempfile.TemporaryDirectory() as folder:
            result = training.run(config, Path(folder))
            layers = shares(config, Path(folder))
        model = config.model
        row = {
            "task": name, "surrogate": model.surrogate, "width": model.surrogate_width,
            "activity": config.train.activity, "epochs": epochs, "metric": result.metric,
            "test": result.test, "layers": layers,
        }  # fmt: skip
        said = ", ".join(
            f"{entry['layer']} {entry['spikes']:.1%} spikes, {entry['inside']:.1%} inside"
            for entry in layers
        )
        print(
            f"{name}, {model.surrogate} of width {model.surrogate_width:g}, activity "
            f"{config.train.activity:g}: {result.metric} {row['test']:.4g}; {said}",
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=["mnist", "jsb"])
    parser.add_argument("--json", type=Path, help="keep all figures there")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    if options.json and options.json.exists():  # the other tasks' rows stay
        kept = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
        rows = [row for row in kept if row["task"] not in options.only]
    for name in options.only:
        rows += measured(name, options.epochs)
        if options.json:
            measure.save(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
