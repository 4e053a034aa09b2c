"""Frozen records: checks of types, bounds and names; as plain data, and by the names of settings.

Settings lie in records of records, whose field names are unique, so that a setting needs no path.
What a file holds is a record too; `from_content` reads it with every value checked.

Errors that a user can mend, and what the command line answers:

    SpikebridgeError      one clear message, no traceback
    ├── UsageError        exit code 2: a flag, a setting, a folder or data are not as they must be
    │   └── ConfigError   a setting breaks a rule
    └── RunError          exit code 1: the run began and failed
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from spikebridge.base.quantities import number

Record = TypeVar("Record")


@dataclass(frozen=True)
class Bound:
    """The interval of a field's numbers, as an annotation that `check_types` checks."""

    interval: str
    """Such as "[0, 1)", "(0, inf)" or "[0, 2**63)"."""
    or_zero: bool = False
    """Whether 0, which stands for none, lies in it too."""
    example: str = ""
    """What the error tells to pass; by default the field's default."""

    def holds(self, value: float) -> bool:
        low, high = map(_number, self.interval[1:-1].split(","))
        above = value > low or (value == low and self.interval[0] == "[")
        below = value < high or (value == high and self.interval[-1] == "]")
        return (above and below) or (self.or_zero and value == 0)

    def __str__(self) -> str:
        low, high = self.interval[1:-1].split(", ")
        if high == "inf":
            text = f"be {'at least' if self.interval[0] == '[' else 'above'} {low}"
        else:
            text = f"lie in {self.interval}"
        return f"be 0 or {text.removeprefix('be ')}" if self.or_zero else text


def _number(text: str) -> float:
    base, _, power = text.partition("**")
    return float(base) ** float(power or 1)


Size = Annotated[int, Bound("[1, inf)")]
Count = Annotated[int, Bound("[0, inf)")]
Amount = Annotated[float, Bound("[0, inf)")]
Positive = Annotated[float, Bound("(0, inf)")]
Share = Annotated[float, Bound("[0, 1)")]
Seed = Annotated[int, Bound("[0, 2**63)")]

Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], "or none"]
"""A list that may be empty, where it is read from a file; others may not."""
Gap = Annotated[float, "or a gap"]
"""A number of a file; nan where something else stands there."""
# Metadata of fields that files leave out: always, or where they have their default.
NEVER, UNLESS_DEFAULT = ({"in_file": rule} for rule in ("never", "unless default"))

# Settings under the names that they had before, with those of today.
RENAMED = {
    "device": "cells",
    "device_table": "cell_table",
    "memory": "cells, crossbar and pulses, each with its own settings,",
}


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


def refuse_unknown(given: Any, known: Any, where: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; "
            f"the known ones are {listed(known)}{near(unknown[0], known)}"
        )


@cache
def _hints(kind: Any, extras: bool = False) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=extras)


def check_types(record: Any) -> None:
    """Refuse wrong types and numbers out of bounds.

    Lists become tuples, and whole numbers floats, where the annotation says so.
    """
    kind: Any = type(record)
    for name, annotation in _hints(kind).items():
        value = getattr(record, name)
        if type(value) is int and (annotation is float or annotation == float | None):
            value = float(value)
        if get_origin(annotation) is tuple and isinstance(value, list):
            value = tuple(value)
        if annotation == tuple[float, ...] and isinstance(value, tuple):
            value = tuple(float(item) if type(item) is int else item for item in value)
        if not _fits(value, annotation):
            choices = get_args(annotation) if get_origin(annotation) is Literal else ()
            close = near(value, choices) if choices and isinstance(value, str) else ""
            raise ConfigError(f"{name}={value!r}: expected {_wanted(annotation)}{close}")
        object.__setattr__(record, name, value)
    check_bounds(record)


def check_bounds(record: Any) -> None:
    """Refuse numbers out of the bounds of their fields."""
    kind: Any = type(record)
    for name, bound in _bounds(kind).items():
        value, default = getattr(record, name), _default(kind, name)
        several = isinstance(value, tuple)
        numbers = value if several else () if value is None else (value,)
        if not all(map(bound.holds, numbers)):
            usual = " ".join(map(str, default if isinstance(default, tuple) else (default,)))
            raise ConfigError(
                f"{name}={list(value) if several else value}: {'each' if several else 'it'} must "
                f"{bound}; pass --{name.replace('_', '-')} {bound.example or usual}"
            )


