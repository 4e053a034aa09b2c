"""Outputs and gradients equal those recorded from the SNU authors' own code."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from spikebridge.nn.kernels import native
from spikebridge.nn.scan import scan, unsupported
from spikebridge.nn.units import make_unit

# Another recording in the same format can be put in its place.
RECORDING = Path(
    os.environ.get("SPIKEBRIDGE_SNU_VECTORS", Path(__file__).parent / "data" / "snu_authors.npz")
)
CASES = sorted({name.split("/")[0] for name in np.load(RECORDING).files})


def unit_of(case: str, record: dict[str, torch.Tensor]):
    leaky = "leaky" in case or "recurrent" in case or "lateral" in case
    kind = "softsnu" if "soft" in case else "li-snu" if "lateral" in case else "snu"
    unit = make_unit(
        kind,
        record["bias"].numel(),
        g="leaky_relu" if leaky else "relu" if "relu" in case else "identity",
        decay=float(record["decay"]),
    ).double()
    with torch.no_grad():
        unit.fixed_decay.copy_(record["decay"])
        unit.threshold.copy_(record["bias"])
    return unit


@pytest.mark.parametrize("backend", ["loop", "native"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_the_recording(case: str, backend: str) -> None:
    with np.load(RECORDING) as file:
        record = {
            name.split("/")[1]: torch.from_numpy(file[name])
            for name in file.files
            if name.startswith(f"{case}/")
        }
    unit = unit_of(case, record)
    x, kernel = (record[name].clone().requires_grad_() for name in ("x", "kernel"))
    recurrent = None
    if "recurrent_kernel" in record:
        recurrent = record["recurrent_kernel"].T.clone().requires_grad_()
    drive = (x @ kernel).transpose(0, 1)
    reason = unsupported(unit, drive)
    if backend == "native" and reason is not None:
        with pytest.raises(RuntimeError, match="cannot serve"):
            scan(unit, drive, recurrent, backend=backend)
        assert native.missing or "lateral" in case
        return
    y = scan(unit, drive, recurrent, backend=backend)[0].transpose(0, 1)
    (y * record["cotangent"]).sum().backward()
    # Their leaky relu has its slope 0.1 in float32, which is felt in the eighth digit.
    leaky = unit.rule.g == "leaky_relu"
    close = {"rtol": 0.0, "atol": 1e-6 if leaky else 1e-12}
    if unit.spiking:
        assert torch.equal(y, record["y"])
    else:
        torch.testing.assert_close(y, record["y"], **close)
    torch.testing.assert_close(x.grad, record["grad_x"], **close)
    torch.testing.assert_close(kernel.grad, record["grad_kernel"], **close)
    torch.testing.assert_close(unit.threshold.grad, record["grad_bias"], **close)
    if recurrent is not None:
        torch.testing.assert_close(recurrent.grad.T, record["grad_recurrent_kernel"], **close)
