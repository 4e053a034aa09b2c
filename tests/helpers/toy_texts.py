"""Small texts of a grammar that can be learned, and a config for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from spikebridge.settings.config import Config, preset

WORDS = ["the", "cat", "dog", "sees", "hears", "a", "bird", "<unk>", "tree", "loudly"]


def write_texts(folder: Path, lines: tuple[int, int, int] = (300, 40, 40)) -> Path:
    """Three texts of a grammar that can be learned: words follow one another in a cycle."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(7)
    for split, count in zip(("train", "valid", "test"), lines, strict=True):
        sentences = []
        for _ in range(count):
            start, length = draw.randrange(10), draw.randrange(3, 9)
            sentences.append(" ".join(WORDS[(start + i) % 10] for i in range(length)))
        (folder / f"my.{split}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return folder


def tiny(folder: Path, **more: Any) -> Config:
    small = {
        "hidden": (16,),
        "embedding": 12,
        "embedding_scale": 4.0,
        "tied": True,
        "epochs": 3,
        "steps": 10,
        "batch_size": 8,
        "lr": 2e-2,
        "schedule": "constant",
        "dropout": 0.0,
        "dropout_in": 0.0,
        "sampled": 0,
        "ema": 0.0,
        "precision": "float32",
        "threads": 1,
    }
    unit = more.pop("unit", "recurrent-softsnu")
    return preset("text", unit, "files", data_dir=str(folder), **(small | more))
