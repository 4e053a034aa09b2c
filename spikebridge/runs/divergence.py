"""What a run says where a number is no longer finite: what is kept, and the remedies."""

from __future__ import annotations

from pathlib import Path

from spikebridge.base.records import RunError
from spikebridge.settings.config import Config
from spikebridge.settings.names import BASELINES, PLAIN


def diverged(config: Config, directory: Path, what: str, epoch: int, done: int) -> RunError:
    """The error of a run: what was not finite, in which epoch, after how many finished ones."""
    kept = f"the checkpoint after epoch {done} is kept" if done else "no epoch was finished"
    train, strength = config.train, config.sequence.strength
    remedies = [f"a lower --lr (now {train.lr:g})"]
    if strength is not None:
        remedies.append(f"a lower --strength (now {strength:g})")
    if what.startswith(("the loss", "the validation")):
        remedies.append(f"a lower --clip-norm (now {train.clip_norm:g}; 0 = none)")
    else:
        remedies = [*_against_overflow(config), *remedies]
    return RunError(
        f"{directory}: {what} in epoch {epoch}; {kept}; "
        f"start anew with --overwrite and {' or '.join(remedies)}"
    )


def _against_overflow(config: Config) -> list[str]:
    """What keeps gradients through many steps finite; what is infinite no clipping mends.

    A recurrent SNU over 1,301 steps whose gradients grew to 1e18 and overflowed stayed below 0.1
    with a surrogate of half the width or height, and learned.
    """
    model = config.model
    if model.unit in (*BASELINES, *PLAIN, "softsnu"):
        return []
    width = model.surrogate_width
    remedies = [f"--surrogate-width {width / 2:g} (now {width:g})"]
    return [*remedies, "--reset gate (now none)"] if model.reset == "none" else remedies
