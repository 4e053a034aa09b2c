"""The page of a run on the digital chip, and the chip's columns of a comparison."""

from __future__ import annotations

import io
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_on_cells_page import HOSTILE, cells_of, changed, page_of, part, write_run

from spikebridge.base.records import to_plain
from spikebridge.chip.program import ChipCounts
from spikebridge.cli import tables
from spikebridge.energy import PUBLISHED
from spikebridge.report import on_chip, write
from spikebridge.runs.hardware_results import (
    ENDS,
    OnChip,
    load_on_chip,
    load_proof,
    program_sha256,
)
from spikebridge.runs.load import ReportError
from spikebridge.runs.rundir import Result
from spikebridge.settings.config import Config, preset, to_dict
from spikebridge.studies import compare, plan
from spikebridge.studies.comparison import Summary

CACTI = "CACTI 7.0.3, all else as it comes"
COUNTS = {
    "samples": 200,
    "steps": 4000,
    "input_events": 80_000,
    "spikes": 300_000,
    "weight_reads": 600_000,
    "additions": 26_000_000,
    "membrane_reads": 20_000,
    "membrane_writes": 20_000,
    "parameter_reads": 20_000,
    "slow_reads": 0,
    "slow_writes": 0,
    "slow_parameter_reads": 0,
    "event_reads": 600_000,
    "event_writes": 380_000,
    "updates": 1_064_000,
    "slow_updates": 0,
    "outputs": 2000,
    "cycles": 1_000_000,
}


def row(name: str, count: float, unit_pJ: float, source: str, mark: str = "derived") -> Any:
    return part(name, count, unit_pJ, 40, mark) | {"source": source}


def energy(deck: str, leak_pJ: float) -> dict[str, Any]:
    """What a sample costs with one deck: 3000 rows of weights and so on, 5000 cycles of 5 ns."""
    rows = [
        row("weight memory reads", 3000, 20.0, f"2 x read of 32 KB, {deck}; {CACTI}"),
        row("membrane memory reads", 100, 15.0, f"22 x read of 1 KB, {deck}; {CACTI}"),
        row("additions", 130_000, 0.05, "0.0857 pJ x 22/32; Aladdin"),
        row("multiplications", 0, 0.6, "0.2 pJ; Horowitz, ISSCC 2014"),
        row("registers and clock", 1e7, 0.009, "2,752 flip-flops", "published"),
        row("leakage of memories", 25_000, leak_pJ, f"per ns: 4 x 32 KB, {deck}; {CACTI}"),
        row("leakage of logic", 25_000, 1.6, "per ns: 64 lanes; Aladdin"),
    ]
    total = math.fsum(found["energy_pJ"] for found in rows)
    return {"total_pJ": total, "seconds_s": 2.5e-5, "rows": rows}


def layer(name: str, inputs: int, neurons: int, same: float | None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "dense",
        "recurrent": False,
        "inputs": inputs,
        "neurons": neurons,
        "weights": inputs * neurons,
        "weight_error": 0.0051,
        "decay_error": 0.0016,
        "drive_error": 0.0,
        "same_spikes": same,
    } | more


def digital(**changes: Any) -> dict[str, Any]:
    """The content of a small digital.json; changes replace values of it."""
    content = {
        "metric": "accuracy",
        "higher_is_better": True,
        "split": "test",
        "samples": 200,
        "steps": 20.0,
        "software": 0.97,
        "integer": 0.965,
        "chip": {"weight_bits": 8, "lanes": 64, "clock_MHz": 200.0},
        "program": {
            "weight_bits": 8,
            "decay_bits": 8,
            "fraction_bits": 4,
            "membrane_bits": 22,
            "max_steps": 20,
            "weight_memory_bits": 262_144,
            "membrane_memory_bits": 8192,
            "parameter_memory_bits": 24_576,
            "event_memory_bits": 4096,
            "inputs": 64,
            "multiplies": True,
        },
        "layers": [
            layer("layer1", 64, 128, 0.998),
            layer("layer2", 128, 128, 0.99),
            layer("readout", 128, 10, None),
        ],
        "counts": COUNTS,
        "per": "sample",
        "energy": {
            "low": energy("itrs-lstp", 0.004),
            "nominal": energy("itrs-lop", 4.0),
            "high": energy("itrs-hp", 60.0),
        },
        "area_mm2": {"weight memory": 0.2, "adders and comparators": 0.05},
    }
    return json.loads(json.dumps(content | changes))


