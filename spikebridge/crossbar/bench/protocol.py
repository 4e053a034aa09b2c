"""What a bench and its users say to each other: safetensors with a JSON header, never a pickle.

One gRPC method takes one message and gives one back:

    request   {"call": .., "session": .., "sequence": n, ..}   tensors target_uS, where, counts
    reply     {..}                                             tensor g_uS
              {"error": kind, "message": text}                 what the array has raised

Whole numbers and times travel in the header, where JSON keeps every digit of them.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from spikebridge.base.records import RunError, UsageError
from spikebridge.crossbar.cells import (
    CellArray,
    checked_counts,
    checked_seconds,
    checked_targets,
    checked_where,
)

VERSION = 1
PATH = "/spikebridge.Bench/Call"  # the service and its only method
MAX_MESSAGE_MiB = 64.0
# A message beside its numbers: headers, names, a pulse curve.
ENVELOPE = 1 << 16
# The commands of an array, each with its arguments in their order and how those are checked.
COMMANDS: Mapping[str, Mapping[str, Callable[[Any, CellArray], Any]]] = {
    "program": {"target_uS": checked_targets, "where": checked_where},
    "pulse": {"counts": checked_counts},
    "reset": {"where": checked_where},
    "read": {},
    "wait": {"seconds_s": checked_seconds},
}
# What an array may raise, the more special first; all else arrives as a RuntimeError.
KINDS: tuple[type[Exception], ...] = (UsageError, RunError, TypeError, ValueError)


def load_grpc() -> Any:
    """The module grpc.  Raises UsageError where it is not installed."""
    try:
        import grpc
    except ModuleNotFoundError as error:
        raise UsageError(
            "cells on another machine need grpcio; pip install 'spikebridge[remote]'"
        ) from error
    return grpc


def pack(header: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> bytes:
    """A message; the tensors may have any layout."""
    laid_out = {name: tensor.contiguous() for name, tensor in (tensors or {}).items()}
    return save(laid_out, metadata={"header": json.dumps(header, allow_nan=False)})


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a message.  Raises ValueError."""
    try:
        size = int.from_bytes(message[:8], "little")
        header = json.loads(json.loads(message[8 : 8 + size])["__metadata__"]["header"])
        tensors = load(message)
    except Exception as error:  # whatever strange bytes lead to
        raise ValueError(f"this is no message of a bench ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise ValueError("this is no message of a bench (its header is no object)")
    return header, tensors


def pack_error(error: Exception) -> bytes:
    """A reply that says what the array has raised."""
    for kind in KINDS:
        if isinstance(error, kind):
            return pack({"error": kind.__name__, "message": str(error)})
    text = str(error) if type(error) is RuntimeError else f"{type(error).__name__}: {error}"
    return pack({"error": "RuntimeError", "message": text})


def opened(reply: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a reply.  Raises what the array has raised."""
    header, tensors = unpack(reply)
    if "error" in header:
        kinds = {kind.__name__: kind for kind in KINDS}
        text = header.get(
            "message", f"the bench reports an error, {header['error']}, and no reason"
        )
        raise kinds.get(str(header["error"]), RuntimeError)(str(text))
    return header, tensors


def checked(call: Any, given: Mapping[str, Any], array: CellArray) -> dict[str, Any]:
    """The arguments of a command to an array.  Raises ValueError, TypeError."""
    if not isinstance(call, str) or call not in COMMANDS:
        raise ValueError(f"{call!r} is no command of a bench")
    lacking = [name for name in COMMANDS[call] if name != "where" and name not in given]
    if lacking:
        raise ValueError(f"the command lacks {lacking[0]}")
    return {name: check(given.get(name), array) for name, check in COMMANDS[call].items()}


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host stays on this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(token: str) -> None:
    """Raises UsageError for what cannot travel as a token, without showing it."""
    if not all("!" <= letter <= "~" for letter in token):
        raise UsageError(
            "the token holds spaces or characters beyond ASCII; take letters and digits, such as "
            "`openssl rand -hex 32` prints"
        )


def read_pem(path: str | Path, what: str) -> bytes:
    """A PEM file that holds a CERTIFICATE or a PRIVATE KEY.  Raises UsageError."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a PEM file") from error
    if what.encode() + b"-----" not in content:
        raise UsageError(f"{path}: holds no {what}; give a PEM file that does")
    return content


def check_limit(max_message_MiB: float, shape: tuple[int, ...] = ()) -> int:
    """The largest message in bytes.  Raises UsageError for no limit, or cells beyond it."""
    if not 0 < max_message_MiB < 2048:
        raise UsageError(
            f"max_message_MiB={max_message_MiB}: a message has at most 2 GiB; give a number "
            "between 0 and 2048"
        )
    limit = int(max_message_MiB * 2**20)
    needed = 8 * math.prod(shape) + ENVELOPE  # numbers of pulses are the largest that is sent
    if shape and needed > limit:
        raise UsageError(
            f"max_message_MiB={max_message_MiB:.4g}: a command to {math.prod(shape):,} cells, "
            f"{tuple(shape)}, takes {needed / 2**20:.2f} MiB; raise the limit on both sides, or "
            "divide the cells among several arrays"
        )
    return limit
