"""Tasks: data, how they become sequences, the loss and the score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikebridge.config import DigitsConfig, MusicConfig

if TYPE_CHECKING:
    from spikebridge.tasks.base import Task

__all__ = ["load"]


def load(task_config: DigitsConfig | MusicConfig) -> Task:
    """The task that a config describes, its data read and checked.

    Raises DataError (spikebridge.tasks.files) where the data are missing or damaged.
    """
    try:
        if isinstance(task_config, DigitsConfig):
            from spikebridge.tasks.digits import Digits

            return Digits(task_config)
        if isinstance(task_config, MusicConfig):
            from spikebridge.tasks.music import Music

            return Music(task_config)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed, and the tasks need it; pip install 'spikebridge[app]'",
            name=error.name,
        ) from error
    raise TypeError(
        f"task_config is a {type(task_config).__name__}: "
        "there is no task for it; pass a DigitsConfig or a MusicConfig"
    )
