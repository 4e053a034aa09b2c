"""The adding problem: what its answers are, and that no sequence is seen twice."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch

from spikebridge import data as tasks
from spikebridge.base.records import ConfigError
from spikebridge.cli import main as cli
from spikebridge.data import adding
from spikebridge.data.task import SPLITS
from spikebridge.runs import rundir
from spikebridge.settings.tasks import AddingConfig

KINDS = ("adding-bits", "adding-numbers")
DIGESTS = ("699ee7b137953f74", "9f015ee174be6f99")


def whole(task: tasks.Task, split: str) -> tasks.Batch:
    (batch,) = task.batches(split, 99_999, torch.Generator().manual_seed(0))
    return batch


def small(kind: str, **settings: int) -> tasks.Task:
    return tasks.load(AddingConfig(data=kind, **{"steps": 20, "sequences": 1000, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_sums_at_the_marked_steps(split: str) -> None:
    bits, numbers = (whole(small(kind), split) for kind in KINDS)
    for batch, marked in ((bits, 9), (numbers, 2)):
        assert set(batch.x[..., 1].unique().tolist()) == {0.0, 1.0}
        assert (batch.x[..., 1].sum(0) == marked).all()
    assert torch.equal(bits.x.prod(2).sum(0).long(), bits.target)
    assert len(set(bits.target.bincount(minlength=10).tolist())) == 1, "not balanced"
    sums = numbers.x.prod(2).sum(0)
    torch.testing.assert_close(sums, numbers.target[:, 0] / math.sqrt(6) + 1)


def test_values_and_marks_are_even_over_the_steps() -> None:
    bits = whole(small("adding-bits", sequences=20_000), "train").x
    spread = 6 * math.sqrt(0.25 / 20_000)
    assert (bits[..., 0].mean(1) - 0.5).abs().max() < spread
    assert (bits[..., 1].mean(1) - 9 / 20).abs().max() < spread
    # Which of the marked bits are ones hangs on no place among them.
    ones = (bits.prod(2).sum(1) / bits[..., 1].sum(1) - 0.5).abs().max()
    assert ones < 6 * math.sqrt(0.25 / (20_000 * 9 / 20))


@pytest.mark.parametrize("kind", KINDS)
def test_no_sequence_occurs_twice(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = adding._places

    def places(random, count, steps, marked):  # type: ignore[no-untyped-def]
        drawn.append(count)
        return real(random, count, steps, marked) * 0 + torch.arange(marked).numpy()

    drawn: list[int] = []
    if kind == "adding-bits":  # all marks at the same steps: class 0 leaves 2048 sequences of 20
        monkeypatch.setattr(adding, "_places", places)
    task = small(kind)
    rows = torch.cat([whole(task, split).x for split in SPLITS], 1).transpose(0, 1).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows) == 5_000
    assert kind == "adding-numbers" or len(drawn) > 1, "nothing had to be drawn again"


@pytest.mark.parametrize(("kind", "digest"), list(zip(KINDS, DIGESTS, strict=True)))
def test_sequences_never_change(kind: str, digest: str) -> None:
    batch = whole(small(kind), "test")
    assert hashlib.sha256(batch.x.numpy().tobytes()).hexdigest()[:16] == digest
    assert not torch.equal(batch.x, whole(small(kind, draw_seed=1), "test").x)


def test_solved_are_sums_that_are_near() -> None:
    task = small("adding-numbers")
    batch = whole(task, "test")
    (solved,) = task.views().values()
    for off, share in ((0.039, 1.0), (0.041, 0.0)):
        output = batch.target + off / adding.SD
        assert solved.score(output, batch) == (share * adding.HELD, adding.HELD)
        total, count = task.score(output, batch)
        assert math.sqrt(total / count) == pytest.approx(off * math.sqrt(6), rel=1e-3)
    assert task.baselines["the mean"] == pytest.approx(1, abs=0.05)
    sums = batch.x.prod(2).sum(0)[:, None].double()
    torch.testing.assert_close(task.in_units(batch.target), sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_names_error_solved_share_and_simple_answer(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = f"train adding --data {kind} --steps 20 --sequences 1000 --hidden 4 --epochs 1"
    assert cli.main(f"{words} --threads 1 --out {out}".split()) == 0
    result, said = rundir.read_result(out), capsys.readouterr().out
    assert result.metric == ("accuracy" if kind == "adding-bits" else "rmse")
    if kind == "adding-bits":
        assert result.baselines == {"largest class": pytest.approx(0.1)}
        return
    assert set(result.baselines) == {"the mean"}
    assert result.figures[adding.SOLVED].metric == "accuracy"
    assert f"test accuracy, {adding.SOLVED}: " in said
    assert "the mean 0.9" in said or "the mean 1.0" in said


def test_short_sequences_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps=10: it must be at least 20; pass --steps"):
        AddingConfig(steps=10)
