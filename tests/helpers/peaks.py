"""Peaks of memory, each measured in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script: str, *arguments: object) -> dict[str, Any]:
    """What a script prints as JSON; it finds `peak_bytes` in `measure`."""
    # glibc gives back at once what is free: it may hold 250 MB otherwise, or not.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
        env={**os.environ, **allocator, "PYTHONPATH": str(BENCHMARKS)},
    )
    return json.loads(ended.stdout)
