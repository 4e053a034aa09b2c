"""What a user adds without touching the package: each example runs as it stands, and by its name.

Everything is done in a folder of its own that holds the examples, as a user would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spikebridge.cli import main as cli
from spikebridge.runs import rundir
from spikebridge.settings import names

ROOT = Path(__file__).parents[1]
OWN = sorted((ROOT / "examples").glob("own_*.py"))
SMALL = "--epochs 1 --hidden 8 --steps 3 --threads 1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in OWN:
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(names.VARIABLE, "")
    yield tmp_path  # type: ignore[misc]
    for path in OWN:
        sys.modules.pop(path.stem, None)
    names._imported.cache_clear()


def spikebridge(line: str) -> int:
    return cli.main(line.split())


def elsewhere(code: str) -> subprocess.CompletedProcess[str]:
    """A program in a process that has imported nothing of the user's."""
    ours = {"PYTHONPATH": f"{ROOT}{os.pathsep}.", "OMP_NUM_THREADS": "1", names.VARIABLE: ""}
    environment = os.environ | ours
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


LOADS = """
import sys, torch, spikebridge
from spikebridge.settings import names
try:
    spikebridge.load_network("run/model.safetensors")
except names.NotAllowedError as error:
    print(error)
assert "own_unit" not in sys.modules
names.allow("own_unit")
print(spikebridge.load_network("run/model.safetensors")(torch.rand(3, 2, 64))[0].shape)
"""


def test_examples_are_short_and_named_where_a_contributor_looks() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(OWN) == 6
    for path in OWN:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path.name
        assert path.name in guide


def test_a_unit_of_ones_own_trains_resumes_compares_and_reports(folder: Path) -> None:
    train = f"train digits --unit own_unit:SynapticUnit {SMALL} --out run"
    assert spikebridge(train) == 0
    assert rundir.read_result(Path("run")).label == "synaptic SNU"
    assert spikebridge(f"{train} --resume") == 0
    assert spikebridge("report run") == 0
    assert "synaptic SNU on 8 × 8 digits" in Path("run/report.html").read_text(encoding="utf-8")
    units = "softsnu own_unit:SynapticUnit recurrent-own_unit:SynapticUnit"
    assert spikebridge(f"compare digits --units {units} --seeds 0 {SMALL} --out table") == 0
    page = Path("table/report.html").read_text(encoding="utf-8")
    assert "recurrent synaptic SNU" in page


def test_a_file_does_not_have_a_module_imported(folder: Path) -> None:
    assert spikebridge(f"train digits --unit own_unit:SynapticUnit {SMALL} --out run") == 0
    done = elsewhere(LOADS)
    assert done.returncode == 0, done.stderr
    refused, outputs = done.stdout.splitlines()
    assert "run/model.safetensors: unit='own_unit:SynapticUnit': it stands in" in refused
    assert "set the environment variable SPIKEBRIDGE_MODULES=own_unit" in refused
    assert outputs == "torch.Size([2, 10])"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("os:system", "must be a subclass of spikebridge.Unit"),
        ("own_unit:Nothing", "own_unit has no Nothing"),
        ("nowhere_at_all:Unit", "there is no module nowhere_at_all"),
    ],
)
def test_what_is_no_unit_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], place: str, message: str
) -> None:
    assert spikebridge(f"train digits --unit {place} {SMALL} --out run") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        "--surrogate own_surrogate:STEEP",
        "--cells own_cell:FILAMENT",
        "--rule own_rule:Manhattan --optimizer sgd --lr 1e-4 --momentum 0",
    ],
)
def test_a_part_of_ones_own_trains_by_its_name(folder: Path, flags: str) -> None:
    assert spikebridge(f"train digits {flags} {SMALL}") == 0
    (run,) = Path("runs").iterdir()
    assert ":" not in run.name
    assert rundir.is_complete(run)


def test_a_task_of_ones_own_trains_by_its_name(folder: Path) -> None:
    small = SMALL.replace("--steps 3", "")
    own = "own --task-class own_task:DelayedXor --data xor"
    assert spikebridge(f"train {own} {small} --out run") == 0
    assert spikebridge("complexity run") == 0
    assert rundir.read_result(Path("run")).data == "xor"


def test_a_section_of_ones_own_stands_on_the_page(folder: Path) -> None:
    assert spikebridge(f"train digits {SMALL} --no-report --out run") == 0
    assert spikebridge("report run --section own_section:silent_neurons") == 0
    assert "Silent neurons" in Path("run/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["own_unit", "own_surrogate", "own_cell"])
def test_the_examples_run_as_programs(folder: Path, name: str) -> None:
    done = elsewhere(Path(f"{name}.py").read_text())
    assert done.returncode == 0, done.stderr
    assert done.stdout
