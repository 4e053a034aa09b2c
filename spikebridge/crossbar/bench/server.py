"""The bench: any `CellArray` served to another machine, which sees it as a `RemoteArray`.

Every command is carried out exactly once.  A user's session numbers its commands 1, 2, 3, ..; the
bench carries out the next number, answers the last one again from the reply that it has kept, and
refuses all others.  So a user whose connection was cut may send a command again without knowing
whether it had arrived.  Reads are numbered as well: a read moves the noise on, and a reply that was
lost must come a second time with the same values.

Several sessions may use one array; they take turns command by command, each with its own numbers.
The bench remembers `SESSIONS` of them, each with its last reply, and forgets the one that has been
quiet for longest when another comes; commands of a forgotten one are refused.  Numbers live in
memory: a bench that was started anew knows no session.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikebridge.base.records import UsageError, listed
from spikebridge.crossbar.bench import protocol
from spikebridge.crossbar.bench.protocol import MAX_MESSAGE_MiB
from spikebridge.crossbar.cells import CellArray

__all__ = ["SESSIONS", "Server", "serve"]

SESSIONS = 8
# Far more than sessions: attempts whose connection was cut wait for their turn beside those after
# them, and so does who sends a call without its message.
WORKERS = 16 * SESSIONS
PATIENCE_S = 120.0
"""How long a call may take to send its message: the largest, on a slow line."""
MEMBERS = ("shape", "name", "g_max_uS", "clock_s", "pulse_curve_uS", *protocol.COMMANDS)


def serve(
    array: CellArray,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str = "",
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    max_message_MiB: float = MAX_MESSAGE_MiB,
) -> Server:
    """Serve an array of cells until the server is stopped; returns once it listens.

    The array is given checked tensors only, and one command at a time, each from some thread.

    Args:
        array: what is served; what it raises is raised again where the command came from.
        host, port: where to listen; port 0 takes a free one.
        token: that users have to show; needed beyond the loopback interface, and so is TLS.
        certificate, key: PEM files for TLS, both or none.
        max_message_MiB: larger messages are refused; 8 bytes per cell must fit.

    Raises UsageError for all of these that cannot be, and where grpcio is missing.
    """
    grpc = protocol.load_grpc()
    protocol.check_token(token)
    if not 0 <= port <= 65535:  # gRPC would take the remainder
        raise UsageError(f"port={port}: a port lies in 0 to 65535; 0 finds one that is free")
    _check_exposure(host, token, certificate, key)
    missing = [name for name in MEMBERS if not hasattr(array, name)]
    if missing:
        raise UsageError(f"{type(array).__name__} is no CellArray; it lacks {listed(missing)}")
    limit = protocol.check_limit(max_message_MiB, tuple(array.shape))
    desk = _Desk(array, limit)
    workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="bench")
    server = grpc.server(workers, options=_options(limit))
    server.add_generic_rpc_handlers((_Door(grpc, token, desk),))
    bound = _bind(grpc, server, _joined(host, port), certificate, key)
    server.start()
    return Server(server, workers, desk, host, bound)


class Server:
    """A bench that listens, made by `serve`; leaving its `with` block stops it."""

    def __init__(
        self, server: Any, workers: ThreadPoolExecutor, desk: _Desk, host: str, port: int
    ) -> None:
        self._server, self._workers, self._desk = server, workers, desk
        self.port = port
        self.address = _joined(host, port)

    @property
    def repeated(self) -> int:
        """How often a command that came again was answered from the reply that was kept."""
        return self._desk.repeated

    def wait(self, timeout_s: float | None = None) -> None:
        """Return once the server was stopped, or after a time in seconds."""
        self._server.wait_for_termination(timeout_s)

    def stop(self, grace_s: float = 5.0) -> None:
        """Take no more commands and return once the array is at rest.

        A command under way is finished; its user has the reply if that takes at most grace_s
        seconds.
        """
        self._server.stop(grace_s).wait()
        self._workers.shutdown(cancel_futures=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _check_exposure(
    host: str, token: str, certificate: str | Path | None, key: str | Path | None
) -> None:
    if (certificate is None) != (key is None):
        raise UsageError("TLS needs a certificate and its key; give both PEM files, or none")
    lacking = [*(["a token"] if not token else []), *(["TLS"] if certificate is None else [])]
    if lacking and not protocol.is_loopback(host):
        raise UsageError(
            f"host={host!r}: whoever reaches the bench can write to its cells; beyond 127.0.0.1 "
            f"it lacks {' and '.join(lacking)}: give a token, a certificate and its key, or reach "
            "it on 127.0.0.1 through an ssh tunnel"
        )


def _options(limit: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.so_reuseport", 0),  # else a second bench could take the same port unnoticed
        # Users ask every 15 s whether a connection still stands; without this they are cut off.
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ]


def _bind(
    grpc: Any, server: Any, address: str, certificate: str | Path | None, key: str | Path | None
) -> int:
    """The port that was taken.  Raises UsageError."""
    text = (
        f"cannot listen on {address}; take a port that is free (0 finds one), an address of this "
        "machine and, for TLS, a certificate that belongs to its key"
    )
    try:
        if certificate is None or key is None:
            bound = server.add_insecure_port(address)
        else:
            pair = (
                protocol.read_pem(key, "PRIVATE KEY"),
                protocol.read_pem(certificate, "CERTIFICATE"),
            )
            bound = server.add_secure_port(address, grpc.ssl_server_credentials((pair,)))
    except (RuntimeError, ValueError) as error:
        raise UsageError(text) from error
    if not bound:  # how earlier versions of grpcio tell
        raise UsageError(text)
    return bound


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Door:
    """Lets calls with the right token through to the desk, before any of their message is read."""

    def __init__(self, grpc: Any, token: str, desk: _Desk) -> None:
        self._secret = f"Bearer {token}".encode() if token else b""
        self._desk, self._status = desk, grpc.StatusCode
        # A handler of streams reads when it asks for a message; the second one never asks.
        self._open = grpc.stream_unary_rpc_method_handler(self._take)
        self._shut = grpc.stream_unary_rpc_method_handler(self._refuse)

    def service(self, call: Any) -> Any:
        """What handles a call, as gRPC asks for it; None for another method."""
        if call.method != protocol.PATH:
            return None
        shown = str(dict(call.invocation_metadata).get("authorization", "")).encode()
        admitted = not self._secret or hmac.compare_digest(shown, self._secret)
        return self._open if admitted else self._shut

    def _take(self, messages: Iterator[bytes], context: Any) -> bytes:
        """The desk's answer to the one message of a call, which must not keep a worker for ever."""
        timer = threading.Timer(PATIENCE_S, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            for message in messages:
                timer.cancel()
                return self._desk.answer(message, context)
        finally:
            timer.cancel()
        return context.abort(self._status.INVALID_ARGUMENT, "a call has one message, this one none")

    def _refuse(self, messages: Any, context: Any) -> None:
        context.abort(self._status.UNAUTHENTICATED, "the token is missing or wrong")


class _Refusal(Exception):
    """A call that is not answered: the name of a gRPC status, and why."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class _Session:
    """Where the commands of a session stand; changed by whose turn it is only."""

    last: int = 0
    digest: bytes = b""
    reply: bytes = b""


class _Desk:
    """Keeps the sessions and hands their commands to the array in turn."""

    def __init__(self, array: CellArray, limit: int) -> None:
        self._array = array
        self._turns, self._table = threading.Lock(), threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self.repeated = 0
        self._facts = {
            "version": protocol.VERSION,
            "shape": [int(side) for side in array.shape],
            "name": str(array.name),
            "g_max_uS": float(array.g_max_uS),
            "pulse_curve_uS": [float(g) for g in array.pulse_curve_uS],
            "limit": limit,
        }

    def answer(self, message: bytes, context: Any) -> bytes:
        """The reply to one call."""
        try:
            return self._answer(message, context)
        except _Refusal as refusal:
            status = getattr(protocol.load_grpc().StatusCode, refusal.status)
            return context.abort(status, str(refusal))

    def _answer(self, message: bytes, context: Any) -> bytes:
        try:
            header, tensors = protocol.unpack(message)
        except ValueError as error:
            raise _Refusal("INVALID_ARGUMENT", str(error)) from error
        call, session = header.get("call"), header.get("session")
        if not isinstance(session, str) or not 16 <= len(session) <= 64:
            raise _Refusal("INVALID_ARGUMENT", "a session is named by 16 to 64 characters")
        if call == "hello":
            return self._hello(header.get("version"), session)
        if call == "bye":
            with self._table:
                self._sessions.pop(session, None)
            return protocol.pack({})
        with self._turn(context):
            if call == "clock":  # changes nothing, and needs no number
                return self._carry_out(header, tensors)
            return self._once(message, header, tensors, session)

    def _hello(self, version: Any, session: str) -> bytes:
        """Facts of the array; the session is known from now on."""
        if version != (own := self._facts["version"]):
            raise _Refusal(
                "INVALID_ARGUMENT",
                f"the bench speaks version {own} of the protocol, its user version {version}; "
                "install the same spikebridge on both machines",
            )
        with self._table:
            self._sessions.setdefault(session, _Session())
            self._sessions.move_to_end(session)
            while len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)
        return protocol.pack(self._facts)

    @contextmanager
    def _turn(self, context: Any) -> Iterator[None]:
        """The array, for one command; given up where nobody waits for the answer any more."""
        while not self._turns.acquire(timeout=0.1):
            if not context.is_active():
                raise _Refusal("CANCELLED", "the caller has gone")
        try:
            if not context.is_active():
                raise _Refusal("CANCELLED", "the caller has gone")
            yield
        finally:
            self._turns.release()

    def _once(
        self, message: bytes, header: dict[str, Any], tensors: dict[str, Tensor], name: str
    ) -> bytes:
        """Carry out the next command of a session, or answer its last one again."""
        with self._table:
            session = self._sessions.get(name)
            if session is not None:
                self._sessions.move_to_end(name)
        if session is None:
            raise _Refusal(
                "FAILED_PRECONDITION",
                "the bench does not know this session: it was started anew, or "
                f"{SESSIONS} others came since; connect again",
            )
        sequence, digest = header.get("sequence"), hashlib.blake2b(message).digest()
        if sequence == session.last and digest == session.digest:
            self.repeated += 1
            return session.reply
        if type(sequence) is not int or sequence != session.last + 1:
            raise _Refusal(
                "FAILED_PRECONDITION",
                f"command {sequence} is not next after {session.last}; a RemoteArray belongs to "
                "one process: connect again",
            )
        reply = self._carry_out(header, tensors)
        session.last, session.digest, session.reply = sequence, digest, reply
        return reply

    def _carry_out(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
        """The array's reply; what it raises is a reply as well."""
        try:
            return self._command(header, tensors)
        except Exception as error:
            if not isinstance(error, protocol.KINDS):
                text = "the cells have failed in a %r"
                logging.getLogger(__name__).warning(text, header.get("call"), exc_info=True)
            return protocol.pack_error(error)

    def _command(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
        array, call = self._array, header.get("call")
        if call == "clock":
            return protocol.pack({"clock_s": float(array.clock_s)})
        arguments = protocol.checked(call, header | tensors, array)
        g = getattr(array, str(call))(*arguments.values())
        if call != "read":
            return protocol.pack({})
        if tuple(g.shape) != tuple(array.shape):
            raise RuntimeError(f"read gave {tuple(g.shape)} for cells {tuple(array.shape)}")
        return protocol.pack({}, {"g_uS": g.detach().to("cpu", torch.float32)})
