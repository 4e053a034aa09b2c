"""A lab instrument as an array of cells: write the commands of your chip where these stand.

    python examples/lab_instrument.py           a try on this machine, with a fake instrument
    python examples/lab_instrument.py serve     serve it until Ctrl-C

`spikebridge bench serve --instrument lab_instrument:connect --port 50051`, in this folder, does the
same; another machine then takes `RemoteArray("bench.lab:50051", ...)` in place of any array.
The instrument understands text, in the manner of SCPI.  Only `connect` knows that it is a fake one:
a resource of PyVISA has the same `write` and `query`.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor

from spikebridge.crossbar import CellArray, RemoteArray, serve


class LabChip:
    """Cells behind an instrument; `serve` hands over checked tensors, one command at a time."""

    g_max_uS = 12.0
    pulse_curve_uS = (0.1, 2.1, 4.1, 6.1, 8.1, 10.1, 12.0)  # measured beforehand

    def __init__(self, instrument: FakeInstrument) -> None:
        self._instrument, self._started = instrument, time.monotonic()
        maker, model, rows, columns = instrument.query("*IDN?").split(",")
        self.name, self.shape = f"{maker} {model}", (int(rows), int(columns))

    @property
    def clock_s(self) -> float:
        return time.monotonic() - self._started

    def program(self, target_uS: Tensor, where: Tensor | None = None) -> None:
        self._each("SOUR:COND", target_uS, where)

    def pulse(self, counts: Tensor) -> None:
        self._each("SOUR:PULS", counts, counts > 0)

    def reset(self, where: Tensor | None = None) -> None:
        self._each("SOUR:RES", torch.ones(self.shape, dtype=torch.int64), where)

    def read(self) -> Tensor:
        values = [float(text) for text in self._instrument.query("MEAS:COND?").split(",")]
        return torch.tensor(values).reshape(self.shape)

    def wait(self, seconds_s: float) -> None:
        time.sleep(seconds_s)

    def _each(self, command: str, values: Tensor, where: Tensor | None) -> None:
        chosen = torch.ones(self.shape, dtype=torch.bool) if where is None else where
        for cell in chosen.flatten().nonzero().flatten().tolist():
            self._instrument.write(f"{command} {cell},{values.flatten()[cell].item()}")
        code, text = self._instrument.query("SYST:ERR?").split(",")
        if int(code):
            raise RuntimeError(f"the instrument reports {text} ({code})")


class FakeInstrument:
    """Stands in for a probe station: 4 x 3 cells, of which number 5 has lost its contact."""

    def __init__(self) -> None:
        self._g_uS, self._error = [0.1] * 12, "0,no error"

    def write(self, command: str) -> None:
        verb, _, rest = command.partition(" ")
        cell, value = (float(text) for text in rest.split(","))
        if cell == 5:
            self._error = "-200,no contact"
            return
        now = self._g_uS[int(cell)]
        after = {"SOUR:COND": value, "SOUR:PULS": now + 2 * value, "SOUR:RES": 0.1}
        self._g_uS[int(cell)] = min(after[verb], 12.0)

    def query(self, command: str) -> str:
        if command == "SYST:ERR?":
            error, self._error = self._error, "0,no error"
            return error
        return "ACME,PS-12,4,3" if command == "*IDN?" else ",".join(map(str, self._g_uS))


def connect() -> CellArray:
    """The array that `spikebridge bench serve --instrument lab_instrument:connect` serves."""
    return LabChip(FakeInstrument())  # pyvisa.ResourceManager().open_resource("GPIB0::12::INSTR")


def main(words: list[str]) -> Tensor | None:
    """Serve it, or use it once as another machine would; returns what was read."""
    with serve(connect(), port=50051 if words else 0) as server:
        print(f"listening on {server.address}")
        if words:
            server.wait()
            return None
        with RemoteArray(server.address, shape=(4, 3)) as remote:
            where = torch.arange(12).reshape(4, 3) != 5
            remote.reset(where)
            remote.program(torch.full((4, 3), 3.0), where)
            remote.pulse(where.long())
            g_uS = remote.read()
    print(f"{remote.name}, conductances in uS:\n{g_uS}")
    return g_uS


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("stopped")
