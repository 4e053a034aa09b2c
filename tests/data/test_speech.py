"""Spoken words: sound of all kinds, two ears, lists, what is kept, and recordings of spikes."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.real_data import real
from helpers.toy_data import tone, write_table, write_words
from scipy.io import wavfile

from spikebridge import data as tasks
from spikebridge.cli import main as cli
from spikebridge.data import files, sound, speech
from spikebridge.data.files import DataError
from spikebridge.data.task import SPLITS
from spikebridge.runs import rundir
from spikebridge.settings.tasks import SpeechConfig

FAST = "--bands 5 --hidden 4 --epochs 1 --threads 1"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def whole(task: tasks.Task, split: str) -> tasks.Batch:
    (batch,) = task.batches(split, 9999, seeded())
    return batch


def load(folder: Path, **settings: object) -> speech.Speech:
    config = SpeechConfig(data_dir=str(folder), **{"bands": 5, **settings})  # type: ignore[arg-type]
    return tasks.load(config)  # type: ignore[return-value]


def riff(samples: bytes, bits: int, channels: int = 1, rate: int = 8000, code: int = 1) -> bytes:
    block = channels * bits // 8
    head = struct.pack("<HHIIHH", code, channels, rate, rate * block, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(samples))
    return b"RIFF" + struct.pack("<I", len(body) + len(samples)) + body + samples


# Sound


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "24 bits", "32 bits", "floats", "stereo"])
def test_all_kinds_of_samples_are_the_same_sound(tmp_path: Path, kind: str) -> None:
    wave, path = tone(440) / 32768, tmp_path / "a.wav"
    if kind == "8 bits":
        wavfile.write(path, 8000, np.round(wave * 128 + 128).astype(np.uint8))
    elif kind == "24 bits":
        whole = np.round(wave * 2**23).astype("<i4")
        path.write_bytes(riff(whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes(), 24))
    elif kind == "floats":
        wavfile.write(path, 8000, wave.astype(np.float32))
    elif kind == "stereo":
        wavfile.write(path, 8000, np.stack([2 * wave, 0 * wave], 1))
    else:
        bits = int(kind[:2])
        wavfile.write(path, 8000, np.round(wave * 2 ** (bits - 1)).astype(f"int{bits}"))
    tolerance = 1 / 128 if kind == "8 bits" else 1e-4
    np.testing.assert_allclose(sound.read_wav(path, 8000), wave, atol=tolerance)


@pytest.mark.parametrize("rate", [4000, 11_025, 16_000, 44_100])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    wavfile.write(tmp_path / "a.wav", rate, tone(440, rate=rate))
    heard = sound.read_wav(tmp_path / "a.wav", 8000)
    assert abs(len(heard) - 1600) <= 1
    peak = np.fft.rfftfreq(len(heard), 1 / 8000)[np.abs(np.fft.rfft(heard)).argmax()]
    assert peak == pytest.approx(440, abs=5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a whole .wav file"),
        (b"no sound at all", "a whole .wav file"),
        (riff(b"\0\0" * 100, 16)[:30], "a whole .wav file"),
        (riff(b"\0\0" * 100, 16)[:-51], "a whole .wav file"),
        (riff(b"", 16), "no sample"),
        (riff(b"\0\0", 16, rate=7), "1,000 to 384,000 samples a second"),
        (riff(b"\0" * 61_000, 8, rate=1000), "sound of up to 60 s; found 61.0 s"),
        (riff(np.float32([0, np.nan]).tobytes(), 32, code=3), "samples that are finite"),
        (riff(b"\0\0" * 100, 16, code=85), "a whole .wav file"),
    ],
)
def test_what_is_no_sound_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write_words(tmp_path)
    (folder / "low" / "train_1.wav").write_bytes(content)
    with pytest.raises(DataError, match=rf"train_1\.wav: expected .*{message}"):
        load(folder)


def test_chunks_beside_the_sound_are_passed_over(tmp_path: Path) -> None:
    extra = riff(b"\1\0" * 80, 16)
    path = tmp_path / "a.wav"
    path.write_bytes(extra[:36] + b"odd!" + struct.pack("<I", 4) + b"1234" + extra[36:])
    assert len(sound.read_wav(path, 8000)) == 80


@pytest.mark.parametrize("ear", [sound.log_mel, sound.currents])
def test_a_tone_is_loudest_in_its_band(ear: Callable[..., np.ndarray]) -> None:
    edges = sound.edges_hz(12, 8000)
    for band in (1, 5, 10):
        heard = ear(tone(edges[band + 1]) / 32768, 8000, 12, 10.0)
        assert heard.shape == (20, 12)
        assert heard.dtype == np.float32
        assert int(heard.mean(0).argmax()) == band
    assert ear(np.zeros(1, np.float32), 8000, 12, 10.0).shape == (1, 12)


def test_steps_may_be_longer_than_the_window() -> None:
    heard = sound.log_mel(tone(1000) / 32768, 8000, 12, 50.0)
    assert heard.shape == (4, 12)
    assert np.ptp(heard.argmax(1)) == 0


@pytest.mark.parametrize(("bands", "rate_hz"), [(40, 8000), (128, 8000), (64, 4000)])
def test_no_band_is_silent_in_noise(bands: int, rate_hz: int) -> None:
    noise = np.random.default_rng(0).normal(size=rate_hz // 4)
    quietest = sound.log_mel(noise, rate_hz, bands, 10.0).min(1).mean()
    assert quietest > np.log(sound.FLOOR) + 3


def test_cells_of_the_cochlea_integrate_leak_and_fire() -> None:
    keep = np.exp(-10 / sound.TAU_MS)
    drives = np.array([[1.0, 0.5, 3.0]] * 6, np.float32)
    fired = sound.spikes(drives, np.ones(3), 10.0)
    v, expected = np.zeros(3), []
    for drive in drives:
        v = keep * v + drive
        expected.append(v >= 2)
        v = np.where(v >= 2, v - 2, v)
    np.testing.assert_array_equal(fired, np.array(expected, np.float32))
    assert not fired[:, 1].any(), "what leaks as fast as it comes never fires"
    assert fired[:, 2].all()


def test_bands_have_mean_0_and_deviation_1_in_training(tmp_path: Path) -> None:
    steps = whole(load(write_words(tmp_path)), "train").x.flatten(0, 1)
    torch.testing.assert_close(steps.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(steps.std(0, correction=0), torch.ones(5), atol=1e-4, rtol=0)
    spikes = whole(load(tmp_path, front="cochlea"), "test").x
    assert set(spikes.unique().tolist()) == {0.0, 1.0}


# Lists


def test_recordings_of_several_lengths_have_a_mask(tmp_path: Path) -> None:
    folder = write_words(tmp_path)
    assert whole(load(folder), "test").mask is None
    wavfile.write(folder / "low" / "test_0.wav", 8000, tone(300, 0.11))
    batch = whole(load(folder), "test")
    assert batch.mask is not None
    assert sorted(batch.mask.sum(0).tolist()) == [11, *[20] * 5]
    assert not batch.x[~batch.mask].any()


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("train", {"file": [], "class": []}, "at least one recording"),
        ("valid", {"name": ["low/valid_0.wav"], "class": ["low"]}, "columns file and class"),
        ("test", {"file": ["../a.wav"], "class": ["low"]}, "in line 2"),
        ("test", {"file": ["low/gone.wav"], "class": ["low"]}, "gone.wav: expected a recording"),
        ("test", {"file": ["low/train_0.wav"], "class": ["low"]}, "low/train_0.wav twice"),
        ("test", {"file": ["low/test_0.wav"], "class": ["odd"]}, "words of train.csv.*found odd"),
    ],
)
def test_lists_that_do_not_fit(
    tmp_path: Path, name: str, columns: dict[str, list[str]], message: str
) -> None:
    write_table(write_words(tmp_path) / f"{name}.csv", columns)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_folder_without_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no train.csv"):
        load(tmp_path)
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"speech: expected a folder with train.csv.*--data-dir"):
        tasks.load(SpeechConfig())
    write_words(tmp_path / "speech")
    assert len(tasks.load(SpeechConfig(bands=5)).output_names) == 3


# What is kept


def test_features_are_computed_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read = write_words(tmp_path / "words"), []
    real = sound.read_wav
    monkeypatch.setattr(sound, "read_wav", lambda path, hz: read.append(path) or real(path, hz))
    first = whole(load(folder), "train").x
    assert len(read) == 24
    assert torch.equal(whole(load(folder), "train").x, first)
    assert len(read) == 24
    load(folder, bands=6)
    assert len(read) == 48, "other settings"
    wavfile.write(folder / "low" / "test_0.wav", 8000, tone(300, 0.3))
    load(folder)
    assert len(read) == 54, "the test set alone"
    for path in (cache / "speech").iterdir():
        path.write_bytes(b"damaged")
    assert torch.equal(whole(load(folder), "train").x, first)
    assert not [path for path in (cache / "speech").iterdir() if path.suffix != ".npz"]


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file in the way")
    assert load(write_words(tmp_path / "words")).size("train") == 12


# Runs


def test_a_run_names_words_and_takes_other_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_words(tmp_path / "words"), tmp_path / "run"
    assert cli.main(f"train speech --data-dir {folder} {FAST} --out {out}".split()) == 0
    assert "largest class 33.33 %" in capsys.readouterr().out
    page = (out / rundir.REPORT).read_text(encoding="utf-8")
    assert "The network answers class" in page
    assert "middle" in page
    assert json.loads((out / rundir.SCALING).read_text())["words"] == ["high", "low", "middle"]
    answers = []
    for place in ("", f"--data-dir {folder}", f"--data-dir {folder / 'low'}"):
        file = tmp_path / f"{len(answers)}.csv"
        assert cli.main(f"predict {out} {place} --out {file}".split()) == 0
        answers.append(file.read_text().splitlines())
    assert answers[0] == answers[1]
    assert answers[0][0] == "sample,class,high,low,middle,target"
    assert (len(answers[0]), len(answers[2])) == (7, 9)
    assert answers[2][0] == "sample,class,high,low,middle", "a mere folder of sound tells no words"


# Spikes


def write_trains(path: Path, **changed: object) -> Path:
    h5py = pytest.importorskip("h5py")
    random = np.random.default_rng(len(path.stem))
    n = 6
    times = [np.sort(random.random(20) * 0.3).astype(np.float16) for _ in range(n)]
    units = [random.integers(0, 7, 20).astype(np.uint16) for _ in range(n)]
    with h5py.File(path, "w") as file:
        for name, arrays, kind in (("times", times, np.float16), ("units", units, np.uint16)):
            arrays = changed.get(name, arrays)
            stored = file.create_dataset(f"spikes/{name}", (len(arrays),), h5py.vlen_dtype(kind))
            for place, array in enumerate(arrays):  # type: ignore[arg-type]
                stored[place] = array
        file["labels"] = changed.get("labels", np.arange(n) % 3)
    return path


def test_spikes_are_cut_into_steps(tmp_path: Path) -> None:
    write_trains(
        tmp_path / "shd_train.h5", times=[[0.0, 0.009, 0.05, 0.05]] * 6, units=[[1, 1, 0, 6]] * 6
    )
    write_trains(tmp_path / "shd_test.h5")
    task = load(tmp_path, step_ms=10.0)
    assert [task.size(split) for split in SPLITS] == [5, 1, 6]
    assert (task.input_size, task.output_size) == (7, 3)
    x = next(iter(task.batches("train", 1, seeded()))).x[:, 0]
    # 0.05 in half precision lies a little below.
    assert x.nonzero().tolist() == [[0, 1], [4, 0], [4, 6]]
    batch = whole(task, "test")
    assert batch.mask is not None
    assert not batch.x[~batch.mask].any()
    write_trains(tmp_path / "shd_valid.h5")
    assert [load(tmp_path).size(split) for split in SPLITS] == [6, 6, 6]


def test_a_run_of_spikes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_trains(tmp_path / f"words_{split}.h5")
    out = tmp_path / "run"
    assert cli.main(f"train speech --data-dir {tmp_path} {FAST} --out {out}".split()) == 0
    line = f"predict {out} --data-dir {tmp_path / 'words_test.h5'} --out {tmp_path / 'p.npz'}"
    assert cli.main(line.split()) == 0
    of_file = np.load(tmp_path / "p.npz")["prediction"]
    assert of_file.shape == (6, 3)
    # Of a folder with files for training and test, the latter.
    line = f"predict {out} --data-dir {tmp_path} --out {tmp_path / 'q.npz'}"
    assert cli.main(line.split()) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "q.npz")["prediction"], of_file)


def test_without_h5py_the_command_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        (tmp_path / f"words_{split}.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert cli.main(f"train speech --data-dir {tmp_path} --out {tmp_path / 'run'}".split()) == 2
    assert "pip install 'spikebridge[hdf5]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.arange(5)}, "as many times, units and labels"),
        ({"labels": np.full(6, -1)}, "whole numbers from 0"),
        ({"times": [[-1.0] * 20] * 6}, "in recording 0"),
        ({"times": [[np.inf] * 20] * 6}, "in recording 0"),
        ({"times": [[0.1] * 19] * 6}, "in recording 0"),
        ({"times": [[]] * 6, "units": [[]] * 6}, "at least one spike"),
    ],
)
def test_spikes_that_do_not_fit(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    write_trains(tmp_path / "test.h5")
    write_trains(tmp_path / "train.h5", **changed)
    with pytest.raises(DataError, match=rf"train\.h5: expected .*{message}"):
        load(tmp_path)


def test_files_of_spikes_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "train.h5").write_bytes(b"no such format")
    with pytest.raises(DataError, match=r"a single .h5 file whose name holds test"):
        load(tmp_path)
    (tmp_path / "test.h5").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.h5: expected an HDF5 file with spikes/times"):
        load(tmp_path)


@pytest.mark.data
def test_real_words_as_listed() -> None:
    folder = real("speech/train.csv") / "speech"
    lists = {split: speech.read_list(folder, split) for split in SPLITS}
    assert [len(lists[split]) for split in SPLITS] == [1800, 600, 600]
    speakers = [{Path(name).name.split("_")[0] for name, _ in lists[split]} for split in SPLITS]
    assert not speakers[0] & speakers[1]
    assert not (speakers[0] | speakers[1]) & speakers[2]
    heard = sound.read_wav(folder / lists["test"][0][0], 8000)
    assert sound.log_mel(heard, 8000, 40, 10.0).shape == (100, 40)