def exported(directory: Path, content: dict[str, Any] | None = None) -> Path:
    """A complete run with a digital.json."""
    write_run(directory, None)
    (directory / "digital.json").write_text(json.dumps(digital() if content is None else content))
    return directory


def compiled(directory: Path, **changes: Any) -> OnChip:
    found = load_on_chip(exported(directory, digital(**changes)))
    assert found is not None
    return found


def prove(directory: Path, **changes: Any) -> None:
    """A program, and an rtl.json of it."""
    (directory / "program.npz").write_bytes(b"a program")
    content = {
        "program_sha256": program_sha256(directory),
        "samples": 20,
        "simulators": ["icarus"],
        "equal": True,
        "reason": "",
    }
    (directory / "rtl.json").write_text(json.dumps(content | changes))


def test_the_page_shows_all_parts_in_their_order(tmp_path: Path) -> None:
    page = page_of(exported(tmp_path))
    parts = [
        "<h2>On the digital chip</h2>",
        "weights of 8 bits, membranes of 22 bits (4 of them below those of a weight), 64 lanes",
        "200 MHz, 36.5 KiB of memory; the leak multiplies by a number of 8 bits",
        "the same 200 images of the test set",
        "accuracy in integers",
        "Energy per image on the chip",
        "Not counted: the wires between memory macros and lanes, the clock tree",
        "Nothing is calibrated to a published chip",
        "it decides the range",
        "Parts of the nominal energy, per image",
        "Layers in integers",
        "What the chip does per image",
        "Memories and area, 40 nm",
        "the chip would be larger",
        "Examples from the test set",
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "RTL" not in page
    plain = digital()
    plain["program"]["multiplies"] = False
    assert "of memory; nothing is multiplied" in page_of(exported(tmp_path, plain))


def test_the_headline_is_what_the_file_says(tmp_path: Path) -> None:
    page = page_of(exported(tmp_path))
    nominal, low, high = (
        digital()["energy"][end]["total_pJ"] for end in ("nominal", "low", "high")
    )
    # By hand: 60,000 + 1,500 + 6,500 + 0 + 90,000 + 100,000 + 40,000 pJ.
    assert nominal == pytest.approx(298_000)
    cards = {
        "accuracy in integers": ("96.50 %", "97.00 in software"),
        "energy per image": ("298 nJ", f"{low / 1e3:.3g} nJ to {high / 1e6:.3g} µJ; 40 nm"),
        "time per image": ("25 µs", "5,000 cycles at 200 MHz"),
        # 20 steps of 64 x 128 + 128 x 128 + 128 x 10 weights.
        "additions per image": ("130,000", "of 517,120 dense: 25.1 %"),
        "area": ("0.25 mm²", "40 nm, without wires; 64 lanes"),
    }
    for name, (value, below) in cards.items():
        card = f'<dt>{name}</dt><dd>{value}</dd><dd class="below">{below}</dd>'
        assert card in page


def test_tables_hold_each_figure(tmp_path: Path) -> None:
    rows = cells_of(page_of(exported(tmp_path)))
    for expected in (
        ["low", "198 nJ", "40.1 nJ", "20.2 %", "itrs-lstp"],
        ["nominal", "298 nJ", "140 nJ", "47 %", "itrs-lop"],
        ["high", "1.7 µJ", "1.54 µJ", "90.7 %", "itrs-hp"],
        ["layer2", "dense", "128", "128", "16,384", "0.51 %", "0.0016", "99 %"],
        ["readout", "dense", "128", "10", "1,280", "0.51 %", "0.0016", "–"],
        ["time steps", "20", "4,000", ""],
        ["cycles", "5,000", "1,000,000", "of the clock"],
        ["input events", "400", "80,000", "spikes that come in"],
        ["weight memory", "32 KiB", "0.2 mm²", "80 %"],
        ["adders and comparators", "–", "0.05 mm²", "20 %"],
        ["all parts", "36.5 KiB", "0.25 mm²", ""],
    ):
        assert expected in rows
    assert not [row for row in rows if row[:1] == ["multiplications"]]  # none was done


def test_sources_that_parts_share_are_told_once(tmp_path: Path) -> None:
    page = page_of(exported(tmp_path))
    rows = {row[0]: row for row in cells_of(page) if len(row) == 8}
    assert rows["weight memory reads"] == [
        "weight memory reads",
        "3,000",
        "20 pJ",
        "60 nJ",
        "20.1 %",
        "40 nm",
        "derived",
        "2 x read of 32 KB, itrs-lop; source 1",
    ]
    assert rows["additions"][-1] == "0.0857 pJ x 22/32; source 2"
    assert rows["registers and clock"][-2:] == ["published", "2,752 flip-flops"]
    assert page.count(CACTI) == 1
    assert f"Source 1: {CACTI}. Source 2: Aladdin." in page


def test_the_bars_hold_all_of_the_energy(tmp_path: Path) -> None:
    found = compiled(tmp_path)
    chart = on_chip.energy_bars(found, "image")
    assert chart is not None
    assert [trace["name"] for trace in chart.traces] == list(on_chip.GROUPS)
    for at, end in enumerate(ENDS):
        total = 1e-12 * digital()["energy"][end]["total_pJ"]
        assert math.fsum(trace["x"][at] for trace in chart.traces) == pytest.approx(total, rel=1e-5)
    bars = {trace["name"]: trace["x"][1] for trace in chart.traces}
    assert bars["weight memory"] == pytest.approx(60e-9)
    assert bars["other memories"] == pytest.approx(1.5e-9)
    assert bars["arithmetic"] == pytest.approx(6.5e-9)
    assert chart.layout["yaxis"]["ticktext"] == list(ENDS)
    assert [note["text"] for note in chart.layout["annotations"]][1] == "298\u00a0nJ"
    nothing = {
        end: {"total_pJ": 0.0, "seconds_s": 0.0, "rows": energy("", 0)["rows"]} for end in ENDS
    }
    assert on_chip.energy_bars(compiled(tmp_path, energy=nothing), "image") is None


@pytest.mark.parametrize("most", [3e-12, 1e-9, 2.1e-6, 4.9e-6, 0.7])
def test_the_axis_has_a_few_round_ticks(tmp_path: Path, most: float) -> None:
    rows = energy("", 0)["rows"]
    ends = {end: {"total_pJ": most * 1e12, "seconds_s": 1.0, "rows": rows} for end in ENDS}
    chart = on_chip.energy_bars(compiled(tmp_path, energy=ends), "image")
    assert chart is not None
    ticks = chart.layout["xaxis"]["tickvals"]
    assert 3 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-1] <= most * 1.001
    digits = {f"{tick:e}"[0] for tick in ticks[1:2]}
    assert digits <= {"1", "2", "5"}


