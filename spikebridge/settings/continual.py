"""Settings of tasks that are learned one after the other, as a frozen record (no torch)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from spikebridge.base.records import Amount, Bound, Count, Positive, Size, check_types, require

STRENGTHS = {"ewc": 30.0, "si": 1.0}
METHODS = {"naive": "", "ewc": "EWC", "si": "SI"}


@dataclass(frozen=True)
class SequenceConfig:
    """Which tasks follow each other, and what is done to keep the earlier ones; none by default."""

    protocol: Literal["none", "permuted", "split"] = "none"
    """Images as a sequence of tasks: permuted (the same images in each task with their pixels in
    another random order, the first task's as they are, Goodfellow et al. 2013) or split (some of
    the classes in each task, 0 and 1, then 2 and 3, .., Zenke et al. 2017).  The optimiser goes on
    from task to task, --epochs are those of each, and the last weights count."""
    tasks: Annotated[int, Bound("[2, 20]")] = 5
    """Number of tasks, 2 to 20; with split at most half as many as there are classes, which they
    must share evenly."""
    heads: Literal["shared", "masked"] = "shared"
    """Which outputs are asked in split tasks: shared (all classes: class-incremental) or masked
    (the task's own: task-incremental); permuted tasks have all classes."""
    sequence_seed: Count = 0
    """Seed of the permutations, apart from --seed, so that several runs share them."""
    method: Literal["naive", "ewc", "si"] = "naive"
    """What holds weights that mattered to earlier tasks: naive (nothing), ewc (elastic weight
    consolidation, Kirkpatrick et al. 2017) or si (synaptic intelligence, Zenke et al. 2017).  si
    with --grapes or --rule fa, dfa, drtp takes the update that the rule makes for the gradient."""
    strength: Amount | None = None
    """Factor on the penalty of ewc and si, at least 0; none given = 30 for ewc, 1 for si."""
    damping: Positive = 0.1
    """What si adds to the square of a weight's way, above 0."""
    labels: Literal["model", "true"] = "model"
    """Whose labels ewc takes for the Fisher information: drawn from the model's answers, or the
    true ones (the empirical Fisher)."""
    fisher_samples: Size = 1000
    """Training images, each by itself, over which ewc takes the mean; at least 1."""

    def __post_init__(self) -> None:
        check_types(self)
        for unused in () if self.used else fields(self):
            value = getattr(self, unused.name)
            require(
                value == unused.default,
                f"{unused.name}={value}: there is no sequence of tasks; pass --protocol permuted "
                f"or split too, or leave --{unused.name.replace('_', '-')} out",
            )
        require(
            self.heads == "shared" or self.protocol == "split",
            f"heads={self.heads}: permuted tasks have all classes in each; leave --heads out",
        )
        self._settle_strength()

    @property
    def used(self) -> bool:
        return self.protocol != "none"

    def _settle_strength(self) -> None:
        """The record holds the number that is used; none is left for naive alone."""
        if self.method == "naive":
            require(
                not self.strength,
                f"strength={self.strength}: naive has no penalty; pass --method ewc or si too",
            )
            object.__setattr__(self, "strength", None)
        elif self.strength is None:
            object.__setattr__(self, "strength", STRENGTHS[self.method])
