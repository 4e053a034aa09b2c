"""Draws docs/results/*.png from the figures that speed.py, memory.py and training.py have kept.

python benchmarks/pictures.py            (needs matplotlib: pip install 'spikebridge[bench]')
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
OURS, OTHER, FLOOR = "#0072B2", "#B0B0B0", "#D55E00"


def bars(axes: Any, table: dict[str, dict[str, float]], title: str, unit: str) -> None:
    """Total time of each row, with its ratio (the median over rounds) at its end."""
    names = list(table)[::-1]
    total = [(table[n]["forward_s"] + table[n]["backward_s"]) * 1e3 for n in names]
    forward = [table[n]["forward_s"] * 1e3 for n in names]
    colours = [
        OURS if "spikebridge" in n or "SNU" in n else FLOOR if "Linear" in n else OTHER
        for n in names
    ]
    axes.barh(names, total, color=colours, alpha=0.55)
    axes.barh(names, forward, color=colours)
    for y, (name, value) in enumerate(zip(names, total, strict=True)):
        axes.text(value, y, f" {table[name]['ratio']:.2f} x", va="center", fontsize=9)
    axes.set_xlim(0, max(total) * 1.18)
    axes.set_xlabel(f"ms per training step (dark: forward), {unit}")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def speed(measured: dict[str, Any]) -> None:
    rec = measured["recurrent"]
    figure, grid = plt.subplots(2, 2, figsize=(13, 7.2), layout="constrained")
    tables = [t for t in measured["peers"]["tables"] if t.get("share", 1.0) == 1.0]
    wanted = [t for t in tables if (t["n"], t["precision"]) != (512, "bf16")]
    for axes, table in zip(grid.flat, wanted, strict=False):
        bars(axes, table["rows"], f"Layer, N={table['n']}, {table['precision']}", "x ours")
    bars(grid[1, 1], rec["rows"], "Recurrent, N=512, fp32", "x nn.RNN(relu)")
    _finish(figure, measured, "forward + backward", "speed-cpu.png")


def _finish(figure: Any, measured: dict[str, Any], what: str, name: str) -> None:
    """Says what all its parts show and where it was measured, and writes it."""
    where = measured["environment"]
    figure.suptitle(
        f"One layer, T=500, B=16, {what}; {where['cores']} cores, {where['cpu']}, "
        f"torch {where['torch']}; medians of {measured['rounds']} rounds in turn",
        fontsize=11,
    )
    figure.savefig(RESULTS / name, dpi=110)
    plt.close(figure)


def spiking_peers(measured: dict[str, Any]) -> None:
    """Other libraries beside ours where a tenth of the inputs are spikes."""
    figure, grid = plt.subplots(2, 2, figsize=(13, 9.4), layout="constrained")
    tables = [t for t in measured["peers"]["tables"] if t["share"] < 1.0]
    for axes, table in zip(grid.flat, tables, strict=False):
        bars(axes, table["rows"], f"Layer, N={table['n']}, {table['precision']}", "x ours")
    _finish(figure, measured, "10 % spikes, forward + backward", "speed-peers-cpu.png")


def scaling(measured: dict[str, Any]) -> None:
    labels = {"T": "time steps T", "B": "batch B", "N": "neurons N"}
    figure, grid = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axes, (name, points) in zip(grid, measured["scaling"].items(), strict=True):
        for row, colour, marker in (("scan", OURS, "o"), ("recurrent layer", FLOOR, "s")):
            part = [p for p in points if row in p["us_per_step"]]
            x = [p[name.lower()] for p in part]
            y = [p["us_per_step"][row] for p in part]
            axes.plot(x, y, marker=marker, color=colour, label=row)
            if name == "B" or (name, row) == ("N", "scan"):  # linear through the largest
                axes.plot(x, [y[-1] * v / x[-1] for v in x], ":", color=colour, linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(labels[name] + ("" if name == "T" else "   (dotted: linear)"))
        axes.set_ylabel("µs per time step, fwd + bwd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    low = min(v for p in measured["scaling"]["T"] for v in p["us_per_step"].values())
    high = max(v for p in measured["scaling"]["T"] for v in p["us_per_step"].values())
    grid[0].set_ylim(low / 3, high * 3)
    grid[0].legend(frameon=False)
    figure.savefig(RESULTS / "scaling-cpu.png", dpi=110)
    plt.close(figure)


def memory(measured: dict[str, Any]) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    styles = zip(["#808080", OURS, "#56B4E9", FLOOR, "#009E73"], "vosd^", strict=True)
    for mode, (colour, marker) in zip(
        dict.fromkeys(r["mode"] for r in measured["rows"]), styles, strict=True
    ):
        part = [r for r in measured["rows"] if r["mode"] == mode]
        x, y = [r["t"] for r in part], [r["peak_bytes"] / 1e6 for r in part]
        axes.plot(x, y, marker=marker, color=colour, label=mode)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("time steps T")
    axes.set_ylabel("peak memory of a training step, MB")
    axes.set_title(
        f"{measured['layers']} layers of {measured['n']} SNUs, B={measured['b']}, fp32", loc="left"
    )
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "memory-cpu.png", dpi=110)
    plt.close(figure)


def training(measured: dict[str, Any]) -> None:
    """Seconds per epoch of each row that trains, and its peak memory, network by network."""
    cases = measured["cases"]
    figure, grid = plt.subplots(
        2, len(cases), figsize=(4.2 * len(cases), 6.4), layout="constrained", squeeze=False,
        height_ratios=(5, 3),
    )  # fmt: skip
    for (name, case), (above, below) in zip(cases.items(), grid.T, strict=True):
        rows = dict(list(case["rows"].items())[::-1])
        peaks = {row: e["peak_bytes"] / 1e6 for row, e in rows.items() if "peak_bytes" in e}
        ratios = {row: f" {entry['ratio']:.2f} x" for row, entry in rows.items()}
        epochs = {row: entry["epoch_s"] for row, entry in rows.items()}
        for axes, values, text, unit in (
            (above, epochs, ratios, "seconds per epoch"),
            (below, peaks, {k: f" {v:.0f}" for k, v in peaks.items()}, "peak memory, MB"),
        ):
            colours = [OURS if "spikebridge" in row else OTHER for row in values]
            axes.barh(list(values), list(values.values()), color=colours)
            for y, (row, value) in enumerate(values.items()):
                axes.text(value, y, text[row], va="center", fontsize=8)
            axes.set_xlim(0, max(values.values(), default=1) * 1.25 + 1e-9)
            axes.set_xlabel(unit, fontsize=8)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        rates = [entry["firing"] for entry in rows.values() if entry["firing"] is not None]
        above.set_title(f"{name}, {min(rates):.0%} to {max(rates):.0%} active", fontsize=10)
    where = measured["environment"]
    figure.suptitle(
        f"Whole training; {where['cores']} cores, {where['cpu']}, torch {where['torch']}; medians "
        f"of {measured['rounds']} rounds in turn; x: of ours with the same reset and a window",
        fontsize=11,
    )
    figure.savefig(RESULTS / "training-cpu.png", dpi=110)
    plt.close(figure)


def main() -> None:
    drawn = (
        ("speed", speed), ("speed-peers", spiking_peers), ("speed", scaling), ("memory", memory),
        ("training", training),
    )  # fmt: skip
    for name, draw in drawn:
        path = RESULTS / f"{name}-cpu.json"
        if path.exists():
            draw(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
