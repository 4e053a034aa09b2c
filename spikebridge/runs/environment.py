"""Where a run took place: versions, processor, threads, commit; nothing that names a person."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from spikebridge.base import processes
from spikebridge.base.records import UNLESS_DEFAULT
from spikebridge.settings.tasks import DATA_SETS


def _optional() -> Any:
    return field(default=None, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class Environment:
    """The content of environment.json; what an earlier version did not write is None."""

    spikebridge: str | None = _optional()
    python: str | None = _optional()
    torch: str | None = _optional()
    numpy: str | None = _optional()
    cpu: str | None = _optional()
    instruction_set: str | None = _optional()
    """That torch chose on this processor."""
    cores: int | None = _optional()
    """Those that the process may use."""
    threads: int | None = _optional()
    """Those that torch uses for an operation."""
    waiting: str | None = _optional()
    kernels: str | None = _optional()
    system: str | None = _optional()
    machine: str | None = _optional()
    commit: str | None = None
    command: tuple[str, ...] = field(default=(), metadata=UNLESS_DEFAULT)


def collect() -> Environment:
    """What this process runs in."""
    import torch

    return Environment(
        **versions(),
        cpu=cpu_name(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        cores=cores(),
        threads=torch.get_num_threads(),
        waiting=waiting(),
        kernels=kernels(),
        system=platform.system(),
        machine=platform.machine(),
        commit=commit(),
        command=tuple(command(sys.argv)),
    )


def versions() -> dict[str, str]:
    """Versions of Python and of what computes."""
    import numpy
    import torch

    return {
        "spikebridge": own_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def own_version() -> str:
    """The version of this package; "unknown" where it runs from a folder that was not installed."""
    try:
        return metadata.version("spikebridge")
    except metadata.PackageNotFoundError:
        return "unknown"


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def waiting() -> str:
    """What the variables of OpenMP say of threads that wait for work."""
    result = [f"{name}={os.environ[name]}" for name in processes.WAITING if name in os.environ]
    return ", ".join(result) or "OpenMP's default: threads spin, which is slow on a busy machine"


def kernels() -> str:
    """What the native kernels use, or why they are not there."""
    from spikebridge.nn.kernels import native

    if native.missing is not None:
        return native.missing
    threads = "OpenMP" if native.openmp() else "one thread: built without OpenMP"
    return f"native ({native.instruction_set()}, {threads})"


def data_folders() -> dict[str, str]:
    """Where data are looked for, and what is there; nothing is downloaded or checked."""
    from spikebridge.data import files

    try:
        root = files.data_folder()
        folders = {f"${files.VARIABLE}": str(root) if root else "not set"}
    except files.DataError as error:
        root, folders = None, {f"${files.VARIABLE}": str(error)}
    places = [files.cache_folder()] if root is None else [root, files.cache_folder()]
    folders |= {"cache": str(places[-1]), "digits8x8": "comes with scikit-learn"}
    for data, known in DATA_SETS.items():
        if not known.files:
            continue
        names = [name for name in files.SOURCES if name.startswith(known.files)]
        actual = [place for place in places if all(_lies(place, name) for name in names)]
        folders[data] = f"in {actual[0]}" if actual else "not there; downloaded when it is needed"
        if data == "cifar10":
            folders["cifar10-small"] = _small(root, folders[data])
    return folders


def _small(root: Path | None, whole: str) -> str:
    """What there is for cifar10-small, to which two parts of the archive are enough."""
    from spikebridge.data.cifar import SMALL_FILES

    short = [Path(name).name for name in SMALL_FILES]
    there = [] if root is None else [_lies(root, name) for name in SMALL_FILES]
    if all(there) and there:
        return f"in {root}: {' and '.join(short)} are enough for it"
    if any(there) and not whole.startswith("in "):
        held, absent = short if there[0] else short[::-1]
        start = " (the first 3,073,000 bytes of test_batch.bin)" if there[0] else ""
        return f"{held} lies in {root}, and it needs {absent}{start} beside it, or a download"
    return whole


def _lies(place: Path, name: str) -> bool:
    """Whether a data file is there, with or without its folder, packed or not."""
    plain = [place / name, place / Path(name).name]
    return any(path.exists() or path.with_suffix("").exists() for path in plain)


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    result = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return result[1].strip() if result else platform.machine()


def commit() -> str | None:
    """The commit of the source tree that this runs from; "-dirty" where files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def command(argv: list[str]) -> list[str]:
    """The command line without folders that say where somebody keeps things."""
    if not argv:
        return []
    program = Path(argv[0])
    ours = (
        program.resolve().parent == Path(__file__).resolve().parents[1]
    )  # `python -m spikebridge`
    name = "spikebridge" if ours else program.name
    return [name, *map(_without_folders, argv[1:])]


def _without_folders(argument: str) -> str:
    """Absolute paths, paths from home and paths upwards keep only their last part."""
    flag, equals, value = argument.rpartition("=")
    if Path(value).is_absolute() or value.startswith("~") or ".." in Path(value).parts:
        return f"{flag}{equals}{Path(value).name}"
    return argument
