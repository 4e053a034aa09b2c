"""Messages to a bench: strange ones, large ones, wrong ones."""

from __future__ import annotations

import copy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.benches import SHAPE, assert_equal_state, connect, once, simulated
from torch import Tensor

from spikebridge.base.records import RunError, UsageError
from spikebridge.crossbar import pcm
from spikebridge.crossbar.bench import client, protocol
from spikebridge.crossbar.bench import server as serving
from spikebridge.crossbar.bench.client import RemoteArray, _Failure, _Link
from spikebridge.crossbar.bench.server import Server, serve
from spikebridge.crossbar.cells import MOST_AT_ONCE, SimulatedArray, checked_counts

SESSION = "0123456789abcdef"


# What no RemoteArray sends is said by hand.


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
    with pytest.raises(ValueError, match="'melt' is no command of a bench"):
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
        with connect(server) as remote:
            remote._limit = 200
            with pytest.raises(UsageError, match=r"program: the message has 0\.00 MiB, more"):
                remote.program(torch.ones(SHAPE))
            remote.reset()  # its number was not used up
        with pytest.raises(UsageError, match=r"max_message_MiB=0.05: a command to 24 cells"):
            connect(server, max_message_MiB=0.05)
    with pytest.raises(UsageError, match=r"a command to 160,000 cells, \(400, 400\), takes 1.28 M"):
        serve(simulated(shape=(400, 400)), max_message_MiB=1.0)
    for limit in (0.0, 2048.0, float("nan")):
        with pytest.raises(UsageError, match="a message has at most 2 GiB"):
            serve(array, max_message_MiB=limit)


def test_wrong_arguments_are_errors_at_once(server: Server, array: SimulatedArray) -> None:
    before = copy.deepcopy(array)
    with connect(server) as remote:
        server.stop()  # nothing is sent
        nan = torch.ones(SHAPE)
        nan[1, 2] = float("nan")
        beyond = torch.full(SHAPE, 13.0)
        for target, text in ((nan, "NaN"), (torch.ones(4), "must be"), (beyond, r"in \[0, 12\]")):
            with pytest.raises(ValueError, match=text):
                remote.program(target)
        with pytest.raises(ValueError, match="at least 0, got -1"):
            remote.pulse(once(-1))
        with pytest.raises(TypeError, match="counts are whole numbers"):
            remote.pulse(once().float())
        with pytest.raises(ValueError, match="where must be bool"):
            remote.reset(torch.ones(3, dtype=torch.bool))
        for seconds in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="time passes forward"):
                remote.wait(seconds)
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copy.deepcopy(remote)
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
def test_what_the_array_raises_comes_through(
    server: Server,
    array: SimulatedArray,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    kind: type[Exception],
    text: str,
) -> None:
    def fail() -> Tensor:
        raise raised

    with connect(server) as remote:
        monkeypatch.setattr(array, "read", fail)
        with pytest.raises(kind, match=text) as caught:
            remote.read()
        assert type(caught.value) is kind
        monkeypatch.setattr(array, "read", lambda: torch.zeros(3))
        with pytest.raises(RuntimeError, match=r"read gave \(3,\) for cells \(4, 6\)"):
            remote.read()
        remote.pulse(once())
    assert array.pulses.eq(1).all()


def test_pulses_that_a_model_does_not_know_are_a_value_error() -> None:
    with serve(simulated(pcm.ITERATIVE)) as server, connect(server) as remote:
        assert remote.pulse_curve_uS == ()
        with pytest.raises(ValueError, match="'iterative' knows no single pulses"):
            remote.pulse(once())


def test_numbers_of_pulses_that_would_take_minutes_are_refused_at_once(
    server: Server, array: SimulatedArray
) -> None:
    with connect(server) as remote:
        for most in (MOST_AT_ONCE + 1, 10**6, 2**62):
            for target in (remote, array):
                with pytest.raises(ValueError, match="at most 2,000 for a cell"):
                    target.pulse(once(most))
        remote.pulse(once(MOST_AT_ONCE))
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
            with connect(server, token="t", timeout_s=5.0, retry_s=0.0) as remote:
                remote.pulse(once())
                assert remote.read().shape == SHAPE
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


def test_commands_and_replies_that_lack_a_part_are_clear_errors(say: Any) -> None:
    parts = (("program", "target_uS"), ("pulse", "counts"), ("wait", "seconds_s"))
    for number, (call, part) in enumerate(parts, start=1):
        with pytest.raises(ValueError, match=f"the command lacks {part}"):
            say(call, sequence=number)
    with pytest.raises(ValueError, match="seconds_s=soon"):
        say("wait", seconds_s="soon", sequence=4)
    for error in ("ValueError", "NoSuch", 7, ["x"]):
        with pytest.raises((ValueError, RuntimeError), match=r"reports an error, .* and no reason"):
            protocol.opened(protocol.pack({"error": error}))
    with pytest.raises(ValueError, match="7"):
        protocol.opened(protocol.pack({"error": "ValueError", "message": 7}))


def test_a_reply_of_something_else_is_a_run_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(server) as remote:
        monkeypatch.setattr(_Link, "send", lambda *_: protocol.pack({}))
        for ask in (remote.read, lambda: remote.clock_s):
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
        RemoteArray(address, retry_s=1.0)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith(f"{address}: no answer yet (UNAVAILABLE); trying again for 1 s")
