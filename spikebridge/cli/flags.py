"""What commands share: flags, output, and a look at words before they are parsed."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from spikebridge.base.records import SpikebridgeError, UsageError, near, to_plain
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
    """Where results go, and what is printed.

    A command that cannot honour a flag says why, and what to do, in its REFUSES.
    """

    out: Path | None = None
    """Where the results go, instead of where the text above says."""
    overwrite: Flag = False
    """Start anew; without it, work with the same settings goes on, or is shown where it is
    complete."""
    json: Flag = False
    """Print the result as one JSON object on stdout."""
    no_report: Flag = False
    """Do not write the folder's report.html at the end."""

    def of_run(
        self,
        run: Path,
        command: str,
        kept: Callable[[Path], Result | None],
        make: Callable[[Path], Result],
    ) -> tuple[Result, Path, str | None]:
        """What a command makes of a run, the folder where it lies, and its page.

        Args:
            run: folder of the run; with --out a copy of it there takes its place.
            command: for others who want the folder.
            kept: reads what an earlier call left in a folder; None where it has other settings.
            make: makes it, where none is kept, it is damaged or --overwrite was given.
        """
        folder = self._folder(run)
        with rundir.owning(folder, command):
            content = None
            if not self.overwrite:
                with suppress(SpikebridgeError):
                    content = kept(folder)
            content = make(folder) if content is None else content
            return content, folder, self.page(folder)

    def _folder(self, run: Path) -> Path:
        """The run's, or --out with a copy of the run.  UsageError where another run lies there."""
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

    def page(self, folder: Path) -> str | None:
        """Write the page of a folder, unless --no-report was given; its path."""
        return None if self.no_report else page_of(folder)

    def show(self, content: Any, lines: Iterable[str], **more: Any) -> None:
        """Print a result with what else is to be said of it: one JSON object, or lines."""
        if self.json:
            print(json.dumps(to_plain(content) | more))
            return
        print("\n".join(lines))
        if more.get("report"):
            print(f"page: {more['report']}")


# The files of a run itself, without what commands have made of its network.
_OF_A_RUN = tuple(
    name for name in rundir.FILES if name not in (*rundir.MADE, rundir.CHECKPOINT, rundir.REPORT)
)


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


class Word(NamedTuple):
    """A flag of a command line: as it is written, the field that it sets, what follows it."""

    flag: str
    name: str
    values: list[str]


def flags_in(argv: Sequence[str]) -> list[Word]:
    """The flags among the words of a command line."""
    result = []
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or word == "--":
            continue
        rest = [*argv[place + 1 :], "--"]
        end = next(i for i, word in enumerate(rest) if word.startswith("--"))
        name = flag[2:].replace("-", "_")
        result.append(Word(flag, name, [value] if equals else rest[:end]))
    return result


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
    renamed, changes = {}, []
    for flag, name, values in flags_in(argv):
        now = _today(name, values, known)
        if now is not None and not (now == "--count" and now in argv):  # one seed has both
            renamed[flag] = now
            changes.append(f"{flag} {' '.join(values)}: it is now {now}")
    if changes:
        parts = [word.partition("=") for word in argv]
        new = [renamed.get(flag, flag) + equals + value for flag, equals, value in parts]
        raise OldSpelling("; ".join(changes), [*prog.split()[1:], *new])


def _today(name: str, values: Sequence[str], known: Set[str]) -> str | None:
    """What a flag of earlier versions is called now; None for one of today."""
    if name == "seeds" and "count" in known and len(values) == 1:
        return "--count"
    if name == "device" and values[:1] in (["cpu"], ["cuda"]):  # those of torch
        return None
    now = next((now for now in _RENAMED.get(name, ()) if now in known), None)
    return None if now is None or name in known - {"device"} else f"--{now.replace('_', '-')}"


# Switches of earlier versions that are choices now, with what they stand for.
_SWITCHES = {"--norm": ["--norm", "batch"], "--no-norm": ["--norm", "none"]}


