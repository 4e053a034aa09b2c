"""The benchmark of single steps runs, and says what its table needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spikebridge.nn.kernels import native

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
def test_the_latency_of_single_steps_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    command = ["latency.py", "--rounds", "1", "--no-compile", "--json", str(out)]
    run = [sys.executable, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(run, cwd=BENCHMARKS, check=True, timeout=110, env=environment)
    content = json.loads(out.read_text(encoding="utf-8"))
    tables = [*content["layer"].values(), *(n["rows"] for n in content["networks"].values())]
    assert len(tables) == 4
    for table in tables:
        assert table["nn.LSTM"]["ratio"] == 1
        for row in table.values():
            assert 0 < row["step_us_low"] <= row["step_us"] <= row["step_us_high"]
    for network in content["networks"].values():
        assert set(network["rows"]) == {"nn.LSTM", "SNU", "engine, 8 bits"}
        assert all(0 < share < 0.5 for share in network["activity"])
