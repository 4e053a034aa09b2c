"""Tables of forgetting: tasks one after the other, GRAPES against its controls, EWC and SI."""

from __future__ import annotations

from typing import Any

from spikebridge.studies.catalog.entry import Entry, Row

_GRAPES = {"grapes": "propagated"}
_ROWS = (
    Row("relu", {}, "plain", "backpropagation", role="plain"),
    Row("relu", {**_GRAPES, "grapes_control": "gain"}, "gain", "equal gain", role="gain"),
    Row("relu", _GRAPES, "grapes", "GRAPES", role="grapes"),
    Row(
        "relu",
        {"method": "ewc"},
        "ewc",
        "EWC",
        role="ewc",
        grid={"strength": (3.0, 30.0, 300.0)},
    ),
    Row("relu", {"method": "si"}, "si", "SI", role="si", grid={"strength": (0.1, 1.0, 10.0)}),
)
_PAPER = (
    "Dellaferrera et al. 2022, Nature Communications 13 (GRAPES); its numbers are unknown to us"
)
_SHARED: dict[str, Any] = {
    "task": "digits",
    "data": "mnist",
    "rows": _ROWS,
    "grid": {"lr": (1e-3, 3e-3, 1e-2, 3e-2)},
    "seeds": 10,
    "quick": {"hidden": (32,), "tasks": 2, "batch_size": 256},
}

FORGETTING: tuple[Entry, ...] = (
    Entry(
        name="grapes-forgetting-permuted",
        title="Forgetting: 5 tasks of permuted MNIST, ReLU 784-256-256-10, one pass each",
        source=f"{_PAPER}. Its first public notebook logs 77.00, 86.11, 93.17, 94.09 and 95.36 % "
        "after the last task: one run, with a factor of 2 for every neuron",
        settings={"protocol": "permuted", "tasks": 5, "threads": 1},
        minutes=35,
        **_SHARED,
    ),
    Entry(
        name="grapes-forgetting-split",
        title="Forgetting: 5 tasks of two digits each, MNIST, ReLU 784-256-256-10, one pass each",
        source=f"{_PAPER}. Outputs are those of the task's own digits (task-incremental)",
        settings={"protocol": "split", "tasks": 5, "heads": "masked", "threads": 1},
        minutes=10,
        **_SHARED,
    ),
)
