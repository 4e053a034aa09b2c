"""A program as Verilog: sources, memory images, and a bench with answers of the integer model.

    write(program, "chip")            ->  chip/rtl/*.v  program.vh  *.mem  program.json  README.md
                                          bench.vh  stimulus.txt  rows.txt  outputs.txt  samples.txt

`spikebridge.chip.verification` runs the bench and the synthesis.  No torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from spikebridge.base.records import UsageError
from spikebridge.base.storage import owning, parse_json, sync
from spikebridge.chip import memory_images
from spikebridge.chip.files import digest
from spikebridge.chip.golden import Golden, Step
from spikebridge.chip.memory_images import ImageSizes, bits, hexadecimal
from spikebridge.chip.program import Program, ProgramLayer

FORMAT = "spikebridge-verilog-1"
SOURCES = Path(__file__).parent / "rtl"
BENCH = "rtl/sb_bench.v"
README = SOURCES / "README.template.md"
IMAGES = ("weights.mem", "parameters.mem", "slow.mem", "descriptors.mem", "program.vh")
BENCH_FILES = ("bench.vh", "stimulus.txt", "rows.txt", "outputs.txt", "samples.txt")
# What lies in such a folder, with what the README's commands build there.
WRITTEN = (*IMAGES, "README.md", "program.json", "rtl", *BENCH_FILES, "bench.vvp", "build")
END_OF_STEP, END_OF_SAMPLE = 1, 3

Samples = Sequence[Sequence[np.ndarray]]


class Testbench(NamedTuple):
    """What the bench expects."""

    samples: int
    steps: int
    rows: int
    outputs: int
    cycles: int


def write(
    program: Program,
    directory: str | Path,
    samples: Samples | None = None,
    *,
    about: str = "",
) -> Path:
    """Write a program as Verilog into a folder, whole or not at all.

    Args:
        program: see `spikebridge.chip.program`.
        directory: a new folder, an empty one, or one that `write` made, which is replaced.
        samples: stimulus of the bench: for each sample, for each step, the rising numbers of the
            inputs that spike.  None makes a few at random, always the same.
        about: what the program is, for the README.

    Returns:
        The folder.

    Raises UsageError where the folder holds something else, where events do not fit the program,
    and for layers that the core cannot run.
    """
    directory = Path(directory).absolute()
    size = memory_images.sizes(program)
    stimulus = some_samples(program) if samples is None else samples
    _check_samples(program, stimulus)
    check_free(directory)
    # Beside the folder, which is replaced as a whole.
    with owning(directory.parent, "export", make=True, lock=f".{directory.name}.lock"):
        part, old = (directory.with_name(f".{directory.name}.{end}") for end in ("part", "old"))
        _tidy(directory, part, old)  # after one that was killed
        try:
            part.mkdir()
            _write_all(program, size, part, stimulus, about)
            sync(part)
            if directory.exists():
                directory.rename(old)
            part.rename(directory)
        finally:
            _tidy(directory, part, old)
    return directory


def _tidy(directory: Path, part: Path, old: Path) -> None:
    if old.exists() and not directory.exists():  # ended between two renames
        old.rename(directory)
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)


def some_samples(program: Program, samples: int = 3, density: float = 0.3) -> list[Any]:
    """Random stimulus: samples of up to 4 steps, a share `density` of the inputs in each."""
    rng = np.random.default_rng(0)
    steps = min(4, program.max_steps or 4)
    return [
        [np.flatnonzero(rng.random(program.inputs) < density) for _ in range(steps)]
        for _ in range(samples)
    ]


def input_codes(program: Program) -> np.ndarray:
    """What the host sends for each input, (I,) int64; within a step they must rise."""
    return memory_images.codes(program, 0, memory_images.sizes(program))


def tokens(program: Program, samples: Samples) -> Iterable[int]:
    """What the host sends: {kind, code}, kind 0 an event, 1 the end of a step, 3 of the sample."""
    size = memory_images.sizes(program)
    code = memory_images.codes(program, 0, size)
    for steps in samples:
        for at, events in enumerate(steps):
            yield from np.sort(code[np.asarray(events, np.int64)]).tolist()
            yield (END_OF_SAMPLE if at == len(steps) - 1 else END_OF_STEP) << size.code


def _check_samples(program: Program, samples: Samples) -> None:
    for number, steps in enumerate(samples):
        if not 1 <= len(steps) <= (program.max_steps or len(steps)):
            most = program.max_steps or "any number of"
            raise UsageError(
                f"sample {number} has {len(steps)} steps; the program allows 1 to {most}"
            )
        for events in steps:
            events = np.asarray(events)
            inside = events.size == 0 or (events.min() >= 0 and events.max() < program.inputs)
            if events.ndim != 1 or not inside or (np.diff(events) <= 0).any():
                raise UsageError(
                    f"sample {number}: events must be rising numbers from 0 to "
                    f"{program.inputs - 1}, one list per step"
                )


def check_free(directory: Path) -> None:
    """UsageError unless `write` may put its files there: nothing but files of its own is lost."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UsageError(f"{directory} is a file; name a new folder")
    names = {path.name for path in directory.iterdir()}
    if not names:
        return
    try:
        ours = parse_json((directory / "program.json").read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = None
    inside = {f"rtl/{path.name}" for path in (directory / "rtl").glob("*")}
    others = (names - set(WRITTEN)) | {Path(name).name for name in inside - set(sources())}
    if ours != FORMAT or others:
        named = f", such as {min(others)}" if others else ""
        raise UsageError(f"{directory} holds other files{named}; name a new folder")


def _write_all(
    program: Program, size: ImageSizes, directory: Path, samples: Samples, about: str
) -> None:
    (directory / "rtl").mkdir()
    for name in sources():
        shutil.copyfile(SOURCES / Path(name).name, directory / name)
    (directory / "program.vh").write_text(size.header(), encoding="utf-8")
    words = {}
    for name, make in (
        ("weights.mem", memory_images.weight_image),
        ("parameters.mem", memory_images.parameter_image),
        ("slow.mem", memory_images.slow_image),
        ("descriptors.mem", memory_images.descriptor_image),
    ):
        digits = hexadecimal(make(program, size))
        words[name] = len(digits)
        (directory / name).write_text("\n".join(digits) + "\n", encoding="utf-8")
    bench = write_bench(program, directory, samples)
    _write_json(program, size, directory, words, bench)
    text = _readme(program, size, bench, about)
    (directory / "README.md").write_text(text, encoding="utf-8")


def write_bench(program: Program, directory: Path, samples: Samples) -> Testbench:
    """Write the stimulus and what the integer model makes of it into a folder of `write`."""
    size, golden = memory_images.sizes(program), Golden(program)
    digits = (size.code + 2 + 3) // 4
    with (directory / "stimulus.txt").open("w", encoding="utf-8") as file:
        file.writelines(f"{token:0{digits}x}\n" for token in tokens(program, samples))
    steps = rows = outputs = all_cycles = 0
    with (
        (directory / "rows.txt").open("w", encoding="utf-8") as row_file,
        (directory / "outputs.txt").open("w", encoding="utf-8") as output_file,
        (directory / "samples.txt").open("w", encoding="utf-8") as sample_file,
    ):
        for sample in samples:
            cycles = 0
            for at, events in enumerate(sample):
                last = at == len(sample) - 1
                step = golden.step(events, last)
                rows += _write_rows(program, size, step, row_file)
                outputs += _write_outputs(program, size, step, last, output_file)
                cycles += step.counts.cycles
                steps += 1
            sample_file.write(f"{cycles} 0 0\n")
            all_cycles += cycles
    bench = Testbench(len(samples), steps, rows, outputs, all_cycles)
    write_counts(directory, bench.samples, rows, outputs)
    return bench


def write_counts(directory: Path, samples: int, rows: int, outputs: int) -> None:
    """bench.vh: how much must come out."""
    (directory / "bench.vh").write_text(
        "// What the bench expects.\n"
        f"`define SB_SAMPLES {samples}\n`define SB_TRACED {rows}\n`define SB_ANSWERS {outputs}\n",
        encoding="utf-8",
    )


def _write_rows(program: Program, size: ImageSizes, step: Step, file: TextIO) -> int:
    written = 0
    for number, (layer, done) in enumerate(zip(program.layers, step.layers, strict=True)):
        fired = np.zeros(layer.neurons, np.int64)
        fired[done.spikes] = 1
        spikes = _lines(program, layer, fired, 1)
        membranes = _lines(program, layer, done.membrane, size.membrane)
        for row, (y, s) in enumerate(zip(spikes, membranes, strict=True)):
            file.write(f"{number:x} {row:x} {y} {s}\n")
        written += len(spikes)
    return written


def _lines(program: Program, layer: ProgramLayer, values: np.ndarray, width: int) -> list[str]:
    return hexadecimal(bits(memory_images.rows(program, layer, values), width))


def _write_outputs(program: Program, size: ImageSizes, step: Step, last: bool, file: TextIO) -> int:
    if not last and program.readout.reduce != "each":
        return 0
    top = len(step.outputs) - 1
    values = hexadecimal(bits(step.outputs[:, None], size.membrane))
    file.writelines(f"{n:x} {value} {int(last and n == top)}\n" for n, value in enumerate(values))
    return len(values)


def _write_json(
    program: Program, size: ImageSizes, directory: Path, words: dict[str, int], bench: Testbench
) -> None:
    images = {name: described(directory / name) for name in IMAGES}
    for name, count in words.items():
        images[name]["words"] = count
    record = {
        "format": FORMAT,
        "program": digest(program),
        "inputs": program.inputs,
        "outputs": program.outputs,
        "clock_MHz": program.chip.clock_MHz,
        "sizes": asdict(size),
        "memory_bits": size.memory_bits(),
        "bench": bench._asdict(),
        "images": images,
        "files": {name: described(directory / name) for name in (*sources(), *BENCH_FILES)},
    }
    (directory / "program.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def sources() -> list[str]:
    """The Verilog that each folder gets, bench included, by names relative to the folder."""
    return [f"rtl/{path.name}" for path in sorted(SOURCES.glob("*.v"))]


def described(path: Path) -> dict[str, Any]:
    """Checksum and length of a file, by which a change shows."""
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _readme(program: Program, size: ImageSizes, bench: Testbench, about: str) -> str:
    memories = "\n".join(f"| {name} | {count:,} |" for name, count in size.memory_bits().items())
    g = program.layers[0].geometry
    if g is None:
        code = f"the number of the input, 0 to {program.inputs - 1}"
    else:
        code = (
            f"`{{y, x, channel}}` of the input: y from bit {size.cbits + size.xbits}, x from bit "
            f"{size.cbits}, channel from bit 0, below {g.in_shape[1]}, {g.in_shape[2]} and "
            f"{g.in_shape[0]}"
        )
    values = {
        "about": f"{about}\n\n" if about else "",
        "top": size.code + 1,
        "codes": size.code,
        "membrane_top": size.membrane - 1,
        "code": code,
        "limit": program.max_steps or "no limit",
        "queue": program.chip.queue,
        "memories": memories,
        "layers": "\n".join(_layer_line(program, n) for n in range(len(program.layers))),
        "bench": f"{bench.samples:,} samples, {bench.steps:,} steps, {bench.cycles:,} cycles",
        "sources": " ".join(name for name in sources() if name != BENCH),
    }
    return README.read_text(encoding="utf-8").format(**values)


def _layer_line(program: Program, number: int) -> str:
    layer = program.layers[number]
    kind = "convolution" if layer.geometry else "recurrent" if layer.recurrent else "dense"
    kind = f"readout ({layer.reduce})" if layer.reduce else kind
    return (
        f"| {number} | {layer.name} | {kind} | {layer.inputs:,} | {layer.neurons:,} | "
        f"{program.rows(layer):,} | {layer.weight_rows * program.chunks(layer):,} |"
    )
