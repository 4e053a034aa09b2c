"""Training with the hardware in the loop: updates become blind programming pulses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikebridge.memory.converters import Converted
from spikebridge.memory.crossbar import Chip, Crossbar, cell_of, to_crossbar
from spikebridge.memory_config import MemoryConfig

__all__ = ["InMemory", "begin", "in_memory"]


HEADROOM = 4.0


class InMemory:
    """An optimiser whose updates of mapped weights go to memory cells as whole pulses.

    The mixed-precision scheme (Nandakumar et al. 2020, Front. Neurosci.): what the wrapped
    optimiser would add to a weight is added up digitally in chi; whole multiples of epsilon are
    taken off it and become that many pulses on G+ or G-, and nothing is read to verify them.
    Thresholds, biases and other parameters that lie on no crossbar are changed as ever.  On an
    ideal device whose pulse is worth epsilon, epsilon -> 0 gives the wrapped optimiser.

    The wrapped optimiser sees the weights as the last forward pass read them, so weight decay acts
    on what is there.  chi is part of its state and goes into its `state_dict`.

    Args:
        optimizer: over the parameters of chip.network, its mapped originals among them.
        chip: from `to_crossbar`.
        epsilon: change of a weight that is worth a pulse, above 0; None: what a pulse does on
            average over the lower half of the device's range.
        refresh_every: updates between two rounds of `Crossbar.refresh`; 0 = never.
        step_s: time that an update takes on the devices.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        chip: Chip,
        *,
        epsilon: float | None = None,
        refresh_every: int = 100,
        step_s: float = 1.0,
    ) -> None:
        if epsilon is not None and not epsilon > 0:
            raise ValueError(f"epsilon={epsilon}: it must be above 0; leave it out for the default")
        if refresh_every < 0 or step_s < 0:
            raise ValueError(
                f"refresh_every={refresh_every}, step_s={step_s}: neither may be below 0"
            )
        self.optimizer, self.chip = optimizer, chip
        self.refresh_every, self.step_s = refresh_every, step_s
        # Asked for in any case: a device without pulses says so here, not at the first update.
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

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the wrapped optimiser."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the wrapped optimiser."""
        self.optimizer.zero_grad(set_to_none)

    def taken(self) -> dict[str, int]:
        """Pulses and refreshed pairs since the last call."""
        found = {"pulses": self.pulses, "refreshed": self.refreshed}
        self.pulses = self.refreshed = 0
        return found

    def state_dict(self) -> dict[str, Any]:
        """That of the wrapped optimiser, chi included; the cells are part of the network's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state of `state_dict` back."""
        self.optimizer.load_state_dict(state)

    @torch.no_grad()
    def go_on(self, updates: int) -> None:
        """Go on after so many updates, with what the network's state says was read last."""
        self.updates = updates
        for name, crossbar in self.chip.crossbars.items():
            crossbar.held = self.originals[name].detach().clone()

    @torch.no_grad()
    def step(self) -> None:
        """Update: digital parameters by the optimiser, mapped weights by pulses."""
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
            crossbar.device.wait(self.step_s)
        self.updates += 1
        if self.refresh_every and self.updates % self.refresh_every == 0:
            self.refreshed += sum(c.refresh() for c in self.chip.crossbars.values())

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


def begin(network: nn.Module, config: MemoryConfig, seed: int) -> Chip:
    """Put a network itself on the hardware of a config, before it is trained there.

    Without w_max the range of a matrix stands for `HEADROOM` root mean squares of its first
    weights: weights grow in training.
    """
    chip = to_crossbar(network, cell_of(config, pulsed=True), config, seed=seed, in_place=True)
    if not config.w_max:
        for name, crossbar in chip.crossbars.items():
            rms = float(chip.aimed[name].float().square().mean().sqrt())
            crossbar.program(chip.aimed[name], largest=HEADROOM * rms or 1.0)
    return chip


def in_memory(optimizer: torch.optim.Optimizer, chip: Chip, config: MemoryConfig) -> InMemory:
    """The optimiser of a config whose updates go to the cells of a chip."""
    return InMemory(
        optimizer,
        chip,
        epsilon=config.epsilon or None,
        refresh_every=config.refresh_every,
        step_s=config.step_s,
    )


def _originals(chip: Chip) -> list[tuple[str, nn.Parameter]]:
    """The digital parameter behind each mapped weight."""
    found = []
    for name in chip.crossbars:
        owner, _, field = name.rpartition(".")
        module: Any = chip.network.get_submodule(owner)
        if isinstance(module, Converted):
            module = module.array
        found.append((name, module.parametrizations[field].original))
    return found
