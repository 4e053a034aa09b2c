"""`spikebridge export` on the command line, and what the demo does with the digital chip."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_runs import tiny

from spikebridge.base.records import RunError
from spikebridge.chip import verification as verify
from spikebridge.chip.files import load_program
from spikebridge.cli import demo
from spikebridge.cli import main as cli
from spikebridge.nn.network import load_network
from spikebridge.runs import rundir, training
from spikebridge.settings.config import override
from spikebridge.studies import plan
from spikebridge.trained import on_cells, on_chip

SMALL: dict[str, Any] = {
    "hidden": (8,),
    "steps": 4,
    "epochs": 1,
    "batch_size": 256,
    "threads": 1,
}
EQUAL = "RTL equal to the integer model on 20 images in icarus: spikes, membranes, cycles."
Verify = Callable[..., dict[str, Any]]


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of an SNU."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    training.run(tiny("snu"), folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_export_tells_what_it_found_and_writes_the_page(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spikebridge(f"export {run}") == 0
    said = capsys.readouterr().out
    content = json.loads((run / rundir.DIGITAL).read_text())
    for told in (
        f"test accuracy (%): {100 * content['integer']:.2f} in integers",
        "8-bit weights",
        "energy per sample, 40 nm",
        f"page: {run / 'report.html'}",
    ):
        assert told in said
    assert "On the digital chip" in (run / "report.html").read_text()
    assert load_program(run / rundir.PROGRAM).inputs == 64


def test_export_prints_one_json_object(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"export {run} --weight-bits 4 --lanes 8 --samples 100 --no-report --json"
    assert spikebridge(line) == 0
    said = json.loads(capsys.readouterr().out)
    stored = json.loads((run / rundir.DIGITAL).read_text())
    assert said == stored | {"verilog": None, "report": None}
    assert said["program"]["weight_bits"] == 4
    assert said["chip"]["lanes"] == 8
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("unit", "settings", "told"),
    [
        ("softsnu", {}, "the chip cannot run this network"),
        ("lstm", {}, "the chip cannot run this network"),
        ("snu", {"coding": "current"}, "the chip takes spikes"),
    ],
)
def test_what_the_chip_cannot_run_is_refused(
    unit: str,
    settings: Any,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training.run(tiny(unit, epochs=1, **settings), tmp_path / "run")
    capsys.readouterr()
    assert spikebridge(f"export {tmp_path / 'run'}") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("spikebridge: ")
    assert told in said.err
    assert "snu" in said.err or "--coding rate" in said.err
    assert not (tmp_path / "run" / rundir.DIGITAL).exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("", "there is no complete run in it; name a finished run"),
        ("--images 0", "images=0"),
        ("--samples -1", "samples=-1"),
        ("--lanes 3", "lanes=3: it must be a power of two"),
        ("--out elsewhere", "out=elsewhere: it is where Verilog goes"),
        ("--to program --out elsewhere", "pass --to verilog too, or leave --out out"),
        ("--weight-bits 1", "weight_bits=1"),
    ],
)
def test_wrong_words_are_named(
    flags: str, told: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not flags:
        (run / rundir.RESULT).unlink()
        (run / rundir.MODEL).unlink()
    assert spikebridge(f"export {run} {flags}") == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""


def test_verify_runs_what_export_wrote(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"export {run} --to verilog --images 3 --samples 100 --no-report"
    assert spikebridge(line) == 0
    assert f"spikebridge verify {run / 'verilog'}" in capsys.readouterr().out
    monkeypatch.setattr(verify, "verify", passes)
    assert spikebridge(f"verify {run / 'verilog'} --simulators icarus") == 0
    assert "icarus: PASS: 20 samples" in capsys.readouterr().out
    monkeypatch.setattr(verify, "verify", fails)
    assert spikebridge(f"verify {run / 'verilog'} --simulators icarus") == 1
    assert "icarus: FAIL: sample 3" in capsys.readouterr().out
    assert spikebridge(f"verify {run / 'verilog'} --simulators icarus --json") == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_a_damaged_program_beside_the_verilog_is_told(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spikebridge(f"export {run} --to verilog --samples 20 --images 2 --no-report") == 0
    whole = (run / rundir.PROGRAM).read_bytes()
    (run / rundir.PROGRAM).write_bytes(whole[:500])
    capsys.readouterr()
    assert spikebridge(f"verify {run / 'verilog'} --simulators icarus") == 1
    told = capsys.readouterr().err
    assert "program.npz is not a whole program" in told
    assert "export the network again" in told


def test_verify_wants_a_simulator(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spikebridge(f"export {run} --to verilog --images 1 --samples 1 --no-report") == 0
    capsys.readouterr()
    monkeypatch.setattr(verify, "verify", None)
    assert spikebridge(f"verify {run / 'verilog'} --simulators") == 2
    said = capsys.readouterr()
    assert "simulators: none is named, and nothing would be compared; pass --simul" in said.err
    assert said.out == ""


def test_export_tells_how_far_biases_are_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, finer = tmp_path / "run", "--fraction-bits 4 rounds them finer"
    training.run(tiny("binary-di", coding="threshold", steps=1, weight_bits=3, epochs=1), run)
    capsys.readouterr()
    told = {}
    for flags in ("", "--fraction-bits 4"):
        assert spikebridge(f"export {run} --no-report {flags}") == 0
        told[flags] = capsys.readouterr().out
        program = load_program(run / rundir.PROGRAM)
        network = load_network(run / rundir.MODEL)
        wanted = network.readout.linear.bias.detach().double().numpy()
        unit = program.readout.scale[0]  # the last bit of a weight
        off = abs(program.readout.bias * unit / (1 << program.fraction_bits) - wanted).max()
        largest = float(network.readout.linear.weight.detach().abs().max())
        share = f"weights off by 0.00%, biases by up to {off / largest:.2%} of the largest weight"
        assert share in told[flags]
        assert 0 < off < 0.51 * unit / (1 << program.fraction_bits)
    assert "layer1: 64 to 8, weights off by 0.00%, 100" in told[""], "thresholds took its biases up"
    assert f"biases are rounded to 0 fraction bits; {finer}" in told[""]
    assert finer not in told["--fraction-bits 4"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a small demo, trained only."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    for one in plan.plan(contenders(), plan.DEMO_SEEDS, folder):
        training.run(one.config, one.directory)
    return folder


def contenders() -> list[plan.Contender]:
    found = plan.demo_contenders()
    return [replace(one, config=override(one.config, **SMALL)) for one in found]


@pytest.fixture
def folder(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small demo whose runs are trained; memory cells are left out, and no simulator is there."""
    small = contenders()
    monkeypatch.setattr(plan, "demo_contenders", lambda: small)
    monkeypatch.setattr(on_cells, "deploy", lambda *args: None)
    monkeypatch.setattr(training, "run", None)
    monkeypatch.setattr(verify, "missing", lambda tool: f"{tool} not installed: make tools")
    return Path(shutil.copytree(done, tmp_path / "demo"))


