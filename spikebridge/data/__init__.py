"""Tasks: data, how they become sequences, the loss and the score.

`load` makes the task of a config.  A task of your own is a `Task` that gives a `Batch` at a time;
its config is an `OwnConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikebridge.base.doors import lazy
from spikebridge.base.records import UsageError
from spikebridge.settings.names import named
from spikebridge.settings.tasks import OwnConfig, TaskConfig

if TYPE_CHECKING:
    from spikebridge.data.task import Batch, Task, sample_batches

__all__ = ["Batch", "OwnConfig", "Task", "load", "other", "sample_batches"]

__getattr__, __dir__ = lazy(__name__, {"task": "Batch Task sample_batches"})


def load(task_config: TaskConfig) -> Task:
    """The task that a config describes, its data read and checked.

    Raises DataError (spikebridge.data.files) where the data are missing or damaged, UsageError
    for a task of one's own, which only its own program can make.
    """
    kind = _class_of(task_config)
    with _explained():
        return kind(task_config)


def other(
    task_config: TaskConfig, path: str | Path, scaling: Mapping[str, Any] | None = None
) -> Task:
    """Other data for a network that was trained on those of a config: the split "test" of a task.

    Inputs and answers are put on the scale of the training data, columns are those of the training
    by their names, and sequences of several lengths come with their mask.  The other splits are
    empty.  `answered` of the task says whether the data hold answers to judge by, and `in_units`
    leads from outputs back to the units of the data.

    Args:
        task_config: of the run.
        path: for npz an .npz file (y may be missing) or a folder with test.npz or a single one; for
            speech a folder with test.csv or with .wav files, or an .h5 file; for forecast a table,
            or a folder with a single .csv.
        scaling: what `Task.scaling` gave in the run, see `rundir.SCALING`; None reads the training
            data again.

    Raises DataError where the data do not fit, UsageError for a task that has no such files.
    """
    kind: Any = _class_of(task_config)
    if not hasattr(kind, "other"):
        raise UsageError(
            f"task={task_config.NAME}: other data can be given to npz, speech and forecast only; "
            "save them as .npz with x (n, T, I), and train on such files"
        )
    with _explained():
        return kind.other(task_config, Path(path), scaling)


def _class_of(config: TaskConfig) -> Callable[..., Task]:
    if not isinstance(config, TaskConfig):
        raise TypeError(
            f"task_config is a {type(config).__name__}: there is no task for it; pass a record of "
            "spikebridge.settings.tasks, or give experiment.run your own task"
        )
    with _explained():
        if not isinstance(config, OwnConfig):
            return named("task", config.place())
        if config.task_class:
            return _own(config)
    raise UsageError(
        f"task={config.data!r}: it is an object in a program of yours, which this command cannot "
        "make; train with --task-class mypackage:MyTask, or use spikebridge.to_crossbar, "
        "spikebridge.chip or spikebridge.trained.complexity from that program, with load_network"
    )


def _own(config: OwnConfig) -> Callable[..., Task]:
    """A class of the user's, which is made without arguments."""
    from spikebridge.data.task import Task

    kind = named("task_class", config.task_class)
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise UsageError(
            f"task_class={config.task_class!r}: it must be a subclass of spikebridge.Task, got "
            f"{kind!r}"
        )
    return lambda _: kind()


@contextmanager
def _explained() -> Iterator[None]:
    """Tell how to install what tasks need on top of the units, and which file cannot be read.

    A name that is too long, a link to nowhere, a folder without permission: the system says so at
    any of many calls.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed, and the tasks need it; pip install 'spikebridge[app]'",
            name=error.name,
        ) from error
    except OSError as error:
        from spikebridge.data.files import DataError

        name, actual = error.filename or "the data", error.strerror or str(error)
        raise DataError(name, "data that can be read", actual, "mend --data-dir") from error
