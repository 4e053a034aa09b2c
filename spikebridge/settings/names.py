"""What units are called, and how a name leads to a class.  Loads no torch.

A class is named "module:Class".  Those of ours are imported when they are first asked for; those of
a user's module only where the user has asked for that module, because importing runs its code, and
a file with settings or weights may come from a stranger.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from spikebridge.base.records import UsageError, near, require
from spikebridge.settings.surrogates import FORMULAS

BASELINES = ("rnn", "gru", "lstm")
PLAIN = ("relu", "tanh")
BINARY = ("binary-di", "binary-ci")
MEMORIES = ("leak", "gate", "oscillation")
MODULATIONS = ("none", "adaptation", "threshold", "output")
USUAL = {"memory": "leak", "modulation": "none"}
"""What of the family a plain unit is."""
# Settings that only some members have: of which choice, and where it is one of these.
OF_MEMBERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rho": ("modulation", ("adaptation", "threshold")),
    "beta": ("modulation", ("adaptation",)),
    "slow_decay": ("memory", ("oscillation",)),
    "periods": ("memory", ("oscillation",)),
    "kick": ("memory", ("oscillation",)),
}
DYNAMIC = "spikebridge.nn.dynamics:make_dynamic"
"""What makes an snu or a softsnu with another memory or a modulation."""
# Each unit with its class, which says its label and how its weights begin.
UNITS = {
    "snu": "spikebridge.nn.units:SNUnit",
    "softsnu": "spikebridge.nn.units:SoftUnit",
    "li-snu": "spikebridge.nn.units:LateralUnit",
    "adaptive-snu": "spikebridge.nn.dynamics:AdaptiveUnit",
    "binary-di": "spikebridge.nn.units:DiscontinuousUnit",
    "binary-ci": "spikebridge.nn.units:ContinuousUnit",
    "rnn": "spikebridge.nn.fresh:RNN",
    "gru": "spikebridge.nn.fresh:GRU",
    "lstm": "spikebridge.nn.fresh:LSTM",
    "relu": "spikebridge.nn.units:ReLU",
    "tanh": "spikebridge.nn.units:Tanh",
}
SPIKING = tuple(name for name in UNITS if name not in BASELINES + PLAIN)
VARIANTS = (*SPIKING, *(f"recurrent-{name}" for name in SPIKING), *BASELINES, *PLAIN)

if TYPE_CHECKING:
    UnitName: TypeAlias = str
    VariantName: TypeAlias = str
    SurrogateName: TypeAlias = str
else:  # the command line lists these, and takes names of a user's module too
    UnitName = Literal[tuple(UNITS)] | str
    VariantName = Literal[VARIANTS] | str
    SurrogateName = Literal[tuple(FORMULAS)] | str

VARIABLE = "SPIKEBRIDGE_MODULES"
"""Environment variable: the modules, parted by commas, whose classes files may name."""
_PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class NotAllowedError(UsageError):
    """A file names a module that the user has not named."""


def is_place(name: str) -> bool:
    """Whether a name is "module:Class"."""
    return _PLACE.fullmatch(name) is not None


def check_name(what: str, name: str, known: Any) -> None:
    """ConfigError for a name that is neither one of the known ones nor "module:Class"."""
    require(
        name in known or is_place(name),
        f"{what}={name!r}: expected one of {', '.join(known)}, or mypackage:NAME, which is "
        f"yours{near(name, known)}",
    )


def allow(*modules: str) -> None:
    """Let files name classes of these modules and what is in them, here and in child processes."""
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*_allowed(), *modules]))


def allow_named(words: list[str]) -> None:
    """Let the modules of all "module:Class" among a command line's words be imported.

    They may lie in the current folder too.
    """
    places = [word.rpartition("=")[2].removeprefix("recurrent-") for word in words]
    if modules := [place.partition(":")[0] for place in places if is_place(place)]:
        allow(*modules)
    if _allowed() and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _allowed() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def named(what: str, place: str) -> Any:
    """What stands at "module:Class".

    Raises NotAllowedError where the module may not be imported, UsageError where it is not there
    or holds no such thing.
    """
    module, _, name = place.partition(":")
    trusted = ["spikebridge", *_allowed()]
    if module not in sys.modules and not any(f"{module}.".startswith(f"{m}.") for m in trusted):
        raise NotAllowedError(
            f"{what}={place!r}: it stands in the module {module}, which is not imported just "
            f"because a file names it: that would run its code.  If you trust it, import {module} "
            f"first in your program, or set the environment variable {VARIABLE}={module}"
        )
    return _imported(what, module, name)


@cache
def _imported(what: str, module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise UsageError(f"{what}={module}:{name}: {module} has no {name}") from error
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise UsageError(
            f"{what}={module}:{name}: there is no module {error.name}; start in its folder, or set "
            "PYTHONPATH"
        ) from error


def unit_class(unit: str) -> Any:
    """The class of a unit, ours or a user's; loads torch.  Raises UsageError."""
    return named("unit", UNITS.get(unit, unit))
