"""The command line, built by tyro from the config records: their docstrings are the help.

Exit codes: 0 fine; 1 a run failed; 2 wrong usage (flag, setting, folder or data); 130 Ctrl-C;
143 SIGTERM.
Results go to stdout, everything else to stderr.  torch and all that needs it are imported only
once there is something to compute, so that help comes at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, TextIO, get_type_hints

try:
    import tyro
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the command line needs {error.name}; pip install 'spikebridge[app]'", name=error.name
    ) from error

from spikebridge.base import processes
from spikebridge.base.records import SpikebridgeError, Terminated, UsageError
from spikebridge.base.storage import in_one_line
from spikebridge.cli import COMMANDS, flags
from spikebridge.runs import rundir
from spikebridge.settings.config import Config, override, preset, task_name
from spikebridge.settings.names import VARIANTS, allow_named, is_place
from spikebridge.settings.tasks import TASKS

DESCRIPTION = (
    "Spiking neural units, trained beside RNN, GRU and LSTM.  --version tells the version."
)


# Tasks that cannot do without data of one's own, and the flag that names them.
OWN = {"npz": "data_dir", "speech": "data_dir", "forecast": "file"}
PARTS = tuple(part.name for part in dataclasses.fields(Config))


def record_of(command: str) -> Any:
    """The record of a command; that of several tasks holds what is not of the task."""
    module = importlib.import_module(f"spikebridge.cli.{command}")
    return getattr(module, command.capitalize())


def _parts(command: str, task: str) -> list[str]:
    """The parts of a config that a command sets: tasks follow each other where they are images."""
    sequences = task == "digits" and command != "search"
    return [part for part in PARTS if part != "sequence" or sequences]


def _for_task(command: str, task: str) -> type:
    """A command's record for a task: the settings of its config, and the command's own."""
    options = record_of(command)
    # Not up to the first full stop: that of ".npz" comes before it.
    line = (TASKS[task].__doc__ or "").partition("\n")[0].removesuffix(".")
    hints = get_type_hints(Config) | {"task": TASKS[task]}
    return dataclasses.make_dataclass(
        f"{options.__name__}{task.capitalize()}",
        [
            *((part, hints[part]) for part in _parts(command, task)),
            ("options", options, field(default_factory=options)),
        ],
        frozen=True,
        namespace={
            "__doc__": options.PER_TASK.format(line[0].lower() + line[1:]),
            "REFUSES": getattr(options, "REFUSES", {}),
        },
    )


# The values of flags that decide the defaults of all others, by the names of their fields.
_First = Mapping[str, Sequence[str]]


def parse(argv: Sequence[str]) -> Any:
    """The command that argv asks for; a comparison or a search comes with its configs.

    Raises SystemExit for wrong flags and for --help, UsageError for wrong settings.
    """
    argv = flags.switched(argv)
    name, task = [*argv, "", ""][:2]
    if name not in COMMANDS or (_has_tasks(name) and task not in TASKS):
        argv = ["--help" if word == "--help-all" else word for word in argv]
        return _cli(_everything(argv), argv, "spikebridge", DESCRIPTION)
    options = record_of(name)
    if not _has_tasks(name):
        prog, rest = f"spikebridge {name}", argv[1:]
        flags.check_choices(options, rest, prog)
        _help(options, None, options, prog, rest)
        return _cli(options, rest, prog)
    prog, rest, kind = f"spikebridge {name} {task}", argv[2:], _for_task(name, task)
    flags.check_choices(kind, rest, prog)
    first = {word.name: word.values for word in flags.flags_in(rest)}
    # What it shows in its help are the settings of the first unit.
    unit = _value(first, "unit" if name == "train" else "units") or "snu"
    default = _default(kind, _base(task, unit, first))
    _help(kind, default, options, prog, rest)
    parsed = _cli(kind, rest, prog, default=default)
    if name == "train":
        return parsed
    configs = _each_unit(kind, rest, parsed.options.units, first, prog)
    return parsed.options, configs, flags.given(kind, rest)


def _value(first: _First, name: str) -> str:
    return next(iter(first.get(name, ())), "")


def _help(kind: type, default: Any, options: Any, prog: str, argv: Sequence[str]) -> None:
    """Show the help of a command and raise SystemExit, where argv asks for it."""
    if not {"-h", "--help", "--help-all"} & set(argv):
        return
    from spikebridge.cli import help

    task = prog.split()[-1]
    own = OWN.get(task, "data")
    main = [own if name == "data" else name for name in getattr(options, "MAIN", ())]
    whole = "--help-all" in argv or not main
    about = [kind.__doc__] if kind is options else [kind.__doc__, options.__doc__]
    needed = f"{task} --{own.replace('_', '-')} MINE" if task in OWN else task
    text = help.text(about, options.EXAMPLE.format(task=needed), prog, kind, whole=whole)
    _cli(help.record(kind, default, main, whole=whole), ["--help"], prog, text)


def _has_tasks(command: str) -> bool:
    return hasattr(record_of(command), "PER_TASK")


def _everything(argv: Sequence[str]) -> Any:
    """All commands, for the help of several and for what names none; refuses misspelled ones."""
    tasks = {name: list(TASKS) if _has_tasks(name) else None for name in COMMANDS}
    flags.check_command(argv, tasks)
    return reduce(or_, (_nested(name) if tasks[name] else _named(name) for name in COMMANDS))


def _named(command: str) -> Any:
    return Annotated[record_of(command), tyro.conf.subcommand(command)]


def _cli(kind: Any, argv: Sequence[str], prog: str, text: str | None = None, **more: Any) -> Any:
    return tyro.cli(
        kind,
        prog=prog,
        description=text,
        args=argv,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        **more,
    )


def _nested(command: str) -> Any:
    """A command with one sub-command per task."""
    tasks = []
    for task in TASKS:
        kind = _for_task(command, task)
        default = _default(kind, preset(task))
        tasks.append(Annotated[kind, tyro.conf.subcommand(task, default=default)])
    group = dataclasses.make_dataclass(
        command.capitalize(),
        [("chosen", reduce(or_, tasks))],
        namespace={"__doc__": record_of(command).ABOUT},
    )
    return Annotated[group, tyro.conf.subcommand(command)]


def _default(kind: type, config: Config) -> Any:
    known = {own.name for own in dataclasses.fields(kind)}
    return kind(**{part: getattr(config, part) for part in PARTS if part in known})


def _config_of(parsed: Any) -> Config:
    return Config(**{part: getattr(parsed, part) for part in PARTS if hasattr(parsed, part)})


def _base(task: str, unit: str, first: _First) -> Config:
    """What holds where no flag is given: a file, the settings of the run to resume, or a preset.

    Raises UsageError where the file is for another task.
    """
    out = _value(first, "out")
    if config := _value(first, "config"):
        settings = rundir.load_config(Path(config))
        if task_name(settings) != task:
            raise UsageError(f"{config}: its task is not {task}; give the file of such a run")
        return settings
    if "resume" in first and out and (there := _of_run(task, Path(out))):
        return there
    if unit.startswith("recurrent-") and "no_recurrent" in first:
        raise UsageError(f"--no-recurrent contradicts {unit}; leave out one of them")
    if "recurrent" in first and (f"recurrent-{unit}" in VARIANTS or is_place(unit)):
        unit = f"recurrent-{unit}"
    tuned = preset(task, unit, **_data(task, first))
    if "resume" in first and not out:
        seed = _value(first, "seed")
        folder = rundir.to_resume(override(tuned, seed=int(seed)) if seed.isdecimal() else tuned)
        return (_of_run(task, folder) if folder else None) or tuned
    return tuned


def _of_run(task: str, folder: Path) -> Config | None:
    """The settings of a run; None where there is none of the task."""
    file = folder / rundir.CONFIG
    config = rundir.load_config(file) if file.exists() else None
    return config if config and task_name(config) == task else None


def _data(task: str, first: _First) -> dict[str, Any]:
    """What the flags say of the data, as far as it decides the preset."""
    kind = TASKS[task]
    known = {field.name for field in dataclasses.fields(kind)}
    if task == "digits":
        known.add("protocol")
    names = known & {name for name in (*rundir.PLACES, "protocol") if _value(first, name)}
    own: dict[str, Any] = {name: _value(first, name) for name in names}
    if "look_back" in own:  # what is no number is refused where flags are read
        count = own.pop("look_back")
        own |= {"look_back": int(count)} if count.isdigit() else {}
    mine = kind.OWN_DATA if own.keys() & {"data_dir", "file"} else ""
    return {"data": _value(first, "data") or mine or None, **own}


def _each_unit(
    kind: type, argv: Sequence[str], units: Sequence[str], first: _First, prog: str
) -> list[Config]:
    """The config of each unit: its own preset under the flags that were given."""
    if not units:
        raise UsageError("at least one unit is needed; pass --units snu lstm")
    configs = []
    for unit in units:
        base = _base(prog.split()[-1], unit, first)
        configs.append(_config_of(_cli(kind, argv, prog, default=_default(kind, base))))
    return configs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    allow_named(argv)
    rundir.forget_started()
    with _ended_by_signals() as signals:
        try:
            code = _exit_code_of(argv, signals)
            sys.stdout.flush()  # here, where an error can still be shown
            return code
        except OSError as error:
            _say_error(in_one_line(error))
            _drop(sys.stdout)
            return 1


def _exit_code_of(argv: Sequence[str], signals: list[int]) -> int:
    try:
        with _short_warnings():
            return _main(argv)
    except SystemExit as stop:  # tyro has said what is wrong, or has shown the help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt as stop:
        return _interrupted(argv, isinstance(stop, Terminated))
    except Exception as error:
        if signals:  # an import that was interrupted may say so by an error of its own
            return _interrupted(argv, signals[0] == signal.SIGTERM)
        if isinstance(error, SpikebridgeError):
            _say_error(str(error))
            return 2 if isinstance(error, UsageError) else 1
        # Looked up among what is loaded: importing it here would cost torch.
        damaged = getattr(sys.modules.get("safetensors"), "SafetensorError", OSError)
        if not isinstance(error, OSError | damaged):
            raise
        _say_error(in_one_line(error) if isinstance(error, OSError) else str(error))
        _drop(sys.stdout)
        return 1


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings for users as lines like all others, without a place in the source."""
    usual = warnings.formatwarning

    def short(message: Any, category: type[Warning], *place: Any) -> str:
        if category is UserWarning:
            return f"spikebridge: {message}\n"
        return usual(message, category, *place)

    warnings.formatwarning = short  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def _ended_by_signals() -> Iterator[list[int]]:
    """SIGTERM ends the work as Ctrl-C does; the signals that came."""
    signals: list[int] = []

    def handle(number: int, frame: object) -> None:
        signals.append(number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    usual: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    if threading.current_thread() is not threading.main_thread():  # signals are not its business
        usual = {}
    replaced = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield signals
    finally:
        for number in replaced:
            signal.signal(number, usual[number])


def _interrupted(argv: Sequence[str], terminated: bool) -> int:
    with suppress(OSError):
        print(file=sys.stderr)  # behind the ^C of the terminal
    _say_error(f"{'terminated' if terminated else 'interrupted'}; {_how_to_go_on(argv)}")
    return 143 if terminated else 130


def _say_error(text: str) -> None:
    with suppress(OSError):  # there is no stderr left
        print(f"spikebridge: {text}", file=sys.stderr, flush=True)


def _drop(stream: TextIO) -> None:
    """Give up what a stream could not take, or Python would fail with it once more at its end."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _how_to_go_on(argv: Sequence[str]) -> str:
    command = argv[0] if argv else ""
    if command == "train":
        if not rundir.has_started():
            return "nothing was begun"
        again = [word for word in argv if word != "--overwrite"]
        return f"go on with: spikebridge {shlex.join(again)}"
    if command not in ("compare", "demo", "reproduce", "search"):
        return "nothing was begun"
    # Without --overwrite, old runs that were not redone yet would be kept.
    how = "start again" if "--overwrite" in argv else "go on"
    return f"{how} with: spikebridge {shlex.join(argv)}"


def _main(argv: Sequence[str]) -> int:
    if list(argv) == ["--version"]:
        from spikebridge.runs import environment

        print(f"spikebridge {environment.own_version()}")
        return 0
    command = parse(argv)
    processes.let_threads_sleep()
    processes.keep_freed_pages()
    if isinstance(command, tuple):
        options, *arguments = command
        options.run(*arguments)
    elif hasattr(command, "options"):
        command.options.run(_config_of(command))
    else:
        command.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
