"""The demo: SNU, soft SNU and LSTM on real digits, then on memory cells and on the digital chip.

What the chip can run is compiled and tested in integers; the Verilog of the first such run is held
against the integer model, bit for bit, where a simulator is installed.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from spikebridge.base.records import RunError, SpikebridgeError
from spikebridge.cli import progress
from spikebridge.cli.compare import ahead, show, tell_of_kernels
from spikebridge.cli.flags import Output, page_of, refresh_page, say
from spikebridge.runs import rundir
from spikebridge.settings.names import BASELINES
from spikebridge.settings.tasks import DigitsConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spikebridge.studies.plan import Planned

ON_CHIP = ("snu", "binary-di", "binary-ci")
"""Units that the chip can run."""
SIMULATORS = ("icarus", "verilator")
"""The first that is installed is taken."""
RTL_SAMPLES = 20
VERILOG = rundir.VERILOG
NO_SIMULATOR = "no simulator is installed; make tools"


@dataclass(frozen=True)
class Demo:
    """Train SNU, soft SNU and LSTM, three seeds each, on 8 x 8 digits; needs no network.

    All of it goes to runs/demo.
    """

    EXAMPLE: ClassVar[str] = "demo --jobs 2"

    jobs: int = 2
    """Runs that train at the same time, each with its share of the cores."""
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        from spikebridge.studies import compare

        out, jobs = self.output.out or rundir.FOLDER / "demo", self.jobs
        planned = compare.plan(compare.demo_contenders(), compare.DEMO_SEEDS, out, jobs=jobs)
        if compare.is_complete(planned) and not self.output.overwrite:
            say(f"The demo in {out} is complete already; --overwrite starts it anew.")
        else:
            tell_of_kernels(jobs)
            say(f"{len(planned)} runs on 1,797 handwritten digits, in {out}.")
        first = first_on_chip(planned)

        def finish(run: Planned) -> None:
            in_memory(run)
            on_chip(run, rtl=run is first, page=not self.output.no_report)

        with (
            rundir.owning(out, "demo", make=True),
            progress.display(whole=ahead(planned, jobs, self.output.overwrite)) as display,
        ):
            content = compare.compare(
                planned,
                out,
                jobs=jobs,
                overwrite=self.output.overwrite,
                progress=display,
                finish=finish,
            )
        page = not self.output.no_report
        if page:
            refresh_page(out)
        show(content, out, page, self.output.json)
        end(content, out, self.output.json)
        say("\n".join(what_next(out)))


def what_next(out: Path) -> list[str]:
    """Commands to go on with; first the one that brings the command into the shell."""
    scripts = Path(sys.executable).parent
    program = shutil.which("spikebridge")
    commands = [
        "spikebridge train digits --unit softsnu    # one network of your own; --help has the rest",
        f"spikebridge program {shlex.quote(str(out / 'snu-0'))} --cells pcm    # on memory cells",
        "spikebridge train npz --data-dir D         # your sequences: D/train.npz, D/test.npz",
    ]
    if (program is None or Path(program).parent != scripts) and (scripts / "activate").exists():
        commands.insert(0, f"source {shlex.quote(_short(scripts / 'activate'))}")
    return ["next:", *(f"  {line}" for line in commands)]


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def first_on_chip(planned: Sequence[Planned]) -> Planned | None:
    """The run whose Verilog is simulated."""
    return next((run for run in planned if run.config.model.unit in ON_CHIP), None)


def end(content: dict[str, Any], out: Path, as_json: bool) -> None:
    """Tell what the Verilog did; RunError where it is not the integer model."""
    rtl = content["rtl"]
    if rtl is None:
        return
    from spikebridge.report.on_chip import proof_text
    from spikebridge.runs.hardware_results import proof_of

    verilog, proof = out / rtl["run"] / VERILOG, proof_of(rtl)
    text = proof_text(proof, DigitsConfig.SAMPLE)
    if proof is not None and proof.equal is False:
        raise RunError(f"{verilog}: {text} Look closer with `spikebridge verify {verilog}`")
    if not as_json:
        print(text)


def in_memory(run: Planned) -> None:
    """Program a run into memory cells, unless that was done or cannot be."""
    if run.config.model.unit in BASELINES or (run.directory / rundir.MEMORY).exists():
        return
    from spikebridge.trained import on_cells

    say(f"{run.name}: programmed into simulated phase-change memory")
    on_cells.deploy(run.directory, on_cells.CellPlan(chips=5, times_s=on_cells.DEMO_TIMES_S))


def on_chip(run: Planned, *, rtl: bool, page: bool = True) -> None:
    """Compile a run for the chip, unless that was done or cannot be; rtl: simulate it too."""
    if run.config.model.unit not in ON_CHIP:
        return
    exported = not (run.directory / rundir.DIGITAL).exists()
    if exported:
        from spikebridge.trained import on_chip as digital

        say(f"{run.name}: compiled for the digital chip")
        digital.export(run.directory)
    if not rtl:
        return
    proved = prove(run)
    if page and (exported or proved or not (run.directory / rundir.REPORT).exists()):
        page_of(run.directory)


def prove(run: Planned) -> bool:
    """Hold the Verilog of an exported run against the integer model, and write rtl.json.

    What stands there of the same program is kept, unless no simulator answered and one is there
    now.  Returns whether rtl.json was written.
    """
    from spikebridge.chip.verification import missing
    from spikebridge.runs.hardware_results import Proof, load_proof, program_sha256, save

    installed = [name for name in SIMULATORS if not missing(name)]
    known = load_proof(run.directory)
    if known is not None and (known.equal is not None or not installed):
        return False
    samples, equal, reason = 0, None, NO_SIMULATOR
    if installed:
        say(f"{run.name}: its Verilog in {installed[0]}, {RTL_SAMPLES} images")
        samples = RTL_SAMPLES
        # The trained networks stay, and are shown, whatever becomes of the simulator.
        try:
            equal, reason = simulate(run, installed[0])
        except (SpikebridgeError, OSError) as error:
            reason = f"{installed[0]} failed ({' '.join(str(error).split())})"
            say(f"{run.name}: {reason}")
    sha256 = program_sha256(run.directory)
    save(run.directory / rundir.RTL, Proof(samples, tuple(installed[:1]), equal, reason, sha256))
    return True


def simulate(run: Planned, simulator: str) -> tuple[bool, str]:
    """Write the Verilog of a run and simulate it: whether all is equal, and otherwise what is not.

    Raises RunError where the simulator fails.
    """
    from spikebridge.chip import verification as verify
    from spikebridge.chip import verilog
    from spikebridge.chip.files import load_program
    from spikebridge.trained import on_chip as digital

    directory = verilog.write(
        load_program(run.directory / rundir.PROGRAM),
        run.directory / VERILOG,
        digital.samples_for_rtl(run.directory, RTL_SAMPLES),
        about=run.name,
    )
    outcome = verify.verify(directory, (simulator,), lint=False)["simulators"][simulator]
    return outcome["passed"], "" if outcome["passed"] else outcome["verdict"]
