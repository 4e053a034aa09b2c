"""`spikebridge export`: a network on the digital chip."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import in_si
from spikebridge.base.records import UsageError
from spikebridge.cli.flags import Output, RunFolder
from spikebridge.runs import rundir

if TYPE_CHECKING:
    from spikebridge.runs.hardware_results import OnChip

VERILOG = rundir.VERILOG
"""Folder, inside that of the run, for the Verilog."""

COARSE, FINER = 0.01, 4
"""Error of a bias, in shares of the largest weight, above which finer fraction bits are named."""
SHOWN = 5e-5
"""Smallest error that two digits behind the point of a per cent show."""


@dataclass(frozen=True)
class Export:
    """Compile a trained network for the digital chip: integers, energy, and Verilog.

    program.npz, digital.json and the page lie in the run's folder, the Verilog in its folder
    verilog, or in --out.
    """

    EXAMPLE: ClassVar[str] = "export runs/digits8x8-snu-0 --to verilog"
    MAIN: ClassVar[tuple[str, ...]] = ("to", "weight_bits", "fraction_bits", "samples", "out")

    run_dir: RunFolder
    """Folder of a finished run of snu, adaptive-snu, binary-di or binary-ci."""
    to: Literal["program", "verilog"] = "program"
    """program tests the network in integers and writes program.npz and digital.json; verilog also
    writes the design with memory images and a self-checking test bench."""
    weight_bits: int = 0
    """Bits of a weight, 2 to 16; 0 = as trained with --weight-bits, else 8."""
    decay_bits: int = -1
    """Bits behind the point of decays, 1 to 14; -1 = 14 where neurons have a slow state, else 8."""
    fraction_bits: int = -1
    """Bits of a membrane below those of a weight, 0 to 8; -1 = 4, or 0 where no membrane is kept
    from step to step.  Biases are rounded to them, those of the readout above all: more bits round
    finer and widen all membranes."""
    lanes: int = 64
    """Neurons that are added to at the same time, a power of two up to 1,024."""
    max_steps: int = 0
    """Time steps of a sample that membranes without a leak must bear; 0 = as many as the task has,
    or 256."""
    queue: int = 64
    """Input words that wait, a power of two."""
    clock_MHz: float = 200.0
    """Clock, above 0, at most 500."""
    samples: int = 0
    """Samples to test in integers, rounded up to whole batches; 0 = all."""
    split: Literal["test", "valid"] = "test"
    """What is tested on; valid is for choosing settings."""
    steps: int = 0
    """Time steps of a sample, for digits and events; 0 = as the run was tested."""
    images: int = 20
    """Test samples that the test bench of --to verilog goes through."""
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        if self.images < 1:
            raise UsageError(f"images={self.images}: at least 1; pass --images 20")
        if self.output.out is not None and self.to != "verilog":
            raise UsageError(
                f"out={self.output.out}: it is where Verilog goes, and program.npz and "
                "digital.json stay with the run; pass --to verilog too, or leave --out out"
            )
        from spikebridge.chip import verilog
        from spikebridge.trained import on_chip

        plan = on_chip.ChipPlan(self._chip(), self.samples, self.split, self.steps)
        folder = self.output.out or self.run_dir / VERILOG
        written = None
        if self.to == "verilog":
            verilog.check_free(folder)  # before the work
        with rundir.owning(self.run_dir, "export"):
            content, _, page = replace(self.output, out=None).of_run(
                self.run_dir,
                "export",
                lambda run: on_chip.kept(run, plan),
                lambda run: on_chip.export(run, plan),
            )
            if self.to == "verilog":
                about = f"{self.run_dir.name}, {content.metric} {content.integer:.4g}"
                written = write_verilog(self.run_dir, folder, self.images, self.steps, about)
        lines = text_of(content)
        if written is not None:
            lines.append(f"verilog: {written}; prove it with: spikebridge verify {written}")
        shown = None if written is None else str(written)
        self.output.show(content, lines, verilog=shown, report=page)

    def _chip(self) -> dict[str, Any]:
        names = ("decay_bits", "fraction_bits", "lanes", "queue", "clock_MHz")
        settings = {name: getattr(self, name) for name in names}
        for name in ("weight_bits", "max_steps"):
            if getattr(self, name):
                settings[name] = getattr(self, name)
        return settings


def write_verilog(run: Path, folder: Path, images: int, steps: int, about: str) -> Path:
    """Write the program of a run as Verilog, with its first test samples for the test bench."""
    from spikebridge.chip import verilog
    from spikebridge.chip.files import load_program
    from spikebridge.trained import on_chip

    program = load_program(run / rundir.PROGRAM)
    return verilog.write(program, folder, on_chip.samples_for_rtl(run, images, steps), about=about)


def text_of(content: OnChip) -> list[str]:
    """digital.json in a few lines."""
    metric, program, energy, per = (
        METRICS[content.metric], content.program, content.energy, content.per,
    )  # fmt: skip
    lines = [
        f"{content.split} {metric.axis}: {metric.figure(content.integer)} in integers, "
        f"{metric.figure(content.software)} in software ({content.samples:,} {per}s)",
        f"{program.weight_bits}-bit weights in {program.memory_bits['weight'] / 8192:,.1f} KiB, "
        f"membranes of {program.membrane_bits} bits"
        + (f", slow states of {program.slow_bits}" if program.slow_bits else ""),
    ]
    for layer in content.layers:
        same = "" if layer.same_spikes is None else f", {layer.same_spikes:.3%} same spikes"
        biases = f", biases by up to {layer.drive_error:.2%} of the largest weight"
        lines.append(
            f"  {layer.name}: {layer.inputs} to {layer.neurons}, weights off by "
            f"{layer.weight_error:.2%}{biases if layer.drive_error >= SHOWN else ''}{same}"
        )
    most = max(layer.drive_error for layer in content.layers)
    if most > COARSE and program.fraction_bits < FINER:
        lines.append(
            f"  biases are rounded to {program.fraction_bits} fraction bits; --fraction-bits "
            f"{FINER} rounds them finer, with wider membranes"
        )
    low, nominal, high = (in_si(end.total_pJ * 1e-12, "J") for end in energy.ends.values())
    lines.append(
        f"per {per}: {content.each('spikes'):,.0f} spikes, {content.each('additions'):,.0f} "
        f"additions, {content.each('cycles'):,.0f} cycles ({in_si(energy.nominal.seconds_s, 's')})"
    )
    lines.append(f"energy per {per}, 40 nm: {nominal} ({low} to {high})")
    if content.parts:
        low, nominal, high = (in_si(pJ * 1e-12, "J") for pJ in content.part_pJ.values())
        each = f"{content.parts:.3g} in a {per}"
        lines.append(f"energy per {content.part}, 40 nm: {nominal} ({low} to {high}); {each}")
    lines.append(f"area, 40 nm: {sum(content.area_mm2.values()):.2f} mm² and wires")
    for row in energy.nominal.rows:
        if row.energy_pJ:
            lines.append(f"  {row.part:<26} {in_si(row.energy_pJ * 1e-12, 'J'):>10}")
    return lines
