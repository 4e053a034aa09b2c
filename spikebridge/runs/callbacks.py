"""Who is told of a run while it goes on: anything with these methods, and TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from spikebridge.runs import rundir
from spikebridge.runs.results import Epoch
from spikebridge.settings.config import Config


class Progress(Protocol):
    """What a run tells while it goes on."""

    def begin(self, config: Config, done: int) -> None:
        """The run starts, with some epochs done before it was stopped."""

    def remarks(self, notes: Sequence[str]) -> None:
        """What is to be known of the data before the first epoch, as sentences."""

    def batch(self, epoch: int, share: float) -> None:
        """A share, 0 to 1, of an epoch's training batches is done."""

    def epoch(self, record: Epoch) -> None:
        """An epoch is done and saved."""

    def end(self) -> None:
        """The run stops, for whatever reason."""


class Silent:
    """Tells nothing."""

    def _nothing(self, *_: Any) -> None:
        pass

    begin = remarks = batch = epoch = end = _nothing


def board(directory: Path, done: int) -> Any:
    """A TensorBoard writer where that is installed, else None."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory / rundir.TENSORBOARD), purge_step=done + 1)


def tell_board(events: Any, record: Epoch) -> None:
    """Write an epoch's figures to it."""
    if events is None:
        return
    for name in ("train_loss", "valid_loss", "valid", "lr", "grad_norm"):
        events.add_scalar(name, getattr(record, name), record.epoch)