def switched(argv: Sequence[str]) -> list[str]:
    """A command line with the value that a choice without one had when it was a switch."""
    result: list[str] = []
    for word, after in zip(argv, [*argv, "--"][1:], strict=True):
        bare = word == "--no-norm" or after.startswith("-")
        result += _SWITCHES.get(word, [word]) if bare else [word]
    return result


# Of every command, and of the command line itself.
_ALWAYS = ("help", "help_all", "tyro_print_completion", "tyro_write_completion")


def check_command(argv: Sequence[str], commands: Mapping[str, Sequence[str] | None]) -> None:
    """Raise UsageError for a first word that is no command, and a second that is no task of it."""
    if not argv:
        return
    name, task = [*argv, ""][:2]
    if name.startswith("-"):
        known = ["--help", "--version", *(f"--{flag.replace('_', '-')}" for flag in _ALWAYS)]
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
    if not tasks or not task or task in tasks or task in ("-h", "--help"):
        return
    if task.startswith("-"):
        raise UsageError(
            f"{task}: flags come after the task; give one of {', '.join(tasks)} first, as in "
            f"spikebridge {name} {tasks[0]} {task}"
        )
    raise UsageError(
        f"{task}: there is no such task{near(task, tasks)}; the tasks are "
        f"{', '.join(tasks)}; run spikebridge {name} --help"
    )


def check_choices(kind: Any, argv: Sequence[str], prog: str) -> None:
    """Raise UsageError for flags that a command has not or cannot honour, and for wrong choices."""
    known = {field.name: field.hint for field in each_field(kind)}
    pairs = {f"no_{name}" for name, hint in known.items() if _plain(hint) is bool}
    _refuse_old(known.keys() | pairs, argv, prog)
    refused = getattr(kind, "REFUSES", {})
    for flag, name, values in flags_in(argv):
        if name in refused:
            raise UsageError(f"{flag}: {refused[name]}")
        if name in pairs or name in _ALWAYS:
            continue
        if name not in known:
            close = near(flag, [f"--{name.replace('_', '-')}" for name in known])
            raise UsageError(f"{flag}: unknown option{close}; run {prog} --help")
        choices, several = _choices(known[name])
        if name == "unit":
            choices = tuple(unit for unit in VARIANTS if unit.removeprefix("recurrent-") in choices)
        for value in values if several else values[:1]:
            if choices and value not in choices and not is_place(value.removeprefix("recurrent-")):
                raise UsageError(
                    f"{flag}: invalid choice {value!r}{near(value, choices)}; "
                    f"choose {'from' if several else 'one of'} {', '.join(choices)}; "
                    f"run {prog} --help"
                )


def given(kind: type, argv: Sequence[str]) -> set[str]:
    """The settings whose flags are in argv."""
    known = {field.name for field in each_field(kind)}
    names = {word.name for word in flags_in(argv)}
    return {name if name in known else name.removeprefix("no_") for name in names} & known


class LeafField(NamedTuple):
    """A field that holds no record, with the record that holds it."""

    owner: Any
    name: str
    hint: Any
    value: Any


def each_field(kind: Any, default: Any = None, without: Iterable[str] = ()) -> Iterator[LeafField]:
    """The fields of a record and of those within it, with their values in `default`.

    Left out are those that a command refuses.
    """
    hints = get_type_hints(kind, include_extras=True)
    refused = {*without, *getattr(kind, "REFUSES", ())}
    for field in dataclasses.fields(kind):
        value = field.default
        if default is not None:
            value = getattr(default, field.name)
        elif field.default_factory is not MISSING:
            value = field.default_factory()
        if dataclasses.is_dataclass(hints[field.name]):
            inner = None if value is MISSING else value
            yield from each_field(hints[field.name], inner, refused)
        elif field.name not in refused:
            yield LeafField(kind, field.name, hints[field.name], value)


def _plain(annotation: Any) -> Any:
    """Without Annotated."""
    return annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation


def _choices(annotation: Any) -> tuple[tuple[str, ...], bool]:
    """The choices of a flag (none: anything goes), and whether it takes several."""
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
