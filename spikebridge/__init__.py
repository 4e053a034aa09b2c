"""spikebridge: spiking neural units that train like torch.nn.LSTM and leave for hardware."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spikebridge.crossbar.network import from_crossbar, to_crossbar
    from spikebridge.crossbar.optimizer import InMemory
    from spikebridge.nn.gradients import Surrogate, forward_as, modulate
    from spikebridge.nn.layers import Layer
    from spikebridge.nn.network import Network, build, load_network, save_network
    from spikebridge.nn.recompute import spikes_as_bits
    from spikebridge.nn.rnn import SNU, SoftSNU
    from spikebridge.nn.synapses import Conv2d, Dense, Embedding
    from spikebridge.nn.units import AdaptiveUnit, Rule, SNUnit, State, make_unit
    from spikebridge.runs.training import run
    from spikebridge.settings.config import Config, preset
    from spikebridge.settings.crossbar import CrossbarConfig
    from spikebridge.trained.complexity import Complexity
    from spikebridge.trained.prediction import predict

# Names are loaded when first used: the command line answers --help without loading torch.
_HOME = {
    "AdaptiveUnit": "nn.units",
    "Complexity": "trained.complexity",
    "Config": "settings.config",
    "Conv2d": "nn.synapses",
    "Dense": "nn.synapses",
    "Embedding": "nn.synapses",
    "InMemory": "crossbar.optimizer",
    "Layer": "nn.layers",
    "CrossbarConfig": "settings.crossbar",
    "Network": "nn.network",
    "Rule": "nn.units",
    "SNU": "nn.rnn",
    "SNUnit": "nn.units",
    "SoftSNU": "nn.rnn",
    "State": "nn.units",
    "Surrogate": "nn.gradients",
    "build": "nn.network",
    "forward_as": "nn.gradients",
    "from_crossbar": "crossbar.network",
    "load_network": "nn.network",
    "make_unit": "nn.units",
    "modulate": "nn.gradients",
    "predict": "trained.prediction",
    "preset": "settings.config",
    "run": "runs.training",
    "save_network": "nn.network",
    "spikes_as_bits": "nn.recompute",
    "to_crossbar": "crossbar.network",
}

__all__ = [
    "SNU",
    "AdaptiveUnit",
    "Complexity",
    "Config",
    "Conv2d",
    "CrossbarConfig",
    "Dense",
    "Embedding",
    "InMemory",
    "Layer",
    "Network",
    "Rule",
    "SNUnit",
    "SoftSNU",
    "State",
    "Surrogate",
    "build",
    "forward_as",
    "from_crossbar",
    "load_network",
    "make_unit",
    "modulate",
    "predict",
    "preset",
    "run",
    "save_network",
    "spikes_as_bits",
    "to_crossbar",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"spikebridge.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'spikebridge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _register() -> None:
    """Let torch know our operators and State, which exported programs and saved states name."""
    import_module("spikebridge.nn.kernels.ops")


class _AlongWithTorch:
    """Registers once torch has been imported, which this package leaves to its users.

    Where a module of ours is what imports torch, that waits for the first import after it.
    """

    loaded = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch":
            self._register_if_there()
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                self.loaded = True
                self._register_if_there()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec

    def _register_if_there(self) -> None:
        if not self.loaded or any(map(_half_imported, _ours())):
            return
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        _register()


def _ours() -> list[ModuleType]:
    loaded = list(sys.modules.items())
    return [module for name, module in loaded if name.startswith(f"{__name__}.")]


def _half_imported(module: ModuleType) -> bool:
    return getattr(module.__spec__, "_initializing", False)


if "torch" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AlongWithTorch())
