"""The same search for every unit: random trials, judged on the validation set only.

    python benchmarks/tune.py music --units snu lstm --trials 6 --out docs/results/tuning-music.json

The first trial of each unit is the task's common setting; the others are drawn from a space that is
shared but for the terms that only spiking units have.  The test set is not looked at: its figures
are removed from what is written.  A search that is cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from spikebridge.config import BASELINES, override, preset, split_variant

SHARED: dict[str, dict[str, list[Any]]] = {
    "music": {
        "lr": [3e-3, 5e-3, 1e-2, 2e-2],
        "dropout": [0.1, 0.2, 0.3, 0.4, 0.5],
        "schedule": ["constant", "cosine"],
        "weight_decay": [0.0, 1e-5, 1e-4],
    },
    "digits": {
        "lr": [3e-3, 1e-2, 2e-2, 3e-2],
        "dropout": [0.0, 0.1, 0.2, 0.3],
        "schedule": ["onecycle", "cosine"],
    },
}
SPIKING: dict[str, list[Any]] = {
    "decay": [0.4, 0.6, 0.8, 0.9],
    "train_decay": [False, True],
    "g": ["identity", "leaky_relu"],
}
COMMON: dict[str, dict[str, Any]] = {
    "music": {"lr": 1e-2, "dropout": 0.2, "schedule": "constant", "weight_decay": 0.0},
    "digits": {"lr": 1e-2, "dropout": 0.2, "schedule": "onecycle"},
}


def trials(task: str, variant: str, count: int) -> list[dict[str, Any]]:
    """The settings to try, the same on every machine."""
    draw = random.Random(f"{variant}/0")
    space = SHARED[task] | ({} if split_variant(variant)[0] in BASELINES else SPIKING)
    found = [COMMON[task]]
    while len(found) < count:
        settings = {name: draw.choice(values) for name, values in space.items()}
        if settings not in found:
            found.append(settings)
    return found


def run_trial(task: str, variant: str, settings: dict[str, Any], patience: int) -> dict[str, Any]:
    from spikebridge import experiment

    plain = {"decay": 0.8, "train_decay": False, "g": "leaky_relu"}
    config = override(preset(task, variant), patience=patience, threads=1, **(plain | settings))
    directory = Path(tempfile.mkdtemp(prefix="spikebridge-tune-"))
    try:
        result = experiment.run(config, directory / "run")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return {
        "variant": variant,
        "settings": settings,
        "valid": result.valid,
        "best_epoch": result.best_epoch,
        "seconds": round(result.seconds, 1),
        "parameters": result.parameters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["digits", "music"])
    parser.add_argument("--units", nargs="+", required=True)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--patience", type=int, default=25)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = json.loads(options.out.read_text())["trials"] if options.out.exists() else []
    done = {json.dumps([t["variant"], t["settings"]], sort_keys=True) for t in found}
    with ProcessPoolExecutor(options.jobs) as pool:
        waiting = [
            pool.submit(run_trial, options.task, variant, settings, options.patience)
            for variant in options.units
            for settings in trials(options.task, variant, options.trials)
            if json.dumps([variant, settings], sort_keys=True) not in done
        ]
        for future in as_completed(waiting):
            trial = future.result()
            found.append(trial)
            print(
                f"{trial['variant']:18} valid {trial['valid']:.4f}  {trial['settings']}", flush=True
            )
            found.sort(key=lambda t: (t["variant"], t["valid"]))
            temporary = options.out.with_suffix(".tmp")
            temporary.write_text(
                json.dumps(
                    {"task": options.task, "patience": options.patience, "trials": found}, indent=1
                )
            )
            os.replace(temporary, options.out)


if __name__ == "__main__":
    main()