def installed(monkeypatch: pytest.MonkeyPatch, name: str, answer: Verify) -> None:
    """A simulator that answers so."""
    monkeypatch.setattr(verify, "missing", lambda tool: "" if tool == name else "make tools")
    monkeypatch.setattr(verify, "verify", answer)


def passes(directory: Path, simulators: tuple[str, ...], **_: Any) -> dict[str, Any]:
    assert (directory / "program.json").exists()
    (name,) = simulators
    verdict = {"passed": True, "verdict": "PASS: 20 samples"}
    return {"passed": True, "simulators": {name: verdict}, "missing": {}, "lint": {}}


def fails(directory: Path, simulators: tuple[str, ...], **_: Any) -> dict[str, Any]:
    (name,) = simulators
    verdict = {"passed": False, "verdict": "FAIL: sample 3, layer 1: membrane 5, not 6"}
    return {"passed": False, "simulators": {name: verdict}, "missing": {}, "lint": {}}


def test_the_demo_takes_what_it_can_to_the_chip(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch, "icarus", passes)
    assert spikebridge(f"demo --jobs 1 --out {folder}") == 0
    first = capsys.readouterr()
    assert "On the digital chip" in first.out
    assert EQUAL in first.out
    content = json.loads((folder / "compare.json").read_text())
    snu, soft, lstm = content["rows"]
    assert snu["chip"]["networks"] == 3
    assert soft["chip"] is None
    assert lstm["chip"] is None
    assert content["rtl"]["run"] == "snu-0"
    assert content["rtl"]["equal"] is True
    page = (folder / "report.html").read_text()
    for told in (EQUAL, "soft SNU, LSTM: numbers instead of spikes", "snu-0/report.html"):
        assert told in page
    own = (folder / "snu-0" / "report.html").read_text()
    assert EQUAL in own
    assert not (folder / "snu-1" / "verilog").exists()
    assert json.loads((folder / "snu-0/verilog/program.json").read_text())["bench"]["samples"] == 20
    # A second time nothing is done.
    for name in ("export", "samples_for_rtl"):
        monkeypatch.setattr(on_chip, name, None)
    monkeypatch.setattr(verify, "verify", None)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert spikebridge(f"demo --jobs 1 --out {folder}") == 0
    assert capsys.readouterr().out == first.out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == times


