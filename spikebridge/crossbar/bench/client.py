"""Cells on another machine: a `CellArray` whose commands travel to a bench (`bench.server`).

A connection that is cut is made anew and the command sent again under its old number, so that the
bench carries it out exactly once.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from spikebridge.base.records import RunError, UsageError
from spikebridge.crossbar.bench import protocol
from spikebridge.crossbar.bench.protocol import MAX_MESSAGE_MiB

__all__ = ["RemoteArray"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 2.0
SILENT_S = 1.0  # of trying again, after which a user is told what is waited for
# What a connection that is cut or blocked may end in.
PASSING = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "ABORTED"}
# What a bench says before it carries out anything, and how gRPC says that nothing was sent.
REFUSALS = {
    "UNAUTHENTICATED": "the token is missing or wrong; pass the token that the bench was given",
    "UNIMPLEMENTED": "what answers there is no bench; check the address",
    "INVALID_ARGUMENT": "",
    "FAILED_PRECONDITION": "",
}
UNSENT = ("failed to connect to all addresses", "dns resolution failed")


class RemoteArray:
    """The array of a bench, as if it were here.

    Wrong arguments are refused at once; what the array raises is raised here, as ValueError,
    TypeError, UsageError, RunError or, all else, RuntimeError.  Threads may share it: their
    commands follow one another.

    Args:
        address: of the bench, HOST:PORT; the host as it stands in its certificate.
        token: that the bench asks for.
        certificate: PEM file with the bench's certificate, or that of who signed it: use TLS.
        shape: of the cells that are expected, or None for any.
        timeout_s: how long to wait for an answer, in seconds; a `wait` gets its own time on top.
        retry_s: for how long after a first failure a command is sent again, in seconds.
        max_message_MiB: larger messages are neither sent nor taken.

    Raises UsageError for a wrong token, version or shape, RunError where no bench answers.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        certificate: str | Path | None = None,
        shape: tuple[int, ...] | None = None,
        timeout_s: float = 60.0,
        retry_s: float = 20.0,
        max_message_MiB: float = MAX_MESSAGE_MiB,
    ) -> None:
        limit = protocol.check_limit(max_message_MiB)
        self.address = address
        self._link = _Link(address, token, certificate, limit, timeout_s, retry_s)
        self._session = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._sequence = 0
        self._open: _Command | None = None  # sent, and not answered yet
        self._closed = False
        try:
            facts = self._ask("hello", version=protocol.VERSION)
            self.shape: tuple[int, ...] = tuple(self._fact(facts, "shape"))
            self.name: str = self._fact(facts, "name")
            self.g_max_uS: float = self._fact(facts, "g_max_uS")
            self._curve_uS = tuple(self._fact(facts, "pulse_curve_uS"))
            self._limit = min(limit, self._fact(facts, "limit"))
            protocol.check_limit(self._limit / 2**20, self.shape)
            if shape is not None and tuple(shape) != self.shape:
                raise UsageError(
                    f"{address}: the array {self.name!r} has the shape {self.shape}, expected "
                    f"{tuple(shape)}; serve one of that shape"
                )
        except BaseException:
            self.close()
            raise

    @property
    def clock_s(self) -> float:
        """Time on its clock, in seconds."""
        with self._lock:
            return self._fact(self._ask("clock"), "clock_s")

    @property
    def pulse_curve_uS(self) -> tuple[float, ...]:
        """Mean conductance after 0, 1, 2, .. SET pulses from RESET; () where it has none."""
        return self._curve_uS

    def program(self, target_uS: Tensor, where: Tensor | None = None) -> None:
        """Write conductances in the array's best way."""
        self._do("program", target_uS=target_uS, where=where)

    def pulse(self, counts: Tensor) -> None:
        """Blind SET pulses: counts (whole numbers, >= 0) for each cell."""
        self._do("pulse", counts=counts)

    def reset(self, where: Tensor | None = None) -> None:
        """RESET pulses."""
        self._do("reset", where=where)

    def read(self) -> Tensor:
        """Conductances as they are read now, with the noise of this read."""
        return self._fact(self._do("read"), "g_uS")

    def wait(self, seconds_s: float) -> None:
        """Let time pass; an instrument that has no other way takes as long."""
        self._do("wait", seconds_s=seconds_s)

    def settle(self) -> Tensor | None:
        """Finish the command that a RunError has left in doubt, once the bench is back.

        It is sent again under its old number: if it was carried out, it is not a second time.
        Returns what it returns; does nothing where no command is in doubt.
        """
        with self._lock:
            return self._finish().get("g_uS") if self._open is not None else None

    def close(self) -> None:
        """Take leave of the bench; further commands are errors."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._link.farewell(protocol.pack({"call": "bye", "session": self._session}))

    def _fact(self, reply: dict[str, Any], name: str) -> Any:
        if name not in reply:
            raise RunError(
                f"{self.address}: the reply lacks {name}; check that a bench of the same version "
                "runs there"
            )
        return reply[name]

    def _do(self, call: str, **given: Any) -> dict[str, Tensor]:
        """A numbered command, carried out exactly once; the tensors of its reply."""
        arguments = protocol.checked(call, given, self)
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        more = {name: value for name, value in arguments.items() if isinstance(value, float)}
        with self._lock:
            if self._open is not None:
                raise RunError(
                    f"{self.address}: {self._open} is still in doubt; call settle() to finish it, "
                    "or look at the cells through a new RemoteArray"
                )
            header = {"call": call, "session": self._session, "sequence": self._sequence + 1}
            message = protocol.pack({**header, **more}, tensors)
            if len(message) > self._limit:
                raise UsageError(
                    f"{call}: the message has {len(message) / 2**20:.2f} MiB, more than the "
                    f"{self._limit / 2**20:g} MiB that are taken; raise max_message_MiB on both "
                    "sides"
                )
            self._open = _Command(call, self._sequence + 1, message, sum(more.values()))
            return self._finish()

    def _finish(self) -> dict[str, Tensor]:
        """Send the open command until it is answered, or known to be refused, or in doubt."""
        assert self._open is not None
        command, first = self._open, not self._open.tried
        command.tried = True
        try:
            reply = self._exchange(command.message, command.longer_s)
        except _Failure as failure:
            if failure.harmless and first:
                self._open = None  # its number is free for the next one
                self._fail(failure, f"; {command} was not carried out")
            raise RunError(
                f"{self.address}: {failure}; {command} may or may not have been carried out: call "
                "settle() to finish it once the bench is back, or look at the cells through a new "
                "RemoteArray"
            ) from failure
        self._open, self._sequence = None, command.sequence
        return protocol.opened(reply)[1]

    def _ask(self, call: str, **more: Any) -> dict[str, Any]:
        """A question that changes nothing; the header of its reply."""
        try:
            message = protocol.pack({"call": call, "session": self._session, **more})
            reply = self._exchange(message)
        except _Failure as failure:
            known = "; check that a bench runs there, with TLS where a certificate is given"
            self._fail(failure, "" if failure.usage else known)
        return protocol.opened(reply)[0]

    def _exchange(self, message: bytes, longer_s: float = 0.0) -> bytes:
        if self._closed:
            raise _Failure(
                "this RemoteArray was closed; connect a new one", usage=True, harmless=True
            )
        return self._link.send(message, longer_s)

    def _fail(self, failure: _Failure, known: str) -> NoReturn:
        kind = UsageError if failure.usage else RunError
        raise kind(f"{self.address}: {failure}{known}") from failure

    def __enter__(self) -> RemoteArray:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        # Two holders of one session would take each other's replies for their own.
        raise TypeError("a RemoteArray cannot be copied or pickled; connect another one")

    def __repr__(self) -> str:
        return f"RemoteArray({self.address!r}, {self.name}, {self.shape})"


@dataclass
class _Command:
    """A numbered command as it is sent, however often."""

    call: str
    sequence: int
    message: bytes
    longer_s: float
    tried: bool = False

    def __str__(self) -> str:
        return f"`{self.call}` (command {self.sequence})"


class _Failure(Exception):
    """A message without a reply: why, whether asked wrongly, and if it surely had no effect."""

    def __init__(self, text: str, *, usage: bool, harmless: bool) -> None:
        super().__init__(text)
        self.usage, self.harmless = usage, harmless


class _Link:
    """A connection to a bench that is made anew when it was cut."""

    def __init__(
        self,
        address: str,
        token: str,
        certificate: str | Path | None,
        limit: int,
        timeout_s: float,
        retry_s: float,
    ) -> None:
        self._grpc = protocol.load_grpc()
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise UsageError(f"address={address!r}: give HOST:PORT, such as 127.0.0.1:50051")
        if certificate is None and not protocol.is_loopback(host):
            raise UsageError(
                f"address={address!r}: beyond this machine a token and all commands would be open "
                "to read and to change; give the certificate of the bench, or use an ssh tunnel"
            )
        if not (math.isfinite(timeout_s) and timeout_s > 0 and math.isfinite(retry_s)):
            raise UsageError(
                f"timeout_s={timeout_s}, retry_s={retry_s}: give finite numbers of seconds, the "
                "first above 0"
            )
        protocol.check_token(token)
        self._address, self._timeout_s, self._retry_s = address, timeout_s, retry_s
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._root = None if certificate is None else protocol.read_pem(certificate, "CERTIFICATE")
        self._options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            # A channel of its own: no waiting because an earlier one could not connect.
            ("grpc.use_local_subchannel_pool", 1),
            # Notices a dead line while a long command is under way.
            ("grpc.keepalive_time_ms", 15000),
            ("grpc.keepalive_timeout_ms", 5000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        self._channel: Any = None

    def send(self, message: bytes, longer_s: float = 0.0) -> bytes:
        """The reply to a message, sent again until retry_s is over.  Raises _Failure."""
        give_up, pause, harmless, silent = math.inf, FIRST_PAUSE_S, True, True
        while True:
            try:
                return self._call(message, self._timeout_s + longer_s)
            except self._grpc.RpcError as error:
                self._hang_up()  # a line may be dead without a word
                code, details = error.code().name, error.details() or ""
                text, passing = self._explained(code, details)
                harmless &= code in REFUSALS or any(s in details.lower() for s in UNSENT)
                now = time.monotonic()
                give_up = min(give_up, now + self._retry_s)
                if not passing or now + pause > give_up:
                    usage = not passing and code != "FAILED_PRECONDITION"
                    raise _Failure(text, usage=usage, harmless=harmless) from error
            if silent and now > give_up - self._retry_s + SILENT_S:
                silent = False
                logging.getLogger(__name__).warning(
                    "%s: no answer yet (%s); trying again for %.0f s", self._address, code,
                    give_up - now,
                )  # fmt: skip
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _call(self, message: bytes, timeout_s: float) -> bytes:
        if self._channel is None:
            if self._root is None:
                self._channel = self._grpc.insecure_channel(self._address, self._options)
            else:
                credentials = self._grpc.ssl_channel_credentials(self._root)
                self._channel = self._grpc.secure_channel(self._address, credentials, self._options)
        call = self._channel.unary_unary(protocol.PATH)
        return call(message, timeout=timeout_s, metadata=self._metadata)

    def _explained(self, code: str, details: str) -> tuple[str, bool]:
        """What a status means to a user, and whether it may pass."""
        lowered = details.lower()
        if "certificate_verify_failed" in lowered or "hostname verification" in lowered:
            return (
                f"the bench's certificate is not trusted ({details}); give the one that it uses, "
                "and the host name that stands in it",
                False,
            )
        if code in PASSING:
            waited = f"no answer within {self._retry_s:g} s of trying again"
            return f"{waited} ({code}: {details})", True
        if code == "RESOURCE_EXHAUSTED":
            text = f"a message is too large ({details}); raise max_message_MiB on both sides"
            return text, False
        return REFUSALS.get(code) or f"{details or code}", False

    def farewell(self, message: bytes) -> None:
        """A last message that may get lost; then the connection is closed."""
        try:
            if self._channel is not None:
                self._call(message, 1.0)
        except self._grpc.RpcError:
            pass  # a bench that is gone needs no farewell
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
