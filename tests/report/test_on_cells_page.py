"""The page of a run that lay on memory cells: its sections, its numbers, and faults named."""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import pages
from safetensors.numpy import save_file

from spikebridge import report
from spikebridge.base.metrics import METRICS
from spikebridge.report import cell_charts
from spikebridge.report.wording import share_text, si_text
from spikebridge.runs.hardware_results import Level, OnCells, load_counts, load_on_cells
from spikebridge.runs.load import ReportError

HOSTILE = "</script><script>alert('x')</script><b>&"
YEAR_S = 365 * 86400.0
PLAIN = [[0.91, 0.80, 0.55], [0.93, 0.84, 0.65], [0.95, 0.82, 0.48]]
COMPENSATED = [[0.92, 0.90, 0.85], [0.94, 0.91, 0.89], [0.96, 0.89, 0.84]]
PLUSES = np.array([[0, 3, 7], [12, 0, 1]], np.int32).reshape(2, 1, 1, 3)
OTHERS = np.array([[143, 0], [5, 5]], np.int32).reshape(2, 1, 2, 1)


def part(name: str, count: float, unit_pJ: float, node_nm: int, mark: str) -> dict[str, Any]:
    return {
        "part": name,
        "count": count,
        "unit_pJ": unit_pJ,
        "node_nm": node_nm,
        "source": f"source of {name}",
        "mark": mark,
        "energy_pJ": count * unit_pJ,
    }


def costs(seconds_s: float, *parts: dict[str, Any]) -> dict[str, Any]:
    total = math.fsum(row["energy_pJ"] for row in parts)
    return {"total_pJ": total, "seconds_s": seconds_s, "rows": list(parts)}


def memory(**changes: Any) -> dict[str, Any]:
    """The content of a small memory.json; changes replace values of it."""
    times = [20.0, 86400.0, YEAR_S]
    drift_s = np.geomspace(1, YEAR_S, 15)
    fall = np.where(drift_s < 100, 1.0, (drift_s / 100) ** -0.05)
    content = {
        "metric": "accuracy",
        "higher_is_better": True,
        "device": {"name": "iterative", "source": "a paper of 2019"},
        "memory": {"device": "iterative", "pairs": 2, "adc_bits": 0, "dac_bits": 6},
        "cells": 1234,
        "samples": 0,
        "seed": 0,
        "software": 0.97,
        "times_s": times,
        "plain": PLAIN,
        "compensated": COMPENSATED,
        "layers": [
            {
                "name": "layers.0.array.weight",
                "shape": [128, 1, 5, 5],
                "tiles": [1, 2],
                "cells": 1234,
                "error": 0.0935,
                "largest_weight": 0.4,
            }
        ],
        "histograms": {
            "top_uS": 25.0,
            "at": [
                {"time_s": time, "cells": counts}
                for time, counts in zip(
                    times, ([700, 30, 4, 490], [800, 200, 224, 0], [900, 330, 4, 0]), strict=True
                )
            ],
        },
        "programmed": [
            {"target_uS": [0.0, 12.0, 24.0], "read_uS": [0.1, 12.5, 23.0]},
            {"target_uS": [0.0, 12.0, 24.0], "read_uS": [0.0, 6.5, 11.0]},
        ],
        "limits": {"at_top": 0.0, "at_bottom": 0.5625},
        "drift": {
            "times_s": drift_s.tolist(),
            "curves": [
                {
                    "target_uS": level,
                    "mean_uS": (level * fall).tolist(),
                    "sd_uS": (0.1 * level * fall).tolist(),
                }
                for level in (2.5, 12.5, 22.5)
            ],
        },
        "energy": {
            "per": "sample",
            "counts": {},
            "hardware": {
                "PCM crossbar": costs(
                    5.2e-5,
                    part("cell reads", 287831.2, 0.028, 90, "assumed"),
                    part("analogue-to-digital", 24930.0, 1.5625, 32, "derived"),
                    part("SET pulses", 0.0, 13.5, 90, "assumed"),
                ),
                "digital, int8, events": costs(
                    1.2e-6, part("accumulates", 1e6, 0.1, 45, "derived")
                ),
                "digital, fp32, events": costs(
                    1.2e-6, part("accumulates", 1e6, 0.9, 45, "derived")
                ),
            },
        },
    }
    return json.loads(json.dumps(content | changes))  # nothing shared between tests


