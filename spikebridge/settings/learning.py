"""Settings of the learning rule, as a frozen record (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from spikebridge.base.records import Count, check_types, require
from spikebridge.settings.names import check_name

ONLINE = ("ostl", "eprop")
FEEDBACK = ("fa", "dfa", "drtp")
# What tables call them.
RULES = {
    "bptt": "backpropagation",
    "fa": "FA",
    "dfa": "DFA",
    "drtp": "DRTP",
    "ostl": "OSTL",
    "eprop": "e-prop",
}
if TYPE_CHECKING:
    RuleName: TypeAlias = str
else:  # the command line lists these, and takes names of a user's module too
    RuleName = Literal[tuple(RULES)] | str


@dataclass(frozen=True)
class LearningConfig:
    """How errors become changes of weights; backpropagation (through time) by default."""

    rule: RuleName = "bptt"
    """The learning rule: bptt (backpropagation, through time where there is time), fa (feedback
    alignment), dfa (direct feedback alignment), drtp (direct random target projection), ostl
    (online, exact within a layer), eprop (online, each neuron by itself), or mypackage:MyRule, a
    class of your own."""
    grapes: Literal["none", "propagated", "local", "outgoing"] = "none"
    """GRAPES: each neuron's error is multiplied by a factor from its weights, 2 |W| / max |W|
    summed over those that come in: on its way down (propagated), for the layer's own update only
    (local), or, as published for dfa, from the weights that go out (outgoing)."""
    grapes_control: Literal["none", "gain"] = "none"
    """gain: instead of its own factor every neuron gets the mean factor of its layer, which shows
    what of an effect is a larger step and nothing else."""
    grapes_clip: bool = True
    """Whether factors are kept in 1 to 2, as published for backpropagation; outgoing ones never
    are."""
    feedback_seed: Count = 0
    """Added to --seed for the draw of random feedback."""

    def __post_init__(self) -> None:
        check_types(self)
        check_name("rule", self.rule, RULES)
        require(
            self.grapes_control == "none" or self.grapes != "none",
            f"grapes_control={self.grapes_control}: there is no GRAPES to be controlled; "
            "pass --grapes propagated too",
        )
        require(
            self.rule not in ONLINE or self.grapes == "none",
            f"rule={self.rule}, grapes={self.grapes}: online rules form gradients by themselves, "
            "and GRAPES acts on those of autograd; leave one of them out",
        )

    @property
    def name(self) -> str:
        """What tables call it, such as "FA + GRAPES"."""
        parts = [RULES.get(self.rule) or self.rule.rpartition(":")[2]]
        if self.grapes_control == "gain":
            parts.append("equal gain")
        elif self.grapes != "none":
            parts.append("GRAPES" if self.grapes == "propagated" else f"GRAPES ({self.grapes})")
        return " + ".join(parts)
