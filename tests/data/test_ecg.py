"""Heartbeats: how steps without a class count, what validates, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.real_data import real
from helpers.toy_data import heartbeats, write_heartbeats
from scipy.io import savemat

from spikebridge import data as tasks
from spikebridge.cli import main as cli
from spikebridge.data import ecg, files, mat
from spikebridge.data.files import DataError
from spikebridge.data.task import SPLITS, UNKNOWN
from spikebridge.runs import rundir
from spikebridge.runs.load import load_run
from spikebridge.runs.results import Figure
from spikebridge.settings.config import preset
from spikebridge.settings.published import headline
from spikebridge.settings.tasks import EcgConfig


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def whole(task: tasks.Task, split: str) -> tasks.Batch:
    (batch,) = task.batches(split, 9999, seeded())
    return batch


def test_steps_without_a_class_count_as_class_0_or_not(tmp_path: Path) -> None:
    folder = str(write_heartbeats(tmp_path))
    published = tasks.load(EcgConfig(data_dir=folder))
    masked = tasks.load(EcgConfig(data_dir=folder, unlabelled="masked"))
    for split in SPLITS:
        both, known = whole(published, split), whole(masked, split)
        assert torch.equal(both.x, known.x)
        unlabelled = known.target == UNKNOWN
        assert 0 < int(unlabelled.sum()) < unlabelled.numel()
        assert not both.target[unlabelled].any()
        assert torch.equal(both.target[~unlabelled], known.target[~unlabelled])
        assert both.counted == unlabelled.numel()
        assert known.counted == int((~unlabelled).sum())


def test_binary_inputs_are_spikes_that_the_chip_takes(tmp_path: Path) -> None:
    folder, out = write_heartbeats(tmp_path / "qtdb"), tmp_path / "run"
    signed = tasks.load(EcgConfig(data_dir=str(folder)))
    binary = tasks.load(EcgConfig(data_dir=str(folder), coding="binary"))
    for view in (binary, *binary.views().values()):
        assert torch.equal(whole(view, "test").x, whole(signed, "test").x.clamp(min=0))
    assert float(whole(signed, "test").x.min()) == -1
    words = f"train ecg --data-dir {folder} --hidden 4 --epochs 1 --threads 1 --no-report"
    assert cli.main(f"{words} --coding binary --out {out}".split()) == 0
    assert cli.main(f"export {out} --no-report".split()) == 0
    assert cli.main(f"{words} --out {out} --overwrite".split()) == 0
    assert cli.main(f"export {out} --no-report".split()) == 2


def test_heartbeats_are_counted_by_their_r_peaks(tmp_path: Path) -> None:
    folder = str(write_heartbeats(tmp_path))
    for unlabelled in ("class0", "masked"):
        task = tasks.load(EcgConfig(data_dir=folder, unlabelled=unlabelled))  # type: ignore[arg-type]
        batch = whole(task, "test")
        target = torch.tensor([[2, 1], [3, 2], [3, 3], [-1, 2], [2, 0], [3, 3]])
        assert task.parts_in(batch._replace(target=target)) == 3
    assert task.part == "heartbeat"


def test_both_figures_are_of_the_same_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output that is always 0 is right at steps of class 0 and at those without one."""
    folder, out = write_heartbeats(tmp_path / "qtdb"), tmp_path / "run"
    for unlabelled in ("class0", "masked"):
        task = tasks.load(EcgConfig(data_dir=str(folder), unlabelled=unlabelled))  # type: ignore[arg-type]
        known = whole(tasks.load(EcgConfig(data_dir=str(folder), unlabelled="masked")), "test")
        zero = int((known.target == 0).sum())
        missing = int((known.target == UNKNOWN).sum())
        output = torch.tensor([1.0, 0, 0, 0, 0, 0]).expand(*known.target.shape, 6)
        views = task.views()
        scores = {name: view.score(output, whole(view, "test")) for name, view in views.items()}
        steps = known.target.numel()
        assert scores == {
            ecg.LABELLED: (zero, steps - missing),
            ecg.PUBLISHED: (zero + missing, steps),
        }
    words = f"train ecg --data-dir {folder} --hidden 4 --epochs 1 --threads 1 --out {out}"
    assert cli.main(words.split()) == 0
    result, said = rundir.read_result(out), capsys.readouterr().out
    assert result.figures[ecg.PUBLISHED] == Figure("accuracy", result.test)
    assert set(result.figures) == {ecg.LABELLED, ecg.PUBLISHED}
    largest = whole(task.views()[ecg.PUBLISHED], "test").target.flatten().bincount().max() / steps
    assert result.baselines == {"largest class": pytest.approx(float(largest))}
    page = (out / rundir.REPORT).read_text(encoding="utf-8")
    for text in (said, page):
        assert f"test accuracy, {ecg.LABELLED}: " in text
        assert f"test accuracy, {ecg.PUBLISHED}: {100 * result.test:.2f} %" in text
        assert f"largest class {100 * float(largest):.2f}" in text
    assert load_run(out).counted == "step"
    assert cli.main(["predict", str(out), "--out", str(tmp_path / "p.npz")]) == 0
    assert np.load(tmp_path / "p.npz")["prediction"].shape == (5, 12, 6)


