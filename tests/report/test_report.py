"""Report pages: the numbers are on them, nothing is loaded, and faults are named."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pages import check_figures, page_of
from helpers.written_runs import (
    LABELS,
    digit_examples,
    music_examples,
    simulate,
    write_comparison,
    write_run,
)
from PIL import Image

from spikebridge import report
from spikebridge.cli import main as cli
from spikebridge.report import wording
from spikebridge.report.example_charts import digit_image, frame_nll, piano_roll, pitch_name, png
from spikebridge.report.page import TEMPLATES, engine
from spikebridge.report.theme import COLOURS, colour_of, plain
from spikebridge.runs.load import Run, load_run
from spikebridge.settings import config
from spikebridge.settings.names import VARIABLE

OWN_SECTION = """
from spikebridge.report import Chart, Section, figure, figures

def norms(run):
    chart = Chart(300)
    x, y = zip(*((epoch.epoch, epoch.grad_norm) for epoch in run.epochs))
    chart.line(x, y, "#0072B2", "norm")
    return Section("Gradients", "", (figures(figure(chart, "Norm of the gradients", "Mean.")),))
"""
PNG = "data:image/png;base64,"
HOSTILE = "</script><script>alert('x')</script><b>&"


class Loads(HTMLParser):
    """Collects what a page would load, and the text of its script elements' openings."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        wanted = {"href"} if tag == "link" else {"src", "srcset", "data", "poster", "action"}
        self.loads += [value or "" for name, value in attrs if name in wanted]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison"))


HEAD = {"task": "digits", "data": "mnist", "metric": "accuracy", "higher_is_better": True}
ROW: dict[str, Any] = {"unit": "snu", "label": "SNU", "n": 1, "tests": [0.9], "test_mean": 0.9}
ROW |= {"test_std": None, "valid_mean": 0.9, "parameters": 9, "seconds_median": 1.0}
ROW |= {"spikes_mean": None, "runs": []}


@pytest.mark.parametrize(
    ("task", "unit", "shown"),
    [
        ("digits", "snu", ["Spike raster", "Membrane states", "Predicted class", "unknown"]),
        ("digits", "lstm", ["Outputs of a few neurons", "no membrane state", "none"]),
        ("digits", "relu", ["Outputs of a few neurons", "no membrane state", "none"]),
        ("music", "softsnu", ["Piano roll", "NLL", "nats per frame", "8.390", "Woźniak"]),
    ],
)
def test_a_run_page_shows_the_result(
    tmp_path: Path, task: str, unit: str, shown: list[str]
) -> None:
    page = page_of(write_run(tmp_path, task, unit, test=0.98765, parameters=26250, seconds=31.2))
    number = "0.988" if task == "music" else "98.77\u00a0%"
    for part in [number, "26,250", "31.2 s", LABELS[unit], "model.hidden", *shown]:
        assert part in page, part
    assert f"spikebridge train {task}" in page
    assert f"<span>--unit {unit}</span>" in page


def test_a_comparison_page_shows_every_unit(comparison: Path) -> None:
    facts = json.loads((comparison / "compare.json").read_text())
    page = page_of(comparison)
    for row in facts["rows"]:
        assert f"{100 * row['test_mean']:.2f} ± {100 * row['test_std']:.2f}" in page
        assert row["label"] in page
        assert colour_of(row["unit"]) in page
    for part in ("Test accuracy of every seed", "Firing rate by layer", "26,250", "snu-1", "demo"):
        assert part in page
    assert 'href="snu-0/report.html"' not in page
    report.write(comparison / "snu-0")
    assert 'href="snu-0/report.html"' in page_of(comparison)
    other = comparison / "pages" / "page.html"
    assert 'href="../snu-0/report.html"' in page_of(comparison, other)


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_a_page_loads_nothing(kind: str, tmp_path: Path, comparison: Path) -> None:
    page = page_of(write_run(tmp_path) if kind == "run" else comparison, tmp_path / "page.html")
    parser = Loads()
    parser.feed(page)
    assert all(load.startswith("data:") for load in parser.loads), parser.loads
    assert not {"iframe", "object", "embed", "base"} & set(parser.tags)
    assert "@import" not in page
    assert "url(" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_a_page_is_written_whole_and_the_same_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = report.write(run)
    assert path == run / "report.html"
    first = path.read_bytes()
    assert report.write(run).read_bytes() == first
    assert len(first) < 1_500_000
    assert not [p for p in run.iterdir() if p.name.startswith(".")]
    assert report.write(run, tmp_path / "new" / "x.html").read_bytes() == first


