"""Learning rules: each comparison of GRAPES has three rows, plain, equal gain and GRAPES."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikebridge.studies.catalog.entry import JSB, MNIST, Entry, Row

_PAPER = (
    "Dellaferrera et al. 2022, Nature Communications 13 (GRAPES); its tables of accuracies are "
    "unknown to us"
)
_OSTL = "Bohnstingl et al. 2022, IEEE TNNLS (OSTL); its numbers on JSB are unknown to us"
_RATES = (0.025, 0.05, 0.1, 0.2, 0.4)
_RATES_DOWN = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def _three(
    unit: str,
    group: str,
    label: str,
    settings: Mapping[str, Any] | None = None,
    *,
    grapes: str = "propagated",
    grid: Mapping[str, tuple[Any, ...]] | None = None,
) -> tuple[Row, Row, Row]:
    """The three rows of a comparison: plain, the mean factor for all, and GRAPES."""
    given = dict(settings or {})
    with_it = given | {"grapes": grapes}
    rest: dict[str, Any] = {"group": group, "grid": dict(grid or {})}
    return (
        Row(unit, given, f"{group}-plain", label, role="plain", **rest),
        Row(
            unit,
            with_it | {"grapes_control": "gain"},
            f"{group}-gain",
            f"{label}, equal gain",
            role="gain",
            **rest,
        ),
        Row(unit, with_it, f"{group}-grapes", f"{label}, GRAPES", role="grapes", **rest),
    )


def _online(
    unit: str, label: str, rule: str, settings: Mapping[str, Any] | None = None
) -> tuple[Row, Row]:
    """Backpropagation through time, and a rule that goes forward with it, alike in all else."""
    given = dict(settings or {})
    name = {"ostl": "OSTL", "eprop": "e-prop"}[rule]
    return (
        Row(unit, given, f"{unit}-bptt", f"{label}, BPTT", unit, "plain"),
        Row(unit, given | {"rule": rule}, f"{unit}-{rule}", f"{label}, {name}", unit, "online"),
    )


# What these tables were made with; the preset drops recurrent weights by now.
_WITHOUT_DROPCONNECT: dict[str, Any] = {
    "lr": 5.9e-2,
    "dropout_in": 0.1,
    "ema": 0.99,
    "decay": 0.3,
    "decay_to": 0.9,
    "g": "leaky_relu",
    "dropout_recurrent": 0.0,
}
_FEEDBACK = (
    ("fa", "FA", {"rule": "fa", "grapes_clip": False}, "propagated"),
    ("dfa", "DFA", {"rule": "dfa"}, "outgoing"),
)

LEARNING: tuple[Entry, ...] = (
    MNIST(
        name="grapes-mnist",
        title="GRAPES on MNIST, ReLU 784-256-256-10, SGD, batches of 64",
        source=_PAPER,
        minutes=42,
        rows=_three("relu", "bp", "backpropagation"),
        settings={"epochs": 20},
        grid={"lr": _RATES},
        trial={"epochs": 8},
        seeds=10,
    ),
    MNIST(
        name="grapes-feedback",
        title="GRAPES with random feedback on MNIST, ReLU 784-256-256-10, SGD, batches of 64",
        source=_PAPER,
        minutes=22,
        rows=(
            *(
                row
                for name, label, settings, form in _FEEDBACK
                for row in _three("relu", name, label, settings, grapes=form)
            ),
            # With ReLU, which has no upper bound, fixed targets push outputs up for ever: see
            # docs/learning.md.
            Row("tanh", {"rule": "drtp"}, "drtp", "DRTP, tanh", group="drtp", role="plain"),
        ),
        settings={"epochs": 15},
        grid={"lr": (0.003, 0.01, 0.03, 0.1, 0.3)},
        trial={"epochs": 4},
        seeds=3,
    ),
    *(
        MNIST(
            name=f"grapes-{what}",
            title=f"GRAPES against {what}: MNIST, ReLU, SGD, batches of 64",
            source=_PAPER,
            minutes={"depth": 35, "width": 25}[what],
            rows=tuple(
                row
                for hidden in sizes
                for row in _three(
                    "relu",
                    f"{len(hidden)}x{hidden[0]}",
                    f"{len(hidden)} x {hidden[0]}",
                    {"hidden": hidden},
                    # A factor of nearly 2 for each layer: deep rows need to reach further down.
                    grid={"lr": _RATES_DOWN[-5 - len(hidden) // 4 :]},
                )
            ),
            settings={"epochs": 8},
            grid={"lr": _RATES_DOWN},
            trial={"epochs": 3},
            seeds=3,
        )
        for what, sizes in (
            ("depth", tuple((256,) * count for count in (1, 2, 4, 8))),
            ("width", tuple((size,) * 2 for size in (32, 128, 512))),
        )
    ),
    Entry(
        name="grapes-cifar10",
        title="GRAPES on 10,000 images of CIFAR-10, a network of convolutions",
        source=_PAPER,
        task="digits",
        data="cifar10-small",
        minutes=28,
        rows=_three("relu", "conv", "backpropagation"),
        grid={"lr": (0.01, 0.03, 0.1, 0.3)},
        trial={"epochs": 4},
        seeds=3,
        quick={"epochs": 1},
    ),
    MNIST(
        name="grapes-snu",
        title="GRAPES on rate-coded MNIST, SNU and soft SNU 784-256-256-10",
        source=_PAPER,
        minutes=22,
        rows=(
            *_three("snu", "snu", "SNU"),
            *_three("softsnu", "softsnu", "soft SNU"),
        ),
        settings={
            "epochs": 4,
            "optimizer": "sgd",
            "schedule": "constant",
            "batch_size": 64,
            "dropout": 0.0,
            "dropout_in": 0.0,
            "ema": 0.0,
        },
        grid={"lr": (0.003, 0.01, 0.03, 0.1, 0.3)},
        trial={"epochs": 1},
        seeds=3,
    ),
    JSB(
        name="grapes-jsb",
        title="GRAPES on JSB chorales, 88-150-88",
        source=_PAPER,
        minutes=18,
        rows=(
            *_three("snu", "snu", "SNU"),
            *_three("softsnu", "softsnu", "soft SNU"),
            *_three("recurrent-softsnu", "recurrent", "recurrent soft SNU", _WITHOUT_DROPCONNECT),
        ),
        grid={"lr": (0.02, 0.05, 0.1, 0.2)},
        trial={"epochs": 30},
        seeds=5,
    ),
    JSB(
        name="ostl-jsb",
        title="Learning online on JSB chorales, 88-150-88: OSTL and e-prop beside backpropagation",
        source=_OSTL,
        minutes=16,
        rows=(
            *_online("snu", "SNU", "ostl"),
            *_online("softsnu", "soft SNU", "ostl"),
            *_online("recurrent-softsnu", "recurrent soft SNU", "eprop", _WITHOUT_DROPCONNECT),
        ),
        seeds=3,
    ),
    JSB(
        name="grapes-in-memory",
        title="GRAPES on phase-change cells, hardware in the loop: JSB chorales, SNU 88-150-88",
        source=_PAPER,
        minutes=9,
        rows=_three("snu", "cells", "SNU on 52,800 cells"),
        settings={
            "cells": "accumulation",
            "w_max": 0.8,
            "epsilon": 0.133,
            "refresh_every": 5,
            "dropout": 0.1,
            "dropout_in": 0.0,
        },
        grid={"lr": (0.02, 0.04, 0.08, 0.16, 0.32)},
        trial={"epochs": 20},
        seeds=5,
    ),
    MNIST(
        name="grapes-weight-bits",
        title="GRAPES with weights of few bits: MNIST, ReLU 784-256-256-10, SGD, batches of 64",
        source=_PAPER,
        minutes=33,
        rows=tuple(
            row
            for bits in (2, 3, 4)
            for row in _three("relu", f"{bits}-bits", f"{bits} bits", {"weight_bits": bits})
        ),
        settings={"epochs": 8},
        grid={"lr": (0.025, 0.05, 0.1, 0.2, 0.4)},
        trial={"epochs": 3},
        seeds=3,
    ),
)
