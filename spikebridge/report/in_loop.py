"""What the page of a run says of training with the hardware in the loop: pulses and writes."""

from __future__ import annotations

import numpy as np

from spikebridge.report import cell_charts
from spikebridge.report.run_charts import column
from spikebridge.report.theme import Block, Card, Drawer, Section, figures
from spikebridge.report.wording import count_text, number, plural
from spikebridge.runs.hardware_results import load_counts
from spikebridge.runs.load import Run

PULSES = (
    "Whole pulses that updates sent to the cells, none of them verified. Fewer come as the rate of "
    "learning falls."
)
REFRESHED = (
    "Pairs whose two cells were both far up in their range, and were RESET and programmed to their "
    "difference again."
)
RECEIVED = (
    "All cells by the pulses that they have received since the chip was made. Those that "
    "programmed it and wrote pairs anew are included: the more, the higher the target. "
    "How many pulses a cell endures depends on the device and is not simulated."
)


def in_the_loop(run: Run, drawer: Drawer) -> Section | None:
    """The section of a run that was trained on memory cells; None for any other.

    Raises ReportError where chip.safetensors is damaged.
    """
    pulses, writes = (load_counts(run.directory, name) for name in ("pulses", "writes"))
    sent = [value for value in column(run.epochs, "pulses") if value is not None]
    if pulses is None and writes is None and not sent:
        return None
    return Section(
        "Hardware in the loop",
        about(run),
        (
            Block(cards=tuple(cards(run, pulses, writes))),
            epoch_figures(run, drawer),
            figures(
                None
                if pulses is None
                else drawer.plot(
                    cell_charts.pulse_histogram(pulses, run.unit),
                    "Pulses per cell",
                    RECEIVED,
                    wide=True,
                )
            ),
        ),
    )


def about(run: Run) -> str:
    """On what and by which rule the run was trained."""
    name = run.config.cells.cells or run.config.cells.cell_table
    model = f" of the model {name}" if name else ""
    every = run.config.pulses.refresh_every
    anew = f" Every {plural(every, 'update')}, pairs that are used up are written anew."
    return (
        f"The weights lay on simulated cells{model} while they were trained. What an update adds "
        "to a weight is collected until it is worth a pulse, and goes to a cell as blind SET "
        f"pulses.{anew if every else ' No pair is ever written anew.'}"
    )


def total(run: Run, name: str) -> int | None:
    """The sum of a column of metrics.jsonl; None where no epoch has it."""
    result = [value for epoch in run.epochs if (value := number(epoch.get(name))) is not None]
    return round(sum(result)) if result else None


def cards(run: Run, pulses: np.ndarray | None, writes: np.ndarray | None) -> list[Card]:
    """Counts of the whole training."""
    result = []
    if (sent := total(run, "pulses")) is not None:
        result.append(
            Card("pulses of updates", f"{sent:,}", f"in {plural(len(run.epochs), 'epoch')}")
        )
    if (anew := total(run, "refreshed")) is not None:
        result.append(Card("pairs written anew", f"{anew:,}", "over the whole training"))
    if pulses is not None:
        middle = count_text(float(np.median(pulses)))
        result.append(
            Card(
                "most pulses on a cell",
                count_text(int(pulses.max())),
                f"half of the {len(pulses):,} cells: at most {middle}",
            )
        )
    if writes is not None:
        result.append(
            Card(
                "most writes of a cell",
                count_text(int(writes.max())),
                "RESET or programmed, the first time included",
            )
        )
    return result


def epoch_figures(run: Run, drawer: Drawer) -> Block:
    """Pulses and pairs written anew, epoch by epoch."""
    shown = []
    for name, title, words in (
        ("pulses", "Pulses per epoch", PULSES),
        ("refreshed", "Pairs written anew per epoch", REFRESHED),
    ):
        kept = [
            (float(epoch["epoch"]), value)
            for epoch in run.epochs
            if (value := number(epoch.get(name))) is not None
        ]
        if kept:
            axis = "pulses" if name == "pulses" else "pairs written anew"
            shown.append(drawer.plot(cell_charts.epoch_bars(kept, axis, run.unit), title, words))
    return figures(*shown)
