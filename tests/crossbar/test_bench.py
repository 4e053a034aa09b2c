"""A chip on another machine: every command once, whatever becomes of the connection."""

from __future__ import annotations

import ast
import contextlib
import copy
import datetime
import importlib.util
import ipaddress
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor

from spikebridge.base.records import RunError, UsageError
from spikebridge.cli import bench
from spikebridge.cli.bench import Bench
from spikebridge.crossbar import pcm
from spikebridge.crossbar.bench import client, protocol
from spikebridge.crossbar.bench import server as serving
from spikebridge.crossbar.bench.client import RemoteDevice, _Failure, _Link
from spikebridge.crossbar.bench.server import SESSIONS, Server, serve
from spikebridge.crossbar.cells import MOST_AT_ONCE, Device, SimulatedArray, checked_counts

SHAPE = (4, 6)
SESSION = "0123456789abcdef"
EXAMPLE = Path(__file__).parents[2] / "examples" / "lab_instrument.py"


def simulated(cell: pcm.Cell = pcm.ACCUMULATION, shape: tuple[int, ...] = SHAPE) -> SimulatedArray:
    return SimulatedArray(shape, cell, seed=3, dead=0.1)


def once(counts: int = 1) -> Tensor:
    return torch.full(SHAPE, counts)


def connect(server: Server, **more: Any) -> RemoteDevice:
    return RemoteDevice(server.address, **({"timeout_s": 20.0, "retry_s": 0.3} | more))


def assert_equal_state(a: SimulatedArray, b: SimulatedArray) -> None:
    mine, other = a.state_dict(), b.state_dict()
    assert mine.keys() == other.keys()
    for name in mine:
        assert torch.equal(mine[name], other[name]), name


@pytest.fixture
def array() -> SimulatedArray:
    return simulated()


@pytest.fixture
def server(array: SimulatedArray) -> Iterator[Server]:
    with serve(array) as server:
        yield server


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


def random_command(device: Device, rng: random.Random, draws: torch.Generator) -> Tensor | None:
    """One of the commands; the same ones from the same generators."""
    where = torch.rand(SHAPE, generator=draws) < 0.5
    match rng.choice(["pulse", "pulse", "program", "some", "reset", "read", "read", "wait"]):
        case "pulse":
            device.pulse(torch.randint(3, SHAPE, generator=draws))
        case "program":
            device.program(12 * torch.rand(SHAPE, generator=draws))
        case "some":
            device.program(12 * torch.rand(SHAPE, generator=draws), where)
        case "reset":
            device.reset(where)
        case "wait":
            device.wait(rng.uniform(0, 100))
        case "read":
            return device.read()
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
        with RemoteDevice(proxy.address, timeout_s=20, retry_s=20) as device:
            done = 0
            while proxy.cuts < 100 or done < 100:
                found, expected = (
                    random_command(which, *seed)
                    for which, seed in zip((device, twin), seeds, strict=True)
                )
                assert (found is None) == (expected is None)
                assert found is None or expected is None or torch.equal(found, expected)
                done += 1
            assert device.clock_s == twin.clock_s
    assert server.repeated > 10  # replies were lost, and came again
    assert_equal_state(array, twin)


def test_a_remote_device_is_the_device(server: Server, array: SimulatedArray) -> None:
    with connect(server, shape=SHAPE) as device:
        assert isinstance(device, Device)
        for name in ("shape", "name", "g_max_uS", "clock_s", "pulse_curve_uS"):
            assert getattr(device, name) == getattr(array, name), name
        device.wait(1e9)  # no deadline is too far away
        assert device.clock_s == 1e9
        spread = torch.ones(4, 1, dtype=torch.bool).expand(SHAPE)
        device.reset(spread)
        device.program(torch.ones(6, 4, dtype=torch.float64).T, spread)
        assert device.read().dtype == torch.float32
        assert "accumulation" in repr(device)


