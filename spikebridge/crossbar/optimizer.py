"""Training with the hardware in the loop: updates become blind programming pulses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spikebridge.crossbar.converters import Converted
from spikebridge.crossbar.network import Crossbar, CrossbarNetwork, cell_of, to_crossbar
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig, PulseConfig

__all__ = ["InMemory", "begin", "in_memory"]


HEADROOM = 4.0
OWN = "in_memory"
"""In a state dict: what is not the wrapped optimiser's."""


class InMemory(torch.optim.Optimizer):
    """An optimiser whose updates of mapped weights go to memory cells as whole pulses.

    The mixed-precision scheme (Nandakumar et al. 2020, Front. Neurosci.): what the wrapped
    optimiser would add to a weight is added up digitally in chi; whole multiples of epsilon are
    taken off it and become that many pulses on G+ or G-, and nothing is read to verify them.
    Thresholds, biases and other parameters that lie on no crossbar are changed as ever.  On an
    ideal cell whose pulse is worth epsilon, epsilon -> 0 gives the wrapped optimiser.

    The wrapped optimiser sees the weights as the last forward pass read them, so weight decay acts
    on what is there.  Its groups and its state are those of this one; schedulers may be given
    either.  The state holds chi, and the `state_dict` the count of updates besides.  With that of
    the network, which holds all of the cells, training goes on bit for bit.

    Args:
        optimizer: over the parameters of chip.network, its mapped originals among them.
        chip: from `to_crossbar`.
        epsilon: change of a weight that is worth a pulse, above 0; None: what a pulse does on
            average over the lower half of a cell's range.
        refresh_every: updates between two rounds of `Crossbar.refresh`; 0 = never.
        step_s: time that an update takes on the cells' clock.

    Raises ValueError for settings out of range, for an optimiser without the mapped weights, and
    for LBFGS, which tries out steps that cells could not take back; UsageError for cells without
    pulses.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        chip: CrossbarNetwork,
        *,
        epsilon: float | None = None,
        refresh_every: int = 100,
        step_s: float = 1.0,
    ) -> None:
        _check(optimizer, epsilon, refresh_every, step_s)
        self.optimizer, self.chip = optimizer, chip
        self.refresh_every, self.step_s = refresh_every, step_s
        # Asked for in any case: cells without pulses say so here, not at the first update.
        usual = {name: crossbar.epsilon for name, crossbar in chip.crossbars.items()}
        self.epsilons = usual if epsilon is None else dict.fromkeys(usual, epsilon)
        originals = dict(_originals(chip))
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in originals.items() if id(p) not in known]
        if missing:
            raise ValueError(
                f"the optimiser does not hold the weights of {missing}; make it from "
                "chip.network.parameters() after to_crossbar"
            )
        self.originals = originals
        self.updates = 0
        """Updates done or left out; set when going on with a run, for the rhythm of refreshing."""
        self.pulses = 0
        """Pulses sent, since the last `taken`."""
        self.refreshed = 0
        """Pairs written anew, since the last `taken`."""
        # What torch's own class would keep besides is the wrapped optimiser's: properties below.
        self.__setstate__({"defaults": optimizer.defaults})
        self._warned_capturable_if_run_uncaptured = True

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of the wrapped optimiser."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """That of the wrapped optimiser, chi included."""
        return self.optimizer.state

    def __getstate__(self) -> dict[str, Any]:
        """All of it, the wrapped optimiser and the chip included, but for hooks."""
        return {
            k: v for k, v in vars(self).items() if not k.startswith("_optimizer") and k != "step"
        }

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Give the wrapped optimiser more digital parameters."""
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the wrapped optimiser."""
        self.optimizer.zero_grad(set_to_none)

    def taken(self) -> dict[str, int]:
        """Pulses and refreshed pairs since the last call."""
        counts = {"pulses": self.pulses, "refreshed": self.refreshed}
        self.pulses = self.refreshed = 0
        return counts

    def state_dict(self) -> dict[str, Any]:
        """That of the wrapped optimiser, chi included, and the updates so far.

        The cells are part of the network's own.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = self.optimizer.state_dict() | {OWN: {"updates": self.updates}}
        for after in self._optimizer_state_dict_post_hooks.values():
            state = replaced if (replaced := after(self, state)) is not None else state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a state of `state_dict` back, or one of the wrapped optimiser alone.

        The latter, and what was saved before updates were part of it, leave their count: see
        `go_on`.
        """
        state = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state = replaced if (replaced := before(self, state)) is not None else state
        own = state.pop(OWN, {})
        self.optimizer.load_state_dict(state)
        self.updates = int(own.get("updates", self.updates))
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    @torch.no_grad()
    def go_on(self, updates: int) -> None:
        """Go on after so many updates, with what the network's state says was read last.

        `load_state_dict` does it by itself; this is for states without a count.
        """
        self.updates = updates
        for name, crossbar in self.chip.crossbars.items():
            crossbar.held = self.originals[name].detach().clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update: digital parameters by the optimiser, mapped weights by pulses.

        closure computes the loss and its gradients anew, once; its loss is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        before = {}
        for name, crossbar in self.chip.crossbars.items():
            if crossbar.held is not None:
                self.originals[name].copy_(crossbar.held)
            before[name] = self.originals[name].clone()
        self.optimizer.step()
        for name, crossbar in self.chip.crossbars.items():
            parameter = self.originals[name]
            if parameter.grad is not None:
                self._pulse(crossbar, parameter, parameter - before[name], self.epsilons[name])
                parameter.copy_(before[name])
            crossbar.cell_array.wait(self.step_s)
        self.updates += 1
        if self.refresh_every and self.updates % self.refresh_every == 0:
            self.refreshed += sum(c.refresh() for c in self.chip.crossbars.values())
        return loss

    def _pulse(
        self, crossbar: Crossbar, parameter: nn.Parameter, change: Tensor, epsilon: float | Tensor
    ) -> None:
        state = self.optimizer.state[parameter]
        chi = state.setdefault("chi", torch.zeros_like(parameter))
        chi += change
        counts = (chi / epsilon).trunc()
        chi.sub_(counts * epsilon)
        self.pulses += int(counts.abs().sum())
        crossbar.pulse(counts.to("cpu", torch.int64))


def _check(
    optimizer: torch.optim.Optimizer, epsilon: float | None, refresh_every: int, step_s: float
) -> None:
    if isinstance(optimizer, InMemory):
        raise ValueError("the optimiser is an InMemory already; wrap the one of torch.optim")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS tries out several steps and takes them back, which pulses cannot be; use SGD, "
            "Adam or another that steps once"
        )
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"epsilon={epsilon}: it must be above 0; leave it out for the default")
    if refresh_every < 0 or step_s < 0:
        raise ValueError(f"refresh_every={refresh_every}, step_s={step_s}: neither may be below 0")


def begin(
    network: nn.Module, cells: CellConfig, config: CrossbarConfig, seed: int
) -> CrossbarNetwork:
    """Put a network itself on crossbars of cells, before it is trained there.

    Without w_max the range of a matrix stands for `HEADROOM` root mean squares of its first
    weights: weights grow in training.
    """
    chip = to_crossbar(network, cell_of(cells, pulsed=True), config, seed=seed, in_place=True)
    if not config.w_max:
        for name, crossbar in chip.crossbars.items():
            rms = float(chip.aimed[name].float().square().mean().sqrt())
            crossbar.program(chip.aimed[name], largest=HEADROOM * rms or 1.0)
    return chip


def in_memory(
    optimizer: torch.optim.Optimizer, chip: CrossbarNetwork, config: PulseConfig
) -> InMemory:
    """The optimiser of a config whose updates go to the cells of a chip."""
    return InMemory(
        optimizer,
        chip,
        epsilon=config.epsilon or None,
        refresh_every=config.refresh_every,
        step_s=config.step_s,
    )


def _originals(chip: CrossbarNetwork) -> list[tuple[str, nn.Parameter]]:
    """The digital parameter behind each mapped weight."""
    originals = []
    for name in chip.crossbars:
        owner, _, field = name.rpartition(".")
        module: Any = chip.network.get_submodule(owner)
        if isinstance(module, Converted):
            module = module.array
        originals.append((name, module.parametrizations[field].original))
    return originals
