"""What came out of many runs: the records of compare.json, and a comparison read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikebridge.base.records import (
    NEVER,
    UNLESS_DEFAULT,
    Several,
)
from spikebridge.runs import rundir
from spikebridge.runs.hardware_results import Outcome
from spikebridge.runs.load import ReportError, Run, load_run, reported
from spikebridge.settings.published import Printed, Published
from spikebridge.studies.contrasts import Contrast

COMPARE = "compare.json"
REMEDY = "run the comparison again"


@dataclass(frozen=True)
class MeanSpread:
    """A measure over the runs of a row."""

    mean: float
    std: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class FigureMeans:
    """The test set judged otherwise, over the runs of a row."""

    metric: str
    mean: float
    std: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class SequenceMeans:
    """Of T tasks one after the other: the measures of each run, and accuracies as means."""

    tasks: int
    chance: float
    measures: dict[str, MeanSpread]
    first: tuple[float, ...]
    """(T,) before any task was learned."""
    matrix: tuple[tuple[float, ...], ...]
    """(T, T) on task j after task k: matrix[k][j]."""
    matrix_std: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class StepMeans:
    """Test metric by the number of time steps at the test."""

    trained_with: int
    steps: tuple[int, ...]
    means: tuple[float, ...]
    stds: tuple[float | None, ...]


@dataclass(frozen=True)
class CellMeans:
    """On memory cells, over networks and chips; energies in pJ, per inference."""

    device: str
    cells: int
    networks: int
    chips: int
    memory: dict[str, Any]
    """Settings of the hardware."""
    split: str
    times_s: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float | None, ...]
    energy_pJ: dict[str, float]


@dataclass(frozen=True)
class ChipMeans:
    """On the digital chip, over networks; energies in pJ, per sample."""

    split: str
    per: str
    samples: int
    lanes: int
    clock_MHz: float
    weight_bits: int
    decay_bits: int
    fraction_bits: int
    networks: int
    software_mean: float
    mean: float
    std: float | None
    energy_pJ: dict[str, float]
    cycles: float
    additions: float
    part: str = ""
    """What energy is given by too, such as a heartbeat; "" = nothing."""
    part_pJ: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """A row of a comparison: the same settings over seeds."""

    unit: str
    label: str
    look: str = ""
    n: int
    """Runs."""
    test_mean: float
    test_std: float | None
    tests: tuple[float, ...]
    valid_mean: float
    parameters: int
    operations: int | None = None
    seconds_median: float
    spikes_mean: float | None
    published: Published | None = None
    memory: CellMeans | None = None
    chip: ChipMeans | None = None
    by_steps: StepMeans | None = None
    figures: dict[str, FigureMeans] = field(default_factory=dict, metadata=UNLESS_DEFAULT)
    """The test set judged otherwise, by what is judged, where that differs."""
    sequence: SequenceMeans | None = None
    runs: Several[str]
    seeds: Several[int] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the first run, without its seed."""

    @property
    def of_tasks(self) -> SequenceMeans:
        """What `sequence` holds, of a row that has it."""
        assert self.sequence is not None
        return self.sequence

    @property
    def colour_key(self) -> str:
        """What its colour stands for: the unit, or what tells rows of one unit apart."""
        return self.look or self.unit


@dataclass(frozen=True)
class RuleResult:
    """A row in its group of learning rules."""

    name: str
    label: str
    group: str
    role: str
    chosen: dict[str, Any]
    """Settings that were best on validation."""
    at_edge: Any
    """Names of those at the first or the last value that was tried."""
    tests: tuple[float, ...]
    slowness: Several[float] = ()
    slowness_mean: float | None = None
    slowness_std: float | None = None
    measures: dict[str, tuple[float, ...]] | None = field(default=None, metadata=UNLESS_DEFAULT)
    """Of tasks one after the other, those of each run."""

    def __post_init__(self) -> None:
        if isinstance(self.at_edge, bool):  # as earlier versions wrote it, of all together
            object.__setattr__(self, "at_edge", list(self.chosen) if self.at_edge else [])

    @property
    def compared(self) -> dict[str, tuple[float, ...]]:
        """What is compared with other rows, seed by seed."""
        return self.measures or {"tests": self.tests, "slowness": self.slowness}


@dataclass(frozen=True, kw_only=True)
class RuleContrast(Contrast):
    """What a rule does better than a control."""

    group: str
    role: str
    against: str
    of: str
    """What is compared: tests, slowness, or a measure of tasks one after the other."""
    label: str
    other: str
    corrected: float | None = field(default=None, metadata=NEVER)
    """The p-value, corrected for the number of contrasts in a table."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome(Outcome):
    """What simulators said of the Verilog of a run."""

    run: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of compare.json."""

    task: str
    data: str
    metric: str
    higher_is_better: bool
    rows: Several[RowResult]
    rtl: RunOutcome | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    title: str | None = field(default=None, metadata=UNLESS_DEFAULT)
    learning: Several[RuleResult] = field(default=(), metadata=UNLESS_DEFAULT)
    contrasts: Several[RuleContrast] = field(default=(), metadata=UNLESS_DEFAULT)
    printed: Several[Printed] = field(default=(), metadata=UNLESS_DEFAULT)
    """A published table that stands below."""


@dataclass(frozen=True)
class Compared:
    """A row of a comparison with its runs, one per seed."""

    facts: RowResult
    runs: list[Run]

    @property
    def label(self) -> str:
        return self.facts.label

    @property
    def look(self) -> str:
        return self.facts.colour_key


@dataclass(frozen=True)
class Comparison:
    """A folder with compare.json and the runs that it names."""

    directory: Path
    facts: Summary
    rows: list[Compared]


def load_comparison(directory: Path) -> Comparison:
    """The comparison in a directory.

    Raises ReportError where compare.json, or a run that it names, is missing or damaged.
    """
    path = directory / COMPARE
    with reported():
        facts = rundir.read_record(Summary, path, REMEDY)
    return Comparison(directory, facts, [_with_runs(path, row) for row in facts.rows])


def _with_runs(path: Path, row: RowResult) -> Compared:
    runs: list[Run] = []
    for name in row.runs:
        if name in ("", ".", "..") or Path(name).name != name:
            raise ReportError(f"{path}: {name!r} is not the name of a folder beside it; {REMEDY}")
        if not (path.parent / name).is_dir():
            raise ReportError(f"{path.parent / name}: {path.name} names this run; {REMEDY}")
        runs.append(load_run(path.parent / name, examples=not runs))
    return Compared(row, runs)
