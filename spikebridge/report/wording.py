"""Numbers, settings and commands as a person reads them; nothing here knows HTML."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spikebridge.base.metrics import DIVERGED, METRICS, Metric
from spikebridge.base.quantities import in_si
from spikebridge.base.quantities import number as number
from spikebridge.base.quantities import plural as plural
from spikebridge.settings.tasks import MusicConfig

NOTHING = "–"


def frame_text(data: Any) -> str:
    """How long a frame of a set of music is, as " (one quarter note each)"; "" where not known."""
    lengths = {1: " (one quarter note each)", 2: " (one eighth note each)"}
    return lengths.get(MusicConfig.FRAMES_PER_QUARTER.get(str(data), 0), "")


def metric_of(name: str) -> Metric:
    """How to show a metric; an unknown one is shown as it is."""
    return METRICS.get(name) or Metric(name, name, "", "", "", better="", decimals=4)


def scaled(metric: Metric, value: Any) -> float | None:
    """A metric's value in the unit it is shown in; accuracies above 1 are taken as percent."""
    plain = number(value)
    if plain is None:
        return None
    percent = metric.scale == 100 and plain > 1
    return plain if percent else plain * metric.scale


def metric_text(metric: Metric, value: Any, *, unit: bool = True) -> str:
    """A value with its unit, which a no-break space keeps on its line."""
    shown = scaled(metric, value)
    if shown is None:
        return NOTHING
    text = f"{shown:.{metric.decimals}f}" if abs(shown) < DIVERGED else f"{shown:.3g}"
    return text + (f"\u00a0{metric.unit}" if unit and metric.unit else "")


def spread_text(metric: Metric, mean: Any, std: Any) -> str:
    """Mean and standard deviation, without the metric's unit: "97.22 ± 0.41"."""
    deviation = number(std)
    shown = metric_text(metric, mean, unit=False)
    if shown == NOTHING or deviation is None:
        return shown
    return f"{shown} ± {deviation * metric.scale:.{metric.decimals}f}"


def count_text(value: Any) -> str:
    """A count with thousands separators; one decimal below 1,000 where it is not whole."""
    plain = number(value)
    if plain is None:
        return NOTHING
    whole = plain == round(plain) or abs(plain) >= 1000
    return f"{plain:,.0f}" if whole else f"{plain:,.1f}" if abs(plain) >= 10 else f"{plain:,.2f}"


def seconds_text(value: Any) -> str:
    plain = number(value)
    if plain is None:
        return NOTHING
    if plain < 120:
        return f"{plain:.1f} s"
    if plain < 3600:
        return f"{plain / 60:.1f} min"
    hours, minutes = divmod(round(plain / 60), 60)
    return f"{hours} h {minutes:02} min"


def si_text(value: Any, unit: str) -> str:
    """A quantity with the prefix of its size, to three figures: "259 nJ", "1.09 µJ"."""
    plain = number(value)
    return NOTHING if plain is None else in_si(plain, unit, "\u00a0")


def joules(picojoules: float) -> str:
    return si_text(1e-12 * picojoules, "J")


def share_text(value: Any, total: float = 1.0) -> str:
    """A share of the total in per cent, to three figures: "54.1 %"."""
    plain = number(value)
    if plain is None or not total:
        return NOTHING
    percent = 100 * plain / total
    return f"{percent:.3g}\u00a0%" if not 0 < percent < 0.001 else "below\u00a00.001\u00a0%"


def value_text(value: Any) -> str:
    """A setting in one line."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}" if math.isfinite(value) else NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value)) or NOTHING
    return str(value)


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ("model.unit", "snu") pairs, in their order."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if key == "command" and isinstance(item, list):
            yield name, shlex.join(map(str, item))
        elif isinstance(item, Mapping):
            yield from flatten(item, f"{name}.")
        else:
            yield name, value_text(item)


def command(words: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """The command line that repeats a run, in pieces that a line break should not part.

    words name the command, such as ["train", "digits"].

    Every setting is spelled out, so that the line still means the same when a default changes.
    """
    pieces = [shlex.join(["spikebridge", *words])]
    for part, settings in config.items():
        for name, value in settings.items() if isinstance(settings, Mapping) else ():
            if part == "task" and name == "name":
                continue
            flag = str(name).replace("_", "-")
            if isinstance(value, bool):
                pieces.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                items = value if isinstance(value, list) else [value]
                pieces.append(shlex.join([f"--{flag}", *map(str, items)]))
    return pieces
