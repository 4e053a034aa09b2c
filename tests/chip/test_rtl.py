"""The Verilog is the integer model: every membrane, spike, output and cycle, in both simulators."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import chip_programs as make
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebridge.base.records import RunError, UsageError
from spikebridge.chip import memory_images, verilog
from spikebridge.chip import verification as verify
from spikebridge.chip.program import Program, with_chip

RESETS = ("gate", "subtract", "none")


def needs(tool: str) -> pytest.MarkDecorator:
    why = verify.missing(tool)
    return pytest.mark.skipif(bool(why), reason=why)


def run(directory: Path, *simulators: str, lint: bool = False, **settings: Any) -> dict[str, Any]:
    found = verify.verify(directory, simulators, lint=lint, **settings)
    for each in found["simulators"].values():
        assert each["passed"], each["verdict"]
    return found


def verdict(directory: Path, **settings: Any) -> str:
    return verify.verify(directory, ["icarus"], lint=False, **settings)["simulators"]["icarus"][
        "verdict"
    ]


def signed(directory: Path) -> Path:
    """The folder with the checksums of what lies there now, so that the bench runs it."""
    record = json.loads((directory / "program.json").read_text())
    for key in ("images", "files"):
        for name, entry in record[key].items():
            entry |= verilog.described(directory / name)
    (directory / "program.json").write_text(json.dumps(record))
    return directory


def small(seed: int = 0, **settings: Any) -> Program:
    """Two dense layers, the first recurrent, and a readout."""
    rng = np.random.default_rng(seed)
    layers = [
        make.dense(rng, 9, 11, recurrent=True, reset="subtract", slope=3),
        make.dense(rng, 11, 6),
        make.dense(rng, 6, 5, reduce="each"),
    ]
    return make.finish(rng, layers, **{"fraction_bits": 4, **settings})


def slow(seed: int = 0, **settings: Any) -> Program:
    """Slow states of both kinds, of several rows; each reset is there."""
    rng = np.random.default_rng(seed)
    layers = [
        make.dense(rng, 9, 11, recurrent=True, reset="none", slope=1 << 14, slow="oscillation"),
        make.dense(rng, 11, 6),
        make.dense(rng, 6, 9, reset="gate", slow="oscillation"),
        make.dense(rng, 9, 7, recurrent=True, reset="subtract", slow="adaptation"),
        make.dense(rng, 7, 5, reduce="each"),
    ]
    return make.finish(rng, layers, **settings)


def pictures(seed: int = 0, **settings: Any) -> Program:
    """Two convolutions, of which chunks are not full, a recurrent layer and a readout."""
    rng = np.random.default_rng(seed)
    first = make.conv(rng, (2, 9, 7), 5, kernel=3, stride=1, padding=1, pool=2, slope=5)
    second = make.conv(rng, (5, 4, 3), 6, kernel=3, stride=2, padding=2, reset="none")
    layers = [
        first,
        second,
        make.dense(rng, second.neurons, 9, recurrent=True, reset="subtract"),
        make.dense(rng, 9, 3, reduce="sum"),
    ]
    return make.finish(rng, layers, **settings)


def spikes(program: Program, seed: int = 0, **settings: Any) -> make.Samples:
    return make.spikes(np.random.default_rng(seed), program, **settings)


# ------------------------------------------------------------------------- equal to the model


@needs("icarus")
@settings(max_examples=25, deadline=None)
@given(
    make.programs(),
    st.integers(0, 2**16),
    st.sampled_from([0, 30, 90]),
    st.sampled_from([0, 0, 77]),
)
def test_random_programs_run_as_the_model_does(
    tmp_path_factory: pytest.TempPathFactory, program: Program, seed: int, stall: int, reset: int
) -> None:
    directory = tmp_path_factory.mktemp("rtl") / "chip"
    verilog.write(program, directory, spikes(program, seed))
    run(directory, "icarus", stall=stall, seed=seed, reset=reset)


@needs("icarus")
@needs("verilator")
@pytest.mark.timeout(600)  # a compiler runs for some seconds, on a busy machine for minutes
@pytest.mark.parametrize(
    "program", [slow(), pictures(lanes=4)], ids=["slow states", "convolutions"]
)
def test_both_simulators_agree_with_the_model(tmp_path: Path, program: Program) -> None:
    verilog.write(program, tmp_path / "chip", spikes(program))
    found = run(tmp_path / "chip", "icarus", "verilator", lint=True, stall=25)
    counts = [
        {name: each[name] for name in ("samples", "rows", "outputs", "cycles")}
        for each in found["simulators"].values()
    ]
    assert counts[0] == counts[1]
    assert counts[0]["cycles"] == sum(
        step.counts.cycles for sample in make.answers(program, spikes(program)) for step in sample
    )
    assert found["passed"]
    assert found["lint"] == {"clean": True, "messages": []}


@needs("icarus")
@pytest.mark.parametrize("reset", RESETS)
def test_all_inputs_of_three_steps(tmp_path: Path, reset: str) -> None:
    rng = np.random.default_rng(RESETS.index(reset))
    layers = [
        make.dense(rng, 2, 3, recurrent=True, reset=reset, slope=7, weight_bits=3),
        make.dense(rng, 3, 2, reduce="last", weight_bits=3),
    ]
    program = make.finish(rng, layers, lanes=2, weight_bits=3, max_steps=3, fraction_bits=2)
    sets = [np.flatnonzero(bits) for bits in itertools.product([0, 1], repeat=2)]
    samples = [list(steps) for steps in itertools.product(sets, repeat=3)]
    verilog.write(program, tmp_path / "chip", samples)
    found = run(tmp_path / "chip", "icarus")
    assert found["simulators"]["icarus"]["samples"] == 64


@needs("icarus")
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("pool", [1, 2, 4])
def test_each_pixel_reaches_what_it_should(tmp_path: Path, stride: int, pool: int) -> None:
    rng = np.random.default_rng(stride * pool)
    kind = {"kernel": 3, "stride": stride, "padding": 2, "pool": pool}
    layers = [make.conv(rng, (1, 13, 12), 2, **kind)]
    layers.append(make.dense(rng, layers[0].neurons, 1, reduce="last"))
    program = make.finish(rng, layers, max_steps=1, lanes=2)
    alone = [[np.array([pixel])] for pixel in range(program.inputs)]
    verilog.write(program, tmp_path / "chip", alone)
    run(tmp_path / "chip", "icarus")


# ------------------------------------------------------------------------------- the host


@needs("icarus")
@pytest.mark.parametrize("stall", [0, 60, 99])
def test_a_full_queue_and_a_slow_host_lose_nothing(tmp_path: Path, stall: int) -> None:
    program = small(queue=2)
    verilog.write(program, tmp_path / "chip", spikes(program, samples=4, density=0.9))
    for seed in (1, 2):
        run(tmp_path / "chip", "icarus", stall=stall, seed=seed)


@needs("icarus")
@pytest.mark.parametrize("program", [small(), pictures()], ids=["dense", "convolutions"])
def test_events_that_are_none_are_refused_and_counted(tmp_path: Path, program: Program) -> None:
    directory = verilog.write(program, tmp_path / "chip", spikes(program))
    size = memory_images.sizes(program)
    codes = verilog.input_codes(program)
    bad = [int(codes.max()) + 1, (1 << size.code) - 1, 2 << size.code]
    tokens, refused, cycles, wanted, begun = [], 0, 0, [], False
    lines = iter((directory / "samples.txt").read_text().split("\n"))
    for line in (directory / "stimulus.txt").read_text().split():
        token = int(line, 16)
        tokens.append(token)
        if token >> size.code == 0 and not begun:  # again, and out of order
            extra = [token, *bad, 0]
            tokens += extra
            refused += len(extra)
            cycles += len(extra)
            begun = True
        if token >> size.code:
            begun = False
        if token >> size.code == 3:
            wanted.append(f"{int(next(lines).split()[0]) + cycles} {refused} 0")
            cycles = 0
    assert refused
    (directory / "stimulus.txt").write_text("\n".join(f"{token:x}" for token in tokens))
    (directory / "samples.txt").write_text("\n".join(wanted))
    run(signed(directory), "icarus", stall=20)


@needs("icarus")
def test_a_sample_without_an_end_is_cut_off(tmp_path: Path) -> None:
    program = replace(small(), max_steps=3)
    rng = np.random.default_rng(0)
    samples = [[np.flatnonzero(rng.random(9) < 0.5) for _ in range(n)] for n in (3, 2, 3)]
    directory = verilog.write(program, tmp_path / "chip", samples)
    size = memory_images.sizes(program)
    text = (directory / "stimulus.txt").read_text()
    end, step = (f"{kind << size.code:02x}\n" for kind in (3, 1))
    (directory / "stimulus.txt").write_text(text.replace(end, step, 1))
    counted = (directory / "samples.txt").read_text()
    (directory / "samples.txt").write_text(counted.replace(" 0 0\n", " 0 1\n"))
    run(signed(directory), "icarus")


# -------------------------------------------------------------------- what the bench can find


@needs("icarus")
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rows.txt", "FAIL: membrane"),
        ("outputs.txt", "FAIL: sample 1: output"),
        ("samples.txt", "cycles instead of"),
        ("stimulus.txt", "FAIL: membrane"),
    ],
)
def test_the_bench_finds_a_difference(tmp_path: Path, name: str, found: str) -> None:
    program = small()
    directory = verilog.write(program, tmp_path / "chip", spikes(program))
    lines = (directory / name).read_text().split("\n")
    last = lines[-2].split()
    at = {"outputs.txt": 1, "samples.txt": 0}.get(name, -1)
    last[at] = last[at][:-1] + ("1" if last[at][-1] == "0" else "0")
    changed = [*lines[:-2], " ".join(last), ""] if name != "stimulus.txt" else lines[1:]
    (directory / name).write_text("\n".join(changed))
    assert found in verdict(signed(directory))
    (directory / name).write_text("\n".join(lines[:-4]))  # it ends too early
    assert "FAIL" in verdict(signed(directory))


@needs("icarus")
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("sb_lane.v", "$signed(s) > $signed(threshold)", "$signed(s) >= $signed(threshold)"),
        ("sb_lane.v", "pass) v <= leaked", "pass) v <= s"),
        ("sb_lane.v", "cleared = last ||", "cleared = "),
        ("sb_core.v", "bank <= !bank", "bank <= bank"),
        ("sb_core.v", "own_left <= is_recurrent && !first", "own_left <= is_recurrent"),
        (
            "sb_core.v",
            "DESCRIBE: state <= BEGIN;",
            "DESCRIBE: if (layer != 0 || x) state <= BEGIN;",
        ),
        ("sb_core.v", "hearing_own ? own_weights", "hearing_own ? ZERO"),
    ],
)
def test_the_bench_finds_a_fault_of_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str
) -> None:
    layers = list(small().layers)
    layers[0] = replace(layers[0], threshold=np.zeros(11, np.int64), reset="none")
    program = replace(small(), layers=tuple(layers), membrane_bits=20).check()
    directory = verilog.write(program, tmp_path / "chip", spikes(program, samples=6))
    source = directory / "rtl" / file
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    monkeypatch.setattr(verify, "SOURCES", directory / "rtl")
    assert verdict(signed(directory)).startswith("FAIL")


@needs("icarus")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("next_slow > TOP ? TOP", "next_slow > TOP ? next_slow"),
        ("+ HALF) >>> FACTOR", ") >>> FACTOR"),
        ("gate && spike ? ZERO : s;", "s;"),
        ("pass && !last && (", "pass && ("),
        ("adapts ? {{", "oscillates ? {{"),
    ],
)
def test_the_bench_finds_a_fault_of_a_slow_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str
) -> None:
    program = slow(slow_bits=9)
    directory = verilog.write(program, tmp_path / "chip", spikes(program, samples=6))
    source = directory / "rtl/sb_lane.v"
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    monkeypatch.setattr(verify, "SOURCES", directory / "rtl")
    assert verdict(signed(directory)).startswith("FAIL")


# ----------------------------------------------------------------------------------- files


def test_a_damaged_image_is_told_before_anything_runs(tmp_path: Path) -> None:
    directory = verilog.write(small(), tmp_path / "chip")
    image = directory / "weights.mem"
    content = image.read_text()
    image.write_text(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"weights\.mem has \d+ bytes instead of \d+"):
        verify.verify(directory)
    image.write_text(content.replace(content[0], "0" if content[0] != "0" else "1", 1))
    with pytest.raises(RunError, match=r"weights\.mem was changed"):
        verify.synthesise(directory)
    image.unlink()
    with pytest.raises(RunError, match=r"weights\.mem: No such file"):
        verify.verify(directory)
    told = r"no program\.json in it; name a folder that spikebridge export RUN --to verilog has"
    with pytest.raises(UsageError, match=told):
        verify.verify(tmp_path)


@pytest.mark.parametrize("name", [*verilog.IMAGES, *verilog.BENCH_FILES, *verilog.sources()])
def test_each_file_that_counts_is_checked(tmp_path: Path, name: str) -> None:
    path = verilog.write(small(), tmp_path / "chip") / name
    content = path.read_bytes()
    assert content
    for changed in (b"", content + b" ", bytes([content[0] ^ 1]) + content[1:]):
        path.write_bytes(changed)
        for check in (verify.verify, verify.synthesise):
            with pytest.raises(RunError, match="changed") as caught:
                check(tmp_path / "chip")
            assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(RunError, match="No such file"):
        verify.verify(tmp_path / "chip")


def test_a_bench_of_ones_own_passes_nothing(tmp_path: Path) -> None:
    folder = verilog.write(small(), tmp_path / "chip")
    bench = folder / "rtl/sb_bench.v"
    whole = bench.read_text()
    bench.write_text('module sb_bench; initial begin $display("PASS"); $finish; end endmodule\n')
    with pytest.raises(UsageError, match=r"sb_bench\.v is not the one of this version"):
        verify.verify(signed(folder))
    bench.write_text(whole)
    (folder / "rtl/more.v").write_text("module more; endmodule\n")
    with pytest.raises(RunError, match=r"more\.v: it was not written with the others"):
        verify.verify(signed(folder))


def test_folders_of_earlier_versions_are_to_be_written_again(tmp_path: Path) -> None:
    folder = verilog.write(small(), tmp_path / "chip")
    record = json.loads((folder / "program.json").read_text())
    del record["files"]
    (folder / "program.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"an earlier version wrote it.*write the Verilog again"):
        verify.verify(folder)
    verilog.write(small(), folder)
    verify.check_images(folder)


@pytest.mark.parametrize("key", ["images", "files", "bench"])
@pytest.mark.parametrize("value", [None, {}, [], 7.5, "all", {"weights.mem": 3, "samples": "20"}])
def test_a_wrong_program_json_is_told(tmp_path: Path, key: str, value: object) -> None:
    folder = verilog.write(small(), tmp_path / "chip")
    path = folder / "program.json"
    record = json.loads(path.read_text())
    for changed in (
        record | {key: value},
        record | {key: dict.fromkeys(record[key], value)},
        {name: entry for name, entry in record.items() if name != key},
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(
            (RunError, UsageError), match=r"program\.json: .*write the Verilog again"
        ):
            verify.verify(folder)
    path.write_text("[" * 100_000)
    with pytest.raises(RunError, match="cannot be read"):
        verify.verify(folder)


def test_a_folder_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = verilog.write(small(), tmp_path / "chip", about="A test.")
    before = (directory / "weights.mem").read_bytes()
    assert "A test." in (directory / "README.md").read_text()
    verilog.write(small(1), directory)
    after = (directory / "weights.mem").read_bytes()
    assert before != after

    def fails(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(verilog, "write_bench", fails)
    for name in ("chip", "new"):
        with pytest.raises(OSError, match="no space"):
            verilog.write(small(), tmp_path / name)
    assert (directory / "weights.mem").read_bytes() == after
    assert [path.name for path in tmp_path.iterdir()] == ["chip"]


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("here")
    with pytest.raises(UsageError, match="holds other files"):
        verilog.write(small(), tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        verilog.write(small(), tmp_path / "mine.txt")


@pytest.mark.parametrize("where", ["constraints.xdc", "rtl/mine.v"])
def test_files_beside_ours_are_not_lost(tmp_path: Path, where: str) -> None:
    folder = verilog.write(small(), tmp_path / "chip")
    assert verilog.write(small(1), folder) == folder
    (folder / where).write_text("here")
    with pytest.raises(UsageError, match="holds other files, such as"):
        verilog.write(small(), folder)
    assert (folder / where).read_text() == "here"
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "program.json").write_text("{}")
    with pytest.raises(UsageError, match="holds other files"):
        verilog.write(small(), tmp_path / "project")


@needs("icarus")
def test_a_bench_that_compares_less_has_not_passed(tmp_path: Path) -> None:
    folder = verilog.write(small(), tmp_path / "chip")
    for name in ("stimulus.txt", "rows.txt", "outputs.txt", "samples.txt"):
        (folder / name).write_text("")
    counts = (folder / "bench.vh").read_text()
    (folder / "bench.vh").write_text(re.sub(r"\b\d+$", "0", counts, flags=re.MULTILINE))
    found = verify.verify(signed(folder), ("icarus",), lint=False)
    assert not found["passed"]
    assert "0 samples, 0 rows" in found["simulators"]["icarus"]["verdict"]


@pytest.mark.parametrize("events", [[9], [-1], [2, 2], [3, 1]])
def test_spikes_that_are_none_are_refused(tmp_path: Path, events: list[int]) -> None:
    with pytest.raises(UsageError, match="rising numbers from 0 to 8"):
        verilog.write(small(), tmp_path / "chip", [[np.array(events)]])


def test_what_the_core_cannot_run_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = make.conv(rng, (1, 3, 3), 2)
    layers = [make.dense(rng, 4, 9), image, make.dense(rng, 2, 2, reduce="sum")]
    with pytest.raises(UsageError, match="convolutions first"):
        verilog.write(make.finish(rng, layers), tmp_path / "chip")
    layers = [make.conv(rng, (1, 7, 7), 2, stride=3), make.dense(rng, 8, 2, reduce="sum")]
    with pytest.raises(UsageError, match="1, 2 or 4"):
        verilog.write(make.finish(rng, layers), tmp_path / "chip")
    with pytest.raises(UsageError, match="allows 1 to 8"):
        verilog.write(small(), tmp_path / "chip", [[np.arange(2)] * 9])


def test_nothing_here_loads_torch() -> None:
    code = "import sys, spikebridge.chip.verification; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_memories_are_as_large_as_the_program_says() -> None:
    for program in (small(), pictures(), with_chip(pictures(), lanes=1), slow()):
        found = memory_images.sizes(program).memory_bits()
        for name in ("weight", "membrane", "parameter"):
            assert found[f"{name}s"] == program.memory_bits[name]
        assert found.get("slow_states") == program.memory_bits.get("slow")
        assert found.get("slow_parameters") == program.memory_bits.get("slow_parameter")


# ----------------------------------------------------------------------------------- tools


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = verilog.write(small(), tmp_path / "chip")
    monkeypatch.setattr(verify.shutil, "which", lambda _: None)
    found = verify.verify(directory)
    assert not found["passed"]
    assert found["simulators"] == {}
    assert found["missing"]["icarus"] == "iverilog and vvp not installed: make tools"
    assert "verilator" in found["missing"]["verilator"]
    assert verify.synthesise(directory) == {"missing": "yosys not installed: make tools"}
    with pytest.raises(UsageError, match="'modelsim' is no simulator"):
        verify.verify(directory, ["modelsim"])


@needs("verilator")
@pytest.mark.parametrize(
    "program",
    [
        small(lanes=1, whole=True),
        small(lanes=16, fraction_bits=0),
        replace(small(lanes=64), max_steps=0, membrane_bits=32),
        pictures(lanes=2, whole=True, decay_bits=1),
        pictures(lanes=8, max_steps=1),
    ],
    ids=["one lane", "16 lanes", "endless", "images", "one step"],
)
def test_the_sources_are_clean(tmp_path: Path, program: Program) -> None:
    found = run(verilog.write(program, tmp_path / "chip"), lint=True)
    assert found["lint"] == {"clean": True, "messages": []}


@needs("yosys")
@pytest.mark.timeout(600)
def test_yosys_keeps_memories_and_needs_no_latches(tmp_path: Path) -> None:
    program, plain = small(lanes=1), small(lanes=1, whole=True)
    found, fewer = (
        verify.synthesise(verilog.write(each, tmp_path / name))
        for each, name in ((program, "multiplied"), (plain, "plain"))
    )
    assert not [kind for kind in found["cells"] if "LATCH" in kind]
    assert found["flip_flops"] > 0
    assert 0 < fewer["gates"] < found["gates"]  # no multipliers
    bits = memory_images.sizes(program).memory_bits()
    for name in ("weight", "membrane"):
        assert found["memories"][f"{name}_memory"]["bits"] == bits[f"{name}s"]


@needs("icarus")
def test_a_tool_that_takes_too_long_is_told(tmp_path: Path) -> None:
    directory = verilog.write(small(), tmp_path / "chip")
    with pytest.raises(RunError, match="iverilog took longer than"):
        verify.verify(directory, ["icarus"], limit_s=0.001)


def test_what_takes_long_says_so_while_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, said = verilog.write(small(), tmp_path / "chip"), []
    monkeypatch.setattr(verify, "missing", lambda tool: "" if tool == "yosys" else "not here")
    monkeypatch.setattr(verify, "REPORTED_EVERY_S", 0.02)

    def slow(command: list[str], directory: Path, limit_s: float) -> str:
        while len(said) < 3:
            time.sleep(0.01)
        for path in re.findall(r"tee -q -o (\S+)", command[-1]):
            Path(path).write_text("")
        return ""

    monkeypatch.setattr(verify, "_run", slow)
    verify.synthesise(directory, report=said.append)
    assert said[0] == f"synthesis by yosys: {verify.YOSYS_TAKES}"
    assert all(re.fullmatch(r"synthesis by yosys: \d+ s so far", line) for line in said[1:-1])
    assert len(said) >= 4
    assert re.fullmatch(r"synthesis by yosys: \d+\.\d s", said[-1])


@needs("icarus")
def test_simulations_are_told_with_their_cycles(tmp_path: Path) -> None:
    said: list[str] = []
    found = verify.verify(
        verilog.write(small(), tmp_path / "chip"), ["icarus"], lint=False, report=said.append
    )
    cycles = found["simulators"]["icarus"]["cycles"]
    assert said[0] == f"icarus: {cycles:,} cycles"
    assert re.fullmatch(r"icarus: \d+\.\d s", said[-1])
