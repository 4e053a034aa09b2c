"""A trained network programmed into memory cells: how good it is, for how long, at what energy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spikebridge import data as tasks
from spikebridge.base.chance import generator, seed_of
from spikebridge.base.records import Count, Seed, Size, UsageError, check_types
from spikebridge.crossbar import pcm
from spikebridge.crossbar.cells import SimulatedArray
from spikebridge.crossbar.network import FILE, CrossbarNetwork, cell_of, to_crossbar
from spikebridge.crossbar.traffic import counts, listening
from spikebridge.data.task import Task
from spikebridge.energy import costs as energy
from spikebridge.nn.network import Network
from spikebridge.runs import evaluation, rundir
from spikebridge.runs.hardware_results import (
    CellModel,
    Costs,
    DriftCurves,
    Hardware,
    Histograms,
    Level,
    Limits,
    Look,
    OnCells,
    Points,
    Tiles,
    Training,
    load_on_cells,
)
from spikebridge.settings.config import Config
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig, programmed

HOUR_S, DAY_S = 3600.0, 86400.0
MONTH_S, YEAR_S = 30 * DAY_S, 365 * DAY_S
TIMES_S = (20.0, HOUR_S, DAY_S, MONTH_S, YEAR_S)
DEMO_TIMES_S = (20.0, DAY_S, YEAR_S)
BINS, POINTS, LEVELS = 40, 600, (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class CellPlan:
    """What is tried.

    Args:
        cells: which ones.
        crossbar: how weights lie on them.
        chips: number of simulated chips, each with draws of its own.
        times_s: times after programming, rising.
        samples: of the test set, for each chip and time; 0 = all.
        seed: of the chips.
        split: what is tested on: "test", or "valid" for choosing settings such as w_max.
    """

    cells: CellConfig = field(default_factory=lambda: CellConfig("iterative"))
    crossbar: CrossbarConfig = field(default_factory=CrossbarConfig)
    chips: Size = 10
    times_s: tuple[float, ...] = TIMES_S
    samples: Count = 0
    seed: Seed = 0
    split: Literal["test", "valid"] = "test"

    def __post_init__(self) -> None:
        check_types(self)
        rising = all(a < b for a, b in pairwise(self.times_s))
        if not self.times_s or min(self.times_s) < 0 or not rising:
            raise UsageError(
                f"times={list(self.times_s)}: seconds after programming, 0 or more and rising; "
                "pass --times 20 3600 86400"
            )
        if not self.cells.used:
            raise UsageError("there are no cells; pass --cells iterative")


def kept(directory: Path, plan: CellPlan) -> OnCells | None:
    """What `deploy` has written there for this plan; None where it has not."""
    known = load_on_cells(directory)
    if known is None or plan.cells.cell_table:  # the table may have changed
        return None
    asked = programmed(dataclasses.asdict(plan.cells) | dataclasses.asdict(plan.crossbar))
    of_plan = (plan.chips, plan.times_s, plan.samples, plan.seed, plan.split)
    there = (known.chips, known.times_s, known.samples, known.seed, known.split)
    return known if (known.memory, there) == (asked, of_plan) else None


Callback = Callable[[int, float, float], None]


@rundir.owned("program")
def deploy(directory: Path, plan: CellPlan, callback: Callback | None = None) -> OnCells:
    """Program the network of a finished run into simulated chips and test them over time.

    Every chip is read with noise of its own at each time, without and with global drift
    compensation.  What comes out is written to the run's memory.json and returned: the metric of
    every chip and time, read-back errors, conductances, drift, and energy and time per inference
    beside digital hardware.

    Args:
        directory: of the run.
        plan: what is tried.
        callback: called after each test: number of the chip, seconds after programming, the metric.

    Raises UsageError where the run is not complete or its unit cannot lie on a crossbar.
    """
    config, network = evaluation.trained(directory)
    bench = _Bench(network, tasks.load(config.task), config, plan)
    software = bench.test(network)
    first = bench.program(0)
    look = _Watched(first, plan)
    costs = bench.energy(first)  # with conductances as they were written
    chips = [bench.over_time(first, 0, callback, look)]
    for number in range(1, plan.chips):
        chips.append(bench.over_time(bench.program(number), number, callback, None))
    content = OnCells(
        metric=bench.task.metric,
        higher_is_better=bench.task.higher_is_better,
        device=CellModel(look.cell.name, look.cell.source),
        memory=dataclasses.asdict(plan.cells) | dataclasses.asdict(plan.crossbar),
        cells=first.cells,
        samples=plan.samples,
        seed=plan.seed,
        split=plan.split,
        software=software,
        times_s=plan.times_s,
        plain=np.array([[plain for plain, _ in tests] for tests, _ in chips]),
        compensated=np.array([[compensated for _, compensated in tests] for tests, _ in chips]),
        layers=_layers(first, [errors for _, errors in chips]),
        histograms=Histograms(look.cell.g_max_uS, tuple(look.histograms)),
        programmed=(look.pairs[0], look.pairs[-1]),
        limits=look.limits,
        drift=_drift(look.cell, plan),
        energy=costs,
        training=bench.training(config, directory),
    )
    rundir.write_json(directory / rundir.MEMORY, content)
    return content


class _Bench:
    """What all chips have in common."""

    def __init__(self, network: Network, task: Task, config: Config, plan: CellPlan) -> None:
        self.network, self.task, self.plan = network, task, plan
        self.size, self.judge = config.train.batch_size, config.train.eval_seed
        self.per = config.task.step_name()
        self.batches = math.ceil(plan.samples / self.size) if plan.samples else None

    def test(self, network: Any) -> float:
        """The metric on the split, always on the same inputs."""
        judge, split = generator(self.judge, self.plan.split), self.plan.split
        score = evaluation.evaluate(
            network, self.task, split, self.size, judge, batches=self.batches
        )
        return score.metric

    def program(self, number: int) -> CrossbarNetwork:
        """A chip of its own draws."""
        seed = (seed_of(self.plan.seed, "cells") + number) % 2**63
        return to_crossbar(self.network, cell_of(self.plan.cells), self.plan.crossbar, seed=seed)

    def over_time(
        self, chip: CrossbarNetwork, number: int, callback: Callback | None, look: _Watched | None
    ) -> tuple[list[tuple[float, float]], dict[str, float]]:
        """Tests without and with compensation at each time; errors as read at the first one."""
        tests, now = [], 0.0
        errors: dict[str, float] = {}
        for time_s in self.plan.times_s:
            chip.wait(time_s - now)
            now = time_s
            errors = errors or chip.errors()
            if look is not None:
                look.at(time_s)
            chip.uncompensate()
            plain = self.test(chip.network)
            chip.compensate()
            tests.append((plain, self.test(chip.network)))
            if callback is not None:
                callback(number, time_s, tests[-1][1])
        return tests, errors

    def events(self, chip: CrossbarNetwork, split: str) -> tuple[energy.Counts, energy.Counts]:
        """Events per inference, of spike inputs and of others; from some samples of a split."""
        judge = generator(self.judge, split if split == "test" else "valid")
        size, limit = self.size, self.batches or 8
        first = next(iter(self.task.batches(split, size, judge)))
        if first.mask is not None:  # sequences of a batch are padded, which is no event
            size, limit = 1, min(limit * size, 64)
        with (
            listening(self.network) as (traffic, updates),
            evaluation.evaluating(self.network),
        ):
            inferences = 0.0
            state = None
            for batch in islice(self.task.batches(split, size, judge), limit):
                before = state if self.task.carries_state else None
                state = self.network(batch.x, before, mask=batch.mask)[1]
                steps, width = batch.x.shape[:2]
                inferences += steps * width if self.task.carries_state else width
        return counts(traffic, updates, chip, inferences)

    def energy(self, chip: CrossbarNetwork) -> Costs:
        """Energy and time per inference, on the crossbar and on digital hardware."""
        sparse, dense = self.events(chip, "test")
        digital = {
            f"digital, {name}, {what}": energy.on_digital(sparse, cost, sparse=what == "events")
            + energy.on_digital(dense, cost, sparse=False)
            for name, cost in (("int8", energy.INT8_45NM), ("fp32", energy.FP32_45NM))
            for what in ("events", "dense")
        }
        both = {
            "PCM crossbar": energy.on_crossbar(sparse + dense, _costs(self.plan.crossbar)),
            **digital,
        }
        costs = {name: Hardware.of(cost) for name, cost in both.items()}
        return Costs(costs, self.per, dataclasses.asdict(sparse + dense))

    def training(self, config: Config, directory: Path) -> Training | None:
        """Energy and time of the whole training, for a run that was trained on cells.

        Forward passes and pulses on the run's own hardware; backward passes in fp32, each with as
        many products again for the inputs and for the weights.
        """
        path = directory / rundir.CHIP
        if not path.exists() or not config.cells.used or not rundir.is_complete(directory):
            return None
        chip = to_crossbar(self.network, cell_of(config.cells, pulsed=True), config.crossbar)
        _, tensors = FILE.read(path)
        sent = {
            kind: float(sum(v.sum() for k, v in tensors.items() if k.endswith(f"device.{kind}")))
            for kind in ("pulses", "writes")
        }
        passes = self.task.size("train") * rundir.read_result(directory).epochs
        forward = sum(self.events(chip, "train"), energy.Counts()) * passes
        pulses = energy.Counts(set_pulses=sent["pulses"], reset_pulses=sent["writes"])
        products = energy.Counts(macs=forward.macs, weights_fetched=forward.weights_fetched)
        backward = energy.on_digital(products * 2, energy.FP32_45NM, sparse=False)
        result = {
            "PCM in the loop": energy.on_crossbar(forward + pulses, _costs(config.crossbar))
            + backward,
            "digital, fp32": energy.on_digital(forward, energy.FP32_45NM, sparse=False) + backward,
        }
        return Training({name: Hardware.of(cost) for name, cost in result.items()})


def _costs(crossbar: CrossbarConfig) -> energy.CrossbarCosts:
    """Of the crossbar; converters that the simulation leaves exact count with 8 bits."""
    return energy.pcm(adc_bits=crossbar.adc_bits or 8, dac_bits=crossbar.dac_bits or 8)


class _Watched:
    """What is shown of one chip: targets, conductances, drift."""

    def __init__(self, chip: CrossbarNetwork, plan: CellPlan) -> None:
        self.chip, self.plan, self.cell = chip, plan, cell_of(plan.cells)
        self.pairs: list[Points] = []
        self.histograms: list[Look] = []
        self.targets = torch.cat(
            [c.targets_uS(chip.aimed[name]).flatten() for name, c in chip.crossbars.items()]
        )
        some = torch.Generator().manual_seed(0)
        count = min(POINTS, len(self.targets))
        self.chosen = torch.randperm(len(self.targets), generator=some)[:count]

    def at(self, time_s: float) -> None:
        """Note what the cells hold now."""
        g = torch.cat([c.cell_array.read().flatten() for c in self.chip.crossbars.values()])
        top = self.cell.g_max_uS
        counts = torch.histc(g, BINS, 0.0, top).int()
        self.histograms.append(Look(time_s, counts.numpy()))
        self.pairs.append(Points(_exact(self.targets[self.chosen]), _exact(g[self.chosen])))
        self.limits = Limits(
            at_top=float((g >= top * 0.98).float().mean()),
            at_bottom=float((g <= 0.02 * top).float().mean()),
        )


def _exact(values: Tensor) -> np.ndarray:
    """In float64, as JSON writes numbers."""
    return values.double().numpy()


def _drift(cell: pcm.Cell, plan: CellPlan) -> DriftCurves:
    """Mean conductance of cells programmed to a few levels, over time, and its spread."""
    last = max(plan.times_s[-1], 10.0)
    times = torch.logspace(0, math.log10(last), 25).tolist()
    curves = []
    for level in LEVELS:
        array = SimulatedArray((400,), cell, seed=plan.seed)
        target = level * cell.g_max_uS
        array.program(torch.full((400,), target))
        now, means, spreads = 0.0, [], []
        for time_s in times:
            array.wait(time_s - now)
            now = time_s
            g = array.read()
            means.append(float(g.mean()))
            spreads.append(float(g.std()))
        curves.append(Level(target, np.array(means), np.array(spreads)))
    return DriftCurves(np.array(times), tuple(curves))


def _layers(chip: CrossbarNetwork, errors: Sequence[dict[str, float]]) -> tuple[Tiles, ...]:
    return tuple(
        Tiles(
            name,
            tuple(crossbar.weight_shape),
            tuple(crossbar.tiles),
            crossbar.cells,
            error=sum(row[name] for row in errors) / len(errors),
            largest_weight=float(chip.aimed[name].abs().max()),
        )
        for name, crossbar in chip.crossbars.items()
    )
