"""Penalties that keep what earlier tasks have taught: EWC and synaptic intelligence.

Both hold a weight near where the last task left it, the more the more it mattered:

    ewc = EWC(model, strength=50_000)          si = SI(model, strength=0.1)
    for task in tasks:                         for task in tasks:
        for batch in task:                         for batch in task:
            (loss + ewc.penalty()).backward()          loss.backward()
            optimizer.step()                           si.before_step()
        ewc.consolidate(losses(task))                  si.pull()
                                                       optimizer.step()
                                                       si.after_step()
                                                   si.consolidate()

They work on any torch model, and change nothing of it.  What they keep is of the parameters'
dtype and device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from spikebridge.nn.network import renamed

__all__ = ["EWC", "SI"]


class _Anchors:
    """Parameters held where the last task left them, by springs of their own.

    penalty = factor * sum_k importance_k (theta_k - anchor_k)^2
    """

    KEPT: tuple[str, ...] = ("importance", "anchor")

    def __init__(self, model: nn.Module, strength: float, factor: float) -> None:
        if not 0 <= strength < math.inf:
            raise ValueError(
                f"strength={strength}: a penalty must be finite and not negative; pass 0 for none"
            )
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("the model has no parameters that are trained; there is none to hold")
        self.parameters = trained
        self.strength, self.factor = strength, factor
        self.tasks = 0
        """Tasks that were consolidated."""
        self.importance = {name: torch.zeros_like(p) for name, p in trained.items()}
        self.anchor = self._now()

    def penalty(self) -> Tensor:
        """What is added to the loss: a scalar, 0 before the first task has been consolidated."""
        parts = []
        for name, p in self.parameters.items():
            moved = p - self.anchor[name]
            parts.append((self.importance[name] * moved * moved).sum())
        return self.factor * torch.stack(parts).sum()

    @torch.no_grad()
    def pull(self) -> None:
        """Add the penalty's gradient to the parameters' own: `penalty().backward()`, but faster."""
        for name, p in self.parameters.items():
            moved = p - self.anchor[name]
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.addcmul_(self.importance[name], moved, value=2 * self.factor)

    def state_dict(self) -> dict[str, Tensor]:
        """All that is kept, as copies by name, for a checkpoint."""
        kept = {
            f"{part}.{name}": value.clone()
            for part in self.KEPT
            for name, value in getattr(self, part).items()
        }
        return kept | {"tasks": torch.tensor(self.tasks)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises ValueError, before anything is changed, where it is of another model or method.
        """
        own = self.state_dict()
        state = state if state.keys() == own.keys() else renamed(state)
        for name in sorted(own.keys() | state.keys()):
            here, there = (tuple(s[name].shape) if name in s else None for s in (own, state))
            if here != there:
                raise ValueError(
                    f"{name} has shape {there} in the state and {here} here; "
                    "load the state of the same model and method"
                )
        for part in self.KEPT:
            values = getattr(self, part)
            for name, value in values.items():
                value.copy_(state[f"{part}.{name}"])
        self.tasks = int(state["tasks"])

    def _now(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}


class EWC(_Anchors):
    """Elastic weight consolidation: the diagonal Fisher information says what matters.

    penalty = strength / 2 * sum_k (F_1k + .. + F_tk) (theta_k - theta*_tk)^2    after task t

    F is a mean over samples, so that strength = the number of a task's samples makes the penalty
    the Laplace approximation of minus the log-posterior of all tasks so far.  There is one penalty,
    at the last task's weights: these hold the earlier ones already, which a penalty for each task
    would count again and again.

    Args:
        model: whose trained parameters are held.
        strength: lambda, at least 0.

    Source: Kirkpatrick et al. 2017, PNAS 114:3521, equation 3; for more than two tasks Huszár
    2018, PNAS 115:E2496.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        super().__init__(model, strength, strength / 2)

    def consolidate(self, losses: Iterable[Tensor]) -> None:
        """Add a finished task: the weights as they are now, held by their Fisher information.

        Args:
            losses: minus the log-likelihood of one sample each (a batch of 1), every one computed
                with the model when it is asked for.  F is the mean of the squares of their
                gradients.  With labels drawn from the model's own answers that is the Fisher
                information, with the true labels the empirical one.  Of a mean over a larger batch
                the square would be too small, up to as many times as the batch has samples.

        Raises ValueError where there are none, or a gradient is not finite.
        """
        parameters = list(self.parameters.values())
        sums = [torch.zeros_like(p) for p in parameters]
        count = 0
        for loss in losses:
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient)
            count += 1
        if not count:
            raise ValueError("no losses: the Fisher information is a mean over at least one sample")
        if not all(bool(total.isfinite().all()) for total in sums):
            raise ValueError(
                "a gradient of the losses is not finite; train with a lower learning rate"
            )
        with torch.no_grad():
            for (name, p), total in zip(self.parameters.items(), sums, strict=True):
                self.importance[name] += total / count
                self.anchor[name].copy_(p)
        self.tasks += 1


class SI(_Anchors):
    """Synaptic intelligence: what a weight has done for the loss on its way says what matters.

    w_k = - sum over steps of g_k dtheta_k;    Omega_k += w_k / (Delta_k^2 + damping)
    penalty = strength * sum_k Omega_k (theta_k - theta*_k)^2

    g is the gradient of the task's loss without the penalty, dtheta the step that was taken, Delta
    how far the task has moved the weight.  For small steps the w of all weights sum up to what the
    loss has fallen by.  As in the authors' code Omega does not go below 0: a negative one would
    push the weight away.

    g is what lies in the parameters' grad.  Under a learning rule that changes it (feedback
    alignment and its relatives, GRAPES) the path integral takes the changed one: Omega then says
    what a weight has done along the rule's own updates, and w no longer sums up to the fall of the
    loss.

    Args:
        model: whose trained parameters are held.
        strength: c, at least 0.
        damping: xi, above 0, of the square of a weight.

    Source: Zenke, Poole, Ganguli 2017, ICML, equations 3 to 5; github.com/ganguli-lab/pathint.
    """

    KEPT = ("importance", "anchor", "path")

    def __init__(self, model: nn.Module, strength: float, damping: float = 0.1) -> None:
        super().__init__(model, strength, strength)
        if not 0 < damping < math.inf:
            raise ValueError(
                f"damping={damping}: weights that hardly moved would get an infinite importance; "
                "pass a number above 0, such as 0.1"
            )
        self.damping = damping
        self.path = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        """w of the task that is being trained."""
        self._before: dict[str, tuple[Tensor, Tensor]] | None = None

    def before_step(self) -> None:
        """Note weights and gradients: after the loss's backward, before the penalty's."""
        self._before = {
            name: (p.detach().clone(), p.grad.detach().clone())
            for name, p in self.parameters.items()
            if p.grad is not None
        }

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the optimiser's step to account.  Raises RuntimeError without `before_step`."""
        if self._before is None:
            raise RuntimeError(
                "after_step without before_step: call before_step between the loss's backward and "
                "the optimiser's step"
            )
        for name, (weight, gradient) in self._before.items():
            self.path[name].addcmul_(gradient, self.parameters[name] - weight, value=-1)
        self._before = None

    @torch.no_grad()
    def consolidate(self) -> None:
        """Add a finished task: its path becomes importance, the weights as they are now hold."""
        for name, p in self.parameters.items():
            moved = p - self.anchor[name]
            self.importance[name] += self.path[name] / (moved * moved + self.damping)
            self.importance[name].clamp_min_(0)
            self.anchor[name].copy_(p)
            self.path[name].zero_()
        self.tasks += 1
