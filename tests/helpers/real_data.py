"""Real data, which are no part of the project and which no test downloads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spikebridge.data import files


def real(*names: str) -> Path:
    """The folder of the data; the test is skipped where one of these is not in it."""
    root = os.environ.get(files.VARIABLE, "")
    missing = [name for name in names if not root or not (Path(root) / name).exists()]
    if missing:
        pytest.skip(f"{missing[0]} is not under ${files.VARIABLE} ({root or 'not set'})")
    return Path(root)
