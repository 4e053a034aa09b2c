"""The tuned settings of each unit on each data set, as data; see `config.preset`.

How they were found: benchmarks/tune.py, with its trials in docs/results/tuning-*.json.
"""

from __future__ import annotations

from typing import Any

# (data, variant) -> settings; variant "" holds for every unit of that data set.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("digits8x8", ""): {
        "hidden": (128, 128),
        "steps": 20,
        "epochs": 25,
        "lr": 1e-2,
        "schedule": "onecycle",
        "dropout": 0.2,
    },
    # The best on validation of six trials each: docs/results/tuning-digits.json.
    ("digits8x8", "snu"): {"lr": 2e-2, "schedule": "cosine", "decay": 0.6},
    ("digits8x8", "softsnu"): {"lr": 3e-2, "g": "identity", "decay": 0.6},
    ("digits8x8", "lstm"): {"dropout": 0.1},
    ("mnist", ""): {
        "hidden": (256, 256),
        "steps": 20,
        "epochs": 10,
        "batch_size": 128,
        "lr": 5e-3,
        "schedule": "onecycle",
        "dropout": 0.4,
    },
    ("jsb", ""): {
        "hidden": (150,),
        "epochs": 150,
        "lr": 1e-2,
        "dropout": 0.2,
        "batch_size": 32,
        "clip_norm": 1.0,
        "patience": 25,
        "g": "leaky_relu",
        "decay": 0.8,
    },
    # The best on validation of five trials each: docs/results/tuning-music.json.
    ("jsb", "snu"): {"lr": 5e-3, "g": "identity", "decay": 0.6, "train_decay": True},
    ("jsb", "softsnu"): {"dropout": 0.1, "g": "identity", "decay": 0.4},
    ("jsb", "recurrent-snu"): {
        "lr": 5e-3,
        "dropout": 0.4,
        "weight_decay": 1e-4,
        "decay": 0.4,
    },
    ("jsb", "rnn"): {"lr": 5e-3, "dropout": 0.1},
    ("jsb", "lstm"): {"lr": 5e-3, "dropout": 0.3},
    ("jsb", "gru"): {"lr": 2e-2, "dropout": 0.1, "weight_decay": 1e-4},
}