def test_a_line_that_falls_silent_is_left(server: Server, array: SimulatedArray) -> None:
    with Proxy(server.port, lambda: None) as proxy:
        plans: list[Plan] = [("down", 130, "silent")]
        proxy.plan = lambda: plans.pop() if plans else None
        with RemoteDevice(proxy.address, timeout_s=0.5, retry_s=20) as device:
            device.pulse(once())
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
    with serve(slow) as server, connect(server, timeout_s=0.2, retry_s=20) as device:
        threading.Timer(0.7, slow.go_on.set).start()
        device.pulse(once())
        assert server.repeated == 1
    assert slow.calls == 1
    assert slow.pulses.eq(1).all()


def test_a_command_in_doubt_can_be_settled() -> None:
    slow = Slow()
    with serve(slow) as server, connect(server, timeout_s=0.2, retry_s=0.0) as device:
        with pytest.raises(RunError, match=r"`pulse` \(command 1\) may or may not have been carr"):
            device.pulse(once())
        with pytest.raises(RunError, match=r"is still in doubt; call settle\(\)"):
            device.read()
        slow.go_on.set()
        assert device.settle() is None
        assert device.settle() is None
        device.pulse(once())
        assert slow.calls == 2
    assert slow.pulses.eq(2).all()


def test_a_bench_that_stops_finishes_what_it_does() -> None:
    slow = Slow()
    with serve(slow) as server, connect(server) as device:
        user = threading.Thread(target=device.pulse, args=(once(),))
        user.start()
        while not slow.calls:
            time.sleep(0.01)
        threading.Timer(0.2, slow.go_on.set).start()
        server.stop()
        assert slow.pulses.eq(1).all()
        user.join()
        with pytest.raises(RunError, match=r"`read` \(command 2\) was not carried out"):
            device.read()
        with pytest.raises(RunError, match="check that a bench runs there"):
            _ = device.clock_s
    with pytest.raises(RunError, match=r"no answer within 0\.3 s of trying again"):
        connect(server)


def test_a_bench_that_was_started_anew_knows_no_session(server: Server) -> None:
    with connect(server, retry_s=5) as device:
        device.pulse(once())
        server.stop()
        with serve(simulated(), port=server.port):
            with pytest.raises(RunError, match="does not know this session: it was started anew"):
                device.pulse(once())
            with pytest.raises(RunError, match="does not know this session"):
                device.read()  # the pulse was not carried out for certain: nothing is in doubt


def test_sessions_are_numbered_by_themselves_and_bounded(
    server: Server, array: SimulatedArray
) -> None:
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(connect(server)) for _ in range(SESSIONS)]
        for device in (*devices, *devices):
            device.pulse(once())
        stack.enter_context(connect(server))
        with pytest.raises(RunError, match=f"or {SESSIONS} others came since"):
            devices[0].pulse(once())
        devices[1].pulse(once())
    assert array.pulses.eq(2 * SESSIONS + 1).all()


def test_users_take_turns(server: Server, array: SimulatedArray) -> None:
    def use(device: RemoteDevice) -> None:
        for _ in range(10):
            device.pulse(once())
            device.read()

    with connect(server) as one, connect(server) as two:
        users = [threading.Thread(target=use, args=(device,)) for device in (one, one, two, two)]
        for user in users:
            user.start()
        for user in users:
            user.join()
    assert array.pulses.eq(40).all()


# What no RemoteDevice sends is said by hand.


@pytest.fixture
def say(server: Server) -> Iterator[Callable[..., Any]]:
    link = _Link(server.address, "", None, 2**22, 5.0, 0.0)

    def said(call: str, tensors: dict[str, Tensor] | None = None, **more: Any) -> Any:
        return protocol.opened(
            link.send(protocol.pack({"call": call, "session": SESSION, **more}, tensors))
        )

    said("hello", version=protocol.VERSION)
    said.link = link  # type: ignore[attr-defined]
    yield said
    link.farewell(protocol.pack({"call": "bye", "session": SESSION}))


