"""Learning rules as parts for any torch model: each is attached to a model, and detached again.

grapes         errors scaled by each neuron's weights (GRAPES)
feedback       feedback alignment, direct feedback alignment, DRTP
online         OSTL and e-prop, forward in time
consolidation  EWC and synaptic intelligence, against forgetting
angles         how far a rule's gradients point from those of backpropagation
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikebridge.base.doors import lazy

if TYPE_CHECKING:
    from spikebridge.learning import angles, consolidation, feedback, grapes, online

__all__ = ["angles", "consolidation", "feedback", "grapes", "online"]

__getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, ""))
