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
from typing import TYPE_CHECKING, ClassVar

from spikebridge.base.records import RunError, SpikebridgeError
from spikebridge.cli.compare import on_hardware, run_all, show
from spikebridge.cli.export import write_verilog
from spikebridge.cli.flags import Output, say
from spikebridge.runs import rundir
from spikebridge.settings.names import BASELINES
from spikebridge.settings.tasks import DigitsConfig

if TYPE_CHECKING:
    from spikebridge.studies.comparison import Summary
    from spikebridge.studies.plan import Planned

ON_CHIP = ("snu", "binary-di", "binary-ci")
"""Units that the chip can run."""
SIMULATORS = ("icarus", "verilator")
"""The first that is installed is taken."""
RTL_SAMPLES = 20
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
        from spikebridge.studies import plan
        from spikebridge.trained.on_cells import DEMO_TIMES_S, CellPlan
        from spikebridge.trained.on_chip import ChipPlan

        out = self.output.out or rundir.FOLDER / "demo"
        planned = plan.plan(plan.demo_contenders(), plan.DEMO_SEEDS, out, jobs=self.jobs)
        if plan.is_complete(planned) and not self.output.overwrite:
            say(f"The demo in {out} is complete already; --overwrite starts it anew.")
        else:
            say(f"{len(planned)} runs on 1,797 handwritten digits, in {out}.")
        first = next((run for run in planned if run.config.model.unit in ON_CHIP), None)
        cells = CellPlan(chips=5, times_s=DEMO_TIMES_S)

        def finish(run: Planned) -> None:
            unit, page = run.config.model.unit, run.directory / rundir.REPORT
            exported = unit in ON_CHIP and not (run.directory / rundir.DIGITAL).exists()
            on_hardware(
                run,
                chip=ChipPlan() if unit in ON_CHIP else None,
                cells=None if unit in BASELINES else cells,
            )
            proved = run is first and prove(run)
            if run is first and (exported or proved or not page.exists()):
                self.output.page(run.directory)

        with rundir.owning(out, "demo", make=True):
            content = run_all(planned, out, self.jobs, self.output, finish=finish)
        show(content, out, self.output)
        show_proof(content, out, self.output)
        say("\n".join(what_next(out)))


def what_next(out: Path) -> list[str]:
    """Commands to go on with; first the one that brings the command into the shell."""
    activate = Path(sys.executable).parent / "activate"
    program = shutil.which("spikebridge")
    commands = [
        "spikebridge train digits --unit softsnu    # one network of your own; --help has the rest",
        f"spikebridge program {shlex.quote(str(out / 'snu-0'))} --cells pcm    # on memory cells",
        "spikebridge train npz --data-dir D         # your sequences: D/train.npz, D/test.npz",
    ]
    if (program is None or Path(program).parent != activate.parent) and activate.exists():
        here = Path.cwd()
        short = activate.relative_to(here) if activate.is_relative_to(here) else activate
        commands.insert(0, f"source {shlex.quote(str(short))}")
    return ["next:", *(f"  {line}" for line in commands)]


def show_proof(content: Summary, out: Path, output: Output) -> None:
    """Print what the Verilog did; RunError where it is not the integer model."""
    outcome = content.rtl
    if outcome is None:
        return
    from spikebridge.report.on_chip import proof_text

    folder, text = out / outcome.run / rundir.VERILOG, proof_text(outcome, DigitsConfig.SAMPLE)
    if outcome.equal is False:
        raise RunError(f"{folder}: {text} Look closer with `spikebridge verify {folder}`")
    if not output.json:
        print(text)


def prove(run: Planned) -> bool:
    """Hold the Verilog of an exported run against the integer model, and write rtl.json.

    What stands there of the same program is kept, unless no simulator answered and one is there
    now.  Returns whether rtl.json was written.
    """
    from spikebridge.chip.verification import missing
    from spikebridge.runs.hardware_results import Proof, load_proof, program_sha256

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
    rundir.write_json(
        run.directory / rundir.RTL, Proof(samples, tuple(installed[:1]), equal, reason, sha256)
    )
    return True


def simulate(run: Planned, simulator: str) -> tuple[bool, str]:
    """Write the Verilog of a run and simulate it: whether all is equal, and otherwise what is not.

    Raises RunError where the simulator fails.
    """
    from spikebridge.chip import verification as verify

    folder = write_verilog(run.directory, run.directory / rundir.VERILOG, RTL_SAMPLES, 0, run.name)
    outcome = verify.verify(folder, (simulator,), lint=False)["simulators"][simulator]
    return outcome["passed"], "" if outcome["passed"] else outcome["verdict"]
