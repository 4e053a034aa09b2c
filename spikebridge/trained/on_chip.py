"""A trained network on the digital chip: integer accuracy, spikes, cycles, energy, beside software.

`export` compiles the network of a finished run, runs it on the test set in integers, and writes
program.npz and digital.json into the run's folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spikebridge import data as tasks
from spikebridge import energy as silicon
from spikebridge.base.chance import generator
from spikebridge.base.metrics import from_mean
from spikebridge.base.records import Count, UsageError, check_types
from spikebridge.chip.compiler import compile, losses
from spikebridge.chip.engine import Engine
from spikebridge.chip.files import load_program, save_program
from spikebridge.chip.program import ChipConfig, ChipCounts, Program
from spikebridge.data.task import Batch, Task
from spikebridge.energy.costs import Energy
from spikebridge.nn.network import Network
from spikebridge.runs import evaluation, rundir
from spikebridge.runs.hardware_results import (
    ChipSettings,
    Hardware,
    InIntegers,
    OnChip,
    Range,
    Sizes,
    load_on_chip,
)
from spikebridge.settings.config import Config, override
from spikebridge.trained.by_steps import with_steps

LOOKED_AT = 32
"""Samples whose spikes are compared one by one."""


@dataclass(frozen=True)
class ChipPlan:
    """What is tried.

    Args:
        chip: the settings of the chip that are given; others follow from the run: as many bits of
            a weight as it was trained with (8 where it was not rounded), and its time steps.
        samples: of the split, rounded up to whole batches; 0 = all.
        split: "test", or "valid" for choosing settings.
        steps: time steps of a sample, for digits and events; 0 = as the run was tested.
    """

    chip: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: Count = 0
    split: Literal["test", "valid"] = "test"
    steps: Count = 0

    def __post_init__(self) -> None:
        check_types(self)


def kept(directory: Path, plan: ChipPlan) -> OnChip | None:
    """What `export` has written there for this plan; None where it has not."""
    known = load_on_chip(directory)
    with suppress(FileNotFoundError, ValueError):  # of a program that is damaged
        load_program(directory / rundir.PROGRAM)
        if known is not None and known.asked == dataclasses.asdict(plan):
            return known
    return None


@rundir.owned("export")
def export(directory: Path, plan: ChipPlan | None = None) -> OnChip:
    """Compile the network of a finished run and test the program beside it.

    Args:
        directory: of the run.
        plan: what is tried.

    Returns the content of digital.json.  Raises UsageError where the run is not complete, or the
    chip cannot run its network or its inputs.
    """
    program, content = measure(directory, plan or ChipPlan())
    save_program(program, directory / rundir.PROGRAM)
    rundir.write_json(directory / rundir.DIGITAL, content)
    return content


def measure(directory: Path, plan: ChipPlan) -> tuple[Program, OnChip]:
    """The program of a finished run and the content of digital.json; nothing is written."""
    config, network = load(directory, plan.steps)
    task = tasks.load(config.task)
    program = compile(network, chip_for(config, task, plan.chip))
    if task.carries_state and program.max_steps:
        raise UsageError(
            f"{directory}: a stream has no end, and membranes without a leak know no bounds; train "
            "a unit whose membranes leak, such as snu with a decay below 1"
        )
    trial = _Trial(network, program, task, config, plan)
    return program, OnChip(
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        split=plan.split,
        samples=trial.counts.samples,
        steps=trial.counts.steps / trial.counts.samples,
        software=trial.software,
        integer=trial.integer,
        chip=ChipSettings(**dataclasses.asdict(program.chip)),
        program=_sizes(program),
        layers=_layers(network, program, trial.agreement()),
        counts=trial.counts,
        per="step" if task.carries_state else "sample",
        part=task.part if trial.parts else "",
        parts=trial.parts / trial.counts.samples,
        energy=_energy(trial.counts, program),
        area_mm2={name: part.value for name, part in silicon.area_mm2(program).items()},
        asked=dataclasses.asdict(plan),
    )


def _sizes(program: Program) -> Sizes:
    held: dict[str, Any] = {
        f"{name}_memory_bits": bits for name, bits in program.memory_bits.items()
    }
    rest = [e.name for e in dataclasses.fields(Sizes) if not e.name.endswith("_memory_bits")]
    return Sizes(**held, **{name: getattr(program, name) for name in rest})


def load(directory: Path, steps: int = 0) -> tuple[Config, Network]:
    """Settings and network of a finished run, tested with so many steps where that is not 0.

    Raises UsageError where it is not finished, or its number of steps is not a choice.
    """
    config, network = evaluation.trained(directory)
    if steps:
        config = override(config, **with_steps(config, directory, steps))
    return config, network.eval()


def chip_for(config: Config, task: Task, given: dict[str, Any]) -> ChipConfig:
    """The chip for a run: what is given, and otherwise what its training and its task say."""
    result: dict[str, Any] = {}
    if config.model.weight_bits:
        result["weight_bits"] = config.model.weight_bits
    longest = 1
    if not task.carries_state:
        judge = generator(config.train.eval_seed, "test")
        size = config.train.batch_size
        longest = max(len(batch.x) for batch in task.batches("test", size, judge))
        result["max_steps"] = longest
    chip = ChipConfig(**{**result, **given})
    if chip.max_steps < longest:
        raise UsageError(
            f"max_steps={chip.max_steps}: a sample has {longest} time steps; pass --max-steps "
            f"{longest}, or leave it out"
        )
    return chip


def spikes_of(task: Task, batch: Batch) -> np.ndarray:
    """Inputs (T, B, I) as booleans.  Raises UsageError where they are not spikes."""
    if task.symbols:
        return torch.nn.functional.one_hot(batch.x, task.input_size).bool().numpy()
    if not bool(((batch.x == 0) | (batch.x == 1)).all()):
        raise UsageError(
            f"the inputs of {task.name} are numbers, and the chip takes spikes, 0 or 1; train with "
            "inputs by rate or by threshold (digits: --coding rate, events, ecg: --coding binary)"
        )
    return batch.x.bool().numpy()


def samples_for_rtl(directory: Path, count: int, steps: int = 0) -> list[list[np.ndarray]]:
    """The first test samples of a run, per sample and step the rising numbers of its spikes."""
    config, _ = load(directory, steps)
    task = tasks.load(config.task)
    judge = generator(config.train.eval_seed, "test")
    result: list[list[np.ndarray]] = []
    for batch in task.batches("test", min(count, config.train.batch_size), judge):
        x = spikes_of(task, batch)
        for number, length in enumerate(_lengths(batch)):
            result.append([np.flatnonzero(x[t, number]) for t in range(length)])
            if len(result) == count:
                return result
    return result


def _lengths(batch: Batch) -> list[int]:
    """Time steps of each sample."""
    steps, count = batch.x.shape[:2]
    return [steps] * count if batch.mask is None else batch.mask.sum(0).tolist()


class _Trial:
    """A network and its program on the same inputs."""

    def __init__(
        self, network: Network, program: Program, task: Task, config: Config, plan: ChipPlan
    ) -> None:
        self.network, self.program, self.task, self.plan = network, program, task, plan
        self.size, self.judge = config.train.batch_size, config.train.eval_seed
        self.counts, self.parts = ChipCounts(), 0
        scale = program.readout.scale / (1 << program.fraction_bits)
        self.scale = torch.from_numpy(scale).float()
        self.software, self.integer = self._both()

    def batches(self) -> Iterator[Batch]:
        """The inputs, always the same ones."""
        limit = -(-self.plan.samples // self.size) if self.plan.samples else None
        judge = generator(self.judge, self.plan.split)
        return islice(self.task.batches(self.plan.split, self.size, judge), limit)

    def _both(self) -> tuple[float, float]:
        """The metric in software and in integers."""
        sums = [[0.0, 0], [0.0, 0]]
        engines = _Streams(self.program) if self.task.carries_state else None
        state = None
        with evaluation.evaluating(self.network):
            for batch in self.batches():
                before = state if engines else None
                output, state = self.network(batch.x, before, mask=batch.mask)
                x = spikes_of(self.task, batch)
                self.parts += self.task.parts_in(batch)
                result = engines.run(x) if engines else self._run(x, batch)
                for total, answer in zip(sums, (output, self._readout(result, batch)), strict=True):
                    score, count = self.task.score(answer, batch)
                    total[0] += score
                    total[1] += count
        if engines:
            self.counts = engines.counts()
        software, integer = (from_mean(self.task.metric, total / n) for total, n in sums)
        return software, integer

    def _run(self, x: np.ndarray, batch: Batch) -> np.ndarray:
        """Outputs of the program, those of padding 0, and what it did."""
        if batch.mask is None:
            return self._counted(x)
        # Padding is no time step: each sequence runs for its own length.
        each = self.program.readout.reduce == "each"
        shape = x.shape[:2] if each else x.shape[1:2]
        outputs = np.zeros((*shape, self.program.outputs), np.int64)
        for number, length in enumerate(_lengths(batch)):
            sample = slice(number, number + 1)
            place = (slice(length), sample) if each else sample
            outputs[place] = self._counted(x[:length, sample])
        return outputs

    def _counted(self, x: np.ndarray) -> np.ndarray:
        result = Engine(self.program).run(x, counts=True)
        assert result.counts is not None
        self.counts += result.counts
        return result.outputs

    def _readout(self, outputs: np.ndarray, batch: Batch) -> Tensor:
        """Integer outputs as the numbers of the network's readout."""
        value = torch.from_numpy(outputs).float() * self.scale
        if self.program.readout.reduce != "sum":
            return value
        return value / (len(batch.x) if batch.mask is None else batch.mask.sum(0).unsqueeze(1))

    def agreement(self) -> list[float]:
        """Of each hidden layer: share of neurons and steps that do the same in both, on a few."""
        batch = next(self.batches())
        x = batch.x[:, :LOOKED_AT]
        with evaluation.evaluating(self.network):
            mask = None if batch.mask is None else batch.mask[:, :LOOKED_AT]
            seen = self.network.observe(x, mask=mask)
        spikes = spikes_of(self.task, batch._replace(x=x))
        lengths = _lengths(batch)[:LOOKED_AT]
        same, total = [0] * len(seen.layers), 0
        for number, length in enumerate(lengths):
            engine = Engine(self.program)
            total += length
            for t in range(length):
                engine.step(np.flatnonzero(spikes[t, number]))
                for at, layer in enumerate(seen.layers):
                    fired = np.zeros(layer.y.shape[-1], bool)
                    fired[engine.spikes[at]] = True
                    same[at] += int((fired == layer.y[t, number].bool().numpy()).sum())
        sizes = [layer.y.shape[-1] for layer in seen.layers]
        return [equal / (total * size) for equal, size in zip(same, sizes, strict=True)]


