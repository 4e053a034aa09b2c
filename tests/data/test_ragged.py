"""Sequences of several lengths: what stands at padding must change nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toy_data import KINDS, npz_arrays

from spikebridge import data as tasks
from spikebridge.cli import main as cli
from spikebridge.data.files import DataError
from spikebridge.data.npz import Npz
from spikebridge.data.task import SPLITS, UNKNOWN, Batch
from spikebridge.learning.online import Online
from spikebridge.nn.network import Network, build
from spikebridge.runs import evaluation, rundir
from spikebridge.runs.objective import activity
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import NpzConfig
from spikebridge.trained.complexity import complexity

STEPS = 6
MODELS = {
    "snu": ModelConfig(unit="snu", hidden=(5, 4), recurrent=True),
    "softsnu": ModelConfig(unit="softsnu", hidden=(5,)),
    "lstm": ModelConfig(unit="lstm", hidden=(5,)),
    "norm": ModelConfig(unit="snu", hidden=(5, 4), norm=True),
    "centre": ModelConfig(unit="snu", hidden=(5, 4), norm=True, centre=True),
    "step": ModelConfig(unit="snu", hidden=(5, 4), norm="step"),
    "layer": ModelConfig(unit="snu", hidden=(5, 4), norm="layer"),
}


def lengths_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, STEPS + 1, count)


def write(
    folder: Path, kind: str, padding: float = 0, by: str = "lengths", **more: np.ndarray
) -> Path:
    """train.npz and test.npz with `padding` after the end of each sequence, in x and y."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", 23), ("test", 9)):
        arrays = {k: v.astype(np.float64) for k, v in npz_arrays(kind, count, len(name)).items()}
        lengths = lengths_of(count, len(name))
        real = np.arange(STEPS) < lengths[:, None]
        each = kind.endswith("step")
        for key in ("x", "y") if each else ("x",):
            shown = real[..., None] if arrays[key].ndim == 3 else real
            arrays[key] = np.where(shown, arrays[key], padding)
        if kind.startswith("class"):
            arrays["y"] = np.nan_to_num(arrays["y"], nan=7, posinf=99).astype(np.int64)
        if by == "lengths":
            arrays["lengths"] = lengths
        elif by == "mask":
            arrays["mask"] = real
        else:  # padding in front, as some libraries have it
            order = (np.arange(STEPS) + lengths[:, None]) % STEPS
            rows = np.arange(count)[:, None]
            arrays["mask"] = real[rows, order]
            for key in ("x", "y") if each else ("x",):
                arrays[key] = arrays[key][rows, order]
        np.savez(folder / f"{name}.npz", **(arrays | more))
    return folder


def task_of(folder: Path, **more: Any) -> Npz:
    return Npz(NpzConfig(data_dir=str(folder), **more))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network_of(task: Npz, model: str = "snu") -> Network:
    torch.manual_seed(1)
    return build(MODELS[model], task.input_size, task.output_size, task.readout)