def write_run(directory: Path, content: dict[str, Any] | None, **epoch: Any) -> Path:
    """A complete run of few epochs, programmed if there is content; epoch: more of every line."""
    result = {
        "task": "digits",
        "data": "digits8x8",
        "unit": "snu",
        "label": "SNU",
        "metric": "accuracy",
        "higher_is_better": True,
        "test": 0.97,
        "test_loss": 0.1,
        "valid": 0.97,
        "best_epoch": 3,
        "epochs": 3,
        "parameters": 10,
        "operations_per_step": 20,
        "seconds": 1.0,
        "spikes_per_inference": 30.0,
        "firing_rates": {"layer1": 0.1},
        "mean_activity": {},
        "seed": 0,
        "published": None,
    }
    config = {
        "task": {"name": "digits", "data": "digits8x8"},
        "model": {"unit": "snu", "hidden": [4]},
        "memory": {"device": "accumulation" if epoch else "", "refresh_every": 15},
    }
    lines = [
        {"epoch": n, "train_loss": 1.0 / n, "valid_loss": 1.1 / n, "valid": 0.9, "seconds": 0.3}
        | {name: value * n for name, value in epoch.items()}
        for n in (1, 2, 3)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "environment.json").write_text("{}")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (directory / "result.json").write_text(json.dumps(result))
    np.savez_compressed(
        directory / "examples.npz",
        x=np.ones((3, 1, 64), np.float32),
        output=np.full((1, 10), 0.1, np.float32),
        target=np.zeros(1, np.int64),
        length=np.full(1, 3),
    )
    if content is not None:
        (directory / "memory.json").write_text(json.dumps(content))
    return directory


def write_chip(directory: Path, **changes: np.ndarray) -> None:
    """A chip.safetensors of two matrices."""
    tensors = {
        "layers.0.array.weight/device.pulses": PLUSES,
        "layers.0.array.weight/device.writes": np.ones_like(PLUSES),
        "layers.0.array.weight/scale": np.ones((1, 3), np.float32),
        "readout.linear.weight/device.pulses": OTHERS,
        "readout.linear.weight/device.writes": 6 * np.ones_like(OTHERS),
    }
    save_file(
        {name: np.ascontiguousarray(t) for name, t in (tensors | changes).items()},
        directory / "chip.safetensors",
        {"format": "spikebridge-chip-1"},
    )


def page_of(directory: Path) -> str:
    """The page without plotly.js, its no-break spaces made plain."""
    return pages.page_of(directory).replace("\u00a0", " ")


def deployed(tmp_path: Path, **changes: Any) -> OnCells:
    (tmp_path / "memory.json").write_text(json.dumps(memory(**changes)))
    found = load_on_cells(tmp_path)
    assert found is not None
    return found


