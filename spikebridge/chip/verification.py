"""Simulation, lint and synthesis of what `spikebridge.chip.verilog` writes.

    verify("chip")       both simulators compare every membrane, spike, output and cycle count
    synthesise("chip")   cells, flip-flops and memory bits of Yosys

The tools are those of every Linux distribution; `make tools` installs them.  A tool that is not
there is named under "missing".  No torch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spikebridge.base.records import RunError, UsageError
from spikebridge.base.storage import read_json
from spikebridge.chip.verilog import (
    BENCH,
    BENCH_FILES,
    FORMAT,
    IMAGES,
    SOURCES,
    Testbench,
    described,
    sources,
)

PROGRAMS = {
    "icarus": ("iverilog", "vvp"),
    "verilator": ("verilator", "g++", "make"),
    "yosys": ("yosys",),
}
LIMIT_S = 1800.0
REPORTED_EVERY_S = 15.0
# Of designs of 60,000 to 115,000 gates.
YOSYS_TAKES = "about 2 to 4 minutes of a processor"
Report = Callable[[str], None]
SHORT_CYCLES = 200_000
_AGAIN = "write the Verilog again"
_VERDICT = re.compile(r"^(PASS|FAIL): (.*)$", re.MULTILINE)
_COUNTS = re.compile(r"(\d+) (samples|rows|outputs|cycles)")


def missing(tool: str) -> str:
    """Why "icarus", "verilator" or "yosys" cannot be used here; empty where it can."""
    absent = [name for name in PROGRAMS[tool] if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed: make tools" if absent else ""


def verify(
    directory: str | Path,
    simulators: Sequence[str] = ("icarus", "verilator"),
    *,
    stall: int = 0,
    seed: int = 1,
    reset: int = 0,
    lint: bool = True,
    limit_s: float = LIMIT_S,
    report: Report | None = None,
) -> dict[str, Any]:
    """Compare the Verilog with the integer model, bit for bit, in each simulator; and lint it.

    Args:
        directory: a folder of `verilog.write`.
        simulators: of "icarus" and "verilator"; none: only the lint.
        stall: percent of cycles in which the host pauses, on both ports, 0 to 99.
        seed: of the pauses.
        reset: cycle in which a reset falls, after which all starts again; 0 = none.
        lint: whether to look through the sources too.
        limit_s: seconds that each tool may take.
        report: called with what begins, how long it has taken so far, and that it ended.

    Returns:
        "passed": whether all that ran is right, and at least one did;
        "simulators": per simulator "passed", "verdict" (its line, with the first difference),
        "samples", "rows", "outputs", "cycles" where it passed, "build_s", "run_s";
        "lint": "clean" and "messages" of verilator -Wall;
        "missing": per tool, why it could not be used.

    Raises UsageError for a folder that is not of this version's `write` and for unknown simulators,
    RunError for files that were changed, for what does not build, and for what takes longer than
    `limit_s`.
    """
    directory = Path(directory)
    ways = {"icarus": _icarus, "verilator": _verilator}
    for name in simulators:
        if name not in ways:
            raise UsageError(f"{name!r} is no simulator; the known ones are {', '.join(ways)}")
    if not 0 <= stall <= 99:
        raise UsageError(f"stall={stall}: it must be 0 to 99 percent")
    record = check_images(directory)
    plus = [f"+stall={stall}", f"+seed={seed}", f"+reset={reset}"]
    done: dict[str, Any] = {}
    absent = {tool: why for tool in simulators if (why := missing(tool))}
    for name in simulators:
        if name not in absent:
            what = f"{name}: {record['bench']['cycles']:,} cycles"
            with (
                _reported(report, what),
                tempfile.TemporaryDirectory(prefix="spikebridge-") as scratch,
            ):
                done[name] = _simulate(ways[name], directory, Path(scratch), plus, limit_s)
            _check_counts(done[name], record["bench"])
    result: dict[str, Any] = {"simulators": done, "missing": absent, "lint": {}}
    if lint and (why := missing("verilator")):
        absent["verilator"] = why
    elif lint:
        with _reported(report, "lint by verilator"):
            result["lint"] = _lint(directory, limit_s)
    right = [each["passed"] for each in done.values()]
    right += [result["lint"]["clean"]] if result["lint"] else []
    return {"passed": bool(right) and all(right), **result}


def synthesise(
    directory: str | Path, *, limit_s: float = LIMIT_S, report: Report | None = None
) -> dict[str, Any]:
    """What the core is made of, by Yosys: two-input gates, flip-flops, and memories kept whole.

    Returns:
        "cells" by type of Yosys, "gates" and "flip_flops" (their sums), "memories" (words, bits
        of a word, bits of each), "memory_bits", "seconds"; or "missing", the reason.

    Raises UsageError and RunError as `verify` does.
    """
    directory = Path(directory)
    check_images(directory)
    if why := missing("yosys"):
        return {"missing": why}
    with tempfile.TemporaryDirectory(prefix="spikebridge-") as scratch:
        memories, cells = Path(scratch) / "memories.txt", Path(scratch) / "cells.txt"
        script = "; ".join(
            [
                f"read_verilog -defer -I. {' '.join(_sources())}",
                "hierarchy -check -top sb_chip; proc; flatten; opt; memory -nomap; opt -full",
                f"tee -q -o {memories} dump t:$mem_v2",
                "techmap; opt; abc -g AND,OR,XOR,MUX,NAND,NOR,XNOR; opt_clean",
                f"check -assert; tee -q -o {cells} stat",
            ]
        )
        start = time.perf_counter()
        with _reported(report, f"synthesis by yosys: {YOSYS_TAKES}"):
            _run(["yosys", "-q", "-p", script], directory, limit_s)
        return {
            **_cells(cells.read_text(encoding="utf-8")),
            **_memories(memories.read_text(encoding="utf-8")),
            "seconds": time.perf_counter() - start,
        }


def check_images(directory: Path) -> dict[str, Any]:
    """program.json, after a look whether all files of the folder are those that were written.

    Memory images, stimulus and expected answers must have the checksums that stand there; sources
    and bench those of this installation too, since a changed bench could say anything.

    Raises UsageError for a folder that is not of `write`, or of another version of it; RunError for
    a damaged program.json, and for a missing, shortened, changed or additional file.
    """
    path = directory / "program.json"
    if not path.is_file():
        raise UsageError(
            f"{directory}: there is no program.json in it; name a folder that "
            "spikebridge export RUN --to verilog has written"
        )
    record = read_json(path, _AGAIN)
    if record.get("format") != FORMAT:
        raise UsageError(
            f"{path} has format {record.get('format')!r}, this version reads {FORMAT!r}; {_AGAIN}"
        )
    if "files" not in record:
        raise UsageError(
            f"{path}: an earlier version wrote it, without checksums of the sources and the bench, "
            f"so a change of them would not show; {_AGAIN}"
        )
    for key, names in (("images", IMAGES), ("files", (*sources(), *BENCH_FILES))):
        entries = record.get(key)
        for name in names:
            entry = entries.get(name) if isinstance(entries, dict) else None
            if not _holds(entry, {"sha256": str, "bytes": int}):
                raise RunError(f"{path}: {key!r} has no sha256 and bytes of {name}; {_AGAIN}")
            _check_file(directory, name, entry)
    for actual in sorted((directory / "rtl").iterdir()):
        if f"rtl/{actual.name}" not in sources():
            raise RunError(f"{actual}: it was not written with the others; remove it, or {_AGAIN}")
    if not _holds(record.get("bench"), dict.fromkeys(Testbench._fields, int)):
        numbers = ", ".join(Testbench._fields)
        raise RunError(f"{path}: 'bench' has no whole numbers of {numbers}; {_AGAIN}")
    return record


def _holds(entry: Any, kinds: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(type(entry.get(n)) is kind for n, kind in kinds.items())


def _check_file(directory: Path, name: str, wanted: Any) -> None:
    path = directory / name
    try:
        content = described(path)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; {_AGAIN}") from error
    if content["bytes"] != wanted["bytes"]:
        raise RunError(
            f"{path} has {content['bytes']:,} bytes instead of {wanted['bytes']:,}; "
            f"it was cut off or changed; {_AGAIN}"
        )
    if content["sha256"] != wanted["sha256"]:
        raise RunError(f"{path} was changed (another sha256); {_AGAIN}")
    if name.startswith("rtl/") and content != described(SOURCES / path.name):
        raise UsageError(
            f"{path} is not the one of this version of spikebridge: it was changed, or another "
            f"version wrote it; {_AGAIN}"
        )


@contextmanager
def _reported(report: Report | None, what: str) -> Iterator[None]:
    """Report that something begins, how long it has taken while it goes on, and its end."""
    if report is None:
        yield
        return
    report(what)
    name, start, ended = what.partition(":")[0], time.perf_counter(), threading.Event()

    def follow() -> None:
        while not ended.wait(REPORTED_EVERY_S):
            report(f"{name}: {time.perf_counter() - start:.0f} s so far")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    report(f"{name}: {time.perf_counter() - start:.1f} s")


def _sources() -> list[str]:
    return [name for name in sources() if name != BENCH]


def _simulate(way: Any, directory: Path, scratch: Path, plus: list[str], limit_s: float) -> Any:
    start = time.perf_counter()
    command = way(directory, scratch, limit_s)
    built = time.perf_counter()
    output = _run([*command, *plus], directory, limit_s)
    seconds = {"build_s": built - start, "run_s": time.perf_counter() - built}
    verdict = _VERDICT.search(output)
    if verdict is None:
        raise RunError(f"{directory}: the bench ended without a verdict: {_end(output)}")
    passed = verdict[1] == "PASS"
    counts = {name: int(n) for n, name in _COUNTS.findall(verdict[2])} if passed else {}
    return {"passed": passed, "verdict": verdict[0], **counts, **seconds}


def _check_counts(result: dict[str, Any], bench: dict[str, int]) -> None:
    """A bench that compared less than was written has not passed."""
    wanted = {name: bench[name] for name in ("samples", "rows", "outputs")}
    if result["passed"] and any(result.get(name) != n for name, n in wanted.items()):
        expected = ", ".join(f"{n} {name}" for name, n in wanted.items())
        result["passed"] = False
        result["verdict"] = f"FAIL: {result['verdict'][6:]} instead of {expected}; {_AGAIN}"


def _icarus(directory: Path, scratch: Path, limit_s: float) -> list[str]:
    bench = str(scratch / "bench.vvp")
    head = ["iverilog", "-g2005", "-Wall", "-I.", "-s", "sb_bench", "-o", bench]
    output = _run([*head, *_sources(), BENCH], directory, limit_s)
    if output.strip():
        raise RunError(f"{directory}: iverilog warns: {_end(output)}")
    return ["vvp", "-n", bench]


def _verilator(directory: Path, scratch: Path, limit_s: float) -> list[str]:
    jobs = str(os.cpu_count() or 1)
    # What is not reset starts with random bits, other than zero and the same each time.
    unknown = ["--x-assign", "unique", "--x-initial", "unique"]
    # A short bench spends more time in the compiler than it can win.
    cycles = read_json(directory / "program.json", _AGAIN)["bench"]["cycles"]
    flags = "-O1" if cycles > SHORT_CYCLES else "-O0"
    head = ["verilator", "--binary", "--timing", "-O3", "-CFLAGS", flags, "-j", jobs, *unknown]
    tail = ["-I.", "--top-module", "sb_bench", "--Mdir", str(scratch), "-o", "bench"]
    _run([*head, *tail, *_sources(), BENCH], directory, limit_s)
    return [str(scratch / "bench"), "+verilator+rand+reset+2", "+verilator+seed+1"]


def _lint(directory: Path, limit_s: float) -> dict[str, Any]:
    command = ["verilator", "--lint-only", "-Wall", "-I.", "--top-module", "sb_chip"]
    done = _finished([*command, *_sources()], directory, limit_s)
    messages = [line for line in done.stdout.splitlines() if line.startswith("%")]
    return {"clean": done.returncode == 0 and not messages, "messages": messages}


def _run(command: list[str], directory: Path, limit_s: float) -> str:
    done = _finished(command, directory, limit_s)
    if done.returncode != 0:
        raise RunError(f"{directory}: {Path(command[0]).name} failed: {_end(done.stdout)}")
    return done.stdout


def _finished(
    command: list[str], directory: Path, limit_s: float
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"{directory}: {Path(command[0]).name} took longer than {limit_s:g} s; allow it more, "
            "or use fewer samples"
        ) from error


def _end(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-5:]) or "it output nothing"


def _cells(text: str) -> dict[str, Any]:
    cells = {kind: int(n) for kind, n in re.findall(r"^ +(\$\S+) +(\d+)$", text, re.MULTILINE)}
    flops = {kind: n for kind, n in cells.items() if "DFF" in kind}
    gates = {kind: n for kind, n in cells.items() if kind.startswith("$_") and kind not in flops}
    return {"cells": cells, "gates": sum(gates.values()), "flip_flops": sum(flops.values())}


def _memories(text: str) -> dict[str, Any]:
    memories = {}
    for block in text.split("cell $mem_v2")[1:]:
        numbers = {
            name: int(re.search(rf"parameter (?:signed )?\\{name} (\d+)", block)[1])  # type: ignore[index]
            for name in ("SIZE", "WIDTH")
        }
        name = re.search(r'parameter \\MEMID "([^"]*)"', block)[1]  # type: ignore[index]
        name = name.replace("\\", "").removeprefix("core.").removesuffix(".memory")
        words, width = numbers["SIZE"], numbers["WIDTH"]
        memories[name] = {"words": words, "word_bits": width, "bits": words * width}
    return {"memories": memories, "memory_bits": sum(each["bits"] for each in memories.values())}
