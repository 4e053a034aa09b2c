"""GRAPES equals the numbers that the code of its authors gave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.learning import grapes

# Another recording in the same format can be put in its place.
RECORDING = Path(
    os.environ.get(
        "SPIKEBRIDGE_GRAPES_VECTORS", Path(__file__).parents[1] / "data" / "grapes_authors.npz"
    )
)


# The authors' own numbers.


def recorded(rule: str) -> list[str]:
    cases = {name.split("/")[0] for name in np.load(RECORDING).files}
    return sorted(case for case in cases if case.split("_")[0] == rule)


@pytest.mark.parametrize("case", recorded("BP") + recorded("BPgrapes"))
def test_errors_and_gradients_equal_the_recording(case: str) -> None:
    with np.load(RECORDING) as file:
        record = {
            name.split("/")[1]: torch.from_numpy(file[name])
            for name in file.files
            if name.startswith(f"{case}/")
        }
    depth = sum(name.startswith("w") for name in record)
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[case.split("_")[1]]
    parts: list[nn.Module] = []
    for k in range(depth):
        out, into = record[f"w{k}"].shape
        parts += [nn.Linear(into, out, bias=False).double(), activation()]
        parts[-2].weight.data.copy_(record[f"w{k}"])
    model = nn.Sequential(*parts[:-1])
    deltas: dict[nn.Module, Tensor] = {}

    def keep(part: nn.Module, _: Any, out: Tensor) -> None:
        out.register_hook(lambda grad: deltas.update({part: grad}))

    handle = grapes.attach(model) if "grapes" in case else None
    for part in parts[:-1:2]:  # after attaching, so that it sees what the factor has left
        part.register_forward_hook(keep)
    logits = model(record["x"].unsqueeze(0))
    torch.testing.assert_close(logits.softmax(-1)[0], record["output"], rtol=1e-12, atol=0)
    F.cross_entropy(logits, record["target"].unsqueeze(0)).backward()
    for k in range(depth):
        bound = {"rtol": 1e-12, "atol": 1e-15}
        torch.testing.assert_close(deltas[parts[2 * k]][0], record[f"delta{k}"], **bound)
        torch.testing.assert_close(parts[2 * k].weight.grad, record[f"grad{k}"], **bound)
    if handle is not None:
        handle.detach()