def test_dense_additions_are_not_guessed_of_convolutions(tmp_path: Path) -> None:
    assert compiled(tmp_path).dense_additions == 20 * (64 * 128 + 128 * 128 + 128 * 10)
    layers = [layer("layer1", 64, 128, 1.0, kind="convolution", weights=72), layer("r", 128, 10, 1)]
    found = compiled(tmp_path, layers=layers)
    assert found.dense_additions is None
    assert "weights added to membranes" in page_of(tmp_path)
    own = [layer("layer1", 64, 128, 1.0, recurrent=True, weights=192 * 128), layer("r", 128, 10, 1)]
    assert compiled(tmp_path, layers=own).dense_additions == 20 * (192 * 128 + 1280)
    assert "recurrent dense" in page_of(tmp_path)


def test_the_published_chip_stands_beside_mnist_only(tmp_path: Path) -> None:
    page = page_of(exported(tmp_path))
    assert "48.4" not in page
    run = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(run | {"data": "mnist"}))
    page = page_of(tmp_path)
    source = PUBLISHED["MNIST, accuracy more than"].source
    assert "Published: 48.4 to 773 nJ per image of MNIST with more than 98 % accuracy" in page
    assert f"({source}); which network reaches which is unknown" in page
    assert "Our figures are not calibrated to these" in page


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {},
            "RTL equal to the integer model on 20 images in icarus: spikes, membranes, cycles.",
        ),
        (
            {"equal": False, "reason": "FAIL: row 3"},
            "RTL NOT equal to the integer model on 20 images in icarus: FAIL: row 3.",
        ),
        (
            {"equal": None, "samples": 0, "simulators": [], "reason": "no simulator is installed"},
            "The Verilog of this network was not simulated: no simulator is installed.",
        ),
    ],
)
def test_what_simulators_said_is_told(tmp_path: Path, changes: Any, told: str) -> None:
    prove(exported(tmp_path), **changes)
    assert told in page_of(tmp_path)
    # Of another program it says nothing.
    (tmp_path / "program.npz").write_bytes(b"another program")
    assert load_proof(tmp_path) is None
    assert "RTL" not in page_of(tmp_path)


