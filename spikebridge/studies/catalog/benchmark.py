"""The public benchmark of spiking neurons on sequences, by its budgets, with its printed table.

Every network has at most as many parameters as the published ones, hidden layers as wide as that
leaves them.  All rows of an entry choose among the same learning rates, on validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from spikebridge.settings.published import Printed
from spikebridge.studies.catalog.entry import Entry, Row

_SOURCE = (
    "NeuroSeqBench, arXiv 2502.09449, as its repository prints the tables "
    "(github.com/liyc5929/neuroseqbench, commit 068ea61; that of 2024 has other figures of "
    "adding): {theirs}; ours: {ours}, the best of them on validation"
)
# Perplexity, accuracy of permuted pixels, accuracy of adding, each feed-forward and recurrent.
_NEURONS: tuple[tuple[str, tuple[float | None, ...]], ...] = (
    ("LIF", (129.96, 111.96, 57.45, 72.97, 29.60, 53.35)),
    ("PLIF", (123.76, 105.64, 55.86, 77.32, 29.40, 53.25)),
    ("ALIF", (113.67, 102.25, 73.90, 85.78, 40.30, 68.00)),
    ("adLIF", (118.52, 97.22, 85.93, 89.53, 42.00, 99.05)),
    ("GLIF", (111.58, 103.07, 95.42, 95.04, 90.15, 63.60)),
    ("LTC", (104.10, 99.09, 86.33, 90.94, 100.00, 100.00)),
    ("SPSN", (120.43, None, 83.88, None, 45.70, None)),
    ("TCLIF", (286.71, 255.67, 86.81, 92.08, 19.10, 19.90)),
    ("LM-H", (122.69, 102.05, 77.70, 83.14, 99.25, 96.10)),
    ("CLIF", (128.28, 108.21, 43.90, 70.44, 19.10, 64.30)),
    ("DH-LIF", (115.61, 100.55, 79.12, 91.07, 98.85, 99.35)),
    ("CELIF", (112.35, 106.52, 97.76, 97.66, 48.40, 100.00)),
    ("PMSN", (113.24, None, 96.28, None, 100.00, None)),
    ("LIF, e-prop", (None, 125.54, None, 52.88, None, 50.85)),
)
_COLUMNS = ("feed-forward", "recurrent")


def _printed(first: int, scale: float) -> tuple[Printed, ...]:
    """Two columns of the table, accuracies as shares of 1."""
    rows = []
    for label, values in _NEURONS:
        pair = zip(_COLUMNS, values[first : first + 2], strict=True)
        rows.append(Printed(label, {name: v * scale for name, v in pair if v is not None}))
    return tuple(rows)


def _rows(
    recurrent: bool,
    hidden: Sequence[tuple[int, ...]],
    epoch_s: Sequence[float],
    *,
    spiking: Mapping[str, Any] | None = None,
    norm: Mapping[str, Any] | None = None,
    membranes: Mapping[str, Any] | None = None,
) -> tuple[Row, ...]:
    """The base unit, spiking ones with an oscillation and a gate, a soft one, and the LSTM.

    Args:
        recurrent: whether outputs feed back.
        hidden: layers of each row.
        epoch_s: seconds of an epoch of each row, on one core.
        spiking: settings of the spiking rows.
        norm: of the rows with an oscillation or a gate.
        membranes: of all but the LSTM.
    """
    start, word = ("recurrent-", ", recurrent") if recurrent else ("", "")
    soft, more = dict(membranes or {}), dict(norm or {})
    spikes = soft | dict(spiking or {})
    text = " and a norm" if norm else ""
    rows = (
        Row(f"{start}snu", spikes, f"{start}snu", f"SNU{word}"),
        Row(
            f"{start}snu",
            spikes | more | {"memory": "oscillation"},
            "oscillating-snu",
            f"SNU{word}, with an oscillation{text}",
        ),
        Row(
            f"{start}snu",
            spikes | more | {"memory": "gate"},
            "gated-snu",
            f"SNU{word}, with a gate{text}",
        ),
        Row(
            f"{start}softsnu",
            soft | more | {"memory": "gate"},
            "gated-softsnu",
            f"soft SNU{word}, with a gate{text}",
        ),
        Row("lstm", {}, "lstm", "LSTM"),
    )
    return tuple(
        replace(row, settings={**row.settings, "hidden": layers}, epoch_s=seconds)
        for row, layers, seconds in zip(rows, hidden, epoch_s, strict=True)
    )


def _two(*widths: int) -> list[tuple[int, ...]]:
    return [(width, width) for width in widths]


def _three(*widths: int) -> list[tuple[int, ...]]:
    """With a narrow first layer, nearly in the published proportions 64, 256, 256."""
    return [(width // 4, width, width) for width in widths]


_LOW: dict[str, Any] = {"surrogate_height": 0.3}
_LONG: dict[str, Any] = {
    "g": "identity",
    "decay": 0.8,
    "decay_to": 0.995,
    "train_decay": True,
    "reset": "none",
}
_PIXELS: dict[str, Any] = {"norm": "step"}
_WORDS: dict[str, Any] = {"norm": "layer"}

_ADDING = partial(
    Entry,
    source=_SOURCE.format(theirs="50 epochs, the best of them on the test set", ours="20 epochs"),
    task="adding",
    data="adding-bits",
    settings={"batch_size": 100, "epochs": 20},
    grid={"lr": (2e-3, 5e-3, 1e-2)},
    trial={"epochs": 4},
    quick={"epochs": 1, "sequences": 1000},
)
_PSMNIST = partial(
    Entry,
    source=_SOURCE.format(
        theirs="100 epochs of 60,000 images, the best of them on the test set",
        ours="4 epochs of 55,000 images",
    ),
    task="digits",
    data="mnist",
    settings={
        "coding": "permuted",
        "batch_size": 100,
        "epochs": 4,
        "schedule": "onecycle",
        "ema": 0.0,
        "dropout": 0.0,
        "dropout_in": 0.0,
    },
    grid={"lr": (2e-3, 5e-3)},
    trial={"epochs": 1},
    quick={"epochs": 1, "hidden": (8,)},
)
_PTB = partial(
    Entry,
    source=_SOURCE.format(theirs="100 epochs, layers of 1,100 and 400 neurons", ours="20 epochs"),
    task="text",
    data="ptb",
    settings={
        "embedding": 400,
        "read_all": False,
        "steps": 70,
        "batch_size": 20,
        "epochs": 20,
    },
    grid={"lr": (1.5e-3, 3e-3)},
    trial={"epochs": 2},
    seeds=3,
    quick={"epochs": 1, "hidden": (64,), "embedding": 64, "sampled": 300},
)

BENCHMARK: tuple[Entry, ...] = (
    _ADDING(
        name="sequence-adding",
        title="Adding nine marked bits of 100, feed-forward, 18 thousand parameters",
        minutes=90,
        rows=_rows(False, _two(126, 124, 90, 90, 37), (16, 12, 17, 18, 21)),
        printed=_printed(4, 0.01),
    ),
    _ADDING(
        name="sequence-adding-recurrent",
        title="Adding nine marked bits of 100, recurrent, 35 thousand parameters",
        minutes=130,
        rows=_rows(True, _two(104, 102, 90, 90, 52), (23, 19, 24, 27, 30)),
        printed=_printed(4, 0.01),
    ),
    _PSMNIST(
        name="sequence-psmnist",
        title="Permuted pixels of MNIST, feed-forward, 85 thousand parameters",
        minutes=800,
        rows=_rows(
            False,
            _three(254, 250, 178, 178, 78),
            (1036, 1070, 595, 595, 679),
            norm=_PIXELS,
            membranes=_LONG,
        ),
        printed=_printed(2, 0.01),
    ),
    _PSMNIST(
        name="sequence-psmnist-recurrent",
        title="Permuted pixels of MNIST, recurrent, 155 thousand parameters, and e-prop",
        minutes=615,
        seeds=1,
        rows=(
            *_rows(
                True,
                _three(214, 212, 180, 180, 106),
                (675, 710, 700, 700, 750),
                spiking=_LOW,
                norm=_PIXELS,
                membranes=_LONG,
            ),
            Row(
                "recurrent-snu",
                {**_LONG, **_LOW, "hidden": (53, 214, 214), "rule": "eprop"},
                "eprop-snu",
                "SNU, recurrent, e-prop",
                epoch_s=5600,
            ),
        ),
        printed=_printed(2, 0.01),
    ),
    _PTB(
        name="sequence-ptb",
        title="Penn Treebank, words, feed-forward, 4.7 million parameters",
        minutes=160,
        rows=_rows(False, _two(520, 516, 356, 356, 170), (47, 63, 55, 54, 59), norm=_WORDS),
        printed=_printed(0, 1.0),
    ),
    _PTB(
        name="sequence-ptb-recurrent",
        title="Penn Treebank, words, recurrent, 6 million parameters",
        minutes=315,
        rows=_rows(True, _two(690, 688, 568, 568, 330), (111, 113, 91, 111, 127), norm=_WORDS),
        printed=_printed(0, 1.0),
    ),
)
