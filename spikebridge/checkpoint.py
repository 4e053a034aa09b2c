"""Checkpoints: everything that a run needs to go on bit for bit, in one safetensors file.

Tensors: model/*, best/* (the weights that were best on validation), average/* (their moving
average, where there is one), more/* (what else a run keeps), optimizer/<parameter>/<name>,
rng/torch, rng/data.  Metadata: format version, steps taken, the epochs' metrics, and a digest of
it all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spikebridge.digest import digest
from spikebridge.network import Network, load_network
from spikebridge.records import RunError, UsageError
from spikebridge.rundir import SYMBOLS, read_json, replace
from spikebridge.units import Unit, renamed

FORMAT = "spikebridge-checkpoint"
VERSION = 1
REMEDY = "start the run anew with --overwrite, or put back a copy of the file"


class CheckpointError(RunError):
    """A checkpoint cannot be used; the message names the file, the fault and the remedy."""


@dataclass
class Position:
    """How far a run has come."""

    step: int
    """Optimiser steps taken."""
    history: list[dict[str, Any]]
    """The metrics of each finished epoch, first to last."""
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
) -> None:
    """Write a checkpoint, whole or not at all; torch's global generator belongs to it."""
    tensors = {f"model/{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in position.best.items()}
    tensors |= {f"average/{name}": value for name, value in position.average.items()}
    tensors |= {f"more/{name}": value for name, value in position.more.items()}
    for index, values in optimizer.state_dict()["state"].items():
        kept = {name: value for name, value in values.items() if value is not None}
        tensors |= {f"optimizer/{index}/{name}": value for name, value in kept.items()}
    tensors |= {"rng/torch": torch.get_rng_state(), "rng/data": data.get_state()}
    tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
    text = json.dumps({"step": position.step, "history": position.history})
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "progress": text,
        "sha256": digest(tensors, text),
    }
    replace(path, lambda part: save_file(tensors, part, metadata))


def restore(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, data: torch.Generator
) -> Position:
    """Put a checkpoint's state into all of them and into torch's global generator.

    Raises CheckpointError, before anything is changed, where the file is damaged, of another
    version, or of another network.
    """
    metadata, found = _read(path)
    tensors = renamed(found)
    plain = json.loads(metadata["progress"])
    model, best = _part(tensors, "model/"), _part(tensors, "best/")
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    _same_shapes(path, model, shapes)
    _same_shapes(path, best, shapes)
    average = _part(tensors, "average/")
    if average:
        _same_shapes(path, average, shapes)
    parameters = _parameters(optimizer)
    state = _optimizer_state(path, _part(tensors, "optimizer/"), parameters)
    if tensors.keys() != found.keys():
        _turn_signs(state, parameters, network)
    network.load_state_dict(model)
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    torch.set_rng_state(tensors["rng/torch"])
    data.set_state(tensors["rng/data"])
    return Position(plain["step"], plain["history"], best, average, more=_part(tensors, "more/"))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({error}); {REMEDY}") from error
    found = f"{metadata.get('format', 'no format')} version {metadata.get('version', 'none')}"
    if found != f"{FORMAT} version {VERSION}":
        raise CheckpointError(
            f"{path}: expected {FORMAT} version {VERSION}, found {found}; {REMEDY}"
        )
    if metadata.get("sha256") != digest(tensors, metadata.get("progress", "")):
        raise CheckpointError(f"{path}: the content does not match its checksum; {REMEDY}")
    return metadata, tensors


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _same_shapes(
    path: Path, found: Mapping[str, Tensor], expected: Mapping[str, torch.Size]
) -> None:
    for name in sorted(found.keys() | expected.keys()):
        there = tuple(found[name].shape) if name in found else "nothing"
        here = tuple(expected[name]) if name in expected else "nothing"
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


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the optimiser's own order, by which its state is numbered."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_state(
    path: Path, tensors: Mapping[str, Tensor], parameters: list[nn.Parameter]
) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        # What an optimiser keeps is either a counter or has the shape of its parameter.
        if int(index) >= len(parameters) or value.shape not in ((), parameters[int(index)].shape):
            raise CheckpointError(
                f"{path}: optimizer/{key} of shape {tuple(value.shape)} fits no parameter; {REMEDY}"
            )
        state.setdefault(int(index), {})[name] = value
    return state


def start_from(network: Network, path: Path, symbols: Sequence[str] | None = None) -> None:
    """Take over the weights of a network file.

    Raises UsageError where they do not fit, or belong to other symbols than these.
    """
    try:
        _same_symbols(path.with_name(SYMBOLS), symbols)
        given = load_network(path)
        ours, theirs = (_unit(one) for one in (network, given))
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
    theirs = read_json(path, "give another run").get("symbols")
    if theirs != list(symbols):
        raise ValueError(
            "its symbols are not those of these texts, or are in another order, which follows from "
            "how often each occurs in training; weights cannot change their words"
        )


def _unit(network: Network) -> str:
    return json.loads((network.description or {"model": '{"unit": "none"}'})["model"])["unit"]
