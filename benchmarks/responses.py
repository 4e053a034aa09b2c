"""Draws docs/results/units-*.png: what each unit does with a step, a pulse and noise.

python benchmarks/responses.py          (needs matplotlib: pip install 'spikebridge[bench]')

One neuron of each kind, as it is before training but for the constants in `UNITS`; its second
current (gate, threshold, output), where it has one, is drawn too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch

from spikebridge.nn.units import Unit, make_unit

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
STEPS, START = 120, 20
MEMBRANE, SLOW, SPIKES, SOFT, CURRENT = "#0072B2", "#CC79A7", "#000000", "#D55E00", "#9A9A9A"
COMMON: dict[str, Any] = {"decay": 0.9, "g": "identity", "threshold": 1.0}
# Kind, title, and what differs.
UNITS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "units-kinds.png": [
        ("snu", "SNU, reset to zero", COMMON),
        ("snu", "SNU, no reset", {**COMMON, "reset": "none"}),
        ("snu", "SNU, reset by subtraction", {**COMMON, "reset": "subtract"}),
        ("li-snu", "lateral inhibition (1st of 3 neurons)", COMMON),
        ("binary-di", "binary DI", {}),
        ("binary-ci", "binary CI", {}),
    ],
    "units-members.png": [
        ("snu", "adaptation", {**COMMON, "modulation": "adaptation", "rho": 0.97, "beta": 8.0}),
        (
            "snu",
            "oscillation, period 25",
            {**COMMON, "memory": "oscillation", "decay": 0.97, "periods": (25.0, 25.0)}
            | {"threshold": 0.05},
        ),
        (
            "snu",
            "gate on the memory",
            {**COMMON, "memory": "gate", "reset": "none", "threshold": 0.2},
        ),
        ("snu", "threshold moved by a current", {**COMMON, "modulation": "threshold"}),
        ("snu", "output gated by a current", {**COMMON, "modulation": "output"}),
    ],
}


def currents() -> dict[str, torch.Tensor]:
    """The input currents (T,), by name."""
    time = torch.arange(STEPS)
    noise = torch.randn(STEPS, generator=torch.Generator().manual_seed(0))
    return {
        "step": 0.25 * ((time >= START) & (time < 90)),
        "pulse": 1.5 * ((time >= START) & (time < START + 2)),
        "noise": 0.15 + 0.4 * noise,
    }


def second(unit: Unit) -> torch.Tensor:
    """The second current (T,): one kind of help in the first half, the other in the second."""
    half = (torch.arange(STEPS) >= 55).float()
    if getattr(unit, "memory", "") == "gate":
        return -3.0 + 7.0 * half  # takes in what comes, then holds it
    if getattr(unit, "modulation", "") == "threshold":
        return 1.0 - 3.0 * half  # lowers it, then raises it
    return 1.0 - 3.0 * half  # open, then shut


@torch.no_grad()
def response(unit: Unit, current: torch.Tensor) -> dict[str, torch.Tensor]:
    """Membranes, slow states and outputs (T,) of a unit's first neuron."""
    parts = [current[:, None].expand(-1, unit.size)]
    parts += [second(unit)[:, None].expand(-1, unit.size)] * (unit.drives - 1)
    drive = torch.cat(parts, dim=1)
    if unit.size > 1:  # the others of a group get less
        drive = drive * torch.tensor([1.0, 0.9, 0.6])
    params = unit.params(torch.float32)
    state = unit.initial_state(1, torch.float32)
    rows: dict[str, list[torch.Tensor]] = {"membrane": [], "slow": [], "output": []}
    for now in drive:
        state = unit.step(state, now[None], params)
        rows["membrane"].append(unit.membrane(state)[0, 0])
        if state.s.shape[1] > unit.size:
            rows["slow"].append(state.s[0, unit.size])
        rows["output"].append(state.y[0, 0])
    return {name: torch.stack(values) for name, values in rows.items() if values}


def draw(axes: Any, kind: str, settings: dict[str, Any], current: torch.Tensor) -> None:
    """One unit and one current: membrane, slow state and spikes, and the soft unit's output."""
    size = 3 if kind == "li-snu" else 1
    unit = make_unit(kind, size, **settings)
    parts = response(unit, current)
    axes.fill_between(range(STEPS), current, step="post", color=CURRENT, alpha=0.35, lw=0)
    axes.plot(parts["membrane"], color=MEMBRANE, lw=1.3)
    if "slow" in parts:
        axes.plot(parts["slow"], color=SLOW, lw=1.3)
    if unit.drives > 1:
        axes.axvline(55, color=CURRENT, lw=0.8, ls=":")
    if kind == "snu":
        soft = response(make_unit("softsnu", size, **settings), current)
        axes.plot(soft["output"], color=SOFT, lw=1.1, ls="--")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.22 * (high - low))
    for step in parts["output"].nonzero():
        axes.axvline(float(step), 0.86, 0.97, color=SPIKES, lw=1.2)
    axes.spines[["top", "right"]].set_visible(False)


def picture(path: Path, units: list[tuple[str, str, dict[str, Any]]]) -> None:
    """A row for each unit, a column for each current."""
    given = currents()
    figure, grid = plt.subplots(
        len(units), 3, figsize=(13, 1.75 * len(units) + 0.7), layout="constrained", sharex=True
    )
    for line, (kind, title, settings) in zip(grid, units, strict=True):
        for axes, current in zip(line, given.values(), strict=True):
            draw(axes, kind, settings, current)
        line[0].set_title(title, loc="left", fontsize=10)
    for axes, name in zip(grid[0], given, strict=True):
        axes.set_title(name, loc="right", fontsize=11, fontweight="bold")
    for axes in grid[-1]:
        axes.set_xlabel("time step")
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=CURRENT, alpha=0.35),
        *(
            plt.Line2D([], [], color=colour, ls=style)
            for colour, style in ((MEMBRANE, "-"), (SLOW, "-"), (SPIKES, "-"), (SOFT, "--"))
        ),
    ]
    names = ["input current", "membrane", "slow state", "spikes (top)", "output of the soft unit"]
    figure.legend(handles, names, loc="outside upper center", ncol=5, frameon=False, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, units in UNITS.items():
        picture(out / name, units)


if __name__ == "__main__":
    main()
