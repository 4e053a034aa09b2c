"""Sequences where time matters: spiking and soft members of the family beside torch's own units.

All rows of an entry choose among the same number of settings, on validation.
"""

from __future__ import annotations

from typing import Any

from spikebridge.studies.catalog.entry import Entry, Row

_OSCILLATING: dict[str, Any] = {"memory": "oscillation"}
_GATED: dict[str, Any] = {"memory": "gate"}
_BOTH_WAYS: dict[str, Any] = {"memory": "gate", "recurrent_gates": True}

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
            Row("recurrent-snu"),
            Row("recurrent-snu", _OSCILLATING, "oscillating-snu", "SNU, recurrent, oscillating"),
            Row("recurrent-snu", _BOTH_WAYS, "gated-snu", "SNU, recurrent, gated by all"),
            Row(
                "recurrent-softsnu",
                _GATED,
                "gated-softsnu",
                "soft SNU, recurrent, gated by its inputs",
            ),
            Row(
                "recurrent-softsnu",
                _BOTH_WAYS,
                "both-softsnu",
                "soft SNU, recurrent, gated by all",
            ),
            Row("lstm"),
        ),
    ),
)
