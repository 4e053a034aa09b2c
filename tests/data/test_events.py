"""Recordings of an event camera: the format, frames, splits, and the real N-MNIST."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.real_data import real
from helpers.toy_data import Event, encode, write_recordings
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebridge.data import events, files
from spikebridge.data.events import Events, read_events, split_by_class, to_cells
from spikebridge.data.files import DataError
from spikebridge.data.task import SPLITS, Batch
from spikebridge.report import example_charts
from spikebridge.report.page import write
from spikebridge.runs import training
from spikebridge.runs.load import load_run
from spikebridge.settings.config import override, preset
from spikebridge.settings.tasks import EventsConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("events"))


def task_of(folder: Path, **more: object) -> Events:
    return Events(EventsConfig(data_dir=str(folder), **more))  # type: ignore[arg-type]


def one_batch(task: Events, split: str = "test") -> Batch:
    (batch,) = task.batches(split, 10_000, torch.Generator().manual_seed(0))
    return batch


event = st.tuples(st.integers(0, 33), st.integers(0, 33), st.booleans(), st.integers(0, 2**23 - 1))


@settings(deadline=None, max_examples=60)
@given(st.lists(event, min_size=1, max_size=60))
def test_events_come_back_from_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, given_events: list[Event]
) -> None:
    path = tmp_path_factory.getbasetemp() / "some.bin"
    path.write_bytes(encode(given_events))
    found = read_events(path)
    rows = zip(found.x, found.y, found.on, found.time_us, strict=True)
    assert [(int(x), int(y), bool(on), int(t)) for x, y, on, t in rows] == given_events


@settings(deadline=None, max_examples=60)
@given(
    st.lists(event, min_size=1, max_size=60),
    st.integers(1, 12),
    st.sampled_from([1, 2, 3, 7, 34, 300]),
)
def test_every_event_is_counted_once_in_its_frame_and_place(
    tmp_path_factory: pytest.TempPathFactory, given_events: list[Event], steps: int, shrink: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "one.bin"
    path.write_bytes(encode(given_events))
    cells = to_cells(read_events(path), EventsConfig(steps=steps, shrink=shrink))
    side = -(-34 // shrink)
    found = Counter(zip(*np.unravel_index(cells, (steps, 2, side, side)), strict=True))
    last = max(time for *_, time in given_events)
    # Frames are equal shares of the time up to and with the last event.
    expected = Counter(
        (time * steps // (last + 1), int(on), y // shrink, x // shrink)
        for x, y, on, time in given_events
    )
    assert found == expected


@pytest.mark.parametrize(("steps", "shrink"), [(1, 1), (5, 1), (60, 1), (4, 2), (3, 5)])
def test_count_counts_and_binary_says_whether(folder: Path, steps: int, shrink: int) -> None:
    count, binary = (
        one_batch(task_of(folder, steps=steps, shrink=shrink, coding=coding)).x
        for coding in ("count", "binary")
    )
    side = -(-34 // shrink)
    assert count.shape == (steps, 10, 2 * side * side)
    assert count.sum((0, 2)).tolist() == [60.0] * 10
    assert torch.equal(binary, (count > 0).float())
    assert count.max() > 1 or shrink == 1


def test_shrinking_adds_up_squares_of_pixels(folder: Path) -> None:
    fine, coarse = (task_of(folder, coding="count", steps=3, shrink=shrink) for shrink in (1, 2))
    assert fine.image == (2, 34, 34)
    assert coarse.image == (2, 17, 17)
    assert coarse.input_size == 578
    pooled = torch.nn.functional.avg_pool2d(one_batch(fine).x.view(30, 2, 34, 34), 2) * 4
    torch.testing.assert_close(one_batch(coarse).x.view(30, 2, 17, 17), pooled)


def test_an_input_is_darker_then_brighter_then_rows(tmp_path: Path) -> None:
    write_recordings(tmp_path)
    for path in (tmp_path / "Test").rglob("*.bin"):
        path.write_bytes(encode([(5, 2, False, 0), (6, 3, True, 99)]))
    x = one_batch(task_of(tmp_path, steps=2)).x.view(2, 10, 2, 34, 34)
    assert x.sum() == 20
    assert (x[0, :, 0, 2, 5] == 1).all()
    assert (x[1, :, 1, 3, 6] == 1).all()


def test_splits_are_fixed_disjoint_and_a_tenth_of_each_class(folder: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    train, valid = split_by_class(labels, 0, 10)
    assert sorted([*train, *valid]) == list(range(1000))
    for label in range(10):
        whole = (labels == label).sum()
        assert (labels[valid] == label).sum() == max(1, round(0.1 * whole))
    assert all(map(np.array_equal, split_by_class(labels, 0, 10), (train, valid)))
    for folds in (2, 5, 10):
        parts = [split_by_class(labels, fold, folds) for fold in range(folds)]
        assert sorted(np.concatenate([valid for _, valid in parts])) == list(range(1000))
        assert all(len({*train, *valid}) == 1000 for train, valid in parts)
        for label in range(10):
            sizes = [(labels[valid] == label).sum() for _, valid in parts]
            assert max(sizes) - min(sizes) <= 1
    task = task_of(folder)
    assert [task.size(split) for split in SPLITS] == [30, 10, 10]
    assert sorted(one_batch(task, "valid").target.tolist()) == list(range(10))
    seen = [one_batch(task, split).x.transpose(0, 1) for split in SPLITS]
    rows = Counter(x.numpy().tobytes() for part in seen for x in part)
    assert sum(rows.values()) == len(rows) == 50


def test_classes_are_mixed_in_the_order_of_names(folder: Path) -> None:
    found = events.list_recordings(folder, "Test")
    assert [path.name for path, _ in found] == sorted(path.name for path, _ in found)
    assert [digit for _, digit in found] != sorted(digit for _, digit in found)
    assert all(path.parent.name == str(digit) for path, digit in found)
    assert one_batch(task_of(folder)).target.tolist() == [digit for _, digit in found]


def test_marks_of_the_clock_are_no_events(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(encode([(1, 2, True, 5), (0, 240, False, 0), (3, 4, False, 7)]))
    found = read_events(path)
    assert found.x.tolist() == [1, 3]
    assert found.time_us.tolist() == [5, 8192 + 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"events of 5 bytes each, at least one; found 0 bytes"),
        (encode([(1, 1, True, 3)])[:-1], "found 4 bytes"),
        (encode([(1, 1, True, 3), (34, 0, True, 4)]), "0 to 33; found up to x = 34, y = 1"),
        (encode([(1, 1, True, 3), (3, 255, True, 4)]), "0 to 33; found up to x = 3, y = 255"),
        (encode([(0, 240, True, 3)]), "found no event"),
    ],
)
def test_damaged_recordings(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write_recordings(tmp_path)
    path = next((folder / "Train" / "3").glob("*.bin"))
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}: expected .*{message}; get a fresh copy"):
        task_of(folder)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    link = write_recordings(tmp_path) / "Train" / "3" / "99999.bin"
    link.symlink_to("moved-away.bin")
    with pytest.raises(DataError, match=r"99999.bin: .* a link to nothing \(moved-away.bin\)"):
        task_of(tmp_path)


def test_a_folder_without_the_layout_is_refused(tmp_path: Path) -> None:
    remedy = "get N-MNIST from .*garrickorchard.*Orchard et al. 2015"
    with pytest.raises(DataError, match=f"found no such folder; {remedy}"):
        task_of(tmp_path / "nowhere")
    (tmp_path / "Train.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"Train/0/\*.bin.*found Train.zip, which is not unpacked"):
        task_of(tmp_path)
    (tmp_path / "Train.zip").unlink()
    write_recordings(tmp_path)
    kept, *others = (tmp_path / "Train" / "7").glob("*.bin")
    for path in others:
        path.unlink()
    counts = "4, 4, 4, 4, 4, 4, 4, 1, 4, 4 recordings of 0 to 9 in Train"
    with pytest.raises(DataError, match=rf"at least 2 of each digit in Train; found {counts}"):
        task_of(tmp_path)
    (tmp_path / "more.bin").write_bytes(kept.read_bytes())
    for path in (tmp_path / "Test").rglob("*.bin"):
        path.unlink()
    write_recordings(tmp_path, test=0)
    with pytest.raises(DataError, match=r"0, 0, .*, 0 recordings of 0 to 9 in Test"):
        task_of(tmp_path)


def test_the_folder_is_looked_for_in_the_data_then_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"nmnist: .*no such folder; get N-MNIST.*--data-dir"):
        Events(EventsConfig())
    write_recordings(tmp_path / "cache" / "nmnist")
    assert Events(EventsConfig()).size("train") == 30
    write_recordings(tmp_path / "nmnist", train=3)
    assert Events(EventsConfig()).size("train") == 20


def test_each_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Counter[Path]()

    def counting(path: Path) -> events.EventList:
        read[path] += 1
        return read_events(path)

    monkeypatch.setattr(events, "read_events", counting)
    task = task_of(folder)
    for split in SPLITS:
        one_batch(task, split)
    assert set(read.values()) == {1}
    assert len(read) == 50


def test_a_run_learns_and_its_page_shows_the_recordings(tmp_path: Path, folder: Path) -> None:
    small = {"hidden": (16,), "steps": 4, "shrink": 2, "epochs": 12, "dropout": 0.0, "lr": 2e-2}
    config = override(preset("events", data_dir=str(folder)), batch_size=4, threads=1, **small)
    result = training.run(config, tmp_path)
    assert result.test >= 0.8
    page = write(tmp_path).read_text(encoding="utf-8")
    assert "The picture shows the events in the first third of the recording" in page
    assert "all hidden layers, per recording" in page
    examples = load_run(tmp_path).examples
    assert examples is not None
    image = example_charts.event_image(examples, 0)
    assert image is not None
    assert image.shape == (17, 17, 3)
    assert 0 <= image.min() < image.max() == 1


def test_the_picture_tells_the_polarities_apart() -> None:
    from spikebridge.runs.load import Examples

    x = np.zeros((3, 1, 2 * 16), np.float32)
    x[0, 0, 5], x[0, 0, 16 + 9], x[2, 0, 1] = 1, 1, 1
    examples = Examples(x, np.ones((1, 2)), np.zeros(1, int), np.array([3]), {}, {})
    image = example_charts.event_image(examples, 0)
    assert image is not None
    darker, brighter = image[1, 1], image[2, 1]
    assert darker[2] > darker[0]
    assert brighter[0] > brighter[2]
    assert (image[0, 1] == 1).all(), "later events are left out"
    assert example_charts.png(image).startswith("data:image/png;base64,")
    whole = Examples(x[..., :31], np.ones((1, 2)), np.zeros(1, int), np.array([3]), {}, {})
    assert example_charts.event_image(whole, 0) is None


# The real recordings


@pytest.fixture(scope="module")
def nmnist() -> Path:
    return real("nmnist/Train", "nmnist/Test") / "nmnist"


@pytest.mark.data
def test_real_recordings_are_as_published(nmnist: Path) -> None:
    counts, last = [], []
    for part in ("Train", "Test"):
        for path, _ in events.list_recordings(nmnist, part)[:200]:
            found = read_events(path)
            assert (np.diff(found.time_us) >= 0).all(), path
            counts.append(len(found.x))
            last.append(found.time_us[-1])
            assert 0.2 < found.on.mean() < 0.8
    # Three saccades of 100 ms each, some 4,000 events.
    assert 290_000 < min(last) <= max(last) < 340_000
    assert np.mean(last) == pytest.approx(307_700, rel=0.01)
    assert np.mean(counts) == pytest.approx(4_100, rel=0.1)


@pytest.mark.data
def test_real_frames(nmnist: Path) -> None:
    task = task_of(nmnist, coding="count", steps=10)
    train, valid = task.size("train"), task.size("valid")
    assert valid == pytest.approx((train + valid) / 10, rel=0.02)
    batch = next(iter(task.batches("test", 50, torch.Generator())))
    assert len(batch.target.unique()) >= 7
    sizes = [path.stat().st_size // 5 for path, _ in events.list_recordings(nmnist, "Test")[:50]]
    assert batch.x.sum((0, 2)).tolist() == sizes
    # Digits stand in the middle: hardly any event in the outermost pixels.
    images = batch.x.sum((0, 1)).view(2, 34, 34)
    assert images[:, 8:26, 8:26].sum() > 0.7 * images.sum()
