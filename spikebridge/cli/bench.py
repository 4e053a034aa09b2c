"""`spikebridge bench`: a chip, an instrument or a simulation for other machines."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import tyro

from spikebridge.base.records import Seed, UsageError, check_bounds
from spikebridge.cli.flags import say
from spikebridge.settings.crossbar import CellConfig
from spikebridge.settings.names import allow_named, is_place, named

if TYPE_CHECKING:
    from spikebridge.crossbar.cells import CellArray

TOKEN = "SPIKEBRIDGE_BENCH_TOKEN"


@dataclass(frozen=True)
class Bench:
    """Serve an array of cells to other machines, an instrument or a simulation, until Ctrl-C.

    Needs grpcio: pip install 'spikebridge[remote]'.
    """

    EXAMPLE: ClassVar[str] = "bench serve --shape 2 1 150 88"
    MAIN: ClassVar[tuple[str, ...]] = ("instrument", "shape", "cells", "host", "port")

    what: tyro.conf.Positional[Literal["serve"]]
    """What is to be done."""
    instrument: str = ""
    """MODULE:FUNCTION of your own that returns an array, called with --shape, or with nothing where
    none is given; empty or simulated = cells of --cells."""
    shape: tuple[int, ...] = ()
    """Numbers of cells along each side: 2 PAIRS ROWS COLUMNS for a weight matrix."""
    cells: Literal["accumulation", "accumulation-2020", "iterative", "ideal"] = "accumulation"
    """Model of the simulated cells."""
    seed: Seed = 0
    """Seed of the simulated cells."""
    host: str = "127.0.0.1"
    """Where to listen; beyond 127.0.0.1 it takes a token and TLS."""
    port: int = 50051
    """Port; 0 = one that is free."""
    token_file: Path | None = None
    """File with the token that users have to show; else $SPIKEBRIDGE_BENCH_TOKEN, if it is set."""
    certificate: Path | None = None
    """PEM file with the certificate, for TLS."""
    key: Path | None = None
    """PEM file with the key of the certificate."""
    max_message_MiB: float = 64.0
    """Largest message in MiB; 8 bytes for each cell must fit."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def run(self) -> None:
        token = read_token(self.token_file)
        array = self._array()
        from spikebridge.crossbar.bench.server import serve

        with serve(
            array,
            host=self.host,
            port=self.port,
            token=token,
            certificate=self.certificate,
            key=self.key,
            max_message_MiB=self.max_message_MiB,
        ) as server:
            guards = f"{'a token' if token else 'no token'}, {'TLS' if self.key else 'no TLS'}"
            say(f"{array.name}, {tuple(array.shape)} cells, {guards}; Ctrl-C stops")
            print(server.address, flush=True)
            try:
                server.wait()
            except KeyboardInterrupt:
                with _ended_by_another():
                    say("stopping once the command under way is done; Ctrl-C again stops at once")
                    server.stop()

    def _array(self) -> CellArray:
        if self.instrument not in ("", "simulated"):
            return load_array(self.instrument, self.shape)
        if not self.shape or min(self.shape) < 1:
            raise UsageError(
                f"shape={self.shape}: simulated cells need sides of at least 1; pass "
                "--shape 2 1 150 88"
            )
        from spikebridge.crossbar.bench import protocol
        from spikebridge.crossbar.cells import SimulatedArray
        from spikebridge.crossbar.network import cell_of

        protocol.check_limit(self.max_message_MiB, self.shape)  # before their memory is taken
        cell = cell_of(CellConfig(self.cells))
        try:
            return SimulatedArray(self.shape, cell, seed=self.seed)
        except (MemoryError, RuntimeError) as error:
            raise UsageError(
                f"shape={self.shape}: the cells do not fit into the memory of this machine; pass a "
                "smaller --shape"
            ) from error


@contextmanager
def _ended_by_another() -> Iterator[None]:
    """Within, Ctrl-C ends the process at once; at a usual exit Python waits for all threads."""

    def end(*_: object) -> None:
        say("stopped; the command under way may be half done")
        os._exit(130)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_token(file: Path | None) -> str:
    """The token in a file, else that of the environment, else none.  Raises UsageError."""
    if file is None:
        return os.environ.get(TOKEN, "")
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as a token ({error}); write one there") from error
    if not token:
        raise UsageError(f"{file}: is empty; `openssl rand -hex 32` prints a token")
    return token


def load_array(place: str, shape: tuple[int, ...]) -> CellArray:
    """What a user's MODULE:FUNCTION returns; the current folder counts as well as the path."""
    if not is_place(place):
        raise UsageError(f"instrument={place!r}: pass MODULE:FUNCTION of your own")
    allow_named([place])
    make = named("instrument", place)
    if not callable(make):
        raise UsageError(f"instrument={place!r}: it is no function")
    return make(shape) if shape else make()
