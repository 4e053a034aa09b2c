"""spikebridge: spiking neural units that train like torch.nn.LSTM and leave for hardware.

What stands here is the library's surface: layers and networks, runs, crossbars.  Four rooms have
parts of their own: `spikebridge.learning` (rules for any torch model), `.crossbar` (memory cells),
`.chip` (the digital chip) and `.data` (tasks).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

from spikebridge.base.doors import lazy, moved

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spikebridge.crossbar.network import from_crossbar, to_crossbar
    from spikebridge.crossbar.optimizer import InMemory
    from spikebridge.data.task import Task
    from spikebridge.nn.dynamics import AdaptiveUnit, DynamicUnit
    from spikebridge.nn.gradients import Formula, Surrogate, forward_as, modulate
    from spikebridge.nn.layers import Layer
    from spikebridge.nn.network import Network, build, load_network, save_network
    from spikebridge.nn.recompute import spikes_as_bits
    from spikebridge.nn.rnn import SNU, SoftSNU
    from spikebridge.nn.scan import loop, scan
    from spikebridge.nn.synapses import Conv2d, Dense, Embedding
    from spikebridge.nn.units import Params, Rule, SNUnit, State, Unit, make_unit
    from spikebridge.report.theme import Section
    from spikebridge.runs.rundir import Result
    from spikebridge.runs.training import run
    from spikebridge.settings.config import Config, TrainConfig, preset
    from spikebridge.settings.crossbar import CellConfig, CrossbarConfig, PulseConfig
    from spikebridge.settings.learning import LearningConfig
    from spikebridge.settings.model import ModelConfig
    from spikebridge.trained.complexity import Complexity, complexity
    from spikebridge.trained.prediction import predict

DOORS = ("chip", "crossbar", "data", "learning")
# Names are loaded when first used: the command line answers --help without loading torch.
_HOME = {
    "crossbar.network": "from_crossbar to_crossbar",
    "crossbar.optimizer": "InMemory",
    "data.task": "Task",
    "nn.dynamics": "AdaptiveUnit DynamicUnit",
    "nn.gradients": "Formula Surrogate forward_as modulate",
    "nn.layers": "Layer",
    "nn.network": "Network build load_network save_network",
    "nn.recompute": "spikes_as_bits",
    "nn.rnn": "SNU SoftSNU",
    "nn.scan": "loop scan",
    "nn.synapses": "Conv2d Dense Embedding",
    "nn.units": "Params Rule SNUnit State Unit make_unit",
    "report.theme": "Section",
    "runs.rundir": "Result",
    "runs.training": "run",
    "settings.config": "Config TrainConfig preset",
    "settings.crossbar": "CellConfig CrossbarConfig PulseConfig",
    "settings.learning": "LearningConfig",
    "settings.model": "ModelConfig",
    "trained.complexity": "Complexity complexity",
    "trained.prediction": "predict",
}

__all__ = [
    "SNU",
    "AdaptiveUnit",
    "CellConfig",
    "Complexity",
    "Config",
    "Conv2d",
    "CrossbarConfig",
    "Dense",
    "DynamicUnit",
    "Embedding",
    "Formula",
    "InMemory",
    "Layer",
    "LearningConfig",
    "ModelConfig",
    "Network",
    "Params",
    "PulseConfig",
    "Result",
    "Rule",
    "SNUnit",
    "Section",
    "SoftSNU",
    "State",
    "Surrogate",
    "Task",
    "TrainConfig",
    "Unit",
    "build",
    "complexity",
    "forward_as",
    "from_crossbar",
    "load_network",
    "loop",
    "make_unit",
    "modulate",
    "predict",
    "preset",
    "run",
    "save_network",
    "scan",
    "spikes_as_bits",
    "to_crossbar",
]

__getattr__, __dir__ = lazy(__name__, _HOME | dict.fromkeys(DOORS, ""))


def _register() -> None:
    """Let torch know our operators and State, which exported programs and saved states name."""
    import_module("spikebridge.nn.kernels.ops")


class _Finder:
    """Registers as soon as torch is imported, which this package leaves to its users.

    First among the finders: it gives torch's own spec, and only adds to what loading it does.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch":
            return None
        others = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)
        spec = next(filter(None, others), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


class _Moved:
    """Last among the finders: an import of before says where that is today."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, inside = name.partition(".")
        if package == __name__ and (there := moved(inside)):
            raise ModuleNotFoundError(there)  # without its name: `from spikebridge import` hides it
        return None


sys.meta_path.append(_Moved)
if "torch" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _Finder())
