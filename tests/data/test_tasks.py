"""Laws of every task, then what is particular to digits and to music."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy_data import (
    KINDS,
    write_heartbeats,
    write_npz,
    write_recordings,
    write_table,
    write_words,
)
from helpers.toy_music import toy_songs, write_mat
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_matrix
from torch import Tensor

from spikebridge import data as tasks
from spikebridge.data import files, mat
from spikebridge.data import images as digits
from spikebridge.data.files import DataError
from spikebridge.data.images import Digits
from spikebridge.data.music import Music, excerpts, note_log_odds, read_songs
from spikebridge.data.task import SPLITS, Batch, Task
from spikebridge.settings.tasks import (
    DigitsConfig,
    EcgConfig,
    EventsConfig,
    ForecastConfig,
    MusicConfig,
    NpzConfig,
    SpeechConfig,
    TextConfig,
)


def real(*names: str) -> None:
    """Skip where the real data are not at hand: no test downloads."""
    root = os.environ.get(files.VARIABLE, "")
    missing = [name for name in names if not root or not (Path(root) / name).exists()]
    if missing:
        pytest.skip(f"{missing[0]} is not under $SPIKEBRIDGE_DATA ({root or 'not set'})")


@pytest.fixture(scope="module")
def toy_mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mat(tmp_path_factory.mktemp("music") / "toy.mat", toy_songs())


@pytest.fixture(scope="module")
def mnist() -> Digits:
    real(*(name for name in files.SOURCES if name.startswith("mnist/")))
    return Digits(DigitsConfig(data="mnist", coding="current", steps=1))


@pytest.fixture(scope="module")
def jsb() -> Music:
    real("polymusic/JSB_Chorales.mat")
    return Music(MusicConfig())


@pytest.fixture(
    scope="module",
    params=[
        *(
            "rate",
            "threshold",
            "current",
            "rows",
            "music",
            "events",
            "ecg",
            "mel",
            "cochlea",
            "windows",
            *KINDS,
        ),
        pytest.param("jsb", marks=pytest.mark.data),
    ],
)
def task(request: pytest.FixtureRequest, toy_mat: Path) -> Task:
    """Every task of samples; those of streams have their own tests."""
    if request.param == "music":
        return Music(MusicConfig(), toy_mat)
    if request.param == "events":
        folder = write_recordings(toy_mat.parent / "events")
        return tasks.load(EventsConfig(data_dir=str(folder), steps=3))
    if request.param in ("mel", "cochlea"):
        folder = str(write_words(toy_mat.parent / request.param))
        return tasks.load(SpeechConfig(data_dir=folder, front=request.param, bands=5))
    if request.param == "windows":
        rows = np.random.default_rng(0).random((60, 2))
        path = write_table(toy_mat.parent / "rows.csv", {"a": rows[:, 0], "b": rows[:, 1]})
        return tasks.load(ForecastConfig(file=str(path), look_back=5, horizon=3, anchor="none"))
    if request.param == "ecg":
        return tasks.load(EcgConfig(data_dir=str(write_heartbeats(toy_mat.parent / "ecg"))))
    if request.param in KINDS:
        folder = write_npz(toy_mat.parent / request.param, request.param)
        return tasks.load(NpzConfig(data_dir=str(folder)))
    if request.param == "jsb":
        return request.getfixturevalue("jsb")
    return tasks.load(DigitsConfig(coding=request.param, steps=3, gain=0.8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_for(task: Task, batch: Batch) -> Tensor:
    target = batch.target
    return torch.zeros(
        target.shape if target.dtype.is_floating_point else (*target.shape, task.output_size)
    )


def same(one: Batch, other: Batch) -> bool:
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )


# Laws


@pytest.mark.parametrize("split", SPLITS)
def test_batches_hold_every_sample_once(task: Task, split: str) -> None:
    batches = list(task.batches(split, 4, seeded()))
    sizes = [batch.x.shape[1] for batch in batches]
    assert sum(sizes) == task.size(split) > 0
    assert set(sizes[:-1]) <= {4}
    for batch in batches[:20]:
        steps, samples, inputs = batch.x.shape
        assert inputs == task.input_size
        assert batch.x.dtype == torch.float32
        assert batch.x.is_contiguous()
        # Of the first, level crossings in both directions; of the other, deviations.
        most = {"ecg": 1, "speech": 9, "forecast": 9}.get(task.name, 0)
        assert -most <= batch.x.min() <= batch.x.max() <= max(most, 1)
        leading = (steps, samples) if task.readout == "each" else (samples,)
        if task.metric == "accuracy":
            assert batch.target.shape == leading
            assert batch.target.dtype == torch.int64
        else:
            assert batch.target.shape == (*leading, task.output_size)
            assert batch.target.dtype == torch.float32
        if task.name == "music":
            assert batch.mask is not None
            assert batch.mask.shape == (steps, samples)
            assert batch.mask.dtype == torch.bool
        else:
            assert batch.mask is None
            assert batch.counted == math.prod(leading)


@pytest.mark.parametrize("split", SPLITS)
def test_the_generator_decides_everything(task: Task, split: str) -> None:
    once, again = (list(task.batches(split, 5, seeded(3))) for _ in range(2))
    assert all(same(a, b) for a, b in zip(once, again, strict=True))
    generator = seeded(3)
    next(iter(task.batches(split, 5, generator)))
    state = generator.get_state()
    resumed = torch.Generator()
    resumed.set_state(state)
    first = list(task.batches(split, 5, generator))
    second = list(task.batches(split, 5, resumed))
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


def test_train_is_shuffled_anew_and_the_rest_is_not(task: Task) -> None:
    def targets(split: str, generator: torch.Generator) -> Tensor:
        return next(iter(task.batches(split, task.size(split), generator))).target

    generator = seeded()
    assert not torch.equal(targets("train", generator), targets("train", generator))
    for split in ("valid", "test"):
        assert torch.equal(targets(split, seeded(1)), targets(split, seeded(2)))


def test_constant_predictor_has_its_analytic_loss(task: Task) -> None:
    for batch in task.batches("valid", 3, seeded()):
        expected = {
            "accuracy": math.log(task.output_size),
            "nll": 88 * math.log(2),
            "rmse": float(batch.target.double().square().mean()),
            "mse": float(batch.target.double().square().mean()),
        }[task.metric]
        assert task.loss(logits_for(task, batch), batch).item() == pytest.approx(expected, rel=1e-5)


def test_score_does_not_depend_on_the_batch_size(task: Task) -> None:
    def metric(batch_size: int) -> tuple[float, int]:
        logits = torch.arange(task.output_size) / 50
        parts = [
            task.score(logits_for(task, batch) + logits, batch)
            for batch in task.batches("test", batch_size, seeded())
        ]
        return math.fsum(total for total, _ in parts), sum(count for _, count in parts)

    total, count = metric(task.size("test"))
    for batch_size in (1, 7):
        assert metric(batch_size)[1] == count
        assert metric(batch_size)[0] == pytest.approx(total, rel=1e-6)


def test_numbers_are_not_judged_by_accuracy() -> None:
    """A squared error under that name would be the better the larger it is."""

    class Own(Task):
        input_size = output_size = 1

    batch, output = Batch(torch.zeros(2, 3, 1), torch.ones(3, 1), None), torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"metric='accuracy': .*; set metric = 'rmse'"):
        Own().score(output, batch)
    mended = Own()
    mended.metric = "rmse"
    assert mended.score(output, batch) == (3.0, 3)
    assert not mended.higher_is_better


def test_half_precision_logits_are_judged_in_float32(task: Task) -> None:
    batch = next(iter(task.batches("test", 3, seeded())))
    output = torch.randn(logits_for(task, batch).shape, generator=seeded()).bfloat16()
    assert task.loss(output, batch).dtype == torch.float32
    assert task.loss(output, batch) == task.loss(output.float(), batch)
    assert task.loss(output.double(), batch).dtype == torch.float64


def test_bad_input_is_refused_at_once(task: Task) -> None:
    with pytest.raises(ValueError, match=r"split='dev'.*train, valid, test"):
        task.size("dev")
    with pytest.raises(ValueError, match=r"split='dev'.*train, valid, test"):
        task.batches("dev", 1, seeded())
    for batch_size in (0, -3):
        with pytest.raises(ValueError, match=rf"batch_size={batch_size}.*at least 1.*pass"):
            task.batches("test", batch_size, seeded())
    batch = next(iter(task.batches("test", 2, seeded())))
    wrong = logits_for(task, batch)[..., :-1]
    for judge in (task.loss, task.score):
        with pytest.raises(ValueError, match=r"output shape.*needs logits of shape.*readout"):
            judge(wrong, batch)


def test_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"SimpleNamespace.*pass a record of"):
        tasks.load(SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(digits, "read_digits8x8", lambda: __import__("sklearn_is_missing"))
    with pytest.raises(ModuleNotFoundError, match=r"sklearn_is_missing.*spikebridge\[app\]"):
        tasks.load(DigitsConfig())


# Digits


def test_by_a_threshold_a_pixel_spikes_always_or_never() -> None:
    config = DigitsConfig(coding="threshold", steps=3, steps_test=5, gain=0.75)
    task = tasks.load(config)
    values = tasks.load(dataclasses.replace(config, coding="current"))
    for split, steps in (("train", 3), ("valid", 5)):
        x = next(task.batches(split, 50, seeded())).x
        current = next(values.batches(split, 50, seeded())).x
        assert x.shape == current.shape == (steps, 50, 64)
        assert torch.equal(x, (current >= 0.5).float())
    assert bool((current == 0.5625).any())  # 0.75 x 12/16: half bright enough, and
    assert float(x[current == 0.75].min()) == 1.0


def test_digits8x8_split_is_fixed_stratified_disjoint_and_whole() -> None:
    from sklearn.datasets import load_digits

    splits = digits.read_digits8x8()
    assert [len(splits[split].labels) for split in SPLITS] == [1079, 359, 359]
    # As many copies of each (image, class) as scikit-learn has: nothing is lost or used twice.
    whole = load_digits()
    rows = [
        (image.tobytes(), int(label))
        for images in splits.values()
        for image, label in zip(images.pixels, images.labels, strict=True)
    ]
    assert Counter(rows) == Counter(
        (image.astype(np.uint8).tobytes(), int(label))
        for image, label in zip(whole.images, whole.target, strict=True)
    )
    for split, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)):
        counts = np.bincount(splits[split].labels, minlength=10)
        np.testing.assert_allclose(counts, share * np.bincount(whole.target), atol=2)
    digest = hashlib.sha256(splits["test"].pixels.tobytes() + splits["test"].labels.tobytes())
    assert digest.hexdigest()[:16] == "378479568f8f442c", "the split must never change"


def test_codings_of_one_image() -> None:
    def first(**settings: object) -> Batch:
        task = Digits(DigitsConfig(**settings))  # type: ignore[arg-type]
        assert task.readout == ("last" if settings["coding"] == "rows" else "mean")
        return next(iter(task.batches("test", 6, seeded())))

    image = torch.from_numpy(digits.read_digits8x8()["test"].pixels[:6]) / 16  # (B, 8, 8)
    current = first(coding="current", steps=4, gain=2.5).x
    torch.testing.assert_close(current, (2.5 * image).flatten(1).expand(4, -1, -1))
    rows = first(coding="rows", gain=0.5).x
    torch.testing.assert_close(rows, 0.5 * image.transpose(0, 1))
    rate = first(coding="rate", steps=400, gain=0.5).x
    assert set(rate.unique().tolist()) == {0.0, 1.0}
    assert (rate.mean(0) - 0.5 * image.flatten(1)).abs().max() < 5 * 0.5 / 400**0.5
    assert not torch.equal(rate[0], rate[1]), "draws are fresh at each step"


def test_draws_are_fresh_at_each_epoch() -> None:
    task, generator = Digits(DigitsConfig(steps=2)), seeded()
    one, other = (next(iter(task.batches("test", 50, generator))) for _ in range(2))
    assert torch.equal(one.target, other.target)
    assert not torch.equal(one.x, other.x)


@pytest.mark.data
def test_mnist_as_published(mnist: Digits) -> None:
    assert [mnist.size(split) for split in SPLITS] == [55_000, 5_000, 10_000]
    assert mnist.input_size == 784
    counts = sum(mnist._labels[split].bincount() for split in ("train", "valid"))
    # Images of each digit in the 60,000 training and 10,000 test images.
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    counts = mnist._labels["test"].bincount()
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist._labels["test"][:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    batch = next(iter(mnist.batches("train", 55_000, seeded())))
    assert batch.x.mean() == pytest.approx(0.1307, abs=3e-4)  # the usual normalisation constant
    digest = hashlib.sha256(mnist._labels["valid"].numpy())
    assert digest.hexdigest()[:16] == "6a57f6b40435a7b2", "the split must never change"


# Music


def test_toy_songs_arrive_frame_by_frame(toy_mat: Path) -> None:
    task, songs = Music(MusicConfig(), toy_mat), toy_songs()["validdata"]
    (batch,) = task.batches("valid", 3, seeded())
    assert batch.mask is not None
    assert batch.x.shape == (5, 3, 88)
    assert batch.mask.sum(0).tolist() == [5, 2, 2]
    for i, song in enumerate(songs):
        real = len(song) - 1
        np.testing.assert_array_equal(batch.x[:real, i], song[:-1])
        np.testing.assert_array_equal(batch.target[:real, i], song[1:])
        assert batch.mask[:real, i].all()
        assert not batch.x[real:, i].any()
        assert not batch.target[real:, i].any()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99))
def test_padding_never_counts(lengths: list[int], seed: int) -> None:
    task = Music.__new__(Music)  # judging needs no songs
    steps, samples = max(lengths) + 2, len(lengths)
    mask = torch.arange(steps)[:, None] < torch.tensor(lengths)
    output = 3 * torch.randn(steps, samples, 88, generator=seeded(seed))
    target = (torch.rand(steps, samples, 88, generator=seeded(seed)) < 0.2).float()
    frames = [(t, i) for i, length in enumerate(lengths) for t in range(length)]
    p = torch.sigmoid(output.double())
    expected = -sum((torch.where(target[f] > 0, p[f], 1 - p[f])).log().sum() for f in frames)
    for at_padding in (0.0, 1e30, -math.inf, math.nan):
        poisoned = torch.where(mask[..., None], output, at_padding).requires_grad_()
        batch = Batch(torch.zeros_like(output), target, mask)
        loss = task.loss(poisoned, batch)
        loss.backward()
        assert poisoned.grad is not None
        assert not poisoned.grad[~mask].any()
        wanted = (p - target)[mask] / len(frames)
        torch.testing.assert_close(poisoned.grad[mask].double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss.double(), expected / len(frames), rtol=1e-5, atol=1e-5)
        total, count = task.score(poisoned, batch)
        assert count == len(frames)
        assert total == pytest.approx(float(expected), rel=1e-5)
    whole = Batch(output, target, None)  # no mask: all frames are real
    assert task.loss(output, whole) == task.loss(output, whole._replace(mask=mask | True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda songs: songs.pop("validdata"), "a cell array validdata of songs; found none"),
        (lambda songs: songs.update(testdata=[]), "cell array testdata"),
        (lambda songs: songs["traindata"].append(np.zeros((5, 87))), r"song 8 of shape.*\(5, 87\)"),
        (lambda songs: songs["testdata"].append(np.zeros((1, 88))), "song 4 of at least 2 frames"),
        (lambda songs: songs["testdata"].append(np.zeros((0, 88))), "testdata song 4"),
        (lambda songs: songs["testdata"].append(np.full((3, 88), 2)), "of zeros and ones"),
        (lambda songs: songs["testdata"].append(np.full((3, 88), np.nan)), "of zeros and ones"),
    ],
)
def test_songs_are_checked(tmp_path: Path, change: object, message: str) -> None:
    songs = toy_songs()
    change(songs)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        read_songs(write_mat(tmp_path / "toy.mat", songs))


def test_sparse_songs_are_songs(tmp_path: Path) -> None:
    """Piano rolls are mostly zeros, and MATLAB keeps them so."""
    songs = toy_songs()
    sparse = {key: [csc_matrix(song) for song in found] for key, found in songs.items()}
    dense = read_songs(write_mat(tmp_path / "dense.mat", songs))
    again = read_songs(write_mat(tmp_path / "sparse.mat", sparse))
    assert [len(found) for found in again.values()] == [len(found) for found in dense.values()]
    for split, found in dense.items():
        assert all(np.array_equal(a, b) for a, b in zip(again[split], found, strict=True))


@pytest.mark.parametrize("kept", [0, 10, 100, 127, 130, 300, -20])
def test_damaged_mat_file(tmp_path: Path, toy_mat: Path, kept: int) -> None:
    path = tmp_path / "cut.mat"
    path.write_bytes(toy_mat.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"cut.mat: expected a .*; found .*fresh copy"):
        read_songs(path)


def test_a_damaged_mat_file_never_ends_the_process(tmp_path: Path) -> None:
    songs = {key: [csc_matrix(song) for song in found] for key, found in toy_songs().items()}
    whole = bytearray(write_mat(tmp_path / "whole.mat", songs).read_bytes())
    path = tmp_path / "damaged.mat"
    for at in (291, 517, 583, *np.random.default_rng(1).integers(128, 700, 3).tolist()):
        damaged = whole.copy()
        damaged[at] ^= 0x5A
        path.write_bytes(damaged)
        with contextlib.suppress(mat.MatError):
            assert mat.songs_apart(path).keys() == set(mat.KEYS)


def test_what_a_mat_file_asks_for_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs: dict = toy_songs()
    songs["traindata"][3] = csc_matrix((400_000_000, 88), dtype=np.uint8)
    path = write_mat(tmp_path / "large.mat", songs)
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"large.mat: expected songs of at most .* frames together"):
        read_songs(path)
    outside = csc_matrix(np.eye(4, 88, dtype=np.uint8))
    outside.indices[2] = 1 << 20
    songs["traindata"][3] = outside
    with pytest.raises(mat.MatError, match=r"'traindata song 4 as a whole sparse matrix'.*outside"):
        mat.songs_of(write_mat(tmp_path / "outside.mat", songs))
    for ended, told in ((-11, "reading it ended by SIGSEGV"), (1, "its last words")):
        answer = SimpleNamespace(returncode=ended, stderr=b"its last words\n")
        monkeypatch.setattr(mat.subprocess, "run", lambda *_, a=answer, **__: a)
        with pytest.raises(mat.MatError, match=told):
            mat.songs_apart(path)


def test_files_that_are_known_are_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    real("polymusic/JSB_Chorales.mat")
    path = files.fetch("polymusic/JSB_Chorales.mat")
    apart = mat.songs_apart(path)
    monkeypatch.setattr(mat, "songs_apart", None)
    for split, songs in read_songs(path).items():
        other = apart[f"{split}data"]
        assert all(np.array_equal(a, b) for a, b in zip(songs, other, strict=True))


def test_a_name_that_no_system_takes_is_a_data_error(tmp_path: Path) -> None:
    long = str(tmp_path / ("x" * 5000))
    for config in (
        DigitsConfig(data="idx", data_dir=long),
        MusicConfig(data="mat", data_dir=long),
        EventsConfig(data_dir=long),
        NpzConfig(data_dir=long),
        TextConfig(data="files", data_dir=long),
        ForecastConfig(file=long),
    ):
        with pytest.raises(DataError, match="File name too long; mend"):
            tasks.load(config)


def test_no_mat_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_songs(tmp_path / "none.mat")
    (tmp_path / "text.mat").write_text("x" * 500)
    with pytest.raises(DataError, match=r"a whole .mat file; found a file that cannot be read"):
        read_songs(tmp_path / "text.mat")


def own(folder: Path, **settings: object) -> MusicConfig:
    return MusicConfig(data="mat", data_dir=str(folder), **settings)  # type: ignore[arg-type]


def test_own_pieces_are_the_one_mat_file_of_a_folder(tmp_path: Path, toy_mat: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "readme.txt").write_text("not data")
    with pytest.raises(
        DataError, match=r"mine: expected .*exactly one .mat file; found none; pass"
    ):
        tasks.load(own(folder))
    (folder / "Songs.MAT").write_bytes(toy_mat.read_bytes())
    mine, theirs = tasks.load(own(folder)), Music(MusicConfig(), toy_mat)
    for split in SPLITS:
        assert same(
            next(iter(mine.batches(split, 3, seeded()))),
            next(iter(theirs.batches(split, 3, seeded()))),
        )
    (folder / "more.mat").write_bytes(b"")
    with pytest.raises(DataError, match=r"found 2 \(Songs.MAT, more.mat\)"):
        tasks.load(own(folder))
    with pytest.raises(DataError, match=r"nowhere: expected a folder .*; found no such folder"):
        tasks.load(own(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="found a file"):
        tasks.load(own(toy_mat))


@settings(deadline=None)
@given(st.integers(2, 400), st.one_of(st.just(0), st.integers(2, 40)))
def test_cutting_loses_no_frame_to_predict(length: int, frames: int) -> None:
    song = np.arange(length)[:, None] + np.zeros((1, 88), np.int64)  # each frame tells its number
    parts = excerpts(song, frames)
    assert all(2 <= len(part) <= (frames or length) for part in parts)
    assert [n for part in parts for n in part[1:, 0].tolist()] == list(range(1, length))
    heard = [n for part in parts for n in part[:-1, 0].tolist()]
    assert heard == list(range(length - 1)), "x stands right before its target"
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1, "no short remnant is left over"


def test_only_training_pieces_are_cut(toy_mat: Path) -> None:
    whole, cut = (Music(MusicConfig(frames=frames), toy_mat) for frames in (0, 3))
    assert [cut.size(split) for split in SPLITS] == [15, 3, 3]
    assert cut.count_batches(7) == 3
    assert same(*(next(iter(task.batches("test", 9, seeded()))) for task in (whole, cut)))
    notes = []
    for task in (whole, cut):
        (batch,) = task.batches("train", 99, seeded())
        assert batch.mask is not None
        assert len(batch.x) == (8 if task is whole else 2)
        notes.append(batch.target[batch.mask])
    assert torch.equal(*(frames.sum(0) for frames in notes))
    assert len(notes[0]) == len(notes[1])
    assert torch.equal(whole.prior, cut.prior)


def test_the_prior_is_how_often_notes_sound(toy_mat: Path) -> None:
    task = Music(MusicConfig(), toy_mat)
    (batch,) = task.batches("train", 99, seeded())
    assert batch.mask is not None
    notes = batch.target[batch.mask]
    odds = (notes.sum(0) + 1) / (len(notes) - notes.sum(0) + 1)
    torch.testing.assert_close(task.prior, odds.log())
    assert task.prior.dtype == torch.float32
    silent = note_log_odds([np.zeros((5, 88), np.uint8), np.ones((3, 88), np.uint8)])
    torch.testing.assert_close(silent, torch.full((88,), math.log(3 / 5)))


@pytest.mark.data
@pytest.mark.parametrize(
    ("data", "name", "pieces", "frames"),
    [
        ("nottingham", "Nottingham", [694, 173, 170], [176_561, 45_513, 44_463]),
        ("musedata", "MuseData", [524, 135, 124], [245_202, 82_755, 64_339]),
        ("piano", "Piano_midi", [87, 12, 25], [75_911, 8_540, 19_036]),
    ],
)
def test_other_sets_as_published(
    data: str, name: str, pieces: list[int], frames: list[int]
) -> None:
    real(f"polymusic/{name}.mat")
    whole = tasks.load(MusicConfig(data=data))  # type: ignore[arg-type]
    cut = tasks.load(MusicConfig(data=data, frames=100))  # type: ignore[arg-type]
    assert [whole.size(split) for split in SPLITS] == pieces
    for split, count, expected in zip(SPLITS, pieces, frames, strict=True):
        for task in (whole, cut):
            found = longest = 0
            for batch in task.batches(split, 32, seeded()):
                assert batch.mask is not None
                found += int(batch.mask.sum())
                longest = max(longest, len(batch.x))
            assert found + count == expected
            assert (longest <= 99) == (task is cut and split == "train")


@pytest.mark.data
def test_jsb_as_published(jsb: Music) -> None:
    assert [jsb.size(split) for split in SPLITS] == [229, 76, 77]
    frames = {}
    for split in SPLITS:
        (batch,) = jsb.batches(split, 999, seeded())
        assert batch.mask is not None
        frames[split] = int(batch.mask.sum()) + jsb.size(split)
    assert frames == {"train": 13_807, "valid": 4_602, "test": 4_725}


@pytest.mark.data
def test_no_chorale_stands_in_two_splits() -> None:
    real("polymusic/JSB_Chorales.mat")
    songs = read_songs(files.fetch("polymusic/JSB_Chorales.mat"))
    keys = {split: {song.tobytes() for song in songs[split]} for split in SPLITS}
    assert not keys["train"] & keys["valid"]
    assert not (keys["train"] | keys["valid"]) & keys["test"]


@pytest.mark.data
def test_note_marginals_reach_their_known_score(jsb: Music) -> None:
    (train,) = jsb.batches("train", 229, seeded())
    assert train.mask is not None
    notes = train.target[train.mask]
    p = (notes.sum(0) + 0.5) / (len(notes) + 1)
    parts = [
        jsb.score(torch.logit(p).expand(batch.target.shape), batch)
        for batch in jsb.batches("test", 32, seeded())
    ]
    nats = sum(total for total, _ in parts) / sum(count for _, count in parts)
    assert nats == pytest.approx(11.09, abs=0.02)
