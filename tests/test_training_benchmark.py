"""benchmarks/training.py on 8 x 8 digits: every row trains, in and out of its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def trained(path: Path, *arguments: str) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "benchmarks/training.py", "--json", str(path), *arguments],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(path.read_text(encoding="utf-8"))["cases"]


@pytest.mark.timeout(300)
def test_each_kind_of_network_is_trained_in_each_row(tmp_path: Path) -> None:
    names = ("tiny-conv", "tiny-recurrent")
    cases = trained(
        tmp_path / "a.json", "--only", *names, "--rounds", "1", "--eager", "--no-memory"
    )
    assert set(cases) == set(names)
    for name, case in cases.items():
        rows = case["rows"]
        assert ("nn.LSTM" in rows) == (name != "tiny-conv")
        assert sum(row.startswith("spikebridge") for row in rows) == 4
        for row, found in rows.items():
            assert found["epoch_s"] > 0
            assert found["spikes_apart"] <= 0.01
            assert (found["firing"] is None) == (row == "nn.LSTM")
        # A library is there, or the record says why it is not.
        for library in ("snnTorch Leaky", "SpikingJelly LIFNode", "Norse LIFBoxCell"):
            assert (library in rows) != (library in case["left_out"])
        assert len(case["trained"]) == 2


@pytest.mark.timeout(300)
def test_peaks_of_memory_come_from_processes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"cases": {"mnist-256": {"rows": {}}}}))
    cases = trained(path, "--only", "tiny", "--rounds", "1", "--eager")
    assert "mnist-256" in cases  # what was kept stays
    peaks = {
        name: row["peak_bytes"]
        for name, row in cases["tiny"]["rows"].items()
        if "peak_bytes" in row
    }
    assert {"spikebridge, gate reset, window", "nn.LSTM"} <= set(peaks)
    assert all(peak >= 0 for peak in peaks.values())


def test_compiled_rows_join_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import training

    ours, library = training.like(""), "snnTorch Leaky"
    kept = {
        "rows": {ours: {"ratio": 1.0}, library: {"ratio": 3.0}, f"{library}, compiled": {}},
        "left_out": {"Norse LIFBoxCell": "why", "Norse LIFBoxCell, compiled": "old"},
        "drawing_s": 1,
    }
    new = {
        "rows": {ours: {"ratio": 0.5}, f"{library}, compiled": {"ratio": 2.0}},
        "left_out": {"SpikingJelly LIFNode, compiled": "new"},
    }
    case = training.joined_with(kept, new)
    assert case["rows"] == kept["rows"] | {f"{library}, compiled": {"ratio": 2.0}}
    assert set(case["left_out"]) == {"Norse LIFBoxCell", "SpikingJelly LIFNode, compiled"}
    assert training.fastest(case["rows"]) == f"{library}, compiled"