class _Streams:
    """One engine for each of the texts or tables that are read side by side."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.engines: list[Engine] = []

    def run(self, x: np.ndarray) -> np.ndarray:
        """Outputs (T, B, O) of inputs (T, B, I), which go on where the last ones stopped."""
        steps, width = x.shape[:2]
        while len(self.engines) < width:
            self.engines.append(Engine(self.program))
        outputs = np.zeros((steps, width, self.program.outputs), np.int64)
        for number in range(width):
            for t in range(steps):
                outputs[t, number] = self.engines[number].step(np.flatnonzero(x[t, number]))
        return outputs

    def counts(self) -> ChipCounts:
        """What all did; a time step counts as a sample."""
        total = sum((engine.counts for engine in self.engines), ChipCounts())
        return dataclasses.replace(total, samples=total.steps)


def _layers(network: Network, program: Program, agreement: list[float]) -> tuple[InIntegers, ...]:
    same = [*agreement, None]
    return tuple(
        InIntegers(
            layer.name,
            "convolution" if layer.geometry else "dense",
            layer.recurrent,
            layer.inputs,
            layer.neurons,
            int(layer.weight.size),
            weight_error=lost.weight,
            decay_error=lost.decay,
            drive_error=lost.drive,
            same_spikes=equal,
        )
        for layer, lost, equal in zip(program.layers, losses(network, program), same, strict=True)
    )


def _energy(counts: ChipCounts, program: Program) -> Range:
    """Energy and time per sample."""
    n = counts.samples

    def per_sample(energy: Energy) -> Hardware:
        rows = [
            dataclasses.replace(row, count=row.count / n, energy_pJ=row.energy_pJ / n)
            for row in energy
        ]
        return Hardware(energy.total_pJ / n, energy.seconds_s / n, tuple(rows))

    return Range(*map(per_sample, silicon.span(counts, program)))