def test_a_run_that_was_not_exported_has_no_section(tmp_path: Path) -> None:
    assert load_on_chip(tmp_path) is None
    assert "On the digital chip" not in page_of(write_run(tmp_path, None))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    content = digital(metric=HOSTILE, split=HOSTILE)
    content["layers"][0]["name"] = content["layers"][0]["kind"] = HOSTILE
    content["area_mm2"][HOSTILE] = 1.0
    content["energy"]["nominal"]["rows"][0] |= {"source": HOSTILE, "part": HOSTILE}
    prove(exported(tmp_path, content), reason=HOSTILE, equal=False)
    page = page_of(tmp_path)
    assert "<script>alert" not in page
    assert "<b>&" not in page


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (changed("integer", to=None), '"integer" is no number'),
        (changed("metric", to=3), '"metric" is no text'),
        (changed("chip", to=[]), '"chip" is no object'),
        (changed("chip", "clock_MHz", to=...), '"clock_MHz" is no number'),
        (changed("program", "membrane_bits", to="22"), '"membrane_bits" is no number'),
        (changed("program", "event_memory_bits", to=...), '"event_memory_bits" is no number'),
        (changed("layers", to=[]), '"layers" is no list'),
        (changed("layers", 1, to=3), 'an entry of "layers" is no object'),
        (changed("layers", 0, "same_spikes", to="all"), '"same_spikes" is no number'),
        (changed("counts", "samples", to=0), '"samples" of "counts" is 0'),
        (changed("counts", "cycles", to=-1), '"cycles" is no number'),
        (changed("energy", "low", to=...), '"low" is no object'),
        (changed("energy", "high", "rows", to=[]), '"rows" is no list'),
        (changed("energy", "nominal", "total_pJ", to=math.nan), '"total_pJ" is no number'),
        (changed("area_mm2", to={}), '"area_mm2" is empty'),
        (changed("area_mm2", "weight memory", to=None), '"weight memory" is no number'),
    ],
)
def test_a_damaged_digital_json_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], fault: str
) -> None:
    content = digital()
    change(content)
    run = exported(tmp_path, content)
    with pytest.raises(ReportError) as caught:
        write(run)
    for told in (str(run / "digital.json"), fault, f"again with `spikebridge export {run}`"):
        assert told in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("content", [b"", b'{"metric": "acc', b"[1]", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["digital.json", "rtl.json"])
def test_a_file_that_is_no_object_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    prove(exported(tmp_path))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReportError, match=name.replace(".", r"\.")):
        write(tmp_path)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"equal": "yes"}, '"equal" is neither true, false nor null'),
        ({"simulators": "icarus"}, '"simulators" is no list'),
        ({"samples": None}, '"samples" is no number'),
        ({"program_sha256": None}, '"program_sha256" is no text'),
    ],
)
def test_a_damaged_rtl_json_is_named(tmp_path: Path, changes: Any, fault: str) -> None:
    prove(exported(tmp_path), **changes)
    with pytest.raises(ReportError) as caught:
        write(tmp_path)
    for told in (str(tmp_path / "rtl.json"), fault, "remove the file"):
        assert told in str(caught.value)


