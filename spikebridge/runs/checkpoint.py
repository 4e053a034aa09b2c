"""Checkpoints: everything that a run needs to go on bit for bit, in one safetensors file.

Tensors: model/*, best/* (the weights that were best on validation), average/* (their moving
average, where there is one), more/* (what else a run keeps), optimizer/<parameter>/<name>,
rng/torch, rng/data.  Metadata: format version, steps taken, the epochs' metrics, the run's
settings, and a digest of it all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikebridge.base.records import RunError, Several, UsageError, from_content, to_plain
from spikebridge.base.tensors import TensorFile
from spikebridge.nn.network import Network, load_network, renamed
from spikebridge.nn.units import Unit
from spikebridge.runs.load import read_symbols
from spikebridge.runs.results import Epoch
from spikebridge.runs.rundir import METRICS, SYMBOLS, parse_json
from spikebridge.settings.crossbar import renewed
from spikebridge.settings.model import norm_of

REMEDY = "start the run anew with --overwrite, or put back a copy of the file"
FILE = TensorFile("spikebridge-checkpoint", REMEDY, version="1", needs=("progress",))
# What optimisers keep of a parameter; chi is what memory cells have not taken yet.
_ADAM, _SGD, _CHI = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}, "chi"
_KEPT = _ADAM | _SGD
_ABSENT = object()


class CheckpointError(RunError):
    """A checkpoint cannot be used; the message names the file, the fault and the remedy."""


@dataclass
class Position:
    """How far a run has come."""

    step: int
    """Optimiser steps taken."""
    history: list[Epoch]
    """The finished epochs."""
    best: dict[str, Tensor]
    """The weights that were best on the validation set."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The moving average of the weights, where there is one."""
    more: dict[str, Tensor] = field(default_factory=dict)
    """What else the run keeps; whoever takes it back checks it."""


def save(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: torch.Generator,
    position: Position,
    settings: Mapping[str, Any],
) -> None:
    """Write a checkpoint, whole or not at all; torch's global generator belongs to it.

    settings are those of its run, as plain data: it serves no other.
    """
    parts = {"model": network.state_dict(), "best": position.best}
    parts |= {"average": position.average, "more": position.more}
    tensors = {f"{part}/{name}": v for part, values in parts.items() for name, v in values.items()}
    for index, values in optimizer.state_dict()["state"].items():
        kept = {name: value for name, value in values.items() if value is not None}
        tensors |= {f"optimizer/{index}/{name}": value for name, value in kept.items()}
    tensors |= {"rng/torch": torch.get_rng_state(), "rng/data": data.get_state()}
    history = to_plain(position.history)
    text = json.dumps({"step": position.step, "history": history, "settings": dict(settings)})
    FILE.write(path, tensors, progress=text)


def restore(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: torch.Generator,
    settings: Mapping[str, Any],
) -> Position:
    """Put a checkpoint's state into all of them and into torch's global generator.

    Raises CheckpointError, before anything is changed, where the file is damaged, of another
    version, of another network, or of a run with other settings.
    """
    try:
        metadata, result = FILE.read(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    tensors = renamed(result)
    progress = _progress(path, metadata["progress"])
    _same_run(path, progress, settings)
    model, best = _part(tensors, "model/"), _part(tensors, "best/")
    own = network.state_dict()
    _same_shapes(path, model, own)
    _same_shapes(path, best, own)
    average = _part(tensors, "average/")
    if average:
        _same_shapes(path, average, own)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    adam = "betas" in optimizer.param_groups[0]
    state = _optimizer_state(path, _part(tensors, "optimizer/"), parameters, adam)
    if tensors.keys() != result.keys():
        _turn_signs(state, parameters, network)
    draws = [_draws(path, tensors, name) for name in ("rng/torch", "rng/data")]
    network.load_state_dict(model)
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    torch.set_rng_state(draws[0])
    data.set_state(draws[1])
    return Position(
        progress.step, list(progress.history), best, average, more=_part(tensors, "more/")
    )


@dataclass(frozen=True)
class _Progress:
    """How far a run has come, in the metadata of a checkpoint."""

    step: int
    history: Several[Epoch]
    settings: dict[str, Any] | None = None
    """None in checkpoints of earlier versions."""


def _progress(path: Path, text: str) -> _Progress:
    try:
        progress = from_content(_Progress, parse_json(text))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: what it says of the epochs cannot be read ({error}); {REMEDY}"
        ) from error
    right = [epoch.epoch for epoch in progress.history] == [*range(1, len(progress.history) + 1)]
    for epoch in progress.history:
        right &= epoch.best is not None
        right &= all(map(math.isfinite, (epoch.train_loss, epoch.valid, epoch.seconds)))
    if not right:
        raise CheckpointError(f"{path}: what it says of steps and epochs is wrong; {REMEDY}")
    return progress


