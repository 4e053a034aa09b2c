"""Files on disk: one writer to a folder, and every file whole or not at all.

A folder is owned by a lock of the operating system, which ends with its process however that ends,
so that no lock outlives its holder and a process number that was given out anew deceives nobody.
The file that carries it also names the holder; it is there only while somebody writes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from spikebridge.base.records import Record, RunError, UsageError, from_content, to_plain

if sys.platform == "win32":  # which lacks locks that belong to a file and end with its process
    fcntl: Any = None
else:
    import fcntl

P = ParamSpec("P")
R = TypeVar("R")

LOCK = ".lock"
_PART = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.part")
# What versions before locks left behind where they were killed.
_OLD_PART = re.compile(
    r"\.[\w-]+\.(json|jsonl|npz|safetensors|html|png|md|mid|wav)\.(part|\d+\.tmp)"
)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class _Held:
    """Lock files that this process holds: by which thread, and how often."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.threads: dict[Path, int] = {}
        self.files: dict[Path, int] = {}

    def forget(self) -> None:
        """In a child that was forked: what its parent holds is the parent's."""
        for file in self.files.values():
            os.close(file)  # which leaves the parent's hold as it is
        self.guard = threading.Lock()
        self.threads.clear()
        self.files.clear()


_held = _Held()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.forget)


@contextmanager
def owning(folder: Path, what: str, *, make: bool = False, lock: str = LOCK) -> Iterator[None]:
    """Own a folder while it is written; within one thread again and again.

    Args:
        folder: it must exist, or nothing is owned; what a killed process was writing there when it
            ended is removed.
        what: the command, for others who want the folder.
        make: make the folder; one that stays empty is removed in the end.
        lock: name of the lock file, where less than the folder is owned.

    Raises UsageError, with the holder, where another process or thread owns it, or where the folder
    cannot be made; RunError where it cannot be written.
    """
    made = _make(folder) if make else []
    if not folder.is_dir():
        yield
        return
    path = folder.resolve() / lock
    with _held.guard:
        again = _held.threads.get(path) == threading.get_ident()
        if not again:
            _hold(path, folder, what, make)
    try:
        if not again and lock == LOCK:
            _sweep(path.parent)
        yield
    finally:
        if not again:
            _let_go(path)
        for empty in made:
            with suppress(OSError):
                empty.rmdir()


def owned(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that owns the folder, its first argument, as long as it runs."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def inner(*args: P.args, **kwargs: P.kwargs) -> R:
            folder: Any = args[0] if args else kwargs["directory"]
            with owning(Path(folder), what):
                return function(*args, **kwargs)

        return inner

    return wrap


def _make(folder: Path) -> list[Path]:
    """Make a folder; those that were not there before, innermost first."""
    made: list[Path] = []
    try:
        place = folder
        while not place.exists():
            made.append(place)
            place = place.parent
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{_short(folder)}: the folder cannot be made ({error.strerror}); change --out"
        ) from error
    return made


def _hold(path: Path, folder: Path, what: str, make: bool) -> None:
    if path in _held.threads:
        _refuse(path, folder)
    try:
        file = _open_and_lock(path, make)
    except BlockingIOError:
        _refuse(path, folder)
    except OSError as error:
        raise RunError(
            f"{_short(folder)}: the folder cannot be written ({error.strerror}); {remedy(error)}"
        ) from error
    _held.threads[path], _held.files[path] = threading.get_ident(), file
    note = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": f"spikebridge {what}",
    }
    with suppress(OSError):  # on a full disk the lock holds without a note
        os.ftruncate(file, 0)
        os.write(file, json.dumps(note).encode() + b"\n")


def _open_and_lock(path: Path, make: bool) -> int:
    while True:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)  # its last owner may have removed it
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(file, path)
            # Who held it may have removed it between these two calls: then it is a file of nobody.
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _flock(file: int, path: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{path.parent}: this file system has no locks ({error.strerror}); see to it that one "
            "process at a time writes there",
            stacklevel=2,
        )


def _let_go(path: Path) -> None:
    with _held.guard:
        file = _held.files.pop(path, None)
        _held.threads.pop(path, None)
        if file is None:  # in a child that was forked
            return
        with suppress(OSError):
            path.unlink()
        os.close(file)


def _refuse(path: Path, folder: Path) -> None:
    holder = "by another process"
    for _ in range(10):  # the holder writes its name a moment after it took the lock
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            where = "" if result["host"] == socket.gethostname() else f" on {result['host']}"
            holder = (
                f"process {result['process']}{where} since {result['since']} ({result['command']})"
            )
            break
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            time.sleep(0.02)
    raise UsageError(
        f"a run is going on in {folder}, {holder}; wait until it ends, or give another folder"
    )


def _sweep(folder: Path) -> None:
    """Remove what killed processes were writing there."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if _PART.fullmatch(path.name) or _OLD_PART.fullmatch(path.name):
                _remove_if_left(path)


def _remove_if_left(path: Path) -> None:
    """Remove a temporary file, unless its writer lives: that one has a lock on it."""
    with suppress(OSError):
        file = os.open(path, os.O_RDWR)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        finally:
            os.close(file)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place in one step.

    The content reaches the disk before the name does.  The file's mode is what the umask gives.
    """
    for left in path.parent.glob(f".{_literal(path.name)}.*.part"):
        if _PART.fullmatch(left.name):
            _remove_if_left(left)
    part = temporary(path)
    file = None
    try:
        file = _begin(part)
        write(part)
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):  # it would hide what went wrong
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            error.filename = str(path)  # the name that means something to the user
        raise
    finally:
        if file is not None:
            os.close(file)


def _begin(part: Path) -> int:
    """Make a temporary file, with a lock that tells others that its writer lives."""
    while True:
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # where there are no locks, nobody removes it
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part.exists():  # or else somebody took it for left behind before it was locked
            return file
        os.close(file)


def _literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def sync(folder: Path) -> None:
    """Let a folder's files reach the disk, before it is put in its place."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def temporary(path: Path) -> Path:
    """A name beside `path` that is this process's own."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def write_json(path: Path, value: object) -> None:
    """Write a record or plain data, whole or not at all."""
    write_text(path, json.dumps(to_plain(value), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all."""
    replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.  Raises ValueError, also where it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.  Raises RunError, with the remedy, where it cannot be read."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{_short(path)}: it cannot be read ({why}); {remedy}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: expected a JSON object, found {type(value).__name__}; {remedy}")
    return value


def read_record(kind: type[Record], path: Path, remedy: str) -> Record:
    """The record in a JSON file.  Raises RunError, with the remedy, where it is not there."""
    try:
        return from_content(kind, read_json(path, remedy))
    except ValueError as error:
        raise RunError(f"{path}: {error}; {remedy}") from error


def remedy(error: OSError) -> str:
    """What helps where the system refuses to read or write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room and start again; what was complete is kept"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "give a folder that you may write, or change its permissions"
    if error.errno == errno.EISDIR:
        return "a folder stands in the place of a file; remove it"
    if error.errno == errno.ENAMETOOLONG:
        return "give a shorter name"
    return "see that the path is right and its disk works"


def in_one_line(error: OSError) -> str:
    """What the system refused, where, and what helps."""
    if isinstance(error, BrokenPipeError):
        return "the output was closed before all of it was written"
    where = "" if error.filename is None else f"{_short(error.filename)}: "
    return f"{where}{error.strerror or error}; {remedy(error)}"


def _short(path: object) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"
