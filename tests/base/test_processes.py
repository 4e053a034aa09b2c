"""Working processes end with their parent, and reuse their memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spikebridge.base import processes
from spikebridge.base.records import RunError


def double(value: int) -> int:
    return 2 * value


def die(value: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_with_their_keys(jobs: int) -> None:
    found = dict(processes.results(double, [("a", 1), ("b", 2), ("c", 3)], jobs))
    assert found == {"a": 2, "b": 4, "c": 6}


def test_a_killed_process_is_told() -> None:
    with pytest.raises(RunError, match=r"a working process was killed, .* fewer --jobs"):
        list(processes.results(die, [("a", 1), ("b", 2)], 2))


def test_a_script_without_a_guard_gets_the_remedy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from spikebridge.base import processes\n"
        "print(list(processes.results(abs, [(1, 1), (2, 2)], 2)))\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "RunError: working processes ended as they began" in last
    assert 'if __name__ == "__main__":' in last


PARENT = """
import os, sys, time
from spikebridge.base import processes

def sleep(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(100)

if __name__ == "__main__":
    list(processes.results(sleep, [(k, sys.argv[1]) for k in range(2)], 2))
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(),
    reason="which processes live is read from /proc, which this system lacks",
)
def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script, folder = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(PARENT)
    folder.mkdir()
    with subprocess.Popen([sys.executable, str(script), str(folder)]) as parent:
        for _ in range(600):
            pids = [int(path.name) for path in folder.iterdir()]
            if len(pids) == 2:
                break
            time.sleep(0.1)
        assert len(pids) == 2
        parent.kill()
    for _ in range(100):
        if not any(map(alive, pids)):
            break
        time.sleep(0.1)
    assert not any(map(alive, pids))


FAULTS = """
import resource, sys, torch
from spikebridge.base import processes
if sys.argv[1] == "kept":
    processes.keep_freed_pages()

def step():
    held = [torch.zeros(5_000_000).add(1.0) for _ in range(6)]
    return sum(float(x[0]) for x in held)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(10):  # until the heap has found its layout
    step()
before = faults()
for _ in range(5):
    step()
print((faults() - before) / 5)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept() -> None:
    def run(mode: str) -> float:
        command = [sys.executable, "-c", FAULTS, mode]
        # Of its own accord glibc may keep much or little; here it is told to keep nothing.
        little = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
        environment = {**os.environ, **little}
        ended = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, env=environment
        )
        return float(ended.stdout)

    pages = 12 * 5_000_000 * 4 // os.sysconf("SC_PAGE_SIZE")
    assert run("given back") > 0.5 * pages
    # Mostly none; where blocks happen to lie badly, up to one of the twelve is taken anew.
    assert run("kept") < 0.2 * pages


def waiting_of(value: int) -> tuple[int, dict[str, str]]:
    return value, {name: os.environ[name] for name in processes.WAITING if name in os.environ}


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in processes.WAITING:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_threads_of_working_processes_sleep_while_they_wait(unset: pytest.MonkeyPatch) -> None:
    found = dict(processes.results(waiting_of, [("a", 1), ("b", 2)], 2))
    expected = {"GOMP_SPINCOUNT": str(processes.SPINS)}
    assert found == {"a": (1, expected), "b": (2, expected)}
    assert "GOMP_SPINCOUNT" not in os.environ  # the host's own is left alone


@pytest.mark.parametrize("name", processes.WAITING)
def test_how_threads_wait_is_the_users_choice(unset: pytest.MonkeyPatch, name: str) -> None:
    unset.setenv(name, "7")
    found = dict(processes.results(waiting_of, [("a", 1), ("b", 2)], 2))
    assert found == {"a": (1, {name: "7"}), "b": (2, {name: "7"})}


LOADED = """
import os, sys
from spikebridge.cli.main import main
code = main(["info", "--json"])
assert "torch" in sys.modules
"""


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "passive"}, {"GOMP_SPINCOUNT": "3"}])
def test_the_command_line_sets_it_before_torch_is_loaded(given: dict[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in processes.WAITING}
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        env=kept | given | {"OMP_DISPLAY_ENV": "verbose"},
    )
    # What libgomp itself says that it has read; other runtimes of OpenMP know no such variable.
    read = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    turns = {"OMP_WAIT_POLICY": "0"}.get(next(iter(given), ""), given.get("GOMP_SPINCOUNT"))
    assert not read or read[0] == (turns or str(processes.SPINS))
    expected = given or {"GOMP_SPINCOUNT": str(processes.SPINS)}
    (told,) = (f"{name}={value}" for name, value in expected.items())
    assert json.loads(done.stdout)["waiting"] == told


def test_it_is_not_said_where_it_would_come_too_late(unset: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401

    processes.let_threads_sleep()
    assert "GOMP_SPINCOUNT" not in os.environ


def fail(value: int) -> None:
    raise RunError("a job that fails")


def test_the_host_programs_own_processes_are_left_alone() -> None:
    context = multiprocessing.get_context("spawn")
    own = context.Process(target=time.sleep, args=(100,))
    own.start()
    try:
        with pytest.raises(RunError, match="a job that fails"):
            list(processes.results(fail, [("a", 1), ("b", 2)], 2))
        own.join(0.5)
        assert own.is_alive()
        assert multiprocessing.active_children() == [own]  # and those of the pool have ended
    finally:
        own.kill()
        own.join()


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from spikebridge.base import processes
from spikebridge.base.records import Terminated, terminated
from spikebridge.base.storage import owning

def work(folder):
    with owning(Path(folder), "train", make=True):
        Path(folder, str(os.getpid())).touch()
        time.sleep(100)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    try:
        list(processes.results(work, [(name, f"{sys.argv[1]}/{name}") for name in "ab"], 2))
    except Terminated:
        sys.exit(143)
"""


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(),
    reason="which processes live is read from /proc, which this system lacks",
)
def test_sigterm_ends_the_working_processes_which_let_their_folders_go(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(STOPPED)
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)]
    with subprocess.Popen(command) as parent:
        for _ in range(600):
            pids = [int(path.name) for path in tmp_path.glob("[ab]/[0-9]*")]
            if len(pids) == 2:
                break
            time.sleep(0.1)
        assert len(list(tmp_path.glob("*/.lock"))) == 2
        parent.terminate()
    assert parent.returncode == 143
    assert not any(map(alive, pids))
    assert not list(tmp_path.glob("*/.lock"))
