"""Run directories: the names of their files, atomic writes, and the result of a complete run.

`result.json` is written last, so its presence means that the run is complete.  No torch here: a
complete run is read back at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikebridge.base.records import RunError, UsageError, from_content
from spikebridge.base.storage import owned as owned
from spikebridge.base.storage import owning as owning
from spikebridge.base.storage import parse_json as parse_json
from spikebridge.base.storage import read_json as read_json
from spikebridge.base.storage import read_record as read_record
from spikebridge.base.storage import replace as replace
from spikebridge.base.storage import write_json as write_json
from spikebridge.base.storage import write_text as write_text
from spikebridge.runs.environment import Environment
from spikebridge.runs.results import Result as Result
from spikebridge.runs.results import SearchResult
from spikebridge.settings.config import (
    Config,
    flatten,
    folder_name,
    from_dict,
    preset,
    task_name,
    to_dict,
    unit_in_path,
    variant_of,
)
from spikebridge.settings.continual import STRENGTHS
from spikebridge.settings.names import VARIANTS

FOLDER = Path("runs")
LONGEST_NAME = 60
"""Characters of the name of the run that one starts from, in that of the new one."""
CONFIG = "config.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
EXAMPLES = "examples.npz"
SYMBOLS = "symbols.json"
SCALING = "scaling.json"
STEPS = "steps.json"
CHIP = "chip.safetensors"
MEMORY = "memory.json"
PROGRAM = "program.npz"
DIGITAL = "digital.json"
RTL = "rtl.json"
COMPLEXITY = "complexity.json"
PREDICTIONS = ("predictions.npz", "predictions.csv")
RESULT = "result.json"
CONTINUAL = "continual.json"
"""Of a sequence of tasks, in folders of before; now it is a part of result.json."""
TENSORBOARD = "tensorboard"
VERILOG = "verilog"
REPORT = "report.html"
# What `compose` adds to a run of the task music; the last says that the others are whole.
COMPOSITION = ("composition.mid", "composition.wav", "composition.json")
# What commands make of the network of a run.
MADE = (*PREDICTIONS, STEPS, MEMORY, PROGRAM, DIGITAL, RTL, COMPLEXITY)
_OWN = (CHECKPOINT, METRICS, MODEL, EXAMPLES, SYMBOLS, SCALING, CHIP)
# Removed in this order when a run is overwritten: first what says that it is complete.
FILES = (RESULT, CONTINUAL, *_OWN, *MADE, REPORT, ENVIRONMENT, CONFIG)


_started: set[Path] = set()


def default_folder(config: Config) -> Path:
    """Where a run goes if nobody says where: what differs from its preset is in the name.

    A run with these very settings that lies where earlier versions put it stays there.
    """
    first, seed = f"{folder_name(config)}-{unit_in_path(config)}", str(config.train.seed)
    named = FOLDER / "-".join([first, *marks(others(config)), seed])
    plain = FOLDER / f"{first}-{seed}"
    return plain if named != plain and not named.exists() and _holds(plain, config) else named


def _holds(directory: Path, config: Config) -> bool:
    try:
        return read_config(directory) == config
    except UsageError:
        return False


def similar_runs(config: Config) -> list[Path]:
    """The folders where runs of the same data, unit and seed lie if nobody says where.

    That of the preset stands first, then those that are not complete.
    """
    wanted = (folder_name(config), unit_in_path(config), config.train.seed)
    first, seed = f"{wanted[0]}-{wanted[1]}", str(config.train.seed)
    result = []
    for place in [FOLDER / f"{first}-{seed}", *sorted(FOLDER.glob(f"{first}-*-{seed}"))]:
        try:
            there = read_config(place)
        except UsageError:
            continue
        if (folder_name(there), unit_in_path(there), there.train.seed) == wanted:
            result.append(place)
    return sorted(result, key=lambda place: (place.name != f"{first}-{seed}", is_complete(place)))


def to_resume(config: Config) -> Path | None:
    """The run that --resume alone means: that of the preset, or the only one to go on with."""
    result = similar_runs(config)
    if not result:
        return None
    plain = f"{folder_name(config)}-{unit_in_path(config)}-{config.train.seed}"
    open_ones = [place for place in result if not is_complete(place)]
    clear = result[0].name == plain or len(result) == 1 or len(open_ones) == 1
    return result[0] if clear else None


def refuse_absent(config: Config) -> None:
    """Raise UsageError where only runs with other settings could be gone on with."""
    for place in similar_runs(config)[:1]:
        same_settings(place, config)


def shared_folder(prefix: str, configs: Sequence[Config]) -> Path:
    """Where runs of several units go together if nobody says where; named as by `default_folder`.

    What only some of their presets have of themselves counts too, so that equal flags mean equal
    names.
    """
    result: dict[str, Any] = {}
    for config in reversed(configs):
        result |= others(config)
    return FOLDER / "-".join([prefix, folder_name(configs[0]), *marks(result)])


# What of a task decides its preset, beside the name of its data.
PLACES = ("data_dir", "file", "level", "look_back")


def others(config: Config) -> dict[str, Any]:
    """The settings that are not those of the preset, without data, unit and seed."""
    variant = variant_of(config.model)
    own = {name: getattr(config.task, name, "") for name in PLACES}
    own["protocol"] = config.sequence.protocol if config.sequence.used else ""
    tuned = preset(
        task_name(config),
        variant if variant in VARIANTS else config.model.unit,
        getattr(config.task, "data", None),
        **{name: value for name, value in own.items() if value},
    )
    usual = flatten(tuned)
    usual["strength"] = STRENGTHS.get(config.sequence.method)
    named = {"seed", "unit", "recurrent"}
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in named and value != usual[name]
    }


def marks(settings: Mapping[str, Any]) -> list[str]:
    """Words for a folder's name: method, rule, GRAPES, device, start; a digest of the rest."""
    rest = dict(settings)
    named = ("method", "rule", "cells")
    words = [rest.pop(name).replace(":", ".") for name in named if rest.get(name)]
    grapes = rest.pop("grapes", "none")
    if grapes != "none":
        words.append("grapes" if grapes == "propagated" else f"grapes-{grapes}")
    if "grapes_control" in rest:
        words.append(rest.pop("grapes_control"))
    if start := rest.get("start"):
        name = re.sub(r"[^\w.-]+", "_", Path(start).name)[:LONGEST_NAME]
        words.append(f"from-{name}")
        if FOLDER / name == Path(start):  # or else another folder may have the same name
            del rest["start"]
    if rest:
        text = json.dumps(rest, sort_keys=True)
        words.append(hashlib.sha256(text.encode()).hexdigest()[:6])
    return words