def test_only_the_next_command_is_carried_out(say: Any, array: SimulatedArray) -> None:
    say("pulse", {"counts": once()}, sequence=1)
    say("pulse", {"counts": once()}, sequence=1)
    assert array.pulses.eq(1).all()
    say("hello", version=protocol.VERSION)  # one that was late changes nothing
    values = [say("read", sequence=2)[1]["g_uS"] for _ in range(2)]
    assert torch.equal(*values)
    assert not torch.equal(say("read", sequence=3)[1]["g_uS"], values[0])
    for wrong in (0, 1, 2, 5, -1, None, "4", True, 4.0):
        with pytest.raises(_Failure, match=f"command {wrong} is not next after 3"):
            say("pulse", {"counts": once()}, sequence=wrong)
    with pytest.raises(_Failure, match="command 3 is not next after 3"):
        say("pulse", {"counts": once()}, sequence=3)  # the number of the last, and not the last
    assert array.pulses.eq(1).all()


def test_errors_are_kept_as_well(say: Any) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="target_uS holds NaN"):
            say("program", {"target_uS": torch.full(SHAPE, float("nan"))}, sequence=1)
    with pytest.raises(ValueError, match="'melt' is no command of a device"):
        say("melt", sequence=2)
    with pytest.raises(ValueError, match="where must be bool"):
        say("reset", {"where": once()}, sequence=3)
    with pytest.raises(ValueError, match="time passes forward"):
        say("wait", seconds_s=-1.0, sequence=4)


