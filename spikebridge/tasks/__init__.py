"""Tasks: data, how they become sequences, the loss and the score."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from spikebridge.records import UsageError
from spikebridge.task_configs import OwnConfig, TaskConfig

if TYPE_CHECKING:
    from spikebridge.tasks.base import Task

__all__ = ["load"]

_CLASSES = {
    "digits": "Digits",
    "music": "Music",
    "text": "Text",
    "events": "Events",
    "npz": "Npz",
    "forecast": "Forecast",
}


def load(task_config: TaskConfig) -> Task:
    """The task that a config describes, its data read and checked.

    Raises DataError (spikebridge.tasks.files) where the data are missing or damaged, UsageError
    for a task of one's own, which only its own program can make.
    """
    name = getattr(task_config, "NAME", None)
    if isinstance(task_config, OwnConfig):
        raise UsageError(
            f"task={task_config.data!r}: it is a class in a program of yours, which this command "
            "cannot make; use spikebridge.to_crossbar, spikebridge.chip or "
            "spikebridge.complexity from that program, with load_network"
        )
    if name not in _CLASSES:
        raise TypeError(
            f"task_config is a {type(task_config).__name__}: there is no task for it; pass a "
            "record of spikebridge.task_configs, or give experiment.run your own task"
        )
    try:
        return getattr(import_module(f"spikebridge.tasks.{name}"), _CLASSES[name])(task_config)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed, and the tasks need it; pip install 'spikebridge[app]'",
            name=error.name,
        ) from error
