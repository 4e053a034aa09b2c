"""Checks of frozen records: types from annotations, bounds, known names; standard library only.

Errors that a user can mend, and what the command line answers:

    SpikebridgeError      one clear message, no traceback
    ├── UsageError        exit code 2: a flag, a setting, a folder or data are not as they must be
    │   └── ConfigError   a setting breaks a rule
    └── RunError          exit code 1: the run began and failed
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class SpikebridgeError(Exception):
    """An error whose message is all that a user needs."""


class UsageError(SpikebridgeError):
    """What was asked for cannot be started."""


class RunError(SpikebridgeError):
    """What was started has failed."""


# Not a ValueError: tyro would catch it while it builds the records and bury the message in its own.
class ConfigError(UsageError):
    """A setting breaks a rule; the message gives the rule, the value and the remedy."""


class Terminated(KeyboardInterrupt):
    """The system asks the process to end (SIGTERM); to the work it is what Ctrl-C is."""


def terminated(signum: int, frame: object) -> None:
    """A handler of SIGTERM."""
    raise Terminated


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def at_least(record: Any, least: int, remedy: str, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        flag = name.replace("_", "-")
        require(
            value >= least, f"{name}={value}: it must be at least {least}; pass --{flag} {remedy}"
        )


def refuse_unknown(given: Any, known: Any, where: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; "
            f"the known ones are {listed(known)}{near(unknown[0], known)}"
        )


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def check_types(record: Any) -> None:
    """Refuse wrong types; turn lists into tuples and whole numbers into floats where meant."""
    kind: Any = type(record)
    for name, annotation in _hints(kind).items():
        value = getattr(record, name)
        if type(value) is int and (annotation is float or annotation == float | None):
            value = float(value)
        if get_origin(annotation) is tuple and isinstance(value, list):
            value = tuple(value)
        if not _fits(value, annotation):
            close = near(value, get_args(annotation)) if get_origin(annotation) is Literal else ""
            raise ConfigError(f"{name}={value!r}: expected {_wanted(annotation)}{close}")
        object.__setattr__(record, name, value)


def _fits(value: Any, annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Literal:
        return type(value) is str and value in get_args(annotation)
    if origin is tuple:
        kind = get_args(annotation)[0]
        return isinstance(value, tuple) and all(type(item) is kind for item in value)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(annotation))
    if annotation is float:
        return type(value) is float and math.isfinite(value)
    return type(value) is annotation


def _wanted(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return f"one of {', '.join(get_args(annotation))}"
    if origin is tuple:
        return "a list of " + ("whole numbers" if get_args(annotation)[0] is int else "names")
    if origin in (Union, UnionType):
        return " or ".join(_wanted(option) for option in get_args(annotation))
    names = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        NoneType: "none",
    }
    return names.get(annotation, annotation.__name__)


def near(word: Any, known: Iterable[str]) -> str:
    """In brackets the names that a misspelled word may stand for; empty where none is near."""
    found = get_close_matches(str(word), list(known), n=2)
    likeness = [SequenceMatcher(None, str(word), one).ratio() for one in found]
    found = [one for one, value in zip(found, likeness, strict=True) if value > likeness[0] - 0.1]
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def type_name(value: Any) -> str:
    return type(value).__name__


def listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names)))
