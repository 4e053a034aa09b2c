"""What commands share: flags, output, and a look at words before they are parsed."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from spikebridge.base.records import SpikebridgeError, UsageError, near
from spikebridge.runs import rundir
from spikebridge.settings.config import Config, flatten
from spikebridge.settings.names import VARIANTS, VariantName, is_place, named

Result = TypeVar("Result")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
RunFolder = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
RunFolders = tyro.conf.Positional[
    Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[RUN [RUN ...]]")]
]

Units = Annotated[tuple[VariantName, ...], tyro.conf.arg(metavar="[UNIT [UNIT ...]]")]


@dataclass(frozen=True)
class Output:
    """Where results go, and what is printed."""

    out: Path | None = None
    """Where the results go, instead of where the text above says."""
    overwrite: Flag = False
    """Start anew; without it, work with the same settings goes on, or is shown where it is
    complete."""
    json: Flag = False
    """Print the result as one JSON object on stdout."""
    no_report: Flag = False
    """Do not write the folder's report.html at the end."""

    def kept(self, load: Callable[[], Result | None]) -> Result | None:
        """What lies there of an earlier call, unless it is damaged or --overwrite was given."""
        if not self.overwrite:
            with suppress(SpikebridgeError):
                return load()
        return None

    def folder(self, run: Path) -> Path:
        """Where results of a run go: to its folder, or to --out, which gets a copy of the run.

        Raises UsageError where --out holds another run.
        """
        if self.out is None or self.out.resolve() == run.resolve():
            return run
        rundir.check_network(run)
        if rundir.has_run(self.out) and not self.overwrite:
            same = all(_content(self.out / name) == _content(run / name) for name in _OF_A_RUN)
            if same:
                return self.out
            raise UsageError(
                f"{self.out}: another run lies there; pass another --out, or --overwrite to "
                "replace it"
            )
        with rundir.owning(self.out, "copy", make=True):
            rundir.clear(self.out)
            for name in reversed(_OF_A_RUN):  # last what says that the run is complete
                if (run / name).exists():
                    rundir.replace(self.out / name, partial(shutil.copyfile, run / name))
        return self.out


# The files of a run itself, without what commands have made of its network.
_OF_A_RUN = tuple(
    name for name in rundir.FILES if name not in (*rundir.MADE, rundir.CHECKPOINT, rundir.REPORT)
)


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


class OldSpelling(UsageError):
    """A spelling of earlier versions; `argv` is the same command as it is written now."""

    def __init__(self, changes: str, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        super().__init__(f"{changes}; run spikebridge {shlex.join(self.argv)}")


# Flags of earlier versions, and what they are called now; the first that the command has.
_RENAMED = {
    "device": ("instrument", "cells"),
    "device_table": ("cell_table",),
    "cell": ("cells",),
}


def _refuse_old(known: Set[str], argv: Sequence[str], prog: str) -> None:
    """Raise OldSpelling, with all of the command as it is written now, for flags of before."""
    new, changes = [], []
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        values = [value] if equals else _values(argv[place + 1 :])
        now = _today(_name(word), values, known)
        if now == "--count" and now in argv:  # a list of one seed comes with --count 1
            now = None
        if now is not None:
            changes.append(f"{flag} {' '.join(values)}: it is now {now}")
        new.append(word if now is None else now + equals + value)
    if changes:
        raise OldSpelling("; ".join(changes), [*prog.split()[1:], *new])


def _today(name: str, values: Sequence[str], known: Set[str]) -> str | None:
    """What a flag of earlier versions is called now; None for one of today."""
    if name == "seeds" and "count" in known and len(values) == 1:
        return "--count"
    if name == "device" and values[:1] in (["cpu"], ["cuda"]):  # those of torch
        return None
    now = next((now for now in _RENAMED.get(name, ()) if now in known), None)
    return None if now is None or name in known - {"device"} else f"--{now.replace('_', '-')}"


# Of every command, and of the command line itself.
_ALWAYS = ("help", "help-all", "tyro-print-completion", "tyro-write-completion")


def unit_with_recurrence(argv: Sequence[str]) -> list[str]:
    """argv with "--unit recurrent-snu" as "--unit snu --recurrent", for commands of one unit.

    Raises UsageError where --no-recurrent contradicts it.
    """
    words: list[str] = []
    contradicted = any(_name(word) == "no_recurrent" for word in argv)
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if not equals and place and argv[place - 1] == "--unit":
            value, equals = word, " "
        elif flag != "--unit":
            equals = ""
        plain = value.removeprefix("recurrent-")
        if not equals or plain == value or not (value in VARIANTS or is_place(plain)):
            words.append(word)
            continue
        if contradicted:
            raise UsageError(f"--no-recurrent contradicts {value}; leave out one of them")
        words += [f"--unit={plain}" if equals == "=" else plain, "--recurrent"]
    return words


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
    if name == "continual":
        raise UsageError(
            "continual: tasks one after the other are trained as others are; the command is now "
            "spikebridge train digits --protocol permuted (or split) --data mnist, with the same "
            "flags"
        )
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
    _refuse_old(set(known), argv, prog)
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
            if choices and value not in choices and not is_place(value.removeprefix("recurrent-")):
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
    values = []
    for word in rest:
        if word.startswith("--"):
            break
        values.append(word)
    return values


def _flags(kind: type) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Per flag its choices (none: anything goes) and whether it takes several."""
    flags: dict[str, tuple[tuple[str, ...], bool]] = {}
    for name, annotation in _fields(kind).items():
        flags[name] = _choices(annotation)
        if _plain(annotation) is bool:
            flags[f"no_{name}"] = (), False
    return flags


def _fields(kind: type) -> dict[str, Any]:
    """The fields of a record and of those that it holds, with their annotations."""
    return dict(_each_field(kind))


def _each_field(kind: type) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _each_field(hints[field.name])
        else:
            yield field.name, hints[field.name]


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


def page_of(directory: Path, file: Path | None = None, sections: Sequence[str] = ()) -> str:
    """Write the page of a folder, to its report.html or to another file; its path.

    sections: places of a user's own, mypackage:function.
    """
    from spikebridge.report.page import write

    return str(write(directory, file, sections=[named("section", place) for place in sections]))


def refresh_page(directory: Path) -> None:
    """Write the page of a comparison where it is missing or older than compare.json."""
    from spikebridge.report.page import refresh

    refresh(directory)


def settings_of(config: Config, verbose: bool) -> str:
    """What of a config differs from its preset; verbose: all of it."""
    if verbose:
        return f"\n{settings_text(flatten(config))}"
    different = rundir.others(config)
    return f"the preset but for\n{settings_text(different)}" if different else "the preset"


def settings_text(settings: dict[str, Any]) -> str:
    """Settings as NAME=VALUE, wrapped and indented."""
    words = " ".join(f"{name}={_value_text(value)}" for name, value in settings.items())
    return textwrap.fill(words, 96, initial_indent="  ", subsequent_indent="  ")


def _value_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def say(text: str) -> None:
    """Say what is being done."""
    print(text, file=sys.stderr, flush=True)