def test_without_a_simulator_the_demo_says_so_and_tries_when_there_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spikebridge(f"demo --jobs 1 --out {folder}") == 0
    told = "The Verilog of this network was not simulated: no simulator is installed; make tools."
    first = capsys.readouterr()
    assert told in first.out
    assert told in (folder / "report.html").read_text()
    assert spikebridge(f"demo --jobs 1 --out {folder}") == 0
    assert capsys.readouterr().out == first.out
    installed(monkeypatch, "verilator", passes)
    assert spikebridge(f"demo --jobs 1 --out {folder}") == 0
    told = EQUAL.replace("icarus", "verilator")
    assert told in capsys.readouterr().out
    assert told in (folder / "report.html").read_text()


def test_a_simulator_that_fails_loses_nothing_and_is_asked_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def broken(directory: Path, simulators: tuple[str, ...], **_: Any) -> dict[str, Any]:
        asked.append(simulators)
        raise RunError("icarus failed: it said\nnothing")

    installed(monkeypatch, "icarus", broken)
    for _ in range(2):
        assert spikebridge(f"demo --jobs 1 --out {folder}") == 0
        said = capsys.readouterr()
        assert "snu-0: icarus failed (icarus failed: it said nothing)" in said.err
        assert "was not simulated: icarus failed" in said.out
    assert asked == [("icarus",), ("icarus",)]
    assert json.loads((folder / "compare.json").read_text())["rtl"]["equal"] is None
    assert (folder / "report.html").exists()


def test_unequal_verilog_is_an_error_after_all_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch, "icarus", fails)
    told = (
        "RTL NOT equal to the integer model on 20 images in icarus: FAIL: sample 3, layer 1: "
        "membrane 5, not 6."
    )
    for _ in range(2):  # it does not get better by itself
        assert spikebridge(f"demo --jobs 1 --out {folder}") == 1
        said = capsys.readouterr()
        assert told in said.err
        assert f"spikebridge verify {folder / 'snu-0' / 'verilog'}" in said.err
        assert "On the digital chip" in said.out
    assert told in (folder / "report.html").read_text()
    assert json.loads((folder / "compare.json").read_text())["rtl"]["equal"] is False
    assert all(rundir.is_complete(folder / f"{unit}-0") for unit in ("snu", "softsnu", "lstm"))


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="iverilog is not installed")
def test_the_real_simulator_agrees(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "missing", lambda tool: "" if tool == "icarus" else "make tools")
    assert demo.SIMULATORS[0] == "icarus"
    assert spikebridge(f"demo --jobs 1 --out {folder} --json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["rtl"]["reason"] == ""
    assert content["rtl"]["equal"] is True
