"""Work in processes of our own, which end with their parent however that ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from spikebridge.base.records import RunError, terminated

KILLED = (
    "a working process was killed, perhaps for want of memory; what is complete is kept, try again "
    "with fewer --jobs"
)
UNGUARDED = (
    "working processes ended as they began; a script that starts them runs its work under "
    '`if __name__ == "__main__":`, or else with jobs=1'
)
LOOK_EVERY_S = 0.25
PATIENCE_S = 5.0
"""How long a process may take to let its files go before it is killed."""


class Killed(RunError):
    """A working process was killed by the system or by hand."""


# Of mallopt(3).  glibc takes no larger threshold for a mapping of its own than 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MMAP_MOST = -1, -3, 32 * 2**20


def keep_freed_pages() -> None:
    """Let this process reuse what it frees rather than hand it back to the system.

    A step of training frees what the next one allocates again, and glibc gives and takes it page by
    page.  For processes that are ours to set up: it holds for everything in them.  Elsewhere than
    with glibc nothing happens.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    set_option(_M_MMAP_THRESHOLD, _MMAP_MOST)
    set_option(_M_TRIM_THRESHOLD, 2**31 - 1)


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables by which a user says how threads wait."""
SPINS = 10_000
"""Turns in which a thread of OpenMP waits for work before it sleeps; libgomp's own are 300,000."""


def let_threads_sleep() -> None:
    """Let threads that wait for the next parallel region spin briefly only; before torch is loaded.

    Where other programs want the processors, a thread that spins takes the time that the one which
    it waits for needs: a training may take fifty times as long.  Sleeping at once costs time where
    the machine is idle and the regions are short (benchmarks/threads.py).  What the user has set
    holds.  For processes that are ours to set up: what they start inherits it.  OpenMP reads it
    once, as it is loaded with torch: after that nothing happens here.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


class _Process(SpawnProcess):
    """A process that begins with the setting of `let_threads_sleep`.

    Its main module, which may import torch, is loaded before anything of ours.
    """

    def start(self) -> None:
        if any(name in os.environ for name in WAITING):
            super().start()
            return
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
        try:
            super().start()
        finally:
            del os.environ["GOMP_SPINCOUNT"]


class _Context(SpawnContext):
    Process = _Process


def make(jobs: int) -> ProcessPoolExecutor:
    """An executor of so many processes.

    They leave Ctrl-C to their parent, and end where it is killed: nothing is left to run on.
    Raises RunError where they end as they begin.
    """
    # spawn: a fork of a process whose torch already has threads may hang.
    executor = ProcessPoolExecutor(jobs, _Context(), initializer=_begin)
    # It watches those processes that it had when it last heard of one: let each speak once,
    # or the death of a later one would go unnoticed until another has finished its work.
    try:
        for first in [executor.submit(time.sleep, 0) for _ in range(jobs)]:
            first.result()
    except BrokenProcessPool as error:
        executor.shutdown(wait=False)
        raise RunError(UNGUARDED) from error
    except BaseException:
        stop(executor)
        raise
    return executor


def stop(executor: ProcessPoolExecutor) -> None:
    """End an executor at once, and no other process; what its processes have written stays."""
    # Taken before the shutdown, which forgets them; Python has no public name for them before 3.14.
    processes = list((executor._processes or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():  # in the middle of a long product, perhaps
            process.kill()


def results(
    work: Callable[[Any], Any],
    todo: Sequence[tuple[Any, Any]],
    jobs: int,
    look: Callable[[], None] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """(key, work(argument)) for each (key, argument), as they come in.

    With one job, or one thing to do, in this process.  Else `look` is called now and then while
    they work.  Raises Killed where a process was killed.
    """
    if jobs == 1 or len(todo) < 2:
        yield from ((key, work(argument)) for key, argument in todo)
        return
    executor = make(min(jobs, len(todo)))
    futures = {executor.submit(work, argument): key for key, argument in todo}
    try:
        waiting = set(futures)
        while waiting:
            done, waiting = wait_for(waiting, look and LOOK_EVERY_S, FIRST_COMPLETED)
            for future in sorted(done, key=_is_killed):
                if _is_killed(future):
                    raise Killed(KILLED)
                yield futures[future], future.result()
            if look is not None:
                look()
    except BaseException:
        stop(executor)
        raise
    executor.shutdown()


def _is_killed(future: Future[Any]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _begin() -> None:
    keep_freed_pages()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminated)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    """End with the parent: one that was killed can tell nobody."""
    wait([sentinel])
    os._exit(1)
