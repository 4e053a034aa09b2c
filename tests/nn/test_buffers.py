"""Buffers of the native kernel: dead results serve the next, in threads and forks too."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from spikebridge.nn.kernels import native
from spikebridge.nn.scan import scan
from spikebridge.nn.units import make_unit

pytestmark = pytest.mark.skipif(
    native.missing is not None, reason=f"no kernel to compare: {native.missing}"
)


@torch.no_grad()
def test_the_memory_of_a_dead_result_serves_the_next() -> None:
    unit, drive = make_unit("snu", 512), torch.randn(200, 8, 512)
    native.release_buffers()
    live, _ = native.buffer_use()
    y, _ = scan(unit, drive, backend="native")
    address, used = y.data_ptr(), native.buffer_use()
    assert used[0] - live >= y.nbytes
    kept = y.clone()
    other, _ = scan(unit, -drive, backend="native")
    assert other.data_ptr() != address
    assert torch.equal(y, kept)  # a live result is not touched
    view = y[3:5]
    del y
    assert native.buffer_use()[0] == used[0] + (used[0] - live)  # a view keeps it alive
    del view
    assert native.buffer_use()[0] == used[0]
    again, _ = scan(unit, drive, backend="native")
    assert again.data_ptr() == address
    assert torch.equal(again, kept)
    del again, other
    assert native.buffer_use()[1] > 0
    native.release_buffers()
    assert native.buffer_use() == (live, 0)


def test_idle_memory_stays_within_its_limit() -> None:
    unit, drive = make_unit("snu", 512), torch.randn(200, 8, 512)
    usual = native._native.idle_limit()
    assert usual > 0
    native._native.set_idle_limit(2 * drive.nbytes)
    try:
        made = [scan(unit, drive, backend="native") for _ in range(5)]
        del made
        assert 0 < native.buffer_use()[1] <= 2 * drive.nbytes
    finally:
        native._native.set_idle_limit(usual)
        native.release_buffers()


def test_buffers_die_in_other_threads_and_after_the_interpreter() -> None:
    code = """
import threading, torch
from spikebridge.nn.scan import scan
from spikebridge.nn.units import make_unit
unit, drive = make_unit("snu", 256), torch.randn(100, 16, 256)
def work():
    for _ in range(20):
        x = drive.clone().requires_grad_()
        scan(unit, x)[0].sum().backward()
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
kept = scan(unit, drive)[0]
import sys; sys.modules["kept forever"] = kept
print("done")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_buffers_serve_a_child_forked_in_the_middle_of_its_use() -> None:
    code = """
import os, threading
from spikebridge.nn.kernels import native
make, release = native._native.pooled, native._native.release_idle_buffers
stop = threading.Event()
def work():
    while not stop.is_set():
        make([1 << 20], 2, 32)
        release()
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
failed = 0
for _ in range(300):
    child = os.fork()
    if child == 0:
        try:
            make([1 << 20], 2, 32)
        except BaseException:
            os._exit(1)
        os._exit(0)
    failed += os.waitpid(child, 0)[1] != 0
stop.set(); [t.join() for t in threads]
print(failed)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, "0\n"), ended.stderr
