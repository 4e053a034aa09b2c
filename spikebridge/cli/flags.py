"""What commands share: flags, output, and a look at words before they are parsed."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from spikebridge.base.records import UsageError, near
from spikebridge.settings.names import VARIANTS, is_place

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
# Of every command, and of the command line itself.
_ALWAYS = ("help", "tyro-print-completion", "tyro-write-completion")


def unit_with_recurrence(argv: Sequence[str]) -> list[str]:
    """argv with "--unit recurrent-snu" as "--unit snu --recurrent", for commands of one unit.

    Raises UsageError where --no-recurrent contradicts it.
    """
    found: list[str] = []
    contradicted = any(_name(word) == "no_recurrent" for word in argv)
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if not equals and place and argv[place - 1] == "--unit":
            value, equals = word, " "
        elif flag != "--unit":
            equals = ""
        plain = value.removeprefix("recurrent-")
        if not equals or plain == value or not (value in VARIANTS or is_place(plain)):
            found.append(word)
            continue
        if contradicted:
            raise UsageError(f"--no-recurrent contradicts {value}; leave out one of them")
        found += [f"--unit={plain}" if equals == "=" else plain, "--recurrent"]
    return found


def check_command(argv: Sequence[str], commands: Mapping[str, Sequence[str] | None]) -> None:
    """Raise UsageError for a first word that is no command, and a second that is no task of it."""
    if not argv:
        return
    name = argv[0]
    if name.startswith("-"):
        known = ["--help", "--version", *(f"--{flag}" for flag in _ALWAYS)]
        if name not in ("-h", *known):
            close = near(name, known)
            raise UsageError(f"{name}: unknown option{close}; run spikebridge --help")
        return
    if name not in commands:
        raise UsageError(
            f"{name}: there is no such command{near(name, commands)}; the commands are "
            f"{', '.join(commands)}; run spikebridge --help"
        )
    tasks = commands[name]
    if tasks and len(argv) > 1 and not argv[1].startswith("-") and argv[1] not in tasks:
        raise UsageError(
            f"{argv[1]}: there is no such task{near(argv[1], tasks)}; the tasks are "
            f"{', '.join(tasks)}; run spikebridge {name} --help"
        )
    if tasks and len(argv) > 1 and argv[1].startswith("-") and argv[1] not in ("-h", "--help"):
        raise UsageError(
            f"{argv[1]}: flags come after the task; give one of {', '.join(tasks)} first, as in "
            f"spikebridge {name} {tasks[0]} {argv[1]}"
        )


def check_choices(kind: type, argv: Sequence[str], prog: str) -> None:
    """Raise UsageError for a flag that a command has not, and for a value that is no choice."""
    known = _flags(kind)
    for place, word in enumerate(argv):
        name = _name(word)
        if not name or name.replace("_", "-") in _ALWAYS:
            continue
        if name not in known:
            shown = word.partition("=")[0]
            close = near(shown, [f"--{flag.replace('_', '-')}" for flag in known])
            raise UsageError(f"{shown}: unknown option{close}; run {prog} --help")
        choices, several = known[name]
        values = [word.partition("=")[2]] if "=" in word else _values(argv[place + 1 :])
        if name == "unit":
            choices = tuple(unit for unit in VARIANTS if unit.removeprefix("recurrent-") in choices)
        for value in values if several else values[:1]:
            if choices and value not in choices and not is_place(value):
                raise UsageError(
                    f"{word.partition('=')[0]}: invalid choice {value!r}{near(value, choices)}; "
                    f"choose {'from' if several else 'one of'} {', '.join(choices)}; "
                    f"run {prog} --help"
                )


def given(kind: type, argv: Sequence[str]) -> set[str]:
    """The settings whose flags are in argv."""
    names = {_name(word) for word in argv}
    return {name.removeprefix("no_") if name not in _fields(kind) else name for name in names} & {
        *_fields(kind)
    }


def _name(word: str) -> str:
    """The field that a word is the flag of; empty for a word that is none."""
    if not word.startswith("--") or word == "--":
        return ""
    return word[2:].partition("=")[0].replace("-", "_")


def _values(rest: Sequence[str]) -> list[str]:
    found = []
    for word in rest:
        if word.startswith("--"):
            break
        found.append(word)
    return found


def _flags(kind: type) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Per flag its choices (none: anything goes) and whether it takes several."""
    found: dict[str, tuple[tuple[str, ...], bool]] = {}
    for name, annotation in _fields(kind).items():
        found[name] = _choices(annotation)
        if _plain(annotation) is bool:
            found[f"no_{name}"] = (), False
    return found


def _fields(kind: type) -> dict[str, Any]:
    """The fields of a record and of those that it holds, with their annotations."""
    return dict(_each_field(kind))


def _each_field(kind: type) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    for one in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[one.name]):
            yield from _each_field(hints[one.name])
        else:
            yield one.name, hints[one.name]


def _plain(annotation: Any) -> Any:
    """Without Annotated."""
    return annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation


def _choices(annotation: Any) -> tuple[tuple[str, ...], bool]:
    annotation = _plain(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return get_args(annotation), False
    if origin is tuple:
        return _choices(get_args(annotation)[0])[0], True
    if origin in (Union, UnionType):
        literal = [_choices(option)[0] for option in get_args(annotation)]
        plain = all(
            option is type(None) or choices or (option is str and any(literal))
            for option, choices in zip(get_args(annotation), literal, strict=True)
        )
        return (sum(literal, ()), False) if plain else ((), False)
    return (), False


def page_of(directory: Path) -> str:
    """Write the page of a folder; its path."""
    from spikebridge.report.page import write

    return str(write(directory))


def refresh_page(directory: Path) -> None:
    """Write the page of a comparison where it is missing or older than compare.json."""
    from spikebridge.report.page import refresh

    refresh(directory)


def settings_text(settings: dict[str, Any]) -> str:
    """Settings as NAME=VALUE, wrapped and indented."""
    words = " ".join(f"{name}={_value_text(value)}" for name, value in settings.items())
    return textwrap.fill(words, 96, initial_indent="  ", subsequent_indent="  ")


def _value_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def say(text: str) -> None:
    """Say what is being done."""
    print(text, file=sys.stderr, flush=True)
