"""Sequences where time matters: spiking and soft members of the family beside torch's own units.

All rows of an entry choose among the same number of settings, on validation.
"""

from __future__ import annotations

from typing import Any

from spikebridge.studies.catalog.entry import MNIST, OURS, Entry, Row

_BAI = "Bai et al. 2018: LSTM 3.29 and TCN 3.07 with 1 million parameters"
_JSB = "Woźniak et al. 2020: sSNU 8.39, LSTM 8.55; Bai et al. 2018: LSTM 8.45"
_LEAK: dict[str, Any] = {"memory": "leak"}
_OSCILLATING: dict[str, Any] = {"memory": "oscillation"}
_GATED: dict[str, Any] = {"memory": "gate"}
_BOTH_WAYS: dict[str, Any] = {"memory": "gate", "recurrent_gates": True}
_MEMORIES: dict[str, Any] = {"g": "identity", "decay": 0.5, "decay_to": 0.98, "train_decay": True}
# The chip takes spikes only; the rate is the best of the trials of `ecg`.
_ON_HARDWARE: dict[str, Any] = {"epochs": 60, "lr": 4e-2, "coding": "binary"}


def _spiking(**settings: Any) -> Row:
    """The recurrent spiking unit whose second state oscillates."""
    text = "SNU, recurrent, oscillating"
    return Row("recurrent-snu", _OSCILLATING | settings, "oscillating-snu", text)


def _soft(**settings: Any) -> Row:
    """The recurrent soft unit whose gate sees its inputs."""
    text = "soft SNU, recurrent, gated by its inputs"
    return Row("recurrent-softsnu", _GATED | settings, "gated-softsnu", text)


def _soft_by_all(**settings: Any) -> Row:
    """The recurrent soft unit whose gate sees the last outputs too."""
    text = "soft SNU, recurrent, gated by all"
    return Row("recurrent-softsnu", _BOTH_WAYS | settings, "both-softsnu", text)


def _soft_output(**settings: Any) -> Row:
    """The same with a gate on its output."""
    text = "soft SNU, recurrent, memory and output gated by all"
    own = _BOTH_WAYS | {"modulation": "output"} | settings
    return Row("recurrent-softsnu", own, "output-softsnu", text)


def _songs(data: str, title: str, source: str, drop: str, minutes: int) -> Entry:
    """A set of songs, 88 notes in and out; `drop` is what the search regularises with."""
    return Entry(
        name=f"{data}-level",
        title=f"{title} at level terms: 157 thousand parameters, the same search for all",
        source=source,
        task="music",
        data=data,
        rows=(
            _spiking(**_MEMORIES, surrogate_width=0.5, hidden=(314,)),
            _soft(**_MEMORIES, reset="none", hidden=(284,)),
            _soft_by_all(**_MEMORIES, reset="none", hidden=(220,)),
            Row("lstm"),
        ),
        grid={"lr": (5e-3, 1e-2, 2e-2), drop: (0.1, 0.3, 0.5)},
        minutes=minutes,
    )


def _text(level: str, widths: tuple[tuple[int, ...], ...], **entry: Any) -> Entry:
    """A level of Penn Treebank; widths are those of the four rows."""
    return Entry(
        name=f"ptb-{level}-level",
        task="text",
        data="ptb",
        rows=(
            _spiking(surrogate_width=0.5, hidden=widths[0]),
            _soft_by_all(reset="none", hidden=widths[1]),
            _soft_output(reset="none", hidden=widths[2]),
            Row("lstm", {"hidden": widths[3]}),
        ),
        seeds=3,
        **entry,
    )


