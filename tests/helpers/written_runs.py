"""Run folders and comparisons written by hand, as training would leave them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

LABELS = {"snu": "SNU", "softsnu": "soft SNU", "lstm": "LSTM", "relu": "ReLU"}
GLYPHS = {
    0: (
        ".####...",
        "##..##..",
        "#....#..",
        "#....#..",
        "#....#..",
        "#....#..",
        "##..##..",
        ".####...",
    ),
    1: (
        "...##...",
        "..###...",
        ".####...",
        "...##...",
        "...##...",
        "...##...",
        "...##...",
        ".######.",
    ),
    7: (
        ".######.",
        ".######.",
        ".....##.",
        "....##..",
        "..#####.",
        "...##...",
        "..##....",
        "..##....",
    ),
}

PLAIN = ("lstm", "relu")  # without a membrane


def simulate(
    x: np.ndarray, sizes: tuple[int, ...], unit: str, seed: int = 0
) -> dict[str, np.ndarray]:
    """Layers of SNU, soft SNU or tanh units with random weights: layer{k}_y and layer{k}_s."""
    rng = np.random.default_rng(seed)
    traces = {}
    for k, neurons in enumerate(sizes, start=1):
        scale = 0.45 / math.sqrt(max(x.shape[2] * float((x**2).sum()) / max(1, x.size), 1.0))
        drives = x @ rng.normal(-0.1 * scale, scale, (x.shape[2], neurons))
        s = y = np.zeros(drives.shape[1:])
        states, outputs = np.zeros_like(drives), np.zeros_like(drives)
        for t, drive in enumerate(drives):
            s = drive + 0.8 * s * (1 - y)
            s = np.where(s < 0, 0.1 * s, s)
            soft = np.tanh(2 * drive) if unit in PLAIN else 1 / (1 + np.exp(4 - 4 * s))
            y = (s > 1).astype(float) if unit == "snu" else soft
            states[t], outputs[t] = s, y
        traces[f"layer{k}_y"] = x = outputs.astype(np.float32)
        if unit not in PLAIN:
            traces[f"layer{k}_s"] = states.astype(np.float32)
    return traces


def digit_examples(unit: str, steps: int = 20, count: int = 4, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    target = np.array([(0, 1, 7)[e % 3] for e in range(count)], np.int64)
    ink = [[[0.85 * (c == "#") for c in row] for row in GLYPHS[int(k)]] for k in target]
    images = np.array(ink, np.float32).reshape(count, 64)
    x = (rng.random((steps, count, 64)) < images).astype(np.float32)
    logits = rng.normal(0, 1, (count, 10)) + 5 * np.eye(10)[np.where(target == 7, 1, target)]
    output = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    length = np.full(count, steps)
    arrays = {"x": x, "output": output.astype(np.float32), "target": target, "length": length}
    return arrays | simulate(x, (128, 128), unit, seed)


def music_examples(unit: str, steps: int = 64, count: int = 3, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    frames = np.zeros((steps + 1, count, 88), np.float32)
    for e in range(count):
        voices = np.array([27, 34, 41, 48])
        for t in range(steps + 1):
            voices = voices + (rng.random(4) < 0.35) * rng.integers(-2, 3, 4)
            frames[t, e, voices] = 1
    heard = frames[:-1]
    blur = 0.7 * heard + 0.1 * np.roll(heard, 1, 2) + 0.2 * np.roll(heard, -2, 2)
    output = np.clip(blur * rng.uniform(0.6, 1.1, blur.shape), 0.003, 0.97).astype(np.float32)
    length = np.array([steps - 9 * e if steps > 20 else steps for e in range(count)], np.int64)
    arrays = {"x": frames[:-1], "output": output, "target": frames[1:], "length": length}
    return arrays | simulate(frames[:-1], (150,), unit, seed)


def curve(
    epochs: int, metric: str, level: float, seed: int, pace: float = 0.12
) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl as a run that learns well would write them."""
    rng = np.random.default_rng(seed)
    lines = []
    best = math.inf
    for epoch in range(1, epochs + 1):
        fall = math.exp(-epoch / (pace * epochs)) + 0.01 * float(rng.normal())
        loss = level * (1 + 2.2 * fall) if metric == "nll" else 0.1 + 2 * abs(fall)
        valid = loss if metric == "nll" else level - 0.7 * max(fall, -0.01)
        score = loss if metric == "nll" else -valid
        lines.append(
            {
                "epoch": epoch,
                "train_loss": loss * (0.97 - 0.05 * epoch / epochs),
                "valid_loss": loss,
                "valid": valid,
                "lr": 0.01,
                "grad_norm": 1.3,
                "seconds": 0.52,
                "best": score < best,
            }
        )
        best = min(best, score)
    return lines