@cache
def _bounds(kind: Any) -> dict[str, Bound]:
    """The bounds of a record's fields, also of an optional one."""
    parts = {
        name: [hint, *get_args(hint)] if type(None) in get_args(hint) else [hint]
        for name, hint in _hints(kind, True).items()
    }
    return {
        name: bound
        for name, options in parts.items()
        for option in options
        for bound in getattr(option, "__metadata__", ())
        if isinstance(bound, Bound)
    }


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
    return type(value) is (origin or annotation)


def _wanted(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return f"one of {', '.join(get_args(annotation))}"
    if origin is tuple:
        items = {int: "whole numbers", float: "numbers"}
        return f"a list of {items.get(get_args(annotation)[0], 'names')}"
    if origin in (Union, UnionType):
        return " or ".join(_wanted(option) for option in get_args(annotation))
    names = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        NoneType: "none",
    }
    return names.get(annotation, annotation.__name__)


def _in_file(field: dataclasses.Field[Any], value: Any) -> bool:
    rule = field.metadata.get("in_file")
    if rule == "unless default":
        default = field.default if field.default_factory is MISSING else field.default_factory()
        return value is not default and bool(value != default)
    return rule is None


def to_plain(value: Any) -> Any:
    """Plain data that JSON can hold; `from_plain` gives a record back.

    A record that is one of several kinds begins with its NAME.
    """
    if is_dataclass(value):
        kind: Any = type(value)
        kinds = _kinds(kind)
        items = ((f, getattr(value, f.name)) for f in fields(value))
        kept = {f.name: v for f, v in items if _in_file(f, v)}
        plain = {name: to_plain(item) for name, item in kept.items()}
        for name in plain.keys() & {name for name, options in kinds.items() if len(options) > 1}:
            plain[name] = {"name": getattr(value, name).NAME} | plain[name]
        return plain
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def from_plain(
    kind: type[Record], plain: Any, where: str = "config", *, start: Record | None = None
) -> Record:
    """The record that `to_plain` wrote; what is left out is as in `start`, or the default.

    Raises ConfigError for an unknown key (with the known ones), a wrong type or a value that breaks
    a rule.
    """
    require(isinstance(plain, Mapping), f"{where}: expected a mapping, found {type_name(plain)}")
    made: Any = kind
    values, kinds, own = dict(plain), _kinds(made), fields(made)
    refuse_unknown(values, [f.name for f in own], where)
    for name in [f.name for f in own if f.name in values.keys() & kinds.keys()]:
        if values[name] is not None or NoneType not in get_args(_hints(made)[name]):
            before = _default(kind, name) if start is None else getattr(start, name)
            values[name] = _part(kinds[name], values[name], name, before)
    return kind(**values) if start is None else dataclasses.replace(start, **values)  # type: ignore[type-var]


def _default(kind: Any, name: str) -> Any:
    (own,) = (f for f in fields(kind) if f.name == name)
    return own.default if own.default_factory is MISSING else own.default_factory()


def _part(options: tuple[Any, ...], plain: Any, where: str, start: Any) -> Any:
    """A record inside of another one; which of several kinds it is stands in its "name"."""
    if len(options) == 1:
        before = start if isinstance(start, options[0]) else None
        return from_plain(options[0], plain, where, start=before)
    require(isinstance(plain, Mapping), f"{where}: expected a mapping, found {type_name(plain)}")
    rest, kinds = dict(plain), {option.NAME: option for option in options}
    name = rest.pop("name", start.NAME)
    require(
        isinstance(name, str) and name in kinds,
        f"{where}.name={name!r}: there is no such {where}; choose one of {', '.join(kinds)}",
    )
    return from_plain(kinds[name], rest, where, start=start if name == start.NAME else None)


@cache
def _kinds(kind: Any) -> dict[str, tuple[Any, ...]]:
    """The fields of a record that hold records, each with the kinds of record that it may hold."""
    result = {}
    for name, annotation in _hints(kind).items():
        options = get_args(annotation) or (annotation,)
        if records := tuple(option for option in options if is_dataclass(option)):
            result[name] = records
    return result


def from_content(kind: type[Record], plain: Any, name: str = "the file") -> Record:
    """The record in a file that `to_plain` has written, every value checked as it is taken.

    Keys that the record does not know are left out, so that files of other versions can be read.
    Raises ValueError, which names the value, where one is missing or not as it must be.
    """
    made: Any = kind
    if not isinstance(plain, dict):
        raise ValueError(f"{name} is no object")
    known = [f.name for f in fields(made) if f.name in plain or _default(made, f.name) is MISSING]
    hints = _hints(made, True)
    return kind(**{name: _checked(hints[name], plain.get(name), f'"{name}"') for name in known})


