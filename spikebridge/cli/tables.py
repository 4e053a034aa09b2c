"""Tables of a comparison for a terminal, from the content of its compare.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import in_words, plural
from spikebridge.runs.hardware_results import ENDS
from spikebridge.runs.transfer import MEASURES

if TYPE_CHECKING:
    from rich.table import Table

    from spikebridge.studies.comparison import Summary


def table(content: Summary) -> Table:
    """The comparison; its columns are short enough for 80 characters."""
    metric = METRICS[content.metric]
    rows = [
        (
            row.label,
            _spread(metric, row.test_mean, row.test_std),
            metric.figure(row.valid_mean),
            str(row.n),
            f"{row.parameters:,}",
            "-" if row.operations is None else f"{row.operations:,}",
            "-" if row.spikes_mean is None else f"{row.spikes_mean:,.0f}",
            f"{row.seconds_median:.1f}",
            metric.figure(row.published.value) if row.published else "-",
        )
        for row in content.rows
    ]
    title = f"{content.task} ({content.data}): {metric.axis}, {metric.better}"
    columns = ("test", "valid", "seeds", "params", "MACs", "spikes", "s/run", "paper")
    return _table(title, columns, rows)


def chip_table(content: Summary) -> Table | None:
    """What the units do on the digital chip; None where none does."""
    first = next((row.chip for row in content.rows if row.chip), None)
    if first is None:
        return None
    metric, rows = METRICS[content.metric], []
    for row in content.rows:
        chip = row.chip
        if not chip:
            rows.append((row.label, *["-"] * 6))
            continue
        low, nominal, high = (_nanojoules((chip.part_pJ or chip.energy_pJ)[name]) for name in ENDS)
        mean = _spread(metric, chip.mean, chip.std)
        software, cycles = metric.figure(chip.software_mean), f"{chip.cycles:,.0f}"
        bits, ends = str(chip.weight_bits), f"{low} to {high}"
        rows.append((row.label, bits, software, mean, nominal, ends, cycles))
    title = (
        f"On the digital chip, 40 nm, {first.lanes} lanes at {first.clock_MHz:g} MHz: "
        f"{metric.axis}, mean of {plural(first.networks, 'network')}; "
        + (f"nJ per {first.part}, cycles per {first.per}" if first.part else "")
        + ("" if first.part else f"nJ and cycles per {first.per}")
    )
    columns = ("bits", "in software", "in integers", "nJ", "low to high", "cycles")
    return _table(title, columns, rows)


def _nanojoules(energy_pJ: float) -> str:
    value = energy_pJ / 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cells_table(content: Summary) -> Table | None:
    """What the units do in memory cells; None without a network on cells."""
    with_cells = [(row, row.memory) for row in content.rows if row.memory]
    if not with_cells:
        return None
    metric, first, rows = METRICS[content.metric], with_cells[0][1], []
    for row, on_cells in with_cells:
        tests = zip(on_cells.means, on_cells.stds, strict=True)
        energies = [on_cells.energy_pJ[name] for name in ("PCM crossbar", "digital, int8, events")]
        values = [metric.figure(row.test_mean), *(_spread(metric, *pair) for pair in tests)]
        rows.append((row.label, *values, *(f"{value / 1e3:,.0f}" for value in energies)))
    title = (
        f"In {first.device} phase-change cells, drift compensated: {metric.axis}, mean of "
        f"{first.networks} networks x {first.chips} chips"
    )
    times = [in_words(time_s) for time_s in first.times_s]
    return _table(title, ["in software", *times, "nJ on PCM", "nJ digital int8"], rows)


def sequence_table(content: Summary) -> Table | None:
    """What units keep of earlier tasks; None without such tasks."""
    with_tasks = [row for row in content.rows if row.sequence]
    if not with_tasks:
        return None
    metric, rows = METRICS["accuracy"], []
    for row in with_tasks:
        measures = [row.of_tasks.measures[name] for name in MEASURES]
        texts = [_spread(metric, measure.mean, measure.std) for measure in measures]
        rows.append((row.label, *texts))
    count = with_tasks[0].of_tasks.tasks
    title = f"{plural(count, 'task')} one after the other, in per cent"
    return _table(title, list(MEASURES.values()), rows)


def _spread(metric: Any, mean: float, std: float | None) -> str:
    text = metric.figure(mean)
    return text if std is None else f"{text} ± {metric.figure(std)}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("unit")
    for name in columns:
        result.add_column(name, justify="right")
    for row in rows:
        result.add_row(*row)
    return result