def test_strange_messages_are_refused(say: Any) -> None:
    good = protocol.pack({"call": "read"})
    deep = b"[" * 100_000
    for message in (b"", b"x", good[:-1], good + b"x", len(deep).to_bytes(8, "little") + deep):
        with pytest.raises(_Failure, match="this is no message of a bench"):
            say.link.send(message)
    with pytest.raises(_Failure, match="a session is named by"):
        say.link.send(good)
    with pytest.raises(ValueError, match="its header is no object"):
        protocol.unpack(protocol.pack([]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no message"):
        protocol.unpack(b"\xff" * 8)


def test_a_message_too_large_is_refused(array: SimulatedArray) -> None:
    with serve(array, max_message_MiB=0.1) as server:
        link = _Link(server.address, "", None, 2**22, 5.0, 0.0)
        with pytest.raises(_Failure, match=r"too large .*raise max_message_MiB on both sides"):
            link.send(b"x" * 2**20)
        link.farewell(b"")
        with connect(server) as device:
            device._limit = 200
            with pytest.raises(UsageError, match=r"program: the message has 0\.00 MiB, more"):
                device.program(torch.ones(SHAPE))
            device.reset()  # its number was not used up
        with pytest.raises(UsageError, match=r"max_message_MiB=0.05: a command to 24 cells"):
            connect(server, max_message_MiB=0.05)
    with pytest.raises(UsageError, match=r"a command to 160,000 cells, \(400, 400\), takes 1.28 M"):
        serve(simulated(shape=(400, 400)), max_message_MiB=1.0)
    for limit in (0.0, 2048.0, float("nan")):
        with pytest.raises(UsageError, match="a message has at most 2 GiB"):
            serve(array, max_message_MiB=limit)


def test_wrong_arguments_are_errors_at_once(server: Server, array: SimulatedArray) -> None:
    before = copy.deepcopy(array)
    with connect(server) as device:
        server.stop()  # nothing is sent
        nan = torch.ones(SHAPE)
        nan[1, 2] = float("nan")
        beyond = torch.full(SHAPE, 13.0)
        for target, text in ((nan, "NaN"), (torch.ones(4), "must be"), (beyond, r"in \[0, 12\]")):
            with pytest.raises(ValueError, match=text):
                device.program(target)
        with pytest.raises(ValueError, match="at least 0, got -1"):
            device.pulse(once(-1))
        with pytest.raises(TypeError, match="counts are whole numbers"):
            device.pulse(once().float())
        with pytest.raises(ValueError, match="where must be bool"):
            device.reset(torch.ones(3, dtype=torch.bool))
        for seconds in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="time passes forward"):
                device.wait(seconds)
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copy.deepcopy(device)
    assert_equal_state(array, before)


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (UsageError("u"), UsageError, "^u$"),
        (RunError("r"), RunError, "^r$"),
        (TypeError("t"), TypeError, "^t$"),
        (RuntimeError("the probe is off"), RuntimeError, "^the probe is off$"),
        (OSError(5, "µ line noise"), RuntimeError, r"OSError: .*µ line noise"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_the_device_raises_comes_through(
    server: Server,
    array: SimulatedArray,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    kind: type[Exception],
    text: str,
) -> None:
    def fail() -> Tensor:
        raise raised

    with connect(server) as device:
        monkeypatch.setattr(array, "read", fail)
        with pytest.raises(kind, match=text) as caught:
            device.read()
        assert type(caught.value) is kind
        monkeypatch.setattr(array, "read", lambda: torch.zeros(3))
        with pytest.raises(RuntimeError, match=r"read gave \(3,\) for cells \(4, 6\)"):
            device.read()
        device.pulse(once())
    assert array.pulses.eq(1).all()


def test_pulses_that_a_model_does_not_know_are_a_value_error() -> None:
    with serve(simulated(pcm.ITERATIVE)) as server, connect(server) as device:
        assert device.pulse_curve_uS == ()
        with pytest.raises(ValueError, match="'iterative' knows no single pulses"):
            device.pulse(once())


def test_numbers_of_pulses_that_would_take_minutes_are_refused_at_once(
    server: Server, array: SimulatedArray
) -> None:
    with connect(server) as device:
        for most in (MOST_AT_ONCE + 1, 10**6, 2**62):
            for target in (device, array):
                with pytest.raises(ValueError, match="at most 2,000 for a cell"):
                    target.pulse(once(most))
        device.pulse(once(MOST_AT_ONCE))
    assert array.pulses.eq(MOST_AT_ONCE).all()
    many = torch.full((1000, 1000), 1001)
    with pytest.raises(ValueError, match="at most 1,000,000,000 for all cells together, got 1,001"):
        checked_counts(many, SimulatedArray((1000, 1000), pcm.ACCUMULATION))


def test_callers_without_a_message_keep_nobody_from_the_cells(
    array: SimulatedArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    grpc, done = protocol.load_grpc(), threading.Event()

    def nothing() -> Iterator[bytes]:
        done.wait(60)
        yield from ()

    with serve(array, token="t") as server:
        with grpc.insecure_channel(server.address) as channel:
            call = channel.stream_unary(protocol.PATH)
            shown = (("authorization", "Bearer t"),)
            silent = [call.future(nothing(), metadata=shown) for _ in range(40)]
            time.sleep(0.3)
            with connect(server, token="t", timeout_s=5.0, retry_s=0.0) as device:
                device.pulse(once())
                assert device.read().shape == SHAPE
            done.set()
            for each in silent:
                with pytest.raises(grpc.RpcError, match="one message, this one none"):
                    each.result()
        # A worker is not kept for ever.
        monkeypatch.setattr(serving, "PATIENCE_S", 0.2)
        done.clear()
        with grpc.insecure_channel(server.address) as channel:
            call = channel.stream_unary(protocol.PATH)
            late = call.future(nothing(), metadata=shown)
            with pytest.raises(grpc.RpcError, match="CANCELLED"):
                late.result(10)
            done.set()


def test_commands_and_replies_that_lack_a_part_are_clear_errors(server: Server) -> None:
    with connect(server) as device:
        for call, part in (("program", "target_uS"), ("pulse", "counts"), ("wait", "seconds_s")):
            with pytest.raises(ValueError, match=f"the command lacks {part}"):
                device._do(call, {})
        with pytest.raises(ValueError, match="seconds_s=soon"):
            device._do("wait", {}, seconds_s="soon")
    for error in ("ValueError", "NoSuch", 7, ["x"]):
        with pytest.raises((ValueError, RuntimeError), match=r"reports an error, .* and no reason"):
            protocol.opened(protocol.pack({"error": error}))
    with pytest.raises(ValueError, match="7"):
        protocol.opened(protocol.pack({"error": "ValueError", "message": 7}))


def test_a_reply_of_something_else_is_a_run_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(server) as device:
        monkeypatch.setattr(_Link, "send", lambda *_: protocol.pack({}))
        for ask in (device.read, lambda: device.clock_s):
            with pytest.raises(
                RunError, match=r"the reply lacks .*; check that a bench of the same"
            ):
                ask()
        with pytest.raises(RunError, match="the reply lacks shape"):
            connect(server)


def test_who_waits_for_a_bench_is_told_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "SILENT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(RunError, match="no answer within 1 s of trying again"):
        RemoteDevice(address, retry_s=1.0)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith(f"{address}: no answer yet (UNAVAILABLE); trying again for 1 s")


# Who may use it.


def test_version_and_shape_must_agree(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'accumulation' has the shape \(4, 6\), expected \(2,\)"):
        connect(server, shape=(2,))
    monkeypatch.setattr(protocol, "VERSION", 2)
    with pytest.raises(UsageError, match=r"speaks version 1 .* its user version 2; install the sa"):
        connect(server)


def test_the_token_is_asked_for(array: SimulatedArray) -> None:
    with serve(array, token="correct-horse") as server:
        with connect(server, token="correct-horse") as device:
            device.pulse(once())
        for token in ("", "wrong", "correct-hors", "correct-horse1"):
            with pytest.raises(UsageError, match="the token is missing or wrong; pass the token"):
                connect(server, token=token)
        link = _Link(server.address, "wrong", None, 2**22, 5.0, 0.0)
        with pytest.raises(_Failure, match="the token is missing or wrong"):
            link.send(b"x" * 2**25)  # refused without being read
    for token in ("two words", "größe", "line\n"):
        with pytest.raises(UsageError, match="the token holds spaces") as caught:
            serve(array, token=token)
        assert token not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "lab.example"])
def test_beyond_loopback_it_takes_tls_and_a_token(
    array: SimulatedArray, host: str, pem: dict[str, Path]
) -> None:
    with pytest.raises(UsageError, match="it lacks a token and TLS: give a token, a certificate"):
        serve(array, host=host)
    with pytest.raises(UsageError, match="it lacks TLS"):
        serve(array, host=host, token="t")
    with pytest.raises(UsageError, match="it lacks a token:"):
        serve(array, host=host, certificate=pem["certificate"], key=pem["key"])
    address = f"[{host}]:1" if ":" in host else f"{host}:1"
    with pytest.raises(UsageError, match="beyond this machine a token and all commands would be"):
        RemoteDevice(address, token="t")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A self-signed certificate for localhost and 127.0.0.1, its key, and a stranger's."""
    folder = tmp_path_factory.mktemp("pem")
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    paths = {}
    for which, names in {
        "": hosts,
        "other_": hosts,
        "else_": [x509.DNSName("lab.example")],
    }.items():
        key = ec.generate_private_key(ec.SECP256R1())
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = made.public_bytes(serialization.Encoding.PEM)
        for what, content in (("certificate", public), ("key", private)):
            paths[which + what] = folder / f"{which}{what}.pem"
            paths[which + what].write_bytes(content)
    return paths


def test_tls(array: SimulatedArray, pem: dict[str, Path]) -> None:
    guards = {"token": "t", "certificate": pem["certificate"]}
    with serve(array, host="0.0.0.0", key=pem["key"], **guards) as server:  # type: ignore[arg-type]
        for host in ("localhost", "127.0.0.1"):
            with RemoteDevice(f"{host}:{server.port}", **guards) as device:  # type: ignore[arg-type]
                device.pulse(once())
        local = f"localhost:{server.port}"
        with pytest.raises(UsageError, match="certificate is not trusted"):
            RemoteDevice(local, token="t", certificate=pem["other_certificate"])
        with pytest.raises(RunError, match="with TLS where a certificate is given"):
            RemoteDevice(local, token="t", retry_s=0)
    assert array.pulses.eq(2).all()
    elsewhere = {"certificate": pem["else_certificate"], "key": pem["else_key"]}
    with (
        serve(array, **elsewhere) as server,  # type: ignore[arg-type]
        pytest.raises(UsageError, match="certificate is not trusted"),
    ):
        RemoteDevice(server.address, certificate=pem["else_certificate"])


def test_what_cannot_be_served_is_said(
    server: Server, array: SimulatedArray, pem: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{server.port}; take a port"):
        serve(array, port=server.port)
    with pytest.raises(UsageError, match="port=99999: a port lies in 0 to 65535"):
        serve(array, port=99999)
    with pytest.raises(UsageError, match="TLS needs a certificate and its key"):
        serve(array, key=pem["key"])
    with pytest.raises(UsageError, match=r"certificate.pem: holds no PRIVATE KEY"):
        serve(array, certificate=pem["key"], key=pem["certificate"])
    with pytest.raises(UsageError, match=r"none.pem: cannot be read \(No such file"):
        serve(array, certificate=tmp_path / "none.pem", key=pem["key"])
    with pytest.raises(UsageError, match="Tensor is no Device; it lacks clock_s, g_max_uS"):
        serve(once())  # type: ignore[arg-type]
    for address in ("127.0.0.1", "localhost:", ":5", "localhost:http"):
        with pytest.raises(UsageError, match="give HOST:PORT"):
            RemoteDevice(address)
    with pytest.raises(UsageError, match="give finite numbers of seconds"):
        RemoteDevice("localhost:1", timeout_s=0)


def test_a_device_that_was_closed_says_so(server: Server) -> None:
    with connect(server) as device:
        device.pulse(once())
    device.close()
    with pytest.raises(UsageError, match="this RemoteDevice was closed"):
        device.read()
    with pytest.raises(UsageError, match="this RemoteDevice was closed"):
        _ = device.clock_s


def test_without_grpc_the_error_says_what_to_install(
    array: SimulatedArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    for start in (lambda: serve(array), lambda: RemoteDevice("localhost:1")):
        with pytest.raises(UsageError, match=r"pip install 'spikebridge\[remote\]'"):
            start()


# The command, and the example.


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    code = (
        "import signal, sys, tyro; from spikebridge.cli.bench import Bench\n"
        "assert 'torch' not in sys.modules\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells may set it off
        "tyro.cli(Bench, config=(tyro.conf.OmitArgPrefixes,)).run()"
    )
    words = ["serve", "--shape", "4", "6", "--port", "0", "--token-file", "token"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        with RemoteDevice(address, token="from-a-file", shape=SHAPE) as device:
            device.pulse(once())
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    assert "accumulation, (4, 6) cells, a token, no TLS; Ctrl-C stops" in told
    assert "from-a-file" not in told


SLOW = """
import time
from spikebridge.crossbar.cells import SimulatedArray
from spikebridge.crossbar.pcm import ACCUMULATION

class Slow(SimulatedArray):
    def reset(self, where=None):
        time.sleep(60)

def make():
    return Slow((4, 6), ACCUMULATION)
"""


def cut_off(device: RemoteDevice) -> None:
    with pytest.raises(RunError, match="may or may not have been carried out"):
        device.reset()


def test_a_second_ctrl_c_ends_a_bench_that_is_at_work(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    code = (
        "import signal, sys; from spikebridge.cli.main import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells may set it off
        "sys.exit(main())"
    )
    words = ["bench", "serve", "--port", "0", "--instrument", "slow:make"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            address = process.stdout.readline().strip()
            assert address, process.stderr.read()
            with RemoteDevice(address, timeout_s=20.0, retry_s=0.0) as device:
                caller = threading.Thread(target=cut_off, args=(device,))
                caller.start()
                while device._open is None:
                    time.sleep(0.01)
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                told = ""
                while "Ctrl-C again stops at once" not in told:
                    told = process.stderr.readline()
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=30) == 130
                assert process.stderr.read() == "stopped; the command under way may be half done\n"
                caller.join(30)
        finally:
            process.kill()


def test_a_shape_beyond_messages_or_memory_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match=r"1,000,000,000,000 cells, .* divide the cells"):
        Bench("serve", shape=(10**6, 10**6)).run()

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("spikebridge.crossbar.cells.SimulatedArray", fails)
    with pytest.raises(UsageError, match=r"shape=\(4, 6\): the cells do not fit into the memory"):
        Bench("serve", shape=SHAPE).run()


def run_briefly(request: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Device]:
    """Name and shape of what a command serves, before it is interrupted."""
    found = []

    def interrupted(self: Server, timeout_s: float | None = None) -> None:
        found.append(self._desk._device)
        raise KeyboardInterrupt

    monkeypatch.setattr(serving.Server, "wait", interrupted)
    request.run()
    return found[0].name, found[0].shape


def test_the_command_finds_devices_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_chip.py").write_text(
        "from spikebridge.crossbar import cells, pcm\n"
        "def make(shape): return cells.SimulatedArray(shape, pcm.ITERATIVE)\n"
    )
    (tmp_path / "own_broken.py").write_text("import not_there_either\n")
    monkeypatch.setenv(bench.TOKEN, "secret-word")

    def briefly(instrument: str, shape: tuple[int, ...] = ()) -> Any:
        return run_briefly(Bench("serve", instrument, shape, port=0), monkeypatch)

    assert briefly("lab_instrument:connect") == ("ACME PS-12", (4, 3))
    assert briefly("own_chip:make", (2, 3)) == ("iterative", (2, 3))
    assert briefly("", (5,)) == ("accumulation", (5,))
    said = capsys.readouterr()
    assert said.out.count("127.0.0.1:") == 3
    assert "a token" in said.err
    assert "secret-word" not in said.err + said.out
    for name in ("lab_instrument", "own_chip"):
        del sys.modules[name]
    with pytest.raises(UsageError, match="there is no module nowhere; start in its folder"):
        briefly("nowhere:make")
    with pytest.raises(ModuleNotFoundError, match="not_there_either"):
        briefly("own_broken:make")
    with pytest.raises(UsageError, match="own_chip has no function build"):
        briefly("own_chip:build")
    with pytest.raises(UsageError, match="pass MODULE:FUNCTION of your own"):
        briefly("own_chip")
    with pytest.raises(UsageError, match="simulated cells need sides of at least 1"):
        briefly("")
    with pytest.raises(UsageError, match="pass --seed 0"):
        Bench("serve", shape=(1,), seed=-1).run()


def test_the_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(bench.TOKEN, raising=False)
    assert bench.read_token(None) == ""
    monkeypatch.setenv(bench.TOKEN, "env")
    assert bench.read_token(None) == "env"
    (tmp_path / "t").write_text(" file\n")
    assert bench.read_token(tmp_path / "t") == "file"
    (tmp_path / "t").write_text("\n")
    with pytest.raises(UsageError, match="is empty; `openssl rand"):
        bench.read_token(tmp_path / "t")
    with pytest.raises(UsageError, match="cannot be read as a token"):
        bench.read_token(tmp_path / "u")


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_instrument", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_in_40_lines(example: ModuleType) -> None:
    found = example.main([])
    assert found.shape == (4, 3)
    assert found.flatten()[5] == pytest.approx(0.1)
    assert found.eq(5).sum() == 11
    source = EXAMPLE.read_text(encoding="utf-8")
    (chip,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == "LabChip"]
    lines = source.splitlines()[chip.lineno - 1 : chip.end_lineno]
    assert sum(bool(line.strip()) for line in lines) <= 40


def test_errors_of_the_example_instrument_come_through(example: ModuleType) -> None:
    with serve(example.connect()) as server, connect(server) as device:
        with pytest.raises(RuntimeError, match=r"the instrument reports no contact \(-200\)"):
            device.reset()
        before = device.clock_s
        device.wait(0.01)
        assert device.clock_s >= before + 0.01
        device.read()