def test_the_script_of_the_figures_is_plotly_as_it_was_published() -> None:
    script = gzip.decompress(base64.b64decode(engine()))
    assert hashlib.sha256(script).hexdigest() == (
        "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
    )
    assert b"plotly.js (cartesian - minified) v4.1.1" in script[:100]
    licence = TEMPLATES / "plotly-LICENSE.txt"
    assert licence.read_text(encoding="utf-8").startswith("MIT License")


def test_arrays_are_packed_and_what_is_no_number_becomes_a_gap() -> None:
    assert plain(np.array([1, 258], np.uint16)) == {"dtype": "u2", "bdata": "AQACAQ=="}
    assert plain(np.zeros((1, 2), np.float32))["shape"] == "1, 2"
    assert plain([np.int64(3), math.nan, np.float32(0.5)]) == [3, None, 0.5]
    assert plain({"x": np.array([True, False]), "y": None}) == {"x": [True, False]}
    assert plain(np.array([1, 2])) == [1, 2]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    write_run(tmp_path, label=HOSTILE, data=HOSTILE, firing_rates={HOSTILE: 0.1})
    page = page_of(tmp_path)
    assert "<script>alert" not in page
    assert "<b>&" not in page
    assert "&lt;script&gt;alert" in page
    row = ROW | {"unit": HOSTILE, "label": HOSTILE, "runs": []}
    facts = HEAD | {"task": HOSTILE, "data": HOSTILE, "metric": HOSTILE, "rows": [row] * 2}
    (tmp_path / "compare.json").write_text(json.dumps(facts))
    page = page_of(tmp_path)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_values_that_are_no_numbers_become_gaps(tmp_path: Path) -> None:
    run = write_run(tmp_path, spikes_mean="")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"valid": None, "train_loss": math.nan})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = page_of(run)
    assert "unknown" in page
    assert "NaN" not in page
    assert ">nan" not in page


def test_an_incomplete_run_shows_what_there_is(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "result.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 31, "train')
    page = page_of(run)
    assert "This run is not complete" in page
    assert "30 epochs" in page
    for name in ("metrics.jsonl", "examples.npz", "environment.json"):
        (run / name).unlink()
    assert "0 epochs" in page_of(run)


@pytest.mark.parametrize(
    ("unit", "steps", "count"),
    [("snu", 1, 2), ("softsnu", 1, 1), ("lstm", 20, 1), ("snu", 5, 0), ("softsnu", 0, 2)],
)
def test_small_examples(tmp_path: Path, unit: str, steps: int, count: int) -> None:
    digits = write_run(tmp_path / "d", unit=unit, examples=digit_examples(unit, steps, count))
    page = page_of(digits)
    assert ("This is a 0" in page) == (count > 0)
    lines = "Outputs of a few neurons" if unit == "lstm" else "Membrane states of a few neurons"
    assert (lines in page) == (count > 0 and steps > 1)
    music = write_run(tmp_path / "m", "music", unit, examples=music_examples(unit, steps, count))
    assert ("Piano roll" in page_of(music)) == (count > 0 and steps > 0)


def test_a_silent_network_says_so(tmp_path: Path) -> None:
    examples = digit_examples("snu")
    for layer in ("layer1", "layer2"):
        examples[f"{layer}_y"] *= 0
    page = page_of(write_run(tmp_path, examples=examples, epochs_run=1))
    assert "the network is silent" in page
    assert "no spikes" in page


def test_large_layers_are_thinned_and_it_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = digit_examples("snu", steps=400, count=2)
    examples["layer1_y"] = (rng.random((400, 2, 2000)) < 0.5).astype(np.float32)
    examples["layer1_s"] = examples["layer1_y"] - rng.random((400, 2, 2000)).astype(np.float32)
    page = page_of(write_run(tmp_path, examples=examples))
    assert "of 2,000 in layer 1" in page
    assert len(page) < 1_500_000


def damage(name: str, content: bytes | None) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        (run / name).unlink() if content is None else (run / name).write_bytes(content)

    return spoil


def change_result(**changes: Any) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        content = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(content | changes))

    return spoil


def cut(run: Path) -> None:
    content = bytearray((run / "examples.npz").read_bytes())
    content[2000:2100] = bytes(100)
    (run / "examples.npz").write_bytes(content)


