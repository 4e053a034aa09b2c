"""Tables of a comparison for a terminal, from the content of its compare.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import in_words, plural
from spikebridge.runs.hardware_results import ENDS
from spikebridge.runs.transfer import MEASURES

if TYPE_CHECKING:
    from rich.table import Table


def chip_table(content: dict[str, Any]) -> Table | None:
    """What the units do on the digital chip, as a table for a terminal; None where none does."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    result = [row["chip"] for row in content["rows"] if row.get("chip")]
    if not result:
        return None
    metric, first = METRICS[content["metric"]], result[0]
    title = (
        f"On the digital chip, 40 nm, {first['lanes']} lanes at {first['clock_MHz']:g} MHz: "
        f"{metric.axis}, mean of {plural(first['networks'], 'network')}; "
        f"nJ and cycles per {first['per']}"
    )
    built = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    built.add_column("unit")
    for name in ("bits", "in software", "in integers", "nJ", "low to high", "cycles"):
        built.add_column(name, justify="right")
    for row in content["rows"]:
        chip = row.get("chip")
        if not chip:
            built.add_row(row["label"], *["-"] * 6)
            continue
        low, nominal, high = (_nanojoules(chip["energy_pJ"][name]) for name in ENDS)
        built.add_row(
            row["label"],
            str(chip["weight_bits"]),
            metric.figure(chip["software_mean"]),
            _spread(metric, chip["mean"], chip["std"]),
            nominal,
            f"{low} to {high}",
            f"{chip['cycles']:,.0f}",
        )
    return built


def _nanojoules(energy_pJ: float) -> str:
    value = energy_pJ / 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cells_table(content: dict[str, Any]) -> Table | None:
    """What the units do in memory cells, as a table for a terminal; None where nobody tried."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = [row for row in content["rows"] if row.get("memory")]
    if not rows:
        return None
    metric, first = METRICS[content["metric"]], rows[0]["memory"]
    title = (
        f"In {first['device']} phase-change cells, drift compensated: {metric.axis}, mean of "
        f"{first['networks']} networks x {first['chips']} chips"
    )
    built = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    built.add_column("unit")
    names = ["in software", *(in_words(time_s) for time_s in first["times_s"])]
    for name in (*names, "nJ on PCM", "nJ digital int8"):
        built.add_column(name, justify="right")
    for row in rows:
        on_cells = row["memory"]
        energies = [
            on_cells["energy_pJ"][name] for name in ("PCM crossbar", "digital, int8, events")
        ]
        built.add_row(
            row["label"],
            metric.figure(row["test_mean"]),
            *(
                _spread(metric, *pair)
                for pair in zip(on_cells["means"], on_cells["stds"], strict=True)
            ),
            *(f"{value / 1e3:,.0f}" for value in energies),
        )
    return built


def sequence_table(content: dict[str, Any]) -> Table | None:
    """What units keep of earlier tasks, as a table for a terminal; None without such tasks."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = [row for row in content["rows"] if row.get("sequence")]
    if not rows:
        return None
    title = f"{plural(rows[0]['sequence']['tasks'], 'task')} one after the other, in per cent"
    built = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    built.add_column("unit")
    for name in MEASURES.values():
        built.add_column(name, justify="right")
    metric = METRICS["accuracy"]
    for row in rows:
        measures = [row["sequence"]["measures"][name] for name in MEASURES]
        built.add_row(
            row["label"],
            *(_spread(metric, measure["mean"], measure["std"]) for measure in measures),
        )
    return built


def _spread(metric: Any, mean: float, std: float | None) -> str:
    text = metric.figure(mean)
    return text if std is None else f"{text} ± {metric.figure(std)}"


def table(content: dict[str, Any]) -> Table:
    """The comparison as a table for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    metric = METRICS[content["metric"]]
    title = f"{content['task']} ({content['data']}): {metric.axis}, {metric.better}"
    built = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    built.add_column("unit")
    # Short enough for 80 columns.
    for name in ("test", "valid", "seeds", "params", "MACs", "spikes", "s/run", "paper"):
        built.add_column(name, justify="right")
    for row in content["rows"]:
        built.add_row(
            row["label"],
            _spread(metric, row["test_mean"], row["test_std"]),
            metric.figure(row["valid_mean"]),
            str(row["n"]),
            f"{row['parameters']:,}",
            f"{row['operations']:,}",
            "-" if row["spikes_mean"] is None else f"{row['spikes_mean']:,.0f}",
            f"{row['seconds_median']:.1f}",
            metric.figure(row["published"]["value"]) if row["published"] else "-",
        )
    return built
