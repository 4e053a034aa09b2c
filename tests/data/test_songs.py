"""Songs: files as they come, frames, padding, splits."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.batches import same, seeded
from helpers.real_data import real
from helpers.toy_music import toy_songs, write_mat
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_matrix

from spikebridge import data as tasks
from spikebridge.data import files, mat
from spikebridge.data.files import DataError
from spikebridge.data.music import Music, excerpts, note_log_odds, read_songs
from spikebridge.data.task import SPLITS, Batch
from spikebridge.settings.tasks import (
    DigitsConfig,
    EventsConfig,
    ForecastConfig,
    MusicConfig,
    NpzConfig,
    TextConfig,
)


@pytest.fixture(scope="module")
def toy_mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mat(tmp_path_factory.mktemp("music") / "toy.mat", toy_songs())


@pytest.fixture(scope="module")
def jsb() -> Music:
    real("polymusic/JSB_Chorales.mat")
    return Music(MusicConfig())


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
