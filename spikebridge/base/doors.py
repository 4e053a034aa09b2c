"""Packages whose names load at their first use, and what became of names of before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# By room, the modules that lay at the root or in another package: OLD, or OLD=NEW.
_MODULES = {
    "base": "archives digest metrics quantities records seeding storage draws=chance "
    "pool=processes tensor_files=tensors",
    "settings": "config presets published continual_config=continual learning_config=learning "
    "memory_config=crossbar model_config=model task_configs=tasks",
    "data": "tasks= tasks.base=task tasks.digits=images tasks.sequence=continual",
    "nn": "fresh gradients kernels layers network recompute rnn scan synapses units",
    "learning": "learning.direct=feedback_direct learning.transport=feedback_transport "
    "learning.importance=grapes_factors learning.modulation=grapes_hooks "
    "learning.hooks=model_layers learning.matrices=signals learning.targets=signals "
    "learning.nodes=model_layers learning.eligibility=online_eligibility",
    "chip": "chip.spec=program chip.images=memory_images chip.compile=compiler "
    "chip.verify=verification",
    "energy": "silicon= silicon.dense=accelerator silicon.parts=memories",
    "crossbar": "memory= memory.array=cells memory.bench=bench.server memory.remote=bench.client "
    "memory.wire=bench.protocol memory.crossbar=network memory.events=traffic "
    "memory.parts=physics memory.training=optimizer memory.wires=matrix",
    "runs": "averaging=optimizers checkpoint continual environment evaluation first_look "
    "objective rundir sampling=objective transfer experiment=training "
    "optimisation=optimizers teaching=teacher watching=callbacks",
    "trained": "complexity prediction compose=music deployment=on_cells digital=on_chip "
    "sound=midi stepwise=by_steps writing=text",
    "studies": "catalog contrasts forgetting record search summary trials verdict "
    "comparison=compare contenders=plan forgetting_entries=catalog.continual forgetting_table "
    "forgetting_tuning learning_curves=slowness tuning=tune",
    "cli": "commands= complexity_command=complexity continual_command=continual demo "
    "digital_command=export progress requests= words=flags memory.command=bench",
}
MOVED = {
    old: f"spikebridge.{room}.{new if equals else old}".rstrip(".")
    for room, modules in _MODULES.items()
    for old, equals, new in (word.partition("=") for word in modules.split())
} | {"MemoryConfig": "CellConfig, CrossbarConfig or PulseConfig of spikebridge"}


def moved(name: str) -> str | None:
    """Where something of the package lies now, by its dotted name of before; None: not known."""
    head, rest = name, ""
    while head and head not in MOVED:
        head, _, last = head.rpartition(".")
        rest = f".{last}{rest}"
    if not head:
        return None
    home = MOVED[head] + rest
    while "." in home and " " not in home and not _exists(home):
        home = home.rpartition(".")[0]
    return f"spikebridge.{name} is {home} now"


def _exists(module: str) -> bool:
    place = ROOT.parent.joinpath(*module.split("."))
    return place.is_dir() or place.with_suffix(".py").exists()


def lazy(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are loaded when they are first used.

    Args:
        package: its dotted name.
        modules: by the name of a module inside, what it gives: names apart by blanks, or "" where
            it is the module itself.
    """
    homes = {
        name: module for module, names in modules.items() for name in names.split() or [module]
    }

    def get(name: str) -> Any:
        if name in homes:
            module = import_module(f"{package}.{homes[name]}")
            return module if homes[name] == name else getattr(module, name)
        inside = f"{package}.{name}".partition(".")[2]
        note = f"; {there}" if (there := moved(inside)) else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}{note}")

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})
