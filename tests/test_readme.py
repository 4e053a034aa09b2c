"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from spikebridge.config import ModelConfig
from spikebridge.network import build, save_network

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    model, run = ModelConfig(hidden=(6, 5)), tmp_path / "runs/digits8x8-snu-0"
    run.mkdir(parents=True)
    save_network(build(model, 64, 10, "mean"), run / "model.safetensors")
    names: dict = {}
    for block in blocks[:3]:
        exec(block, names)
    assert names["output"].shape == (100, 32, 150)
    assert names["trace"].s.shape == (100, 32, 150)
    names["x"] = torch.rand(20, 4, 64)
    exec(blocks[3], names)
    assert names["output"].shape == (4, 10)
    assert set(names["optimizer"].epsilons) == set(names["chip"].crossbars)
