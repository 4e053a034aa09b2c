"""Timing that can be trusted on a noisy machine: rows in turn, medians, ratios within a round."""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikebridge.base.records import to_plain
from spikebridge.runs import environment


@dataclass
class Row:
    """One thing to time: `call(x)` gives (T, B, N); its parameters receive gradients."""

    call: Callable[[Tensor], Tensor]
    module: nn.Module | None = None
    autocast: bool = False
    dtype: torch.dtype = torch.float32

    def parameters(self) -> list[Tensor]:
        return [] if self.module is None else list(self.module.parameters())


@dataclass(frozen=True)
class Times:
    """Seconds of each round."""

    forward: list[float]
    backward: list[float]

    @property
    def total(self) -> list[float]:
        return [f + b for f, b in zip(self.forward, self.backward, strict=True)]


def once(row: Row, x: Tensor, cotangent: Tensor) -> tuple[float, float]:
    """Seconds forward and backward, the gradient of the input included."""
    x.grad = None
    for parameter in row.parameters():
        parameter.grad = None
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=row.autocast):
        y = row.call(x)
    middle = time.perf_counter()
    y.backward(cotangent if y.dtype == cotangent.dtype else cotangent.to(y.dtype))
    return middle - start, time.perf_counter() - middle


def in_turn(
    rows: Mapping[str, Row], given: tuple[int, int, int] | Tensor, rounds: int
) -> dict[str, Times]:
    """Every row once a round, on equal input; the first round warms up and is not counted.

    `given` is the input, or its shape, which is that of the outputs too, for normal numbers.
    """
    inputs, cotangents = {}, {}
    for dtype in {row.dtype for row in rows.values()}:
        torch.manual_seed(0)
        x = given if isinstance(given, Tensor) else torch.randn(given)
        inputs[dtype] = x.to(dtype, copy=True).requires_grad_()
    shape = given
    if isinstance(given, Tensor):
        with torch.no_grad():
            shape = next(iter(rows.values())).call(given).shape
    for dtype in (torch.float32, torch.bfloat16):
        cotangents[dtype] = torch.randn(shape).to(dtype)
    found: dict[str, Times] = {name: Times([], []) for name in rows}
    for round_ in range(rounds + 1):
        gc.collect()
        for name, row in rows.items():
            low = row.autocast or row.dtype == torch.bfloat16
            cotangent = cotangents[torch.bfloat16 if low else torch.float32]
            forward, backward = once(row, inputs[row.dtype], cotangent)
            if round_:
                found[name].forward.append(forward)
                found[name].backward.append(backward)
    return found


def summary(
    times: Mapping[str, Times], base: str, bases: Mapping[str, str] | None = None
) -> dict[str, dict[str, float]]:
    """Medians of a table; the ratio is the median over the rounds of that round's ratio.

    bases names, for some rows, another row than base to be set against.
    """
    found = {}
    for name, row in times.items():
        against = times[(bases or {}).get(name, base)].total
        ratios = [a / b for a, b in zip(row.total, against, strict=True)]
        found[name] = {
            "forward_s": statistics.median(row.forward),
            "backward_s": statistics.median(row.backward),
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
    return found


def show(title: str, table: Mapping[str, Mapping[str, float]], base: str) -> None:
    print(f"\n{title}\n{'':46}{'forward':>10}{'backward':>10}  x {base}", flush=True)
    for name, row in table.items():
        print(
            f"{name:46}{row['forward_s'] * 1e3:8.1f}ms{row['backward_s'] * 1e3:8.1f}ms"
            f"{row['ratio']:7.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
            flush=True,
        )


def copy_bandwidth(count: int, rounds: int) -> float:
    """GB/s of a plain copy of float32 numbers, bytes read and written counted."""
    source, to, found = torch.randn(count), torch.randn(count), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        to.copy_(source)
        found.append(2 * source.nbytes / (time.perf_counter() - start) / 1e9)
    return statistics.median(found[1:])


def peak_bytes() -> int:
    """The most memory this process has held.  getrusage would begin at what the parent held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no line VmHWM: peaks of memory need Linux")


def save(path: Path, content: Mapping[str, Any]) -> None:
    """JSON with where and how it was measured, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(
        json.dumps({"environment": to_plain(environment.collect()), **content}, indent=1) + "\n"
    )
    os.replace(temporary, path)