def cells_of(page: str) -> list[list[str]]:
    """The rows of all tables as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_the_page_shows_all_parts_in_their_order(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, memory()))
    parts = [
        "<h2>In memory</h2>",
        "accuracy in software",
        "memory cells",
        "Accuracy against time",
        "over 3 chips",
        "<h3>Conductances</h3>",
        "<h3>Programmed against target</h3>",
        "<h3>Drift of a few levels</h3>",
        "<h3>Energy per image</h3>",
        "they are not rescaled",
        "Parts of the PCM crossbar, per image",
        "<h3>Weights on tiles</h3>",
        "<h3>Devices at their limits</h3>",
        "Memory that the run was programmed into",
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "Hardware in the loop" not in page
    for told in ("1,234 simulated", "a paper of 2019", "2 pairs of cells per weight"):
        assert told in page
    assert "Converters of columns are exact in the test, and counted with 8 bits" in page


def test_means_and_deviations_are_those_of_the_chips(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, memory()))
    rows = cells_of(page)
    assert ["in software", "97.00", "–"] in rows
    for index, time in enumerate(("20 s", "1 day", "1 year")):
        told = []
        for chips in (PLAIN, COMPENSATED):
            values = [100 * chip[index] for chip in chips]
            told.append(f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}")
        assert [time, *told] in rows
    # By hand: 92, 94, 96 and 91, 93, 95.
    assert ["20 s", "93.00 ± 2.00", "94.00 ± 2.00"] in rows
    assert '<dd>94.00 % <span class="spread">± 2.00</span></dd>' in page
    assert "after 20 s, compensated; as read 93.00 ± 2.00" in page


def test_the_headline_takes_the_times_nearest_to_a_day_and_a_year(tmp_path: Path) -> None:
    def names(*times_s: float) -> list[str]:
        table = [[0.9] * len(times_s)] * 2
        content = memory(times_s=list(times_s), plain=table, compensated=table)
        page = page_of(write_run(tmp_path, content))
        block = page[page.index("accuracy in software") :]
        return re.findall(r"<dt>(.*?)</dt>", block)[:3]

    assert names(20, 3600, 100000, 3e6) == ["programmed", "after 1.2 days", "after 1.2 months"]
    assert names(0, 3600) == ["programmed", "after 1 h", "memory cells"]
    assert names(20)[:2] == ["programmed", "memory cells"]


def test_energies_are_told_with_their_nodes_marks_and_sources(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, memory()))
    rows = cells_of(page)
    total = 287831.2 * 0.028 + 24930 * 1.5625  # pJ
    crossbar = ["PCM crossbar", f"{total / 1e3:.3g} nJ", "1 ×", "52 µs", "32, 90 nm"]
    assert crossbar in rows
    assert ["digital, int8, events", "100 nJ", f"{1e5 / total:.3g} ×", "1.2 µs", "45 nm"] in rows
    assert ["digital, fp32, events", "900 nJ", f"{9e5 / total:.3g} ×", "1.2 µs", "45 nm"] in rows
    (reads,) = [row for row in rows if row[:1] == ["cell reads"]]
    share = f"{100 * 287831.2 * 0.028 / total:.3g} %"
    assert reads == [
        "cell reads",
        "287,831",
        "28 fJ",
        "8.06 nJ",
        share,
        "90 nm",
        "assumed",
        "source of cell reads",
    ]
    assert not [row for row in rows if row[:1] == ["SET pulses"]]
    assert ["layers.0.array.weight", "128 × 1 × 5 × 5", "1 × 2", "1,234", "9.35 %"] in rows
    assert "<dd>56.2 %</dd>" in page
    assert "<dd>0 %</dd>" in page


def test_the_curves_over_time_hold_mean_and_band(tmp_path: Path) -> None:
    chart = cell_charts.over_time(deployed(tmp_path), METRICS["accuracy"], "snu")
    grey, read, blue, compensated, software = chart.traces
    assert compensated["x"] == [20, 86400, YEAR_S]
    assert compensated["y"] == pytest.approx([94, 90, 86])
    assert read["y"] == pytest.approx([93, 82, 56])
    deviations = [statistics.stdev(100 * chip[i] for chip in COMPENSATED) for i in range(3)]
    high = [mean + sd for mean, sd in zip([94, 90, 86], deviations, strict=True)]
    low = [mean - sd for mean, sd in zip([94, 90, 86], deviations, strict=True)]
    assert blue["y"] == pytest.approx([*high, *reversed(low)], rel=1e-5)
    assert grey["fill"] == "toself"
    assert software["y"] == [97, 97, 97]
    assert software["line"]["dash"] == "dash"
    assert chart.layout["xaxis"]["type"] == "log"
    assert sorted(chart.layout["xaxis"]["ticktext"]) == ["1 day", "1<br>year", "20 s"]


def test_one_chip_has_no_band_and_a_first_time_of_0_a_place(tmp_path: Path) -> None:
    found = deployed(tmp_path, times_s=[0, 60, 3600], plain=PLAIN[:1], compensated=COMPENSATED[:1])
    chart = cell_charts.over_time(found, METRICS["accuracy"], "snu")
    assert len(chart.traces) == 3
    assert chart.traces[0]["x"] == [6, 60, 3600]
    assert "0 s" in chart.layout["xaxis"]["ticktext"]
    page = page_of(
        write_run(
            tmp_path, memory(times_s=[0, 60, 3600], plain=PLAIN[:1], compensated=COMPENSATED[:1])
        )
    )
    assert "of one chip" in page
    assert "bands: one standard deviation" not in page
    assert ["0 s", "91.00", "92.00"] in cells_of(page)


def test_conductances_are_shown_at_the_first_and_the_last_time(tmp_path: Path) -> None:
    found = deployed(tmp_path)
    chart = cell_charts.histogram(found.histograms, "snu")
    assert [trace["name"] for trace in chart.traces] == ["after 20 s", "after 1 year"]
    assert chart.traces[0]["x"] == [0, 6.25, 12.5, 18.75, 25]
    assert chart.traces[0]["y"] == [700, 30, 4, 490, 490]
    assert chart.traces[1]["text"][3] == "18.8 to 25 µS: 0 cells"
    assert chart.layout["yaxis"]["type"] == "log"
    page = page_of(write_run(tmp_path, memory()))
    assert "Read above the range, and not shown: up to 10 cells." in page
    points = cell_charts.scatter(found, "snu").traces
    assert points[1]["x"] == [0, 12, 24]
    assert points[1]["y"] == [0, 6.5, 11]
    assert points[2]["x"] == points[2]["y"] == [0, 25]


def test_drift_is_told_over_the_first_value_with_its_exponent(tmp_path: Path) -> None:
    found = deployed(tmp_path)
    chart = cell_charts.drift(found.drift)
    assert chart is not None
    lines = [trace for trace in chart.traces if "name" in trace]
    assert [trace["name"] for trace in lines] == ["2.5 µS", "12.5 µS", "22.5 µS"]
    assert all(trace["y"][0] == 1 for trace in lines)
    assert lines[1]["y"][-1] == pytest.approx((YEAR_S / 100) ** -0.05, rel=1e-3)
    assert "0.050 at 2.5 µS, 0.050 at 12.5 µS" in page_of(write_run(tmp_path, memory()))
    times = np.geomspace(1, 1e6, 30)
    flat = Level(5.0, np.full(30, 5.0), np.zeros(30))
    assert cell_charts.exponent(times, flat) == pytest.approx(0, abs=1e-12)
    assert cell_charts.exponent(times[:5], Level(5.0, np.full(5, 5.0), np.zeros(5))) is None


def test_training_on_the_hardware_has_its_section(tmp_path: Path) -> None:
    run = write_run(tmp_path, None, pulses=1000, refreshed=7)
    page = page_of(run)
    assert "<h2>In memory</h2>" not in page
    for told in (
        "Hardware in the loop",
        "model accumulation",
        "Every 15 updates",
        "Pulses per epo",
    ):
        assert told in page
    assert "<dd>6,000</dd>" in page
    assert "<dd>42</dd>" in page
    assert "Pulses per cell" not in page
    write_chip(run)
    page = page_of(run)
    assert "Pulses per cell" in page
    assert "<dd>143</dd>" in page
    assert "half of the 10 cells: at most 4" in page
    assert "<dd>6</dd>" in page
    page = page_of(write_run(tmp_path, memory(), pulses=1000, refreshed=7))
    assert page.index("<h2>In memory</h2>") < page.index("<h2>Hardware in the loop</h2>")


def test_every_cell_is_in_the_histogram_of_pulses(tmp_path: Path) -> None:
    write_chip(tmp_path)
    pulses = load_counts(tmp_path, "pulses")
    assert pulses is not None
    assert sorted(pulses) == [0, 0, 0, 1, 3, 5, 5, 7, 12, 143]
    (bars,) = cell_charts.pulse_histogram(pulses, "snu").traces
    assert bars["text"][:2] == ["0 to 2", "3 to 5"]
    assert bars["y"][:5] == [4, 3, 1, 0, 1]
    assert bars["y"][-1] == 1
    assert sum(bars["y"]) == 10
    assert load_counts(tmp_path, "hours") is None


def test_a_run_in_software_has_neither_section(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, None))
    for told in ("In memory", "Hardware in the loop", "programmed into"):
        assert told not in page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    content = memory(device={"name": HOSTILE, "source": HOSTILE}, metric=HOSTILE)
    content["layers"][0]["name"] = HOSTILE
    hardware = content["energy"]["hardware"]
    hardware[HOSTILE] = hardware.pop("digital, int8, events")
    hardware["PCM crossbar"]["rows"][0]["source"] = HOSTILE
    page = page_of(write_run(tmp_path, content))
    assert "<script>alert" not in page
    assert "<b>&" not in page


def changed(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Replaces a value deep in the content, or removes it where `to` is ...."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        if to is ...:
            del content[path[-1]]
        else:
            content[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (changed("software", to=None), '"software" is no number'),
        (changed("times_s", to=[]), '"times_s" is no list'),
        (changed("times_s", to=[20, 10, 30]), '"times_s" do not rise'),
        (changed("plain", to=[[0.9, 0.8]]), '"plain" does not hold any x 3 finite numbers'),
        (changed("plain", to=[[0.9, 0.8, "x"]]), '"plain" is no list of numbers'),
        (changed("compensated", to=PLAIN[:2]), '"compensated" does not hold 3 x 3'),
        (changed("compensated", 1, 1, to=math.nan), '"compensated" does not hold'),
        (changed("device", to="iterative"), '"device" is no object'),
        (changed("histograms", "top_uS", to=0), '"top_uS" is 0: it must be above 0'),
        (changed("histograms", "at", 0, "cells", to=...), '"cells" is no list'),
        (changed("programmed", 0, "read_uS", to=[1.0]), '"read_uS" does not hold 3'),
        (changed("drift", "times_s", 0, to=0), '"times_s" of "drift"'),
        (changed("drift", "curves", 0, "mean_uS", to=[1.0]), '"mean_uS" does not hold 15'),
        (changed("layers", 0, to=3), 'an entry of "layers" is no object'),
        (changed("energy", "hardware", to={}), '"hardware" is empty'),
        (changed("energy", "hardware", "PCM crossbar", "total_pJ", to=-1), '"total_pJ"'),
        (changed("limits", to=...), '"limits" is no object'),
    ],
)
def test_a_damaged_memory_json_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], fault: str
) -> None:
    content = memory()
    change(content)
    run = write_run(tmp_path, content)
    with pytest.raises(ReportError) as caught:
        report.write(run)
    for told in (str(run / "memory.json"), fault, f"again with `spikebridge program {run}`"):
        assert told in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("content", [b"", b'{"metric": "acc', b"[1]", b"\xff\xfe"])
def test_a_memory_json_that_is_no_object_is_named(tmp_path: Path, content: bytes) -> None:
    run = write_run(tmp_path, None)
    (run / "memory.json").write_bytes(content)
    with pytest.raises(ReportError, match=r"memory\.json: .*; program the run again"):
        report.write(run)


def test_a_damaged_chip_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, memory())
    for content in (b"", b"\x80\x04rubbish that is no tensor"):
        (run / "chip.safetensors").write_bytes(content)
        with pytest.raises(ReportError, match=r"chip\.safetensors: .*run it again"):
            report.write(run)
    write_chip(run, **{"layers.0.array.weight/device.pulses": np.full((2, 2), 0.5)})
    with pytest.raises(ReportError, match="holds no counts"):
        report.write(run)


def test_the_page_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path, memory(), pulses=5, refreshed=1)
    write_chip(run)
    code = (
        "import sys, pathlib; from spikebridge import report; "
        f"report.write(pathlib.Path({str(run)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.59068e-7, "259 nJ"),
        (1.0926e-6, "1.09 µJ"),
        (9.996e-7, "1 µJ"),
        (2.8e-14, "28 fJ"),
        (1e-12, "1 pJ"),
        (1e-9, "1 nJ"),
        (1e-6, "1 µJ"),
        (1e-3, "1 mJ"),
        (12.0, "12 J"),
        (1000.0, "1 kJ"),
        (0, "0 J"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_quantities_get_the_prefix_of_their_size(value: Any, shown: str) -> None:
    assert si_text(value, "J").replace("\u00a0", " ") == shown


def test_shares_are_told_in_per_cent() -> None:
    shown = [share_text(share) for share in (0, 0.5412, 1, 1e-7, 0.0935, None)]
    assert [text.replace("\u00a0", " ") for text in shown] == [
        "0 %",
        "54.1 %",
        "100 %",
        "below 0.001 %",
        "9.35 %",
        "–",
    ]


def test_one_cell_beyond_the_range_is_one_cell(tmp_path: Path) -> None:
    content = memory()
    most = max(content["cells"] - sum(one["cells"]) for one in content["histograms"]["at"])
    content["cells"] -= most - 1
    page = page_of(write_run(tmp_path, content))
    assert "Read above the range, and not shown: up to 1 cell." in page
