"""Runs that take a moment, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from spikebridge.runs import rundir
from spikebridge.settings.config import Config, override, preset

TINY = {"hidden": (8,), "steps": 4, "epochs": 3, "batch_size": 256, "threads": 1, "dropout": 0.2}


def tiny(unit: str = "snu", **settings: Any) -> Config:
    return override(preset("digits", unit), **(TINY | settings))


def left(directory: Path) -> dict[str, Any]:
    """All that a run has left which must repeat bit for bit."""
    epochs = [json.loads(line) for line in (directory / rundir.METRICS).read_text().splitlines()]
    for record in epochs:
        del record["seconds"]
    result = json.loads((directory / rundir.RESULT).read_text())
    del result["seconds"]
    tensors = {
        f"{name}/{key}": value.numpy().tobytes()
        for name in (rundir.MODEL, rundir.CHECKPOINT)
        for key, value in load_file(directory / name).items()
    }
    with np.load(directory / rundir.EXAMPLES, allow_pickle=False) as archive:
        arrays = {name: archive[name].tobytes() for name in archive.files}
    return {"epochs": epochs, "result": result, "tensors": tensors, "examples": arrays}