def _same_run(path: Path, progress: _Progress, settings: Mapping[str, Any]) -> None:
    """CheckpointError where a checkpoint belongs to another run."""
    if progress.settings is not None:
        theirs = _leaves(renewed(progress.settings))
        theirs["model.norm"] = norm_of(theirs.get("model.norm", "none"))
        ours = _leaves(json.loads(json.dumps(settings)))
        # What only this version knows had its default then; what only theirs knows, it cannot do.
        other = sorted(name for name in theirs if theirs[name] != ours.get(name, _ABSENT))
        if other:
            pairs = [f"{n} ({theirs[n]!r} there, {ours.get(n)!r} here)" for n in other[:5]]
            raise CheckpointError(
                f"{path}: it belongs to a run with other settings: {', '.join(pairs)}; {REMEDY}"
            )
        return
    metrics = path.with_name(METRICS)
    try:
        lines = [Epoch.of(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return
    # An earlier version wrote it: the epochs must be those that the folder tells of.
    if any(a != b for a, b in zip(lines, progress.history, strict=False)):
        raise CheckpointError(
            f"{path}: its epochs are not those of {METRICS}, so it is of another run; {REMEDY}"
        )


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    result: dict[str, Any] = {}
    for key, part in value.items():
        result |= _leaves(part, f"{name}.{key}" if name else str(key))
    return result


def _draws(path: Path, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The state of a generator, tried on one that nobody needs."""
    try:
        torch.Generator().set_state(tensors[name])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: {name} is no state of a random generator ({error}); {REMEDY}"
        ) from error
    return tensors[name]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _same_shapes(path: Path, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in sorted(actual.keys() | expected.keys()):
        there, here = (
            f"{tuple(part[name].shape)} of {part[name].dtype}" if name in part else "nothing"
            for part in (actual, expected)
        )
        if there != here:
            raise CheckpointError(
                f"{path}: {name} has shape {there}, this network needs {here}; {REMEDY}"
            )


def _turn_signs(
    state: dict[int, dict[str, Tensor]], parameters: list[nn.Parameter], network: nn.Module
) -> None:
    """A threshold of before was trained as its negative: so are its moments, but for squares."""
    turned = {id(unit.threshold) for unit in network.modules() if isinstance(unit, Unit)}
    for index, values in state.items():
        if id(parameters[index]) in turned:
            for name in values.keys() & {"exp_avg", "momentum_buffer"}:
                values[name] = -values[name]


def _optimizer_state(
    path: Path, tensors: Mapping[str, Tensor], parameters: list[nn.Parameter], adam: bool
) -> dict[int, dict[str, Tensor]]:
    """What an optimiser keeps of each parameter, by the parameter's number in its own order."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        known = index.isdecimal() and int(index) < len(parameters) and name in _KEPT | {_CHI}
        # It is either a counter or has the shape of its parameter.
        shapes = [(), parameters[int(index)].shape] if known else []
        if value.shape not in shapes or not value.is_floating_point():
            raise CheckpointError(
                f"{path}: optimizer/{key} of shape {tuple(value.shape)} and {value.dtype} fits no "
                f"parameter; {REMEDY}"
            )
        state.setdefault(int(index), {})[name] = value
    wanted = _ADAM if adam else _SGD
    for number, kept in state.items():
        if kept.keys() - {_CHI} not in (set(), wanted):
            raise CheckpointError(
                f"{path}: optimizer/{number} holds {', '.join(sorted(kept))} where "
                f"{', '.join(sorted(wanted))} are needed; {REMEDY}"
            )
    return state


def start_from(network: Network, path: Path, symbols: Sequence[str] | None = None) -> None:
    """Take over the weights of a network file.

    Raises UsageError where they do not fit, or belong to other symbols than these.
    """
    try:
        _same_symbols(path.with_name(SYMBOLS), symbols)
        given = load_network(path)
        ours, theirs = (_unit(item) for item in (network, given))
        if ours != theirs:  # a decay that is not trained would come along
            raise ValueError(f"the unit there is {theirs}, here {ours}")
        network.load_state_dict(given.state_dict())
    except (FileNotFoundError, ValueError, RuntimeError, RunError) as error:
        raise UsageError(
            f"start={str(path.parent)!r}: {error}; give the folder of a finished run with the same "
            "--unit, --hidden, task and data"
        ) from error


def _same_symbols(path: Path, symbols: Sequence[str] | None) -> None:
    """ValueError where a run's network knows other symbols, or the same by other numbers."""
    if symbols is None or not path.exists():
        return
    if read_symbols(path, "give another run") != tuple(symbols):
        raise ValueError(
            "its symbols are not those of these texts, or are in another order, which follows from "
            "how often each occurs in training; weights cannot change their words"
        )


def _unit(network: Network) -> str:
    return json.loads((network.description or {"model": '{"unit": "none"}'})["model"])["unit"]