SEQUENCES: tuple[Entry, ...] = (
    Entry(
        name="ecg",
        title="QTDB, heartbeats as spikes, a class at each of 1,301 steps",
        source="balanced resonate-and-fire neurons, 36 units, 400 epochs: 85.52 ± 0.67 %, spiking "
        "(five seeds, best validation epoch; recomputed from the curves that its authors publish)",
        task="ecg",
        data="qtdb",
        settings={"epochs": 60},
        grid={"lr": (1e-2, 2e-2, 4e-2)},
        trial={"epochs": 30},
        minutes=40,
        quick={"epochs": 1},
        rows=(
            Row("recurrent-snu", _LEAK),
            _spiking(),
            Row("recurrent-snu", _BOTH_WAYS, "gated-snu", "SNU, recurrent, gated by all"),
            _soft(),
            _soft_by_all(),
            Row("lstm"),
        ),
    ),
    Entry(
        name="ecg-on-chip",
        title="QTDB on the digital chip, 40 nm: an oscillating spiking network of 1,842 parameters",
        source="spiking networks in software: 85.52 ± 0.67 %, see `ecg`; on a chip: unknown",
        task="ecg",
        data="qtdb",
        settings=_ON_HARDWARE,
        chip={"lanes": 8},
        seeds=3,
        minutes=4,
        quick={"epochs": 1},
        rows=(_spiking(),),
    ),
    Entry(
        name="ecg-programmed",
        title="QTDB in simulated phase-change cells, programmed after training",
        source="spiking networks in software: 85.52 ± 0.67 %, see `ecg`; on cells: unknown",
        task="ecg",
        data="qtdb",
        settings=_ON_HARDWARE,
        cells={"cells": "iterative"},
        seeds=3,
        minutes=20,
        quick={"epochs": 1},
        rows=(_spiking(), _soft()),
    ),
    Entry(
        name="speech",
        title="Ten spoken words, log-mel frames, speakers of the test unheard in training",
        source=OURS,
        task="speech",
        data="speech",
        grid={"lr": (5e-3, 1e-2, 2e-2)},
        trial={"epochs": 10},
        minutes=60,
        quick={"epochs": 1},
        rows=(
            Row("snu", _LEAK),
            Row("snu", _OSCILLATING, "oscillating-snu", "SNU, oscillating"),
            # As many parameters as the GRU has.
            Row(
                "snu",
                {**_OSCILLATING, "hidden": (375, 375)},
                "oscillating-snu-375",
                "SNU, oscillating, 375-375",
            ),
            Row("softsnu", _GATED, "gated-softsnu", "soft SNU, gated by its inputs"),
            Row(
                "softsnu",
                {**_OSCILLATING, "hidden": (375, 375)},
                "oscillating-softsnu-375",
                "soft SNU, oscillating, 375-375",
            ),
            Row("gru"),
            Row("lstm"),
        ),
    ),
    # As many parameters as an LSTM of 128 units has.
    MNIST(
        name="mnist-rows-level",
        title="MNIST row by row at level terms: 80 to 84 thousand parameters, 15 epochs",
        source=OURS,
        settings={
            "coding": "rows",
            "epochs": 15,
            "schedule": "onecycle",
            "ema": 0.0,
            "dropout_in": 0.0,
        },
        grid={"lr": (5e-3, 1e-2), "dropout": (0.1, 0.4)},
        trial={"epochs": 4},
        minutes=60,
        rows=(
            _spiking(**_MEMORIES, surrogate_width=0.5, hidden=(266,)),
            _soft(**_MEMORIES, reset="none", hidden=(256,)),
            _soft_by_all(**_MEMORIES, reset="none", hidden=(187,)),
            _soft_output(**_MEMORIES, reset="none", hidden=(150,)),
            Row("lstm", {"hidden": (128,)}),
        ),
    ),
    _songs("nottingham", "Nottingham folk tunes", f"{_BAI}; SNUs: unknown", "dropout", 60),
    _songs("musedata", "MuseData", OURS, "dropout", 60),
    _songs("piano", "Piano-midi.de", OURS, "dropout", 40),
    _songs("jsb", "JSB chorales", _JSB, "dropout_recurrent", 40),
    _text(
        "words",
        ((1024, 1024), (733, 733), (596, 596), (512, 512)),
        title="Penn Treebank, words, at level terms: 9.86 million parameters, one search for all",
        source="Woźniak et al. 2020, chart: LSTM 112.4, recurrent sSNU 108.4, with weight tying",
        grid={"lr": (1.5e-3, 3e-3, 6e-3)},
        trial={"epochs": 2},
        minutes=600,
        quick={"epochs": 1, "hidden": (64,), "embedding": 64, "sampled": 300},
    ),
    _text(
        "characters",
        ((512,), (360,), (290,), (248,)),
        title="Penn Treebank, characters, at level terms: 327 thousand parameters, one search",
        source="Bai et al. 2018: LSTM 1.36 and TCN 1.31 with 3 million parameters; SNUs: unknown",
        settings={"level": "char"},
        grid={"lr": (4e-3, 8e-3, 1.6e-2, 3.2e-2)},
        trial={"epochs": 1},
        minutes=90,
        quick={"epochs": 1, "hidden": (64,), "embedding": 0},
    ),
)
