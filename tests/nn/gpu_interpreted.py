"""benchmarks/gpu.py with the GPU kernels in Triton's interpreter, on tiny sizes of this CPU.

A process of its own, because whether Triton interprets is settled when it is imported.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu
import peers
import pytest

from spikebridge.nn.kernels import native, ops, triton

native.missing = None  # the native kernel does nothing here
ops.KERNELS["native"] = ops.KERNELS["triton"]._replace(device="cpu")
ops._scan.register_kernel("cpu", triton.forward)
ops._scan_backward.register_kernel("cpu", triton.backward)
ops.unwrapped = lambda *operands: False  # so that the op is called


@pytest.fixture(autouse=True)
def on_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def milliseconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)

    for name, value in {
        "DEVICE": "cpu", "BACKEND": "native", "milliseconds": milliseconds, "T": 3, "B": 2,
        "WIDTHS": (8,), "SEQUENCE": (3, 2, 8), "BLOCKS": (64,), "WARPS": (1, 4), "STAGES": (4,),
        "captured": lambda layer, x, backward: gpu._eager(layer, x, backward),
    }.items():  # fmt: skip
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(
        peers, "available", lambda: ({"plain": peers.PEERS["plain torch loop"]}, {})
    )


def test_each_kind_of_case_equals_the_loop() -> None:
    found: dict[str, Any] = {}
    gpu.proof(gpu.cases(), found, lambda: None)
    assert found["cases"] >= 150
    assert not found["left_to_the_loop"]
    gpu.proof(itertools.islice(gpu.cases(), 2), found, lambda: None, whole=True)
    assert found["cases"] == 2 * 2 * len(gpu.DTYPES)
    assert "differs" not in found


def test_a_kernel_that_is_wrong_ends_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, saved = triton.backward, []

    def wrong(*operands: Any) -> tuple:
        first, *others = usual(*operands)
        return first * 1.001, *others

    ops._scan_backward.register_kernel("cpu", wrong)
    found: dict[str, Any] = {}
    try:
        with pytest.raises(SystemExit, match="grad of drive is"):
            gpu.proof(gpu.cases(), found, lambda: saved.append(dict(found)))
    finally:
        ops._scan_backward.register_kernel("cpu", usual)
    assert "grad of drive" in saved[-1]["differs"]


def test_every_part_writes_its_rows_and_keeps_the_usual_settings() -> None:
    before, saved = (triton.BLOCK, dict(triton.LAUNCH), triton.STAGES), []
    clock, found = gpu.Clock(5), {part: {} for part in gpu.PARTS}

    def save() -> None:
        saved.append(json.dumps(found))

    gpu.scan_part(clock, found["scan"], save)
    assert {row["tried"] for row in found["scan"]["rows"]} == {2}
    gpu.layer_part(clock, found["layer"], save, (64, 1, 4))
    for row in found["layer"]["rows"]:
        assert set(row["ms"]) == {"nn.Linear", "spikebridge", "plain"}, row["failed"]
    gpu.recurrent_part(clock, found["recurrent"], save, (64, 1, 4))
    assert set(found["recurrent"]["rows"]) == {"forward", "forward + backward"}
    assert len(saved) == 2 + 2 + 2
    assert before == (triton.BLOCK, triton.LAUNCH, triton.STAGES)


def test_without_time_nothing_begins() -> None:
    clock, found = gpu.Clock(0), {}
    gpu.scan_part(clock, found, lambda: None)
    assert found["rows"] == []
