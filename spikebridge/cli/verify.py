"""`spikebridge verify`: exported Verilog against the integer model."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from spikebridge.base.records import RunError, UsageError
from spikebridge.cli.flags import Flag, say
from spikebridge.runs import rundir


@dataclass(frozen=True)
class Verify:
    """Run exported Verilog in simulators and compare it with the integer model, bit for bit."""

    EXAMPLE: ClassVar[str] = "verify runs/digits8x8-snu-0/verilog --simulators icarus"

    directory: tyro.conf.Positional[Path]
    """Folder that `spikebridge export RUN --to verilog` has written."""
    simulators: tuple[Literal["icarus", "verilator"], ...] = ("icarus", "verilator")
    """Simulators to run."""
    synthesise: Flag = False
    """Synthesise with Yosys too: cells and memory bits.  It takes minutes."""
    json: Flag = False
    """Print one JSON object."""

    def run(self) -> None:
        from spikebridge.chip import verification as verify

        if not self.simulators:
            raise UsageError(
                "simulators: none is named, and nothing would be compared; pass --simulators "
                "icarus, or leave it out for both"
            )
        _check_current(self.directory)
        content: dict[str, Any] = verify.verify(self.directory, self.simulators, report=say)
        if self.synthesise:
            content["synthesis"] = verify.synthesise(self.directory, report=say)
        if self.json:
            print(json.dumps(content))
        else:
            print("\n".join(text_of(content)))
        if not content["passed"]:
            sys.exit(1)


def _check_current(directory: Path) -> None:
    """UsageError where the run beside the Verilog has been exported anew since.

    RunError where its program is damaged.
    """
    from spikebridge.chip.files import digest, load_program
    from spikebridge.chip.verification import check_images

    beside = directory.absolute().parent / rundir.PROGRAM
    if not beside.exists():
        return
    written_from = check_images(directory).get("program")
    try:
        program = load_program(beside)
    except (FileNotFoundError, ValueError) as error:
        raise RunError(str(error)) from error
    if written_from != digest(program):
        raise UsageError(
            f"{directory}: it was written from another program than {beside}; write it anew with "
            "spikebridge export RUN --to verilog"
        )


def text_of(content: dict[str, Any]) -> list[str]:
    """What `chip.verification` found, in a few lines."""
    lines = [f"{name}: {outcome['verdict']}" for name, outcome in content["simulators"].items()]
    lint = content["lint"]
    if lint:
        lines.append(f"lint: {'clean' if lint['clean'] else '; '.join(lint['messages'])}")
    lines += [f"{tool}: {why}" for tool, why in content["missing"].items()]
    made = content.get("synthesis")
    if made:
        lines.append(
            f"synthesis: {made['missing']}"
            if "missing" in made
            else f"synthesis: {made['gates']:,} gates, {made['flip_flops']:,} flip-flops, "
            f"{made['memory_bits']:,} bits of memory"
        )
    return lines
