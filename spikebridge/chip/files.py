"""Programs as files: npz without pickles, checked when read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from spikebridge.base.archives import MOST_BYTES, read_arrays, write_arrays
from spikebridge.chip.bounds import bounds
from spikebridge.chip.program import ChipConfig, Geometry, Program, ProgramLayer, SlowState

FORMAT = "spikebridge-program-1"
ARRAYS = ("weight", "bias", "threshold", "decay", "amount", "scale")
SLOW_ARRAYS = ("rho", "pull", "kick")
NUMBERS = ("weight_bits", "decay_bits", "fraction_bits", "membrane_bits", "max_steps")


def save_program(program: Program, path: str | Path) -> None:
    """Write a program, whole or not at all."""
    program.check()
    head: dict[str, Any] = {"format": FORMAT, "chip": dataclasses.asdict(program.chip)}
    head |= {name: getattr(program, name) for name in NUMBERS}
    head["layers"] = [_plain(layer) for layer in program.layers]
    arrays = {
        f"{number}.{name}": array
        for number, layer in enumerate(program.layers)
        for name, array in _arrays(layer).items()
    }
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    write_arrays(Path(path), arrays)


def load_program(path: str | Path) -> Program:
    """Read a program.

    Raises FileNotFoundError where there is none, ValueError where the file is damaged, of another
    version, or no program.
    """
    path = Path(path)
    try:
        arrays = read_arrays(path, most_bytes=MOST_BYTES)
        head = json.loads(arrays.pop("head").tobytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: there is no such program; write one with spikebridge export"
        ) from error
    except (KeyError, ValueError, OSError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a whole program ({error}); export the network again"
        ) from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        version = head.get("format") if isinstance(head, dict) else None
        raise ValueError(
            f"{path} has format {version!r}, this version reads {FORMAT!r}; export the network "
            "again"
        )
    try:
        return _bounded(_program(head, arrays))
    except Exception as error:  # what a wrong type or size stumbles over can be any kind
        raise ValueError(
            f"{path} is not a whole program ({type(error).__name__}: {error}); export again"
        ) from error


def _program(head: dict[str, Any], arrays: dict[str, np.ndarray]) -> Program:
    layers = []
    for number, plain in enumerate(head["layers"]):
        names = (*ARRAYS, *(SLOW_ARRAYS if "slow" in plain else ()))
        layers.append(_layer(plain, {name: arrays[f"{number}.{name}"] for name in names}))
    numbers = {name: head[name] for name in NUMBERS}
    return Program(layers=tuple(layers), chip=ChipConfig(**head["chip"]), **numbers).check()


def digest(program: Program) -> str:
    """What tells programs apart: sha256 over all that they hold."""
    hashed = hashlib.sha256(repr(program.chip).encode())
    hashed.update(repr([getattr(program, name) for name in NUMBERS]).encode())
    for layer in program.layers:
        hashed.update(repr(_plain(layer)).encode())
        for array in _arrays(layer).values():
            hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def _bounded(program: Program) -> Program:
    """The program itself; ValueError where a membrane could overflow."""
    top = 1 << program.membrane_bits - 1
    for layer in program.layers:
        steps = program.max_steps or program.chip.max_steps
        low, high, forever = bounds(layer, program.decay_bits, program.fraction_bits, steps)
        if low.min() < -top or high.max() >= top or not (forever or program.max_steps):
            raise ValueError(f"membranes of {layer.name} may overflow {program.membrane_bits} bits")
    return program


def _plain(layer: ProgramLayer) -> dict[str, Any]:
    names = ("name", "inputs", "reset", "slope", "recurrent", "reduce")
    plain = {name: getattr(layer, name) for name in names}
    plain["geometry"] = None if layer.geometry is None else dataclasses.asdict(layer.geometry)
    if layer.slow is not None:
        plain["slow"] = {"kind": layer.slow.kind, "bits": layer.slow.bits}
    return plain


def _arrays(layer: ProgramLayer) -> dict[str, np.ndarray]:
    arrays = {name: getattr(layer, name) for name in ARRAYS}
    if layer.slow is not None:
        arrays |= {name: getattr(layer.slow, name) for name in SLOW_ARRAYS}
    return arrays


def _layer(plain: dict[str, Any], arrays: dict[str, Any]) -> ProgramLayer:
    geometry = plain.pop("geometry")
    if geometry is not None:
        for name in ("in_shape", "out_shape"):
            geometry[name] = tuple(geometry[name])
        geometry = Geometry(**geometry)
    slow = plain.pop("slow", None)
    if slow is not None:
        plain["slow"] = SlowState(**slow, **{name: arrays.pop(name) for name in SLOW_ARRAYS})
    return ProgramLayer(geometry=geometry, **plain, **arrays)