def test_the_page_needs_no_torch(tmp_path: Path) -> None:
    prove(exported(tmp_path))
    code = (
        "import sys, pathlib; from spikebridge import report; "
        f"report.write(pathlib.Path({str(tmp_path)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_all_counts_of_the_chip_have_their_line() -> None:
    fields = set(ChipCounts.__dataclass_fields__)
    assert set(COUNTS) == fields
    assert fields - set(on_chip.COUNTED) == {"samples", "steps", "outputs"}


def finished(directory: Path, config: Config, test: float, spikes: float | None) -> None:
    """A complete run as a comparison reads it."""
    write_run(directory, None)
    told = json.loads((directory / "result.json").read_text())
    result = Result(
        task="digits",
        data="digits8x8",
        unit=config.model.unit,
        label=told["label"],
        metric="accuracy",
        higher_is_better=True,
        test=test,
        test_loss=0.1,
        valid=test,
        best_epoch=3,
        epochs=3,
        parameters=10,
        operations_per_step=24576,
        seconds=1.0,
        spikes_per_inference=spikes,
        firing_rates={},
        mean_activity={},
        seed=config.train.seed,
        published=None,
        directory=directory,
    )
    (directory / "result.json").write_text(json.dumps(to_plain(result)))
    (directory / "config.json").write_text(json.dumps(to_dict(config)))


def compared(folder: Path, *units: str) -> list[plan.Planned]:
    """Complete runs of units over three seeds."""
    contenders = [plan.of_unit(preset("digits", unit)) for unit in units]
    planned = plan.plan(contenders, [0, 1, 2], folder)
    for run in planned:
        spikes = 1500.0 if run.config.model.unit == "snu" else None
        finished(run.directory, run.config, 0.97, spikes)
    return planned


def export(run: plan.Planned, content: dict[str, Any]) -> None:
    (run.directory / "digital.json").write_text(json.dumps(content))


def shown(content: Summary) -> str:
    console = Console(width=160, file=io.StringIO())
    table = tables.chip_table(content)
    assert table is not None
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_comparison_holds_means_over_its_networks(tmp_path: Path) -> None:
    planned = compared(tmp_path, "snu", "softsnu", "lstm")
    for run, integer in zip(planned, (0.96, 0.965, 0.98), strict=False):
        export(run, digital(integer=integer, counts=COUNTS | {"cycles": int(2e8 * integer)}))
    content = compare.compare(planned, tmp_path)
    snu, soft, lstm = content.rows
    assert soft.chip is None
    assert lstm.chip is None
    assert content.rtl is None
    found = snu.chip
    assert found is not None
    assert found.mean == pytest.approx((0.96 + 0.965 + 0.98) / 3)
    assert found.std == pytest.approx(statistics.stdev([0.96, 0.965, 0.98]))
    assert found.software_mean == pytest.approx(0.97)
    assert found.cycles == pytest.approx(1e6 * found.mean)
    assert found.additions == 130_000
    for end in ENDS:
        assert found.energy_pJ[end] == pytest.approx(digital()["energy"][end]["total_pJ"])
    text = shown(content)
    assert "On the digital chip, 40 nm, 64 lanes at 200 MHz: accuracy (%), mean of 3" in text
    assert "96.83 ± 1.04" in text
    for told in ("298", "198 to 1,698", "968,333", "nJ and cycles per sample"):
        assert told in text
    assert text.count("soft SNU") == text.count("LSTM") == 1
    assert [word for word in text.splitlines()[-2].split() if word != "LSTM"] == ["-"] * 6
    page = page_of(tmp_path)
    expected = ["8 bits", "97.00", "96.83 ± 1.04", "298 nJ", "198 nJ to 1.7 µJ", "968,333"]
    rows = {row[0].rpartition(">")[2]: row[1:] for row in cells_of(page) if len(row) == 9}
    assert rows["SNU"] == [*expected, "4.84 ms", "130,000"]
    assert rows["LSTM"] == rows["soft SNU"] == ["–"] * 8
    for told in (
        "over 3 networks on 200 samples",
        "what it takes per image",
        "soft SNU, LSTM: numbers instead of spikes, which the chip cannot take.",
        "the clock tree are not counted",
    ):
        assert told in page


def test_only_runs_that_were_exported_alike_stand_together(tmp_path: Path) -> None:
    planned = compared(tmp_path, "snu", "recurrent-snu")
    content = compare.compare(planned, tmp_path)
    assert tables.chip_table(content) is None
    assert "On the digital chip" not in page_of(tmp_path)
    for run in planned:
        export(run, digital())
    assert all(row.chip for row in compare.compare(planned, tmp_path).rows)
    other = digital(chip={"lanes": 32, "clock_MHz": 200.0})
    export(planned[2], other)  # one of the three networks of the first unit
    first, second = compare.compare(planned, tmp_path).rows
    assert first.chip is None
    assert second.chip.lanes == 64
    assert "SNU: runs that were not exported, or not alike." in page_of(tmp_path)
    for run in planned[:3]:  # all three: another chip than that of the second unit
        export(run, other)
    first, second = compare.compare(planned, tmp_path).rows
    assert first.chip.lanes == 32
    assert second.chip is None
    (planned[0].directory / "digital.json").unlink()
    first, second = compare.compare(planned, tmp_path).rows
    assert first.chip is None
    assert second.chip.networks == 3


def test_a_damaged_export_stops_the_comparison_and_is_named(tmp_path: Path) -> None:
    planned = compared(tmp_path, "snu")
    export(planned[0], digital(integer=None))
    with pytest.raises(ReportError, match=r'digital\.json: "integer" is no number'):
        compare.compare(planned, tmp_path)


def test_a_comparison_tells_what_simulators_said(tmp_path: Path) -> None:
    planned = compared(tmp_path, "snu", "lstm")
    for run in planned[:3]:
        export(run, digital())
    prove(planned[1].directory)
    content = compare.compare(planned, tmp_path)
    assert to_plain(content.rtl) == {
        "run": "snu-1",
        "samples": 20,
        "simulators": ["icarus"],
        "equal": True,
        "reason": "",
    }
    told = "RTL equal to the integer model on 20 images in icarus: spikes, membranes, cycles."
    assert told in page_of(tmp_path)
