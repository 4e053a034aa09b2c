"""How a network of a run learns: the parts of its learning rule, and the gradients of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch.nn import functional as F

from spikebridge.base.chance import seed_of
from spikebridge.base.records import UsageError
from spikebridge.data.task import Batch, Task
from spikebridge.nn.layers import Baseline
from spikebridge.runs.objective import Objective, has_classes
from spikebridge.settings.config import Config
from spikebridge.settings.learning import FEEDBACK, ONLINE
from spikebridge.settings.names import is_place, named

if TYPE_CHECKING:
    import torch

    from spikebridge.learning.feedback import Feedback
    from spikebridge.learning.grapes import Grapes
    from spikebridge.learning.online import Online
    from spikebridge.nn.network import Network

__all__ = ["Teacher"]

# A quarter of what the smallest machine that trains such networks has.
ELIGIBILITY_MIB = 2048.0


class Teacher:
    """Puts the parts of a learning rule on a network and gives the gradients of batches.

    Args:
        config: its learning, and what the objective takes.
        network: gets the parts; `detach` takes them off.
        task: whose batches come.

    Raises UsageError where the rule does not go with the network or the task.
    """

    def __init__(self, config: Config, network: Network, task: Task) -> None:
        self.learning = config.learning
        self.network, self.task = network, task
        self.objective = Objective(config.train, task)
        self.feedback: Feedback | None = None
        self.grapes: Grapes | None = None
        self.online: Online | None = None
        self.own: Any = None
        try:
            self._attach(config)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UsageError(f"{self.learning.name}: {error}") from error

    def _attach(self, config: Config) -> None:
        chosen = config.learning
        if is_place(chosen.rule):
            seed = seed_of(config.train.seed + chosen.feedback_seed, "feedback")
            self.own = named("rule", chosen.rule)(self.network, seed=seed)
        if chosen.rule in ONLINE:
            self._teach_online(chosen.rule, config.train.batch_size)
        if chosen.rule in FEEDBACK:
            from spikebridge.learning import feedback

            self._check_feedback(chosen.rule)
            seed = seed_of(config.train.seed + chosen.feedback_seed, "feedback")
            rule = cast(feedback.Rule, chosen.rule)
            self.feedback = feedback.attach(self.network, rule, seed=seed)
        if chosen.grapes != "none":
            from spikebridge.learning import grapes

            outgoing = chosen.grapes == "outgoing"
            form = None if outgoing else cast(grapes.Form, chosen.grapes)
            self.grapes = grapes.attach(
                self.network,
                form=form,
                importance="outgoing" if outgoing else "incoming",
                control=chosen.grapes_control,
                clip="published" if chosen.grapes_clip else None,
            )

    def _teach_online(self, rule: Any, batch_size: int) -> None:
        from spikebridge.learning.online import Online

        if self.task.carries_state:
            raise ValueError(
                f"batches of {self.task.name} go on where the last one stopped, and an online rule "
                "forgets its traces at the end of a batch; pass --rule bptt"
            )
        self.online = Online(self.network, rule, max_eligibility_MiB=ELIGIBILITY_MIB)
        needed = self.online.eligibility_MiB(batch_size)
        if needed > ELIGIBILITY_MIB:
            raise ValueError(
                f"eligibilities of a batch of {batch_size} take {needed:,.0f} MiB, at most "
                f"{ELIGIBILITY_MIB:,.0f} are allowed; pass --rule eprop, a smaller --batch-size or "
                "fewer --hidden"
            )

    def gradients(self, batch: Batch, state: Any, data: torch.Generator) -> tuple[float, Any]:
        """Add the gradients of a batch to those of the parameters; its loss and the state after it.

        Of a loss that is not finite there are none, or such as are not finite either.
        """
        if hasattr(self.own, "learn"):
            return self.own.learn(batch, self.task.loss), None
        if self.online is not None:
            return self.online.learn(batch, self.task.loss).loss, None
        if self.feedback is not None and self.learning.rule == "drtp":
            self.feedback.target(F.one_hot(batch.target, self.task.output_size))
        loss, after = self.objective(self.network, batch, state, data)
        value = float(loss.detach())
        if abs(value) < float("inf"):
            loss.backward()
        return value, after

    def refresh(self) -> None:
        """Look at the weights anew, where something other than an optimiser has changed them."""
        if self.grapes is not None:
            self.grapes.refresh()

    def detach(self) -> None:
        """Take all parts off the network."""
        for part in (self.grapes, self.feedback, self.own):
            if part is not None:
                part.detach()

    def _check_feedback(self, rule: str) -> None:
        if self.network.tied:
            raise ValueError(
                "a tied readout ends in the embedding's matrix, through which no feedback goes; "
                "pass --no-tied"
            )
        if rule == "fa":
            for layer in list(self.network.layers)[1:]:
                if isinstance(layer, Baseline):
                    raise ValueError(
                        f"torch's {type(layer.core).__name__} sends errors down through its own "
                        "weights; pass --rule dfa, or a single hidden layer"
                    )
        if rule == "drtp" and (self.task.readout == "each" or not has_classes(self.task)):
            raise ValueError(
                f"its random projections are of classes, and the targets of {self.task.name} are "
                "none; pass --rule dfa"
            )


def detached(state: Any) -> Any:
    """A state, however nested, cut off from the graph; None, which some layers have, stays."""
    if state is None:
        return None
    if hasattr(state, "detach"):
        return state.detach()
    return tuple(detached(part) for part in state)
