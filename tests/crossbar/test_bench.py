"""A bench over the network: nothing lost, nothing doubled, users in turn."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest
import torch
from helpers.benches import SHAPE, assert_equal_state, connect, once, simulated
from torch import Tensor

from spikebridge.base.records import RunError
from spikebridge.crossbar import pcm
from spikebridge.crossbar.bench import client
from spikebridge.crossbar.bench.client import RemoteArray
from spikebridge.crossbar.bench.server import SESSIONS, Server, serve
from spikebridge.crossbar.cells import CellArray, SimulatedArray

Plan = tuple[str, int, str] | None


class Proxy:
    """Passes TCP connections on; `plan` says, for each new one, what becomes of it.

    (direction, n, how): after n bytes "up" (to the bench) or "down", it is closed, reset or falls
    silent; None: it lives.
    """

    def __init__(self, port: int, plan: Callable[[], Plan]) -> None:
        self.plan, self.cuts, self._to = plan, 0, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._stopped = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._stopped:
            if not select.select([self._listener], [], [], 0.02)[0]:
                continue
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._to))
            thread = threading.Thread(target=self._pass_on, args=(near, far, self.plan()))
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, near: socket.socket, far: socket.socket, plan: Plan) -> None:
        watched, left, how = (
            (None, 0, "") if plan is None else ((near, far)[plan[0] == "down"], *plan[1:])
        )
        with near, far, contextlib.suppress(OSError):
            while not self._stopped:
                for source in select.select([near, far], [], [], 0.02)[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    target = far if source is near else near
                    if source is watched and len(data) >= left:
                        target.sendall(data[:left])
                        self.cuts += 1
                        return self._cut(near, far, how)
                    left -= len(data) if source is watched else 0
                    target.sendall(data)

    def _cut(self, near: socket.socket, far: socket.socket, how: str) -> None:
        if how == "reset":
            for end in (near, far):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while how == "silent" and not self._stopped:
            time.sleep(0.02)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join()
        self._listener.close()


def random_command(remote: CellArray, rng: random.Random, draws: torch.Generator) -> Tensor | None:
    """One of the commands; the same ones from the same generators."""
    where = torch.rand(SHAPE, generator=draws) < 0.5
    match rng.choice(["pulse", "pulse", "program", "some", "reset", "read", "read", "wait"]):
        case "pulse":
            remote.pulse(torch.randint(3, SHAPE, generator=draws))
        case "program":
            remote.program(12 * torch.rand(SHAPE, generator=draws))
        case "some":
            remote.program(12 * torch.rand(SHAPE, generator=draws), where)
        case "reset":
            remote.reset(where)
        case "wait":
            remote.wait(rng.uniform(0, 100))
        case "read":
            return remote.read()
    return None


def test_cutting_the_connection_100_times_loses_and_doubles_nothing(
    server: Server, array: SimulatedArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.002)
    monkeypatch.setattr(client, "LONGEST_PAUSE_S", 0.02)
    chance = random.Random(5)

    def plan() -> Plan:
        if proxy.cuts >= 100:
            return None
        how = chance.choice(["close", "reset"])
        return chance.choice(["up", "down"]), chance.randrange(1600), how

    twin = simulated()
    seeds = [(random.Random(1), torch.Generator().manual_seed(2)) for _ in range(2)]
    with Proxy(server.port, lambda: None) as proxy:
        proxy.plan = plan
        with RemoteArray(proxy.address, timeout_s=20, retry_s=20) as remote:
            done = 0
            while proxy.cuts < 100 or done < 100:
                found, expected = (
                    random_command(which, *seed)
                    for which, seed in zip((remote, twin), seeds, strict=True)
                )
                assert (found is None) == (expected is None)
                assert found is None or expected is None or torch.equal(found, expected)
                done += 1
            assert remote.clock_s == twin.clock_s
    assert server.repeated > 10  # replies were lost, and came again
    assert_equal_state(array, twin)


def test_a_remote_array_is_the_array(server: Server, array: SimulatedArray) -> None:
    with connect(server, shape=SHAPE) as remote:
        assert isinstance(remote, CellArray)
        for name in ("shape", "name", "g_max_uS", "clock_s", "pulse_curve_uS"):
            assert getattr(remote, name) == getattr(array, name), name
        remote.wait(1e9)  # no deadline is too far away
        assert remote.clock_s == 1e9
        spread = torch.ones(4, 1, dtype=torch.bool).expand(SHAPE)
        remote.reset(spread)
        remote.program(torch.ones(6, 4, dtype=torch.float64).T, spread)
        assert remote.read().dtype == torch.float32
        assert "accumulation" in repr(remote)


def test_a_line_that_falls_silent_is_left(server: Server, array: SimulatedArray) -> None:
    with Proxy(server.port, lambda: None) as proxy:
        plans: list[Plan] = [("down", 130, "silent")]
        proxy.plan = lambda: plans.pop() if plans else None
        with RemoteArray(proxy.address, timeout_s=0.5, retry_s=20) as remote:
            remote.pulse(once())
        assert proxy.cuts == 1
    assert array.pulses.eq(1).all()


class Slow(SimulatedArray):
    """Takes its time for pulses."""

    def __init__(self) -> None:
        super().__init__(SHAPE, pcm.ACCUMULATION)
        self.go_on, self.calls = threading.Event(), 0

    def pulse(self, counts: Tensor) -> None:
        self.calls += 1
        assert self.go_on.wait(20)
        super().pulse(counts)


def test_a_command_that_outlasts_its_timeout_is_waited_for() -> None:
    slow = Slow()
    with serve(slow) as server, connect(server, timeout_s=0.2, retry_s=20) as remote:
        threading.Timer(0.7, slow.go_on.set).start()
        remote.pulse(once())
        assert server.repeated == 1
    assert slow.calls == 1
    assert slow.pulses.eq(1).all()


def test_a_command_in_doubt_can_be_settled() -> None:
    slow = Slow()
    with serve(slow) as server, connect(server, timeout_s=0.2, retry_s=0.0) as remote:
        with pytest.raises(RunError, match=r"`pulse` \(command 1\) may or may not have been carr"):
            remote.pulse(once())
        with pytest.raises(RunError, match=r"is still in doubt; call settle\(\)"):
            remote.read()
        slow.go_on.set()
        assert remote.settle() is None
        assert remote.settle() is None
        remote.pulse(once())
        assert slow.calls == 2
    assert slow.pulses.eq(2).all()


def test_a_bench_that_stops_finishes_what_it_does() -> None:
    slow = Slow()
    with serve(slow) as server, connect(server) as remote:
        user = threading.Thread(target=remote.pulse, args=(once(),))
        user.start()
        while not slow.calls:
            time.sleep(0.01)
        threading.Timer(0.2, slow.go_on.set).start()
        server.stop()
        assert slow.pulses.eq(1).all()
        user.join()
        with pytest.raises(RunError, match=r"`read` \(command 2\) was not carried out"):
            remote.read()
        with pytest.raises(RunError, match="check that a bench runs there"):
            _ = remote.clock_s
    with pytest.raises(RunError, match=r"no answer within 0\.3 s of trying again"):
        connect(server)


def test_a_bench_that_was_started_anew_knows_no_session(server: Server) -> None:
    with connect(server, retry_s=5) as remote:
        remote.pulse(once())
        server.stop()
        with serve(simulated(), port=server.port):
            with pytest.raises(RunError, match="does not know this session: it was started anew"):
                remote.pulse(once())
            with pytest.raises(RunError, match="does not know this session"):
                remote.read()  # the pulse was not carried out for certain: nothing is in doubt


def test_sessions_are_numbered_by_themselves_and_bounded(
    server: Server, array: SimulatedArray
) -> None:
    with contextlib.ExitStack() as stack:
        remotes = [stack.enter_context(connect(server)) for _ in range(SESSIONS)]
        for remote in (*remotes, *remotes):
            remote.pulse(once())
        stack.enter_context(connect(server))
        with pytest.raises(RunError, match=f"or {SESSIONS} others came since"):
            remotes[0].pulse(once())
        remotes[1].pulse(once())
    assert array.pulses.eq(2 * SESSIONS + 1).all()


def test_users_take_turns(server: Server, array: SimulatedArray) -> None:
    def use(remote: RemoteArray) -> None:
        for _ in range(10):
            remote.pulse(once())
            remote.read()

    with connect(server) as one, connect(server) as two:
        users = [threading.Thread(target=use, args=(remote,)) for remote in (one, one, two, two)]
        for user in users:
            user.start()
        for user in users:
            user.join()
    assert array.pulses.eq(40).all()
