"""The commands of the command line as records: their fields are flags, their docstrings the help.

`train` and `compare` have one record per task and are put together in `cli`; every other command
is a record with a `run` method.  torch is imported only once there is something to compute.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from spikebridge.base.records import UsageError
from spikebridge.cli.bench import Bench
from spikebridge.cli.complexity import Complexity
from spikebridge.cli.continual import Continual
from spikebridge.cli.export import Export, Verify
from spikebridge.settings.crossbar import MemoryConfig
from spikebridge.settings.model import VariantName

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class RunOptions:
    """Where the run is written, and what is printed."""

    out: Path | None = None
    """Folder of the run; by default runs/DATA-UNIT-SEED, with what differs from the preset before
    the seed: rule, GRAPES, device, start, and a digest of the rest."""
    config: Path | None = None
    """A config.json whose settings stand in for the presets; flags win over it."""
    resume: Flag = False
    """Go on with the incomplete run in the folder; its settings hold where no flag is given."""
    overwrite: Flag = False
    """Start anew, even if the folder holds a run."""
    json: Flag = False
    """Print the result as one JSON object on stdout."""
    no_report: Flag = False
    """Do not write the folder's report.html at the end."""


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, where it is written, and what is printed.

    All other flags apply to every unit; a flag that is not given takes each unit's own preset.
    """

    units: tuple[VariantName, ...] = ("snu", "softsnu", "lstm")
    """Units to compare; use this, not --unit."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, one run of each unit per seed; use this, not --seed."""
    jobs: int = 1
    """Runs that train at the same time, each with its share of the cores."""
    out: Path | None = None
    """Folder of the comparison; by default runs/compare-DATA, with what differs from the presets.
    Complete runs in it are kept."""
    overwrite: Flag = False
    """Do all runs anew, even if the folder holds them."""
    json: Flag = False
    """Print compare.json on stdout."""
    no_report: Flag = False
    """Do not write the folder's report.html at the end."""


@dataclass(frozen=True)
class SearchOptions:
    """What is searched for, how long, and where it is written.

    All other flags hold for every trial, and what they set is not drawn; the rest of each unit's
    settings starts from its own preset.
    """

    units: tuple[VariantName, ...] = ("snu", "softsnu", "lstm")
    """Units to search for; use this, not --unit."""
    trials: int = 12
    """Trials of each unit, the first with its preset."""
    out: Path | None = None
    """Folder; by default runs/search-DATA, with what differs from the presets.  A search that lies
    there goes on."""
    json: Flag = False
    """Print the best settings as one JSON object."""


@dataclass(frozen=True)
class Report:
    """Write the HTML page of runs or comparisons."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that train, compare or demo have written."""
    json: Flag = False
    """Print the pages' paths as one JSON object."""

    def run(self) -> None:
        from spikebridge.cli import commands

        commands.report(self.runs, as_json=self.json)


@dataclass(frozen=True)
class Demo:
    """Train SNU, soft SNU and LSTM, three seeds each, on 8 x 8 digits; needs no network."""

    out: Path = Path("runs/demo")
    """Folder of the comparison."""
    jobs: int = 2
    """Runs that train at the same time, each with its share of the cores."""
    overwrite: Flag = False
    """Start anew, even if the demo is complete."""
    json: Flag = False
    """Print compare.json on stdout."""

    def run(self) -> None:
        from spikebridge.cli import demo

        demo.demo(self.out, jobs=self.jobs, overwrite=self.overwrite, as_json=self.json)


@dataclass(frozen=True)
class Info:
    """Show versions, processor, kernels in use or why not, and where data lie."""

    json: Flag = False
    """Print one JSON object."""

    def run(self) -> None:
        from spikebridge.cli import commands

        commands.info(as_json=self.json)


@dataclass(frozen=True)
class Predict:
    """Test a trained network on other data and write its predictions to a file."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a run of npz, forecast, digits or events."""
    data_dir: Path | None = None
    """npz: an .npz file (y may be missing) or a folder with test.npz or a single one; digits and
    events: a folder as for `spikebridge train`.  Without it the run's own data."""
    file: Path | None = None
    """forecast: a table with the columns of the training."""
    split: Literal["test", "valid"] = "test"
    """Of the run's own data: which part."""
    out: Path | None = None
    """Where predictions go, as .npz or .csv; by default predictions.npz in the run's folder, of a
    table predictions.csv."""
    json: Flag = False
    """Print the metric and the file as one JSON object."""

    def run(self) -> None:
        if self.data_dir is not None and self.file is not None:
            raise UsageError("--data-dir and --file name the same thing; give one of them")
        from spikebridge.cli import commands

        commands.predict(
            self.run_dir,
            self.data_dir or self.file,
            self.out,
            split=self.split,
            as_json=self.json,
        )