def config_of(task: str, unit: str, seed: int, epochs: int) -> dict[str, Any]:
    data: dict[str, Any] = {"name": "music", "data": "jsb"}
    if task == "digits":
        data = {"name": "digits", "data": "digits8x8", "coding": "rate", "steps": 20, "gain": 1.0}
    hidden = [150] if task == "music" else [128, 128]
    model = {"unit": unit, "hidden": hidden, "recurrent": False, "decay": 0.8, "dropout": 0.2}
    return {"task": data, "model": model, "train": {"epochs": epochs, "lr": 0.01, "seed": seed}}


def write_run(
    directory: Path, task: str = "digits", unit: str = "snu", seed: int = 0, **changes: Any
) -> Path:
    """A complete run directory; changes replace values of result.json, or examples, or epochs."""
    directory.mkdir(parents=True, exist_ok=True)
    music = task == "music"
    metric, level = ("nll", 8.41) if music else ("accuracy", 0.972)
    epochs = changes.pop("epochs_run", 60 if music else 30)
    make = music_examples if music else digit_examples
    examples = changes.pop("examples", None) or make(unit, seed=seed)
    lines = curve(
        epochs, metric, level - 0.01 * seed + 0.01 * len(unit) * (1 if music else -1), seed
    )
    names = [name for name in examples if name.endswith("_y")]
    rates = {name[:-2]: float(examples[name].sum() / max(1, examples[name].size)) for name in names}
    spiking = unit == "snu"
    spikes = sum(float(examples[name].sum()) for name in names) / max(1, examples["x"].shape[1])
    result = {
        "task": task,
        "data": "jsb" if music else "digits8x8",
        "unit": unit,
        "label": LABELS.get(unit, unit),
        "metric": metric,
        "higher_is_better": not music,
        "test": lines[-1]["valid"] + 0.004,
        "test_loss": lines[-1]["valid_loss"],
        "valid": lines[-1]["valid"],
        "best_epoch": max(line["epoch"] for line in lines if line["best"]),
        "epochs": epochs,
        "parameters": {"snu": 26250, "softsnu": 26638, "lstm": 232714}.get(unit, 1000),
        "operations_per_step": 25856,
        "seconds": 31.2 * len(unit),
        "spikes_per_inference": spikes if spiking else None,
        "firing_rates": rates if spiking else {},
        "mean_activity": {} if spiking else {k: abs(v) for k, v in rates.items()},
        "seed": seed,
        "published": {"value": 8.39, "source": "Woźniak et al. 2020, result chart"}
        if music
        else None,
    }
    (directory / "config.json").write_text(json.dumps(config_of(task, unit, seed, epochs)))
    (directory / "environment.json").write_text(
        json.dumps(
            {
                "python": "3.12.1",
                "cpu": "some processor",
                "cores": 2,
                "command": ["spikebridge", "demo"],
            }
        )
    )
    (directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    np.savez_compressed(directory / "examples.npz", **examples)
    (directory / "result.json").write_text(json.dumps(result | changes))
    return directory


def write_comparison(
    directory: Path, task: str = "digits", units: tuple[str, ...] = tuple(LABELS), seeds: int = 2
) -> Path:
    rows = []
    for unit in units:
        names = [f"{unit}-{seed}" for seed in range(seeds)]
        for seed, name in enumerate(names):
            write_run(directory / name, task, unit, seed)
        results = [json.loads((directory / name / "result.json").read_text()) for name in names]
        tests = [result["test"] for result in results]
        spikes = results[0]["spikes_per_inference"]
        row = {name: results[0][name] for name in ("unit", "label", "parameters", "published")}
        rows.append(
            row
            | {
                "n": seeds,
                "tests": tests,
                "test_mean": float(np.mean(tests)),
                "test_std": float(np.std(tests, ddof=1)) if seeds > 1 else None,
                "valid_mean": float(np.mean([result["valid"] for result in results])),
                "seconds_median": float(np.median([result["seconds"] for result in results])),
                "spikes_mean": spikes,
                "runs": names,
            }
        )
    head = {name: results[0][name] for name in ("task", "data", "metric", "higher_is_better")}
    (directory / "compare.json").write_text(json.dumps(head | {"rows": rows}))
    return directory
