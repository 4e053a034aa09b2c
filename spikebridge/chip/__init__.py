"""The digital chip: compiled programs, their integer model, Verilog.

A trained network becomes a `Program` of integers (`compile`), which `Golden` defines event by
event, `Engine` runs fast, `verilog.write` turns into a design and `verify` proves against its
simulation.  `ChipConfig` says how wide and how large the chip is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikebridge.base.doors import lazy

if TYPE_CHECKING:
    from spikebridge.chip import verilog
    from spikebridge.chip.compiler import compile
    from spikebridge.chip.engine import Engine
    from spikebridge.chip.files import load_program, save_program
    from spikebridge.chip.golden import Golden
    from spikebridge.chip.program import ChipConfig, ChipCounts, Program
    from spikebridge.chip.verification import verify

__all__ = [
    "ChipConfig",
    "ChipCounts",
    "Engine",
    "Golden",
    "Program",
    "compile",
    "load_program",
    "save_program",
    "verify",
    "verilog",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "compiler": "compile",
        "engine": "Engine",
        "files": "load_program save_program",
        "golden": "Golden",
        "program": "ChipConfig ChipCounts Program",
        "verification": "verify",
        "verilog": "",
    },
)
