"""Laws of every task, then what is particular to digits."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.batches import same, seeded
from helpers.real_data import real
from helpers.toy_data import (
    KINDS,
    write_heartbeats,
    write_npz,
    write_recordings,
    write_table,
    write_words,
)
from helpers.toy_music import toy_songs, write_mat
from torch import Tensor

from spikebridge import data as tasks
from spikebridge.data import files
from spikebridge.data import images as digits
from spikebridge.data.images import Digits
from spikebridge.data.music import Music
from spikebridge.data.task import SPLITS, Batch, Task
from spikebridge.settings.tasks import (
    AddingConfig,
    DigitsConfig,
    EcgConfig,
    EventsConfig,
    ForecastConfig,
    MusicConfig,
    NpzConfig,
    SpeechConfig,
)

PERMUTED_8X8 = [
    19,
    38,
    29,
    23,
    60,
    63,
    25,
    40,
    18,
    50,
    56,
    6,
    26,
    36,
    24,
    12,
    30,
    49,
    51,
    34,
    4,
    45,
    43,
    39,
    15,
    47,
    22,
    44,
    21,
    10,
    16,
    53,
    52,
    61,
    41,
    48,
    32,
    9,
    2,
    35,
    5,
    57,
    14,
    37,
    28,
    42,
    11,
    31,
    46,
    1,
    20,
    8,
    59,
    17,
    7,
    33,
    58,
    62,
    0,
    3,
    13,
    54,
    55,
    27,
]


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
            "pixels",
            "permuted",
            "adding-bits",
            "adding-numbers",
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
    if request.param.startswith("adding"):
        return tasks.load(AddingConfig(data=request.param, steps=20, sequences=1000))
    if request.param == "ecg":
        return tasks.load(EcgConfig(data_dir=str(write_heartbeats(toy_mat.parent / "ecg"))))
    if request.param in KINDS:
        folder = write_npz(toy_mat.parent / request.param, request.param)
        return tasks.load(NpzConfig(data_dir=str(folder)))
    if request.param == "jsb":
        return request.getfixturevalue("jsb")
    return tasks.load(DigitsConfig(coding=request.param, steps=3, gain=0.8))


def logits_for(task: Task, batch: Batch) -> Tensor:
    target = batch.target
    return torch.zeros(
        target.shape if target.dtype.is_floating_point else (*target.shape, task.output_size)
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
        most = {"ecg": 1, "mel": 9, "forecast": 9}.get(getattr(task, "kind", task.name), 0)
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
    pixels = first(coding="pixels", gain=0.5).x
    torch.testing.assert_close(pixels, 0.5 * image.flatten(1).t().unsqueeze(2))
    permuted, other = (first(coding="permuted", permutation=k, gain=0.5).x for k in (0, 1))
    assert not torch.equal(permuted, other)
    # The order must never change: figures of other days and machines stand beside each other.
    assert permuted[:, 3, 0].tolist() == pixels[PERMUTED_8X8, 3, 0].tolist()
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