def gradients(network: Network) -> list[torch.Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def learned(task: Npz, model: str) -> tuple[Any, ...]:
    network = network_of(task, model)
    for batch in task.batches("train", 7, seeded()):
        seen = network.observe(batch.x, mask=batch.mask)
        (task.loss(seen.output, batch) + activity(seen.layers, batch.mask)).backward()
    return (
        gradients(network),
        evaluation.observe(network, task, "test", 4, seeded()),
        complexity(network, task.batches("test", 4, seeded())),
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("readout", ["mean", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_content_of_padding_changes_nothing(
    tmp_path: Path, kind: str, readout: str, model: str
) -> None:
    ways = [(0.0, "lengths"), (50.0, "lengths"), (np.nan, "mask"), (np.inf, "front")]
    found = [
        learned(task_of(write(tmp_path / str(n), kind, *way), readout=readout), model)
        for n, way in enumerate(ways)
    ]
    for other in found[1:]:
        assert other[1:] == found[0][1:]
        assert all(torch.equal(a, b) for a, b in zip(other[0], found[0][0], strict=True))


@pytest.mark.parametrize("model", ["snu", "softsnu", "lstm", "layer"])
@pytest.mark.parametrize("readout", ["mean", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_samples_one_by_one_without_padding(
    tmp_path: Path, kind: str, readout: str, model: str
) -> None:
    """Loss, metric, gradients, spikes and operations: those of each sequence cut to its length."""
    task = task_of(write(tmp_path, kind, 50.0), readout=readout)
    network = network_of(task, model)
    together = evaluation.observe(network, task, "test", 9, seeded())
    (batch,) = task.batches("test", 9, seeded())
    seen = network.observe(batch.x, mask=batch.mask)
    task.loss(seen.output, batch).backward()
    whole = gradients(network)
    network.zero_grad()
    assert batch.mask is not None
    total = loss = spikes = 0.0
    count = 0
    each = task.readout == "each"
    for number, length in enumerate(batch.mask.sum(0).tolist()):
        target = batch.target[:length, [number]] if each else batch.target[[number]]
        one = Batch(batch.x[:length, [number]], target, None)
        alone = network.observe(one.x)
        value = task.loss(alone.output, one)
        (value * one.counted / batch.counted).backward()
        loss += float(value.detach()) * one.counted
        score = task.score(alone.output.detach(), one)
        total, count = total + score[0], count + score[1]
        spikes += sum(float(layer.y.detach().abs().sum()) for layer in alone.layers)
    for a, b in zip(gradients(network), whole, strict=True):
        torch.testing.assert_close(a, b)
    assert together[0].loss == pytest.approx(loss / batch.counted, rel=1e-5)
    mean = total / count
    assert together[0].metric == pytest.approx(mean if task.metric == "accuracy" else mean**0.5)
    if model == "snu":
        assert together[1].spikes_per_inference == pytest.approx(spikes / 9)


@pytest.mark.parametrize("readout", ["mean", "last"])
@pytest.mark.parametrize("kind", ["class", "numbers"])
def test_padding_of_a_network_called_by_hand_changes_nothing(
    tmp_path: Path, kind: str, readout: str
) -> None:
    """Not even where a program of one's own leaves something there."""
    task = task_of(write(tmp_path, kind), readout=readout)
    for model in ("snu", "norm", "centre", "step", "layer"):
        found = []
        for value in (0.0, 1e6):
            network = network_of(task, model)
            (batch,) = task.batches("test", 9, seeded())
            assert batch.mask is not None
            x = torch.where(batch.mask.unsqueeze(2), batch.x, value)
            output, _ = network(x, mask=batch.mask)
            task.loss(output, batch).backward()
            found.append((output.detach(), gradients(network), network.state_dict()))
        assert torch.equal(found[0][0], found[1][0])
        for a, b in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(a, b)
        for name, value in found[0][2].items():
            torch.testing.assert_close(found[1][2][name], value)


def test_steps_that_are_recomputed_cannot_be_normalised_over_real_steps(tmp_path: Path) -> None:
    task = task_of(write(tmp_path, "class"))
    network = build(MODELS["norm"], 3, task.output_size, "mean", recompute=2)
    (batch,) = task.batches("test", 9, seeded())
    with pytest.raises(ValueError, match=r"recompute with norm: .*leave one of them out"):
        network(batch.x, mask=batch.mask)
    build(MODELS["layer"], 3, task.output_size, "mean", recompute=2)(batch.x, mask=batch.mask)


@pytest.mark.parametrize("kind", ["class", "class at each step", "numbers"])
def test_online_rules_end_where_a_sequence_ends(tmp_path: Path, kind: str) -> None:
    """One layer without recurrence: with the last step's loss the gradient is that of BPTT."""
    task = task_of(write(tmp_path, kind, np.nan), readout="last")
    (batch,) = task.batches("test", 9, seeded())
    grown = []
    for block in (0, 1, 4, 32):
        torch.manual_seed(0)
        model = ModelConfig(unit="snu", hidden=(5,))
        network = build(model, task.input_size, task.output_size, task.readout)
        if block:
            value = Online(network).learn(batch, task.loss, block=block).loss
        else:
            output, _ = network(batch.x, mask=batch.mask)
            loss = task.loss(output, batch)
            loss.backward()
            value = float(loss.detach())
        grown.append((value, gradients(network)))
    for value, found in grown[1:]:
        assert value == pytest.approx(grown[0][0], rel=1e-5)
        for a, b in zip(found, grown[0][1], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rule", ["ostl", "eprop"])
def test_an_online_mean_is_over_the_real_steps_of_each_sample(tmp_path: Path, rule: Any) -> None:
    task = task_of(write(tmp_path, "class", np.nan))
    (batch,) = task.batches("test", 9, seeded())
    assert batch.mask is not None
    network = network_of(task, "softsnu")
    whole = Online(network, rule).learn(batch, task.loss, block=4)
    together = gradients(network)
    network.zero_grad()
    total = 0.0
    for number, length in enumerate(batch.mask.sum(0).tolist()):
        one = Batch(batch.x[:length, [number]], batch.target[[number]], None)
        before = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()
        ]
        network.zero_grad()
        total += Online(network, rule).learn(one, task.loss).loss / 9
        for p, earlier in zip(network.parameters(), before, strict=True):
            if p.grad is not None:
                p.grad.div_(9).add_(earlier)
    assert whole.loss == pytest.approx(total, rel=1e-5)
    for a, b in zip(gradients(network), together, strict=True):
        torch.testing.assert_close(a, b)


def test_steps_without_a_class_are_seen_and_not_judged(tmp_path: Path) -> None:
    for name, count in (("train", 23), ("test", 9)):
        arrays = npz_arrays("class at each step", count, len(name))
        arrays["y"][:, 2] = UNKNOWN
        np.savez(tmp_path / f"{name}.npz", **arrays)
    task = task_of(tmp_path)
    assert "16.7 % of the steps have no class (-1): not judged" in task.notes
    (batch,) = task.batches("test", 9, seeded())
    assert batch.mask is None
    assert batch.counted == 9 * 5
    output = torch.zeros(*batch.target.shape, task.output_size)
    known = torch.where(batch.target == UNKNOWN, 0, batch.target)
    right = 50 * torch.nn.functional.one_hot(known, task.output_size).float()
    right[2] = output[2] = torch.nan
    assert float(task.loss(right, batch)) < 1e-6
    assert task.score(right, batch) == (45, 45)


def test_the_page_judges_steps_that_have_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("train", 23), ("test", 9)):
        arrays = npz_arrays("class at each step", count, len(name))
        arrays["y"][:, 2:] = UNKNOWN
        np.savez(tmp_path / f"{name}.npz", **arrays)
    words = f"train npz --data-dir {tmp_path} --hidden 4 --epochs 1 --threads 1"
    assert cli.main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / rundir.REPORT).read_text(encoding="utf-8")
    assert "of 2 steps with an answer." in page


@pytest.mark.parametrize("kind", ["class", "class at each step"])
def test_samples_without_any_class_are_left_out_with_a_word(tmp_path: Path, kind: str) -> None:
    for name, count in (("train", 23), ("test", 9)):
        arrays = npz_arrays(kind, count, len(name))
        arrays["y"] = arrays["y"].astype(np.int64)
        arrays["y"][[0, 4]] = UNKNOWN
        np.savez(tmp_path / f"{name}.npz", **arrays)
    task = task_of(tmp_path)
    assert [task.size(split) for split in SPLITS] == [19, 2, 7]
    assert "2 samples to train without a class (-1) left out" in task.notes
    assert "2 samples to test without a class (-1) left out" in task.notes
    for split in SPLITS:
        for batch in task.batches(split, 4, seeded()):
            assert int(batch.target.min()) >= 0


def arrays_of(**more: Any) -> dict[str, Any]:
    return {"x": np.ones((4, 6, 3)), "y": np.arange(4) % 2, **more}


HOLE = np.array([[1, 1, 1, 0, 0, 0]] * 3 + [[1, 0, 1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lengths": np.array([1, 2, 3, 7])}, "lengths from 1 to 6.*found 7 for sample 3"),
        ({"lengths": np.array([1, 0, 3, 7])}, "found 0 for sample 1; leave out samples"),
        ({"lengths": np.array([1, 2, 3])}, r"lengths of shape \(4,\).*found shape \(3,\)"),
        ({"lengths": np.array([1, 2.5, 3, 4])}, "whole numbers of steps"),
        ({"lengths": np.ones(4, bool)}, r"found shape \(4,\) of bool"),
        ({"lengths": np.ones(4), "mask": np.ones((4, 6))}, "lengths or mask; found both"),
        ({"mask": np.ones((4, 5))}, r"a mask of shape \(4, 6\).*found shape \(4, 5\)"),
        ({"mask": np.full((4, 6), 2)}, "found other values"),
        ({"mask": HOLE}, "found padding between real steps in sample 3; move the steps"),
        ({"mask": HOLE * 0}, "found no real step in sample 0; leave that sample out"),
        ({"length": np.ones(4)}, "and perhaps lengths or mask.*rename length"),
        ({"x": np.where(np.arange(6)[:, None] < 4, np.ones((4, 6, 3)), np.nan)},
         "first nan at sample 0, step 4, input 0; .*save lengths="),
    ],
)  # fmt: skip
def test_what_is_wrong_with_lengths_is_said(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "train.npz", **arrays_of(**more))
    with pytest.raises(DataError, match=message):
        task_of(tmp_path)


def test_the_remedy_for_lists_of_arrays_works(tmp_path: Path) -> None:
    sequences = [np.full((length, 2), length, "f4") for length in (3, 1, 5, 2)]
    y = np.arange(4) % 2
    x: Any = np.empty(4, object)
    x[:] = sequences
    path = tmp_path / "train.npz"
    np.savez(path, x=x, y=y)
    with pytest.raises(DataError) as caught:
        task_of(tmp_path)
    code = caught.value.remedy.split(": ", 1)[1].split("; a y of")[0]
    exec(code.replace("for i,", "\nfor i,").replace("; np.savez", "\nnp.savez"),
         {"np": np, "sequences": sequences, "inputs": 2, "y": y, "path": path})  # fmt: skip
    (tmp_path / "test.npz").write_bytes(path.read_bytes())
    task = task_of(tmp_path)
    (batch,) = task.batches("test", 9, seeded())
    assert batch.mask is not None
    assert batch.mask.sum(0).tolist() == [3, 1, 5, 2]
    assert (batch.x.sum((0, 2)) == torch.tensor([18, 2, 50, 8])).all()


EYE = np.eye(6, dtype=np.int64)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (EYE[np.arange(12) % 6], r"save y.argmax\(-1\), or pass --answers classes"),
        (EYE[np.arange(12) % 6].astype(bool), "looks one-hot"),
        (EYE[np.arange(12) % 6] * (np.arange(12) > 2)[:, None], "save y.argmax.*--answers classes"),
        (EYE[np.arange(12) % 6].astype(float), "argmax.*--answers numbers"),
        (EYE[np.arange(12) % 6, :4][:, [0, 1, 2, 3]].astype(float) , "-1 for no answer"),
        (EYE[np.arange(72).reshape(12, 6) % 6], "argmax.*--answers numbers"),
        (EYE[np.arange(72).reshape(12, 6) % 6].astype(np.uint8) * (np.arange(6) > 0)[:, None],
         "-1 for no answer"),
        (np.eye(4, dtype=int)[np.arange(12) % 4], r"its rows are one-hot: save y.argmax\(-1\)"),
    ],
)  # fmt: skip
def test_one_hot_answers_are_known(tmp_path: Path, y: np.ndarray, message: str) -> None:
    x = np.random.default_rng(0).random((12, 6, 3))
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    with pytest.raises(DataError, match=message):
        task_of(tmp_path)


def test_what_was_taken_for_one_hot_can_be_meant(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((12, 6, 3))
    y = EYE[np.arange(12) % 6]
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    assert task_of(tmp_path, answers="classes").readout == "each"
    numbers = task_of(tmp_path, answers="numbers")
    assert (numbers.metric, numbers.output_size, numbers.readout) == ("rmse", 6, "mean")


@pytest.mark.parametrize(
    "y",
    [
        np.random.default_rng(0).integers(0, 2, (12, 6)),  # classes at each step
        EYE[[3] * 12],  # always at the same step: no classes of samples
        np.random.default_rng(0).random((12, 3)).round(),  # several ones in a row
    ],
)
def test_what_is_not_one_hot_passes(tmp_path: Path, y: np.ndarray) -> None:
    x = np.random.default_rng(0).random((12, 6, 3))
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    task_of(tmp_path)


def test_the_share_of_the_largest_class_stands_beside_the_accuracy(tmp_path: Path) -> None:
    for name, y in (("train", [1] * 10 + [0] * 5), ("test", [0, 1, 1, 2, UNKNOWN])):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((len(y), 4, 2)), y=np.array(y))
    words = f"train npz --data-dir {tmp_path} --hidden 4 --epochs 1 --threads 1 --no-report"
    assert cli.main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    assert rundir.read_result(tmp_path / "run").baselines == {"largest class": 0.5}


def test_the_command_trains_and_measures_ragged_sequences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write(tmp_path / "mine", "class", np.nan), tmp_path / "run"
    words = f"train npz --data-dir {folder} --hidden 4 --epochs 2 --batch-size 4 --threads 1"
    assert cli.main([*words.split(), "--out", str(out)]) == 0
    assert "1 to 6 steps" in capsys.readouterr().out
    with np.load(out / rundir.EXAMPLES) as arrays:
        assert sorted(arrays["length"])[-1] <= STEPS
        assert len(set(arrays["length"].tolist())) > 1
    for command in ("program {} --chips 1 --times 20", "complexity {}", "export {}"):
        assert cli.main(command.format(out).split()) == 0, command


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_other_files_come_on_the_scale_of_training(tmp_path: Path, kind: str, saved: bool) -> None:
    folder = write(tmp_path / "mine", kind)
    config = NpzConfig(data_dir=str(folder))
    task = Npz(config)
    scaling = task.scaling() if saved else None
    if saved:
        (folder / "train.npz").unlink()
    other = tasks.other(config, folder, scaling)
    (mine,) = task.batches("test", 100, seeded())
    (theirs,) = other.batches("test", 100, seeded())
    for a, b in zip(mine, theirs, strict=True):
        assert a is not None
        assert torch.equal(a, b)
    assert other.answered
    with np.load(folder / "test.npz") as arrays:
        x, lengths, y = arrays["x"], arrays["lengths"], arrays["y"]
    if kind.startswith("numbers"):
        back = other.in_units(theirs.target)
        back = back.transpose(0, 1) if kind.endswith("step") else back
        real = np.arange(STEPS) < lengths[:, None] if kind.endswith("step") else slice(None)
        np.testing.assert_allclose(back.numpy()[real], y[real], rtol=1e-5, atol=1e-5)
    np.savez(tmp_path / "new.npz", x=x, lengths=lengths)
    blind = tasks.other(config, tmp_path / "new.npz", task.scaling())
    assert not blind.answered
    assert blind.size("test") == 9
    np.savez(tmp_path / "new.npz", x=x[:, :, :2], lengths=lengths)
    with pytest.raises(DataError, match=r"x \(n, T, 3\) .*as in training; found x \(n, T, 2\)"):
        tasks.other(config, tmp_path / "new.npz", task.scaling())