def change_array(name: str, array: np.ndarray | None) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        arrays = digit_examples("snu") | {name: array}
        kept = {key: value for key, value in arrays.items() if value is not None}
        np.savez(run / "examples.npz", **kept)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "file", "fault"),
    [
        (damage("config.json", None), "config.json", "missing"),
        (damage("config.json", b"[1]"), "config.json", "list"),
        (damage("result.json", b'{"test": 0.9'), "result.json", "cannot be read"),
        (change_result(test=None), "result.json", '"test" is no number'),
        (change_result(seconds=math.nan), "result.json", '"seconds" is no number'),
        (change_result(published={"value": None}), "result.json", '"value" is no number'),
        (damage("config.json", b'{"model": {"hidden": "a"}}'), "config.json", "hidden='a'"),
        (damage("environment.json", b"\xff\xfe"), "environment.json", "cannot be read"),
        (damage("metrics.jsonl", b'{"epoch": 1}\n{"ep\n'), "metrics.jsonl, line 2", "damaged"),
        (damage("metrics.jsonl", b'{"loss": 1}\n'), "metrics.jsonl, line 1", "epoch"),
        (damage("examples.npz", None), "examples.npz", "missing"),
        (damage("examples.npz", b"PK\x03\x04rubbish"), "examples.npz", "damaged"),
        (damage("examples.npz", b""), "examples.npz", "damaged"),
        (damage("config.json", b"[" * 100_000), "config.json", "cannot be read"),
        (damage("metrics.jsonl", b"[" * 100_000 + b"\n"), "metrics.jsonl, line 1", "damaged"),
        (cut, "examples.npz", "damaged"),
        (change_array("x", None), "examples.npz", "'x' is missing"),
        (change_array("x", np.zeros(3)), "examples.npz", "'x' of shape"),
        (change_array("layer1_y", np.zeros((3, 4, 8))), "examples.npz", "'layer1_y' of shape"),
        (change_array("layer1_s", np.zeros((20, 4, 8))), "examples.npz", "differ in shape"),
        (change_array("target", np.full(4, np.nan)), "examples.npz", "'target' of shape"),
        (change_array("target", np.array([None] * 4, object)), "examples.npz", "damaged"),
    ],
)
def test_a_fault_names_file_and_remedy(
    tmp_path: Path, spoil: Callable[[Path], None], file: str, fault: str
) -> None:
    run = write_run(tmp_path)
    spoil(run)
    with pytest.raises(report.ReportError) as caught:
        report.write(run)
    assert file in str(caught.value)
    assert fault in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["../other", "..", "", 3, "absent"])
