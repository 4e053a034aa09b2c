"""One writer to a folder, files whole or not at all, and what the system refuses in one line."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import tiny

from spikebridge.base import storage
from spikebridge.base.records import RunError, UsageError
from spikebridge.base.storage import owning, replace, write_json
from spikebridge.cli import main as cli
from spikebridge.crossbar.network import cell_of, to_crossbar
from spikebridge.nn.network import build, load_network, save_network
from spikebridge.runs import rundir, training
from spikebridge.settings.crossbar import CellConfig
from spikebridge.settings.model import ModelConfig

ROOT = Path(cli.__file__).parents[2]
SPIKEBRIDGE = [sys.executable, "-m", "spikebridge"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TINY = "--hidden 8 --steps 4 --batch-size 256 --threads 1"

posix = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")


def spikebridge(line: str) -> int:
    return cli.main(shlex.split(line))


def started(line: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SPIKEBRIDGE, *shlex.split(line)],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        **more,
    )


def until(child: subprocess.Popen[str], text: str) -> None:
    assert child.stderr is not None
    for heard in child.stderr:
        if text in heard:
            return
    raise AssertionError(f"the process never said {text!r}")


HOLDER = """
import sys
from pathlib import Path
from spikebridge.base.storage import owning
with owning(Path(sys.argv[1]), "train", make=True):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that owns the folder `held`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "held")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    training.run(tiny(), directory)
    return directory