def _checked(kind: Any, value: Any, name: str) -> Any:
    """A value of a file as the annotation of its field says.  Raises ValueError."""
    options, origin = get_args(kind), get_origin(kind)
    if kind == Gap:
        return math.nan if number(value) is None else number(value)
    if origin is Annotated:
        inner, rule = options
        result: Any = () if rule == "or none" and value == [] else _checked(inner, value, name)
        if isinstance(rule, Bound) and not rule.holds(result):
            raise ValueError(f"{name} is {result:g}: it must {rule}")
        return result
    if origin in (Union, UnionType):
        if value is None or (bool in options and type(value) is bool):
            return value
        if bool in options:
            raise ValueError(f"{name} is neither true, false nor null")
        return _checked(next(option for option in options if option is not NoneType), value, name)
    if is_dataclass(kind):
        return from_content(kind, value, name)  # type: ignore[arg-type]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no object")
        return {key: _checked(options[1], item, f'"{key}"') for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list) or (not value and options[0] is not str):
            raise ValueError(f"{name} is no list, or an empty one")
        return tuple(_checked(options[0], item, f"an entry of {name}") for item in value)
    return value if kind is Any else _checked_leaf(kind, value, name)


def _checked_leaf(kind: Any, value: Any, name: str) -> Any:
    if kind is int or kind is float:
        amount = number(value)
        if amount is None or (kind is int and amount < 0):
            raise ValueError(f"{name} is no number" + ("" if amount is None else " from 0"))
        return kind(amount)
    if kind is bool or kind is str:
        if type(value) is not kind:
            raise ValueError(f"{name} is {'no text' if kind is str else 'neither true nor false'}")
        return value
    return _array(value, name)


def _array(value: Any, name: str) -> Any:
    """A list of numbers, or of lists of them, as an array.  Raises ValueError."""
    import numpy as np

    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is no list, or an empty one")
    try:
        array = np.array(value)
        return array if array.dtype.kind in "iuf" else array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no list of numbers") from error


def check_shape(record: Any, name: str, *shape: int | None) -> None:
    """Refuse an array of a record unless it holds finite numbers of a shape.

    A side of None may be anything but 0.  Raises ValueError.
    """
    import numpy as np

    array = getattr(record, name)
    sides = zip(array.shape, shape, strict=True) if array.ndim == len(shape) else [(0, 0)]
    if not all(side > 0 and wanted in (None, side) for side, wanted in sides) or (
        not np.isfinite(array).all()
    ):
        words = " x ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f'"{name}" does not hold {words} finite numbers')


def override(config: Record, **settings: Any) -> Record:
    """A copy with some fields of the nested records replaced, named without their record.

    Other fields stay: level="char" does not bring the preset for characters, as it does in
    `preset`.  Raises ConfigError.
    """
    parts = _parts(config)
    known = {f.name: part for part, record in parts.items() for f in fields(record)}
    refuse_unknown(settings, known, "setting")
    for part, record in parts.items():
        mine = {name: value for name, value in settings.items() if known[name] == part}
        parts[part] = dataclasses.replace(record, **mine)
    return dataclasses.replace(config, **parts)  # type: ignore[type-var]


def flatten(config: Any) -> dict[str, Any]:
    """All settings by name, without the records that hold them."""
    return {f.name: getattr(r, f.name) for r in _parts(config).values() for f in fields(r)}


def _parts(config: Any) -> dict[str, Any]:
    parts = {f.name: getattr(config, f.name) for f in fields(config)}
    return {name: record for name, record in parts.items() if record is not None}


def near(word: Any, known: Iterable[str]) -> str:
    """In brackets the names that a misspelled word may stand for; empty where none is near."""
    if word in RENAMED:
        return f" (it is called {RENAMED[word]} now)"
    result = get_close_matches(str(word), list(known), n=2)
    likeness = [SequenceMatcher(None, str(word), item).ratio() for item in result]
    result = [
        name for name, value in zip(result, likeness, strict=True) if value > likeness[0] - 0.1
    ]
    return f" (did you mean {' or '.join(result)}?)" if result else ""


def type_name(value: Any) -> str:
    return type(value).__name__


def listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names)))
