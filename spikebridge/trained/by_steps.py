"""A trained network tested at other numbers of time steps than it was trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from spikebridge import data as tasks
from spikebridge.base.chance import generator
from spikebridge.base.records import UsageError
from spikebridge.runs import evaluation, rundir
from spikebridge.runs.hardware_results import BySteps, load_by_steps
from spikebridge.settings.config import Config
from spikebridge.settings.tasks import DigitsConfig, EventsConfig


@rundir.owned("evaluate")
def by_steps(
    directory: Path, steps: Sequence[int], callback: Callable[[int], None] | None = None
) -> BySteps:
    """Test a finished run at each number of steps; written to steps.json and returned.

    The weights stay as they are: only the presentation gets longer or shorter, which a network of
    spiking units takes without a change.  Raises UsageError where the run is not of such a task.
    """
    config, network = evaluation.trained(directory)
    if not steps or min(steps) < 1:
        raise UsageError(f"steps={list(steps)}: each must be at least 1; pass --steps 5 10 20")
    task = config.task
    own = getattr(task, "steps", 1)
    settings = [with_steps(config, directory, count) for count in sorted(set(steps))]
    tests, spikes, metric = [], [], ""
    for count, longer in zip(sorted(set(steps)), settings, strict=True):
        loaded = tasks.load(dataclasses.replace(task, **longer))  # type: ignore[arg-type]
        # As many samples at a time as keep the work within the memory that training took.
        size = max(1, config.train.batch_size * own // max(count, own))
        judge = generator(config.train.eval_seed, "test")
        score, activity = evaluation.observe(network, loaded, "test", size, judge)
        tests.append(score.metric)
        metric = loaded.metric
        spikes.append(activity.spikes_per_inference)
        if callback is not None:
            callback(count)
    content = BySteps(metric, own, tuple(sorted(set(steps))), tuple(tests), tuple(spikes))
    rundir.write_json(directory / rundir.STEPS, content)
    return content


def tested(directory: Path, steps: Sequence[int]) -> None:
    """As `by_steps`, where that has not been done."""
    if kept(directory, steps) is None:
        by_steps(directory, steps)


def kept(directory: Path, steps: Sequence[int]) -> BySteps | None:
    """What `by_steps` has written there for these numbers of steps; None where it has not."""
    known = load_by_steps(directory)
    return known if known is not None and known.steps == tuple(sorted(set(steps))) else None


def with_steps(config: Config, directory: Path, count: int) -> dict[str, int]:
    """The settings that make a test last so many steps.

    Raises UsageError where the number of steps is not a choice.
    """
    task = config.task
    if not isinstance(task, DigitsConfig | EventsConfig) or getattr(task, "serial", False):
        raise UsageError(
            f"{directory}: its inputs have as many steps as the data give them; the number of "
            "steps is a choice only for images by rate, threshold or current, and for events"
        )
    return {"steps_test": count} if isinstance(task, DigitsConfig) else {"steps": count}