def has_run(directory: Path) -> bool:
    """Whether any file of a run lies there."""
    return any((directory / name).exists() for name in FILES if name != REPORT)


def begin(directory: Path, config: Config, environment: Environment) -> None:
    """Write down what a run is; from here on it can be gone on with."""
    write_json(directory / CONFIG, to_dict(config))
    write_json(directory / ENVIRONMENT, environment)
    _started.add(directory)


def has_started() -> bool:
    """Whether this process has begun a run; `forget_started` says that a new request comes."""
    return bool(_started)


def forget_started() -> None:
    _started.clear()


def refuse_reading(directory: Path, config: Config) -> None:
    """Raise UsageError where a run would be written over what it reads."""
    start = config.train.start
    if start and directory.resolve() == Path(start).resolve():
        raise UsageError(
            f"start={start!r}: the new run would be written into {directory}, over the one that it "
            "starts from; give another folder with --out"
        )


def is_complete(directory: Path) -> bool:
    """Whether the run there has come to its end."""
    return (directory / RESULT).exists()


def read_result(directory: Path) -> Result:
    """The result of a complete run.  Raises RunError where it is damaged."""
    remedy = "run it again with --overwrite"
    result = read_record(Result, directory / RESULT, remedy)
    return dataclasses.replace(result, directory=directory)


def read_config(directory: Path) -> Config:
    """The config of a run."""
    return load_config(directory / CONFIG)


def load_config(path: Path) -> Config:
    """The config in a JSON file: of a run, or what was best in the search.json of a search.

    Raises UsageError where it is missing or wrong.
    """
    try:
        plain = read_json(path, "give the config.json of a run, or the search.json of a search")
        if {"trials", "base"} <= plain.keys():
            return from_content(SearchResult, plain).config
        return from_dict(plain)
    except ValueError as error:
        raise UsageError(
            f"{path}: its trials are not those of a search ({error}); search again"
        ) from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except RunError as error:
        raise UsageError(str(error)) from error


def same_settings(directory: Path, config: Config) -> None:
    """Raise UsageError, naming the fields, unless the run there has this config."""
    refuse_others(directory, read_config(directory), config, "run")


def refuse_others(directory: Path, there: Config, asked: Config, what: str) -> None:
    """Raise UsageError, naming the fields, unless both configs are the same."""
    anew = ", or --overwrite to start anew" if what == "run" else ""
    if there.task.NAME != asked.task.NAME:
        raise UsageError(
            f"{directory}: the {what} there is of the task {there.task.NAME}, not of "
            f"{asked.task.NAME}; give another folder{anew}"
        )
    theirs, ours = flatten(there), flatten(asked)
    names = [name for name in theirs | ours if theirs.get(name) != ours.get(name)]
    if names:
        pairs = ", ".join(
            f"{name} ({_shown(theirs.get(name))} there, {_shown(ours.get(name))} asked for)"
            for name in names
        )
        raise UsageError(
            f"{directory}: the {what} there has other settings: {pairs}; give the same settings, "
            f"another folder{anew}"
        )


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def earlier(directory: Path, config: Config, resume: bool) -> Result | None:
    """The result of a run that lies there; None where it is to go on.

    Raises UsageError where it has other settings, or may not be touched: resume was not given.
    """
    complete = is_complete(directory)
    if not resume:
        state, use = ("a complete", "read it") if complete else ("an incomplete", "go on with it")
        raise UsageError(
            f"{directory}: {state} run lies there; pass resume=True to {use}, overwrite=True to "
            "start anew, or another folder"
        )
    if (directory / CONFIG).exists():
        same_settings(directory, config)
    return read_result(directory) if complete else None


def clear(directory: Path) -> None:
    """Remove the files of a run with its Verilog, and nothing else."""
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    clear_made(directory)
    for path in sorted((directory / TENSORBOARD).glob("events.out.tfevents.*")):
        path.unlink()


def clear_made(directory: Path) -> None:
    """Remove what commands have made of a run's network, which is about to become another one."""
    for name in (*MADE, *COMPOSITION):
        (directory / name).unlink(missing_ok=True)
    if (directory / VERILOG / "program.json").exists():  # of a network that is no more
        shutil.rmtree(directory / VERILOG)


def check_network(directory: Path, kind: str = "finished run") -> None:
    """Warn where the network there is the best so far of a run that is not complete.

    Raises UsageError where there is none.
    """
    if is_complete(directory):
        return
    if not (directory / MODEL).exists():
        raise UsageError(
            f"{directory}: there is no complete run in it; name a {kind}, or one that was cut off "
            "after its first epoch"
        )
    warnings.warn(
        f"{directory}: the run is not complete; this is its best network so far", stacklevel=3
    )