@pytest.mark.parametrize(
    "line",
    [
        "train digits --out held --overwrite",
        "train digits --out held --resume",
        "train digits --out held",
        "train digits --protocol permuted --out held",
        "compare digits --out held",
        "search digits --units snu --out .",
        "demo --out held",
        "reproduce jsb --quick --out held",
        "reproduce grapes-forgetting-split --quick --out held",
        "report held",
        "program held",
        "evaluate held",
        "complexity held",
        "export held",
    ],
)
@posix
def test_a_folder_that_another_process_writes_is_refused_by_every_command(
    line: str,
    whole: Path,
    tmp_path: Path,
    holder: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if line.startswith("search"):
        Path("snu").symlink_to("held")  # each unit has a folder of its own
    reading = ("report", "program", "evaluate", "complexity", "export")
    if line.startswith(reading):
        shutil.copytree(whole, "held", dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in Path("held").iterdir()}
    assert spikebridge(line) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"a run is going on in {'snu' if 'search' in line else 'held'}" in said
    assert f"process {holder.pid} since 20" in said
    assert "(spikebridge train)" in said
    assert {path.name: path.read_bytes() for path in Path("held").iterdir()} == before


@posix
def test_two_processes_on_one_folder_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = f"train digits {TINY} --epochs 300 --no-report --out run"
    with started(f"{line} --seed 1 --overwrite") as first:
        until(first, "epoch 2/300")
        assert spikebridge(f"{line} --seed 2 --overwrite") == 2
        assert f"a run is going on in run, process {first.pid} since" in capsys.readouterr().err
        first.send_signal(signal.SIGKILL)
    assert Path("run", storage.LOCK).exists()  # of a process that is no more
    assert rundir.read_config(Path("run")).train.seed == 1
    again = f"train digits {TINY} --epochs 3 --seed 2 --no-report --out run --overwrite"
    assert spikebridge(again) == 0
    assert rundir.read_result(Path("run")).seed == 2
    assert not list(Path("run").glob(".*"))


@posix
def test_a_dead_holder_is_seen_through(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    held = tmp_path / "held"
    holder.kill()
    holder.wait()
    assert json.loads((held / storage.LOCK).read_text())["process"] == holder.pid
    with owning(held, "train"):
        assert json.loads((held / storage.LOCK).read_text())["process"] == os.getpid()
    assert not list(held.iterdir())


@posix
def test_a_note_that_names_a_living_process_is_no_lock(tmp_path: Path) -> None:
    note = {"process": os.getppid(), "host": "elsewhere", "since": "2020", "command": "x"}
    (tmp_path / storage.LOCK).write_text(json.dumps(note))  # its number was given out anew
    with owning(tmp_path, "train"):
        pass
    assert not list(tmp_path.iterdir())


@posix
def test_one_thread_owns_a_folder_again_and_another_does_not(tmp_path: Path) -> None:
    def refused() -> None:
        try:
            with owning(tmp_path / ".", "report"):
                found.append("owned")
        except UsageError as error:
            found.append(str(error))

    found: list[str] = []
    (tmp_path / "link").symlink_to(tmp_path)
    with owning(tmp_path, "train"), owning(tmp_path / "link", "report"):
        other = threading.Thread(target=refused)
        other.start()
        other.join()
    assert f"a run is going on in {tmp_path}, process {os.getpid()} since" in found[0]
    refused()
    assert found[1] == "owned"


@posix
def test_a_forked_child_neither_holds_nor_frees_what_its_parent_owns(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from spikebridge.base.records import UsageError
from spikebridge.base.storage import owning
folder = Path({str(tmp_path)!r})
with owning(folder, "train"):
    if not os.fork():
        try:
            with owning(folder, "train"):
                os._exit(1)
        except UsageError:
            os._exit(0)
    assert os.wait()[1] == 0
    assert (folder / ".lock").exists()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT, timeout=60)


def test_a_folder_that_stayed_empty_is_taken_away(tmp_path: Path) -> None:
    with owning(tmp_path / "a" / "b", "train", make=True):
        assert (tmp_path / "a" / "b" / storage.LOCK).exists()
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with owning(tmp_path / "mine" / "b", "train", make=True):
        (tmp_path / "mine" / "b" / "x").write_text("kept")
    assert (tmp_path / "mine" / "b" / "x").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    number: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, run = os.open, tmp_path / "run"
    shutil.copytree(whole, run)

    def refusing(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT and Path(path).parent == run:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(storage.os, "open", refusing)
    for command in ("report", "evaluate", "complexity", "export", "program"):
        assert spikebridge(f"{command} {run}") == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert f"{run}: the folder cannot be written ({os.strerror(number)}); " in said


def limited(kilobytes: int, line: str) -> subprocess.CompletedProcess[str]:
    """A command whose files may have so many KiB, as on a disk that fills up."""
    command = f"ulimit -f {kilobytes}; exec {shlex.join([*SPIKEBRIDGE, *shlex.split(line)])}"
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, timeout=100
    )


@posix
def test_a_disk_that_is_full_is_told_in_one_line_and_the_run_goes_on_later(tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = f"train digits {TINY} --hidden 64 --epochs 2 --no-report --out {run}"
    ended = limited(16, line)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    said = ended.stderr.strip().splitlines()[-1]
    assert said == (
        f"spikebridge: {run}/checkpoint.safetensors: File too large; "
        "make room and start again; what was complete is kept"
    )
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "environment.json",
        "metrics.jsonl",
    ]
    assert spikebridge(f"{line} --resume") == 0


@posix
@pytest.mark.parametrize("command", ["reproduce --list", "info"])
def test_an_output_that_is_closed_or_full(command: str) -> None:
    with started(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.close()  # before anything was written
        assert child.stderr is not None
        said = child.stderr.read()
    assert child.returncode == 1, said
    assert said == "spikebridge: the output was closed before all of it was written\n"
    if not Path("/dev/full").exists():
        return
    with open("/dev/full", "w") as full, started(command, stdout=full) as child:
        assert child.stderr is not None
        said = child.stderr.read()
    assert child.returncode == 1, said
    assert said.startswith("spikebridge: No space left on device; make room")
    assert said.count("\n") == 1


WRITER = """
import os, signal, sys
from pathlib import Path
from spikebridge.base.storage import replace
def write(part):
    part.write_text("half")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.readline()
replace(Path(sys.argv[1]), write)
"""


def writer(path: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


@posix
def test_what_killed_processes_were_writing_never_piles_up(tmp_path: Path) -> None:
    path = tmp_path / "x[1].json"
    with writer(path, "wait") as living:
        assert living.stdout is not None
        assert living.stdout.readline() == "writing\n"
        for _ in range(2):
            with writer(path, "die") as dead:
                pass
            assert dead.returncode == -signal.SIGKILL
        (tmp_path / ".y.json.12-0123abcd.part").write_text("of another file")
        (tmp_path / ".part").write_text("the user's")
        write_json(path, {"whole": True})
        left = sorted(file.name for file in tmp_path.glob(".*"))
        assert [name.split("-")[0] for name in left] == [
            ".part",
            f".x[1].json.{living.pid}",
            ".y.json.12",
        ]
        with owning(tmp_path, "train"):  # of whatever file
            assert not (tmp_path / ".y.json.12-0123abcd.part").exists()
        living.communicate("\n")
        assert living.returncode == 0
    assert path.read_text() == "half"  # who was last
    assert sorted(file.name for file in tmp_path.iterdir()) == [".part", path.name]


def test_what_earlier_versions_left_behind_goes(tmp_path: Path) -> None:
    for name in (".model.safetensors.123.tmp", ".result.json.part", ".metrics.jsonl.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".notes.json").write_text("the user's")
    with owning(tmp_path, "train"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".notes.json"]


def test_the_first_error_is_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(part: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(part))

    def read_only(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError, match="No space left") as caught:
        replace(tmp_path / "x", full)
    assert caught.value.filename == str(tmp_path / "x")  # and not a temporary name


@posix
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_gives(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        run, network = tmp_path / "run", build(ModelConfig(hidden=(4,)), 3, 2, "mean")
        training.run(tiny(epochs=1), run)
        save_network(network, tmp_path / "network.safetensors")
        cells = to_crossbar(network, cell_of(CellConfig("ideal")))
        cells.save(tmp_path / "chip.safetensors")
    finally:
        os.umask(before)
    files = [*run.iterdir(), *tmp_path.glob("*.safetensors")]
    assert len(files) > 8
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {
        path.name: mode for path in files
    }


def test_equal_networks_are_equal_bytes(tmp_path: Path) -> None:
    found = set()
    for number in range(8):  # the library's own order of metadata is another each time
        torch.manual_seed(3)
        path = tmp_path / f"{number}.safetensors"
        save_network(build(ModelConfig(hidden=(5, 4)), 3, 2, "mean"), path)
        found.add(path.read_bytes())
        assert load_network(path).state_dict()["readout.linear.bias"].shape == (2,)
    assert len(found) == 1


def test_json_that_is_nested_too_deeply_is_an_error_with_a_remedy(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("config.json", "environment.json", "metrics.jsonl", "result.json", "memory.json"):
        before = (run / name).read_bytes() if (run / name).exists() else b""
        for damage in ("deep", "folder"):
            (run / name).unlink(missing_ok=True)
            (run / name).mkdir() if damage == "folder" else (run / name).write_text("[" * 100_000)
            assert spikebridge(f"report {run}") == 2
            (said,) = capsys.readouterr().err.splitlines()
            assert f"{run / name}" in said
            assert ("nested too deeply" if damage == "deep" else "Is a directory") in said
        (run / name).rmdir()
        if before:
            (run / name).write_bytes(before)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert spikebridge(f"train digits --config {tmp_path / 'deep.json'}") == 2
    assert "nested too deeply" in capsys.readouterr().err


def test_numbers_that_are_text_in_a_config(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    plain = json.loads((run / rundir.CONFIG).read_text())
    plain["model"]["hidden"] = ["8"]
    (run / rundir.CONFIG).write_text(json.dumps(plain))
    assert spikebridge(f"report {run}") == 2
    assert "hidden=('8',): expected a list of whole numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["evaluate {}", "train digits --out {}", "train npz --data-dir {}"]
)
def test_a_name_that_is_too_long(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert spikebridge(line.format("a" * 5000)) in (1, 2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "File name too long" in said
    assert "give a shorter name" in said
    assert len(said) < 1000


@posix
def test_sigterm_ends_a_run_with_one_line(tmp_path: Path) -> None:
    line = f"train digits {TINY} --epochs 300 --no-report --out run"
    with started(line, cwd=tmp_path) as child:
        until(child, "epoch 2/300")
        child.terminate()
        assert child.stderr is not None
        rest = child.stderr.read()
    assert child.returncode == 143
    assert "Traceback" not in rest
    assert rest.strip().splitlines()[-1] == (
        f"spikebridge: terminated; go on with: spikebridge {line}"
    )
    assert not list((tmp_path / "run").glob(".*"))
    assert (tmp_path / "run" / rundir.CHECKPOINT).exists()


@posix
@pytest.mark.parametrize(
    ("module", "number", "code", "word"),
    [
        ("tyro", signal.SIGINT, 130, "interrupted"),
        ("torch", signal.SIGINT, 130, "interrupted"),
        ("torch", signal.SIGTERM, 143, "terminated"),
    ],
)
def test_a_signal_while_starting(
    module: str, number: int, code: int, word: str, tmp_path: Path
) -> None:
    """A module that sends it when it is imported, in place of the real one."""
    text = f"import os\nos.kill(os.getpid(), {int(number)})\nimport time\ntime.sleep(5)\n"
    (tmp_path / f"{module}.py").write_text(text)
    with subprocess.Popen(
        [*SPIKEBRIDGE, "train", "digits", "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    ) as child:
        assert child.stderr is not None
        said = child.stderr.read()
    assert child.returncode == code
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1] == f"spikebridge: {word}; nothing was begun"
    assert not (tmp_path / "run").exists()


def test_runs_that_failed_to_be_made_leave_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"the folder cannot be made .*; change --out"):
        training.run(tiny(), tmp_path / "file" / "run")
    with pytest.raises((RunError, UsageError)):
        training.run(tiny(start=str(tmp_path / "none")), tmp_path / "new")
    assert not (tmp_path / "new").exists()
