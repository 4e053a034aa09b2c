"""Who is compared: contenders, and their planned runs, one for each seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spikebridge.base.records import UsageError
from spikebridge.runs import environment, rundir
from spikebridge.settings import published
from spikebridge.settings.config import Config, label_of, override, preset, variant_of
from spikebridge.settings.published import Published
from spikebridge.studies.catalog import Entry

DEMO_UNITS = ("snu", "softsnu", "lstm")
DEMO_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Contender:
    """What is compared with others: a line of the table."""

    name: str
    """Safe for folders, such as "recurrent-softsnu"."""
    label: str
    config: Config
    published: Published | None
    """A published figure to stand beside it."""
    look: str = ""
    """What its colour stands for, where it is not the unit."""


def of_unit(config: Config) -> Contender:
    """A unit as it is, under its own name."""
    variant = variant_of(config.model)
    return Contender(variant, label_of(variant), config, published.headline(config))


@dataclass(frozen=True)
class Planned:
    """One run of a comparison."""

    name: str
    """Its sub-folder, such as "recurrent-softsnu-0"."""
    directory: Path
    config: Config
    contender: Contender

    @property
    def complete(self) -> bool:
        return rundir.is_complete(self.directory)


def of_entry(entry: Entry, *, quick: bool = False) -> list[Contender]:
    """The lines of a table of the catalog."""
    result = []
    for row in entry.rows:
        config = entry.config(row, quick=quick)
        label = row.label or label_of(row.unit)
        look = "" if row.role in ("", "plain") else row.role
        known = published.headline(config)
        result.append(Contender(row.name or row.unit, label, config, known, look))
    return result


def plan(
    contenders: Sequence[Contender], seeds: Sequence[int], directory: Path, *, jobs: int = 1
) -> list[Planned]:
    """The runs of a comparison, line by line.

    With several jobs each run gets its share of the cores as threads, unless the config says how
    many.  A run that was begun keeps its number of threads, for its bits depend on it.
    Raises UsageError for a comparison that makes no sense.
    """
    if not contenders or not seeds:
        raise UsageError("a comparison needs at least one unit and one seed; pass --units, --seeds")
    if jobs < 1:
        raise UsageError(f"jobs={jobs}: it must be at least 1; pass --jobs 1")
    names = [f"unit {contender.name}" for contender in contenders]
    names += [f"seed {seed}" for seed in seeds]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice; name each one once")
    share = max(1, environment.cores() // jobs) if jobs > 1 else 0
    planned = []
    for contender in contenders:
        for seed in seeds:
            name = f"{contender.name}-{seed}"
            config = seeded(contender.config, seed)
            if contender.config.train.threads == 0:
                started = (directory / name / rundir.CONFIG).exists()
                threads = rundir.read_config(directory / name).train.threads if started else share
                config = override(config, threads=threads)
            planned.append(Planned(name, directory / name, config, contender))
    return planned


def seeded(config: Config, seed: int) -> Config:
    """A config with a seed, which a sequence's tasks are drawn with too, after --sequence-seed."""
    if not config.sequence.used:
        return override(config, seed=seed)
    return override(config, seed=seed, sequence_seed=config.sequence.sequence_seed + seed)


def demo_contenders() -> list[Contender]:
    """The units of the demo on the digits that come with scikit-learn."""
    return [of_unit(preset("digits", unit, "digits8x8")) for unit in DEMO_UNITS]


def is_complete(planned: Iterable[Planned]) -> bool:
    """Whether all runs are complete."""
    return all(run.complete for run in planned)