def test_only_what_is_counted_alike_stands_beside_the_published_figure() -> None:
    assert headline(preset("ecg", "recurrent-snu")).value == 0.855  # type: ignore[union-attr]
    assert headline(preset("ecg", "recurrent-snu", unlabelled="masked")) is None
    assert headline(preset("ecg", "recurrent-softsnu")) is None, "its outputs are no spikes"
    assert headline(preset("ecg", "snu", data_dir="mine")) is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": None}, "an array x of numbers; found none"),
        ({"y": np.zeros((8, 12, 5))}, r"y \(n, T, 6\)"),
        ({"x": np.zeros((8, 11, 4))}, r"x \(8, 11, 4\)"),
        ({"x": np.full((8, 12, 4), 2)}, "x of -1, 0 and 1"),
        ({"y": np.ones((8, 12, 6))}, "at most a single 1 in a row"),
        ({"y": "words"}, "an array y of numbers"),
    ],
)
def test_files_that_are_no_heartbeats(
    tmp_path: Path, arrays: dict[str, object], message: str
) -> None:
    write_heartbeats(tmp_path)
    path = tmp_path / "QTDB_train.mat"
    given = heartbeats(8) | arrays
    savemat(path, {name: value for name, value in given.items() if value is not None})
    with pytest.raises(DataError, match=rf"QTDB_train.mat: expected .*{message}"):
        tasks.load(EcgConfig(data_dir=str(tmp_path)))


@pytest.mark.parametrize("kept", [0, 100, 200])
def test_damaged_files(tmp_path: Path, kept: int) -> None:
    path = write_heartbeats(tmp_path) / "QTDB_test.mat"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"QTDB_test.mat: expected .* found "):
        tasks.load(EcgConfig(data_dir=str(tmp_path)))


def test_unknown_files_are_read_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_heartbeats(tmp_path)
    monkeypatch.setattr(mat, "arrays_of", None)
    assert tasks.load(EcgConfig(data_dir=str(tmp_path))).size("test") == 5


def test_absent_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"QTDB_train.mat: .* no such file"):
        tasks.load(EcgConfig(data_dir=str(tmp_path)))
    for folder in (str(tmp_path), ""):
        monkeypatch.setenv(files.VARIABLE, folder)
        monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
        with pytest.raises(DataError, match="it is not downloaded; get it from the repository"):
            tasks.load(EcgConfig())


@pytest.mark.data
def test_heartbeats_as_published() -> None:
    real("qtdb/QTDB_train.mat", "qtdb/QTDB_test.mat")
    task = tasks.load(EcgConfig(unlabelled="masked"))
    assert [task.size(split) for split in SPLITS] == [556, 62, 141]
    test = whole(task, "test")
    assert test.x.shape == (1301, 141, 4)
    assert float((test.target == UNKNOWN).double().mean()) == pytest.approx(0.1039, abs=1e-4)
    recordings = [whole(task, split).x.transpose(0, 1) for split in SPLITS]
    rows = [{row.numpy().tobytes() for row in part} for part in recordings]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]