@dataclass(frozen=True)
class Reproduce:
    """Make a published table or figure again: runs over seeds, a table, a picture and a page."""

    name: tyro.conf.Positional[str] = ""
    """Which one; --list shows them all."""
    list: Flag = False
    """Show all entries with what they take on two cores."""
    seeds: int = 0
    """Number of seeds, 0, 1, 2, ..; 0 = as many as the entry says."""
    quick: Flag = False
    """A few epochs of one seed: to see that it works, not what it reaches."""
    jobs: int = 2
    """Runs that train at the same time, each with its share of the cores."""
    out: Path | None = None
    """Folder; by default runs/reproduce-NAME.  Complete runs in it are kept."""
    overwrite: Flag = False
    """Do all runs anew, even if the folder holds them."""
    record: Path | None = None
    """Folder for NAME.json with settings, seeds, versions, machine and commit, and for table and
    pictures; refused where a run was made from a changed source tree."""
    json: Flag = False
    """Print compare.json, or the list, on stdout."""

    def run(self) -> None:
        from spikebridge.cli import commands

        if self.list:
            commands.show_catalog(as_json=self.json)
            return
        if not self.name:
            raise UsageError("no entry is named; `spikebridge reproduce --list` shows them all")
        if self.seeds < 0:
            raise UsageError(f"seeds={self.seeds}: a number of seeds, 0 or above; pass --seeds 5")
        commands.reproduce(
            self.name,
            self.out,
            seeds=self.seeds,
            quick=self.quick,
            jobs=self.jobs,
            overwrite=self.overwrite,
            to=self.record,
            as_json=self.json,
        )


@dataclass(frozen=True)
class Sample:
    """Let a trained language model write."""

    what: tyro.conf.Positional[Literal["text"]]
    """What is to be produced."""
    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished `spikebridge train text`."""
    prompt: str = ""
    """Where to start; by default at the beginning of a line."""
    length: int = 100
    """Symbols (words or characters) to write."""
    temperature: float = 0.8
    """Below 1 keeps to what is likely, above 1 wanders; 0 always takes the likeliest."""
    top: int = 40
    """Draw among this many likeliest symbols; 0 = among all."""
    seed: int = 0
    """Seed of the draws."""
    json: Flag = False
    """Print one JSON object."""

    def run(self) -> None:
        from spikebridge.cli import commands

        commands.sample(
            self.run_dir,
            self.prompt,
            length=self.length,
            temperature=self.temperature,
            top=self.top,
            seed=self.seed,
            as_json=self.json,
        )


@dataclass(frozen=True)
class Evaluate:
    """Test a trained network at other numbers of time steps: accuracy against steps."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished `spikebridge train digits` or `events`."""
    steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    """Numbers of time steps."""
    json: Flag = False
    """Print one JSON object."""
    no_report: Flag = False
    """Do not write the folder's report.html anew, with the curve."""

    def run(self) -> None:
        from spikebridge.cli import commands

        commands.evaluate(self.run_dir, self.steps, page=not self.no_report, as_json=self.json)


@dataclass(frozen=True)
class Compose:
    """Let a network trained on music continue a phrase; writes MIDI, sound and the page."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished `spikebridge train music`."""
    piece: int = 0
    """Number of the test piece whose beginning is the seed phrase, from 0."""
    midi: str = ""
    """A MIDI file as the seed phrase, instead of a test piece."""
    prompt_frames: int = 0
    """Frames of the seed phrase; 0 = 16 of a test piece, all of a MIDI file."""
    frames: int = 64
    """Frames to add; a frame is a quarter note in jsb and in your own pieces, else an eighth."""
    temperature: float = 0.9
    """Below 1 keeps to the likely notes, above 1 wanders; 0 always takes the likeliest."""
    voices: int = 0
    """Most notes at once; 0 = as many as the pieces of the run usually have (jsb: 4)."""
    tempo: float = 100.0
    """Quarter notes per minute."""
    seed: int = 0
    """Seed of the draws."""
    out: Path | None = None
    """Folder for composition.mid and composition.wav; by default that of the run."""
    json: Flag = False
    """Print one JSON object."""
    no_report: Flag = False
    """Do not write the run's report.html anew, with the composition; another --out never does."""

    def run(self) -> None:
        from spikebridge.cli import commands

        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("run_dir", "out", "json", "no_report"):
            del settings[name]
        commands.compose(
            self.run_dir, self.out, settings, page=not self.no_report, as_json=self.json
        )


@dataclass(frozen=True)
class Program:
    """Program trained networks into memory cells: accuracy over time, energy, pictures."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs of spiking units or their soft form."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    chips: int = 10
    """Simulated chips, each with draws of its own."""
    times: tuple[float, ...] = (20.0, 3600.0, 86400.0, 2592000.0, 31536000.0)
    """Seconds after programming at which the network is tested."""
    samples: int = 0
    """Test samples for each chip and time; 0 = all."""
    seed: int = 0
    """Seed of the chips."""
    split: Literal["test", "valid"] = "test"
    """What is tested on; valid is for choosing settings such as --w-max."""
    json: Flag = False
    """Print one JSON object."""
    no_report: Flag = False
    """Do not write the runs' report.html anew, with the pictures."""

    def run(self) -> None:
        from spikebridge.cli import commands
        from spikebridge.trained.on_cells import Plan

        # Not as the flag's default: beside it, --device-table would be a second device.
        memory = self.memory if self.memory.used else replace(self.memory, device="iterative")
        plan = Plan(memory, self.chips, self.times, self.samples, self.seed, self.split)
        commands.program(self.runs, plan, page=not self.no_report, as_json=self.json)


SIMPLE = (
    Report,
    Demo,
    Info,
    Sample,
    Compose,
    Evaluate,
    Predict,
    Reproduce,
    Program,
    Export,
    Verify,
    Complexity,
    Bench,
    Continual,
)