def test_a_comparison_names_only_folders_in_it(tmp_path: Path, name: object) -> None:
    row = ROW | {"runs": [name]}
    (tmp_path / "compare.json").write_text(json.dumps(HEAD | {"rows": [row]}))
    with pytest.raises(report.ReportError, match="run the comparison again"):
        report.write(tmp_path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(report.ReportError, match="neither a run"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({}, '"task" is no text'),
        (HEAD, '"rows" is no list'),
        (HEAD | {"rows": [3]}, 'an entry of "rows" is no object'),
        (HEAD | {"rows": [ROW | {"tests": ["0.9"]}]}, 'an entry of "tests" is no number'),
        (HEAD | {"rows": [{"unit": "snu", "label": "SNU", "runs": []}]}, '"n" is no number'),
    ],
)
def test_a_damaged_comparison_is_named(content: Any, fault: str, tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(json.dumps(content))
    with pytest.raises(report.ReportError, match=f"compare.json: {fault}.*comparison again"):
        report.write(tmp_path)


def test_rows_of_images_are_shown_as_the_image(tmp_path: Path) -> None:
    examples = digit_examples("snu", steps=8)
    pixels = np.arange(64.0).reshape(8, 8)
    rows = np.stack([pixels] * 4, axis=1)
    write_run(tmp_path, examples=examples | {"x": rows} | simulate(rows, (16,), "snu"))
    loaded = load_run(tmp_path).examples
    assert loaded is not None
    image = digit_image(loaded, 0)
    assert image is not None
    np.testing.assert_allclose(image, np.asarray(pixels / 63, np.float32), rtol=1e-6)
    picture = Image.open(io.BytesIO(base64.b64decode(png(image).removeprefix(PNG))))
    np.testing.assert_array_equal(picture, np.round(255 * (1 - image)))  # dark ink on white
    coloured = Image.open(io.BytesIO(base64.b64decode(png(np.ones((2, 3, 3))).removeprefix(PNG))))
    assert (coloured.mode, coloured.size) == ("RGB", (3, 2))


def test_the_piano_roll_is_trimmed_to_the_notes_in_use() -> None:
    target = np.zeros((4, 88))
    target[1:3, 39] = 1
    chart = piano_roll(np.full((4, 88), 0.01), target, "snu", "frame")
    assert chart is not None
    heat, outline = chart.traces
    assert pitch_name(60) == "C4"
    assert 60 in heat["y"]
    assert len(heat["y"]) < 15
    np.testing.assert_allclose(outline["x"][:2], [2.56, 4.44])
    assert frame_nll(np.full((4, 88), 0.5), target) == pytest.approx(88 * math.log(2))


def test_what_a_network_holds_and_does_stands_on_its_page(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert "Complexity" not in page_of(run)
    measured = {
        "source": HOSTILE,
        "split": "test",
        "per": "sample",
        "footprint": 104488,
        "parameter_count": 26122,
        "connection_sparsity": 0.25,
        "activation_sparsity": 0.93,
        "synaptic_operations": {"Effective_MACs": 0.0, "Effective_ACs": 51.5, "Dense": 24576.0},
        "membrane_updates": 256.0,
        "samples": 360,
    }
    (run / "complexity.json").write_text(json.dumps(measured))
    page = page_of(run)
    for part in ("104,488", "93\u00a0%", "25\u00a0%", "51.5 additions", "24,576", "360 samples"):
        assert part in page, part
    assert "<script>alert" not in page
    (run / "complexity.json").write_text("{}")
    with pytest.raises(report.ReportError, match=r"complexity\.json.*spikebridge complexity"):
        report.write(run)


def own_section(run: Run) -> report.Section:
    chart = report.Chart(200)
    chart.add("bar", x=[HOSTILE], y=[run.result.test])
    return report.Section(
        HOSTILE,
        "My own measure.",
        (
            report.Block(cards=(report.Card("mine", "42", HOSTILE),)),
            report.figures(report.figure(chart, "My figure", "My caption.")),
            report.Block(table=report.Table(("a", "b"), [["one", HOSTILE]])),
        ),
    )


def test_a_section_of_ones_own_stands_before_the_examples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = page_of(run, sections=[own_section])
    places = [page.index(f"<h2>{title}") for title in ("Learning", "&lt;/script&gt;", "Examples")]
    assert places == sorted(places)
    for part in ("My own measure.", "<dd>42</dd>", "My figure", "My caption."):
        assert part in page
    assert "<script>alert" not in page
    assert "My own measure." not in page_of(run)
    with pytest.raises(report.ReportError, match=r"returned str: .* returns a .*Section"):
        report.write(run, sections=[lambda run: "text"])  # type: ignore[list-item,return-value]
    study = write_comparison(tmp_path / "study")
    with pytest.raises(report.ReportError, match="name a run inside it"):
        report.write(study, sections=[own_section])


def test_a_section_is_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    monkeypatch.setenv(VARIABLE, "")  # what the command allows ends with the test
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_to_show.py").write_text(OWN_SECTION)
    assert cli.main(["report", str(run), "--section", "mine_to_show:norms"]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    check_figures(page)
    assert "Norm of the gradients" in page
    assert cli.main(["report", str(run), "--section", "mine_to_show:nothing"]) == 2
    assert "mine_to_show has no nothing" in capsys.readouterr().err


def test_units_keep_apart_in_colour_and_text() -> None:
    shades = {colour_of(f"{prefix}{unit}") for unit in COLOURS for prefix in ("", "recurrent-")}
    assert len(shades) == 2 * len(COLOURS)
    assert wording.seconds_text(3725) == "1 h 02 min"
    assert wording.seconds_text(125) == "2.1 min"
    assert wording.count_text(812.43) == "812.4"
    assert wording.metric_text(wording.metric_of("accuracy"), 98.5) == "98.50\u00a0%"


@pytest.mark.parametrize(("task", "unit"), [("digits", "lstm"), ("music", "recurrent-softsnu")])
def test_the_command_line_repeats_the_run(task: str, unit: str) -> None:
    meant = config.override(config.preset(task, unit), lr=1e-5, same_mask=True, seed=7)
    words = shlex.split(" ".join(wording.command(["train", task], config.to_dict(meant))))
    parsed = cli.parse(words[1:])
    assert config.Config(parsed.task, parsed.model, parsed.train) == meant


def test_importing_the_report_is_light() -> None:
    code = "import sys, spikebridge.report; print({'torch', 'PIL', 'jinja2'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
