"""Work in several processes, which end with their parent however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from spikebridge.records import RunError

KILLED = (
    "a working process was killed, perhaps for want of memory; what is complete is kept, try again "
    "with fewer --jobs"
)


def make(jobs: int, prepare: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """A pool of so many processes; each calls `prepare` first.

    They leave Ctrl-C to their parent, and end where it is killed: nothing is left to run on.
    """
    # spawn: a fork of a process whose torch already has threads may hang.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(prepare,))


def stop(pool: ProcessPoolExecutor) -> None:
    """End a pool at once; what its processes have written stays."""
    pool.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        process.terminate()


def results(
    work: Callable[[Any], Any], todo: Sequence[tuple[Any, Any]], jobs: int
) -> Iterator[tuple[Any, Any]]:
    """(key, work(argument)) for each (key, argument), as they come in.

    With one job, or one thing to do, in this process.  Raises RunError where a process was killed.
    """
    if jobs == 1 or len(todo) < 2:
        yield from ((key, work(argument)) for key, argument in todo)
        return
    pool = make(min(jobs, len(todo)))
    futures = {pool.submit(work, argument): key for key, argument in todo}
    try:
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool as error:
                raise RunError(KILLED) from error
    except BaseException:
        stop(pool)
        raise
    pool.shutdown()


def _begin(prepare: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    if prepare is not None:
        prepare()


def _follow(sentinel: int) -> None:
    """End with the parent: one that was killed can tell nobody."""
    wait([sentinel])
    os._exit(1)
