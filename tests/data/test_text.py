"""Language modelling: streams, carried state, sampled softmax, writing, the page."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.toy_texts import WORDS, tiny, write_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebridge.base.records import UsageError
from spikebridge.cli import main as cli
from spikebridge.data.files import DataError
from spikebridge.data.task import known_again
from spikebridge.data.text import Text, Vocabulary, find_texts, read_symbols
from spikebridge.nn.network import build, load_network
from spikebridge.report.page import write
from spikebridge.runs import evaluation, rundir, training
from spikebridge.runs.objective import Sampler
from spikebridge.settings.config import override, preset
from spikebridge.settings.plans import SamplePlan
from spikebridge.settings.tasks import TextConfig
from spikebridge.trained.text import Writer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    training.run(tiny(folder, sampled=4, ema=0.9, dropout=0.1, same_mask=True), directory)
    return directory


def task_of(folder: Path, **more: Any) -> Text:
    return Text(TextConfig(data="files", data_dir=str(folder), **more))


def test_words_lines_and_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one  two\n\nthree\n", encoding="utf-8")
    assert read_symbols(path, "word") == ["one", "two", "<eos>", "<eos>", "three", "<eos>"]
    assert "".join(read_symbols(path, "char")) == "one  two\n\nthree\n"


def test_marks_and_separators_within_a_line_are_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\u2028b c\x0cd\r\ne".encode())
    assert read_symbols(path, "word") == ["a", "b", "c", "d", "<eos>", "e", "<eos>"]
    assert "".join(read_symbols(path, "char")) == "a\u2028b c\x0cd\ne"


def test_a_folder_below_the_own_one(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert task_of(Path("~") / folder.name).size("train") == task_of(folder).size("train")


def test_vocabulary_is_by_frequency_and_knows_the_unknown() -> None:
    found = Vocabulary.of(["b", "a", "b", "c", "<unk>", "c", "b"])
    assert found.symbols[0] == "b"
    assert set(found.symbols) == {"a", "b", "c", "<unk>"}
    assert found.encode(["b", "z"]).tolist() == [0, found.numbers["<unk>"]]
    small = Vocabulary.of(["b", "a", "b", "c", "c", "b"], 3)
    assert small.symbols == ("b", "c", "<unk>")


@settings(max_examples=25, deadline=None)
@given(streams=st.integers(1, 9), steps=st.integers(1, 40), seed=st.integers(0, 99))
def test_training_chunks_follow_one_another(
    folder: Path, streams: int, steps: int, seed: int
) -> None:
    task = task_of(folder, steps=steps)
    found = list(task.batches("train", streams, torch.Generator().manual_seed(seed)))
    assert len(found) == task.count_batches(streams)
    assert all(len(batch.x) <= steps for batch in found[:-1])
    assert len(found[-1].x) < 2 * steps
    x, target = (torch.cat([batch[i] for batch in found]) for i in (0, 1))
    assert torch.equal(x[1:], target[:-1])  # within a stream each target is heard next
    length = task.size("train") // streams
    assert x.shape == (length, streams)
    text = task.vocabulary.encode(read_symbols(folder / "my.train.txt", "word"))
    assert torch.equal(x.t().flatten(), text[: streams * length])


def test_the_test_text_is_read_once_and_whole(folder: Path) -> None:
    task = task_of(folder, steps=7)
    found = list(task.batches("test", 64, torch.Generator()))
    assert all(batch.x.shape[1] == 1 for batch in found)
    target = torch.cat([batch.target for batch in found])[:, 0]
    text = task.vocabulary.encode(read_symbols(folder / "my.test.txt", "word"))
    assert torch.equal(target, text[1:])
    assert sum(batch.counted for batch in found) == task.size("test") == len(text) - 1


@pytest.mark.parametrize("unit", ["snu", "recurrent-softsnu", "lstm", "tanh"])
def test_state_is_carried_over_chunks(folder: Path, unit: str) -> None:
    """The score in chunks is that of the whole text at once: exp of the mean surprise."""
    config = tiny(folder, unit=unit, steps=5)
    task = Text(config.task)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = build(config.model, task.input_size, task.output_size, "each", symbols=True)
    score = evaluation.evaluate(network, task, "test", 1, torch.Generator())
    whole = next(task_of(folder, steps=10**6).batches("test", 1, torch.Generator()))
    with evaluation.evaluating(network):
        output, _ = network(whole.x)
    nats = float(F.cross_entropy(output.flatten(0, 1).double(), whole.target.flatten()))
    assert score.loss == pytest.approx(nats, rel=1e-5)
    assert score.metric == pytest.approx(math.exp(nats), rel=1e-4)


@pytest.mark.parametrize("embedding", [0, 3])
def test_layers_without_a_state_read_texts_too(
    tmp_path: Path, folder: Path, embedding: int
) -> None:
    config = tiny(folder, unit="tanh", embedding=embedding, tied=False, epochs=1)
    assert 1 < training.run(config, tmp_path / "run").test < 100


def test_characters_are_scored_in_bits(folder: Path) -> None:
    task = task_of(folder, level="char", steps=50)
    assert task.metric == "bpc"
    batch = next(task.batches("test", 1, torch.Generator()))
    output = torch.zeros(len(batch.x), 1, task.output_size)
    total, count = task.score(output, batch)
    assert total / count == pytest.approx(math.log2(task.output_size))


def test_the_prior_is_the_frequency_of_words(folder: Path) -> None:
    task = task_of(folder)
    batch = next(task_of(folder, steps=10**6).batches("train", 1, torch.Generator()))
    output = task.prior.expand(len(batch.x), 1, -1)
    shares = torch.bincount(batch.target.flatten()).double() / batch.counted
    entropy = float(-(shares[shares > 0] * shares[shares > 0].log()).sum())
    assert float(task.loss(output, batch)) == pytest.approx(entropy, rel=1e-2)


# --- sampled softmax ---


def test_with_all_outputs_drawn_it_is_the_softmax() -> None:
    """Drawn so often that each output is there for certain, nothing is left to correct."""
    shares = torch.full((6,), 1 / 6)
    draws = torch.Generator().manual_seed(0)
    target = torch.randint(0, 6, (5, 3), generator=draws)
    drawn = Sampler(shares, 5000).draw(target, draws)
    assert drawn.among.tolist() == [0, 1, 2, 3, 4, 5]
    logits = torch.randn(5, 3, 6, generator=draws)
    full = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    assert float(drawn.loss(logits)) == pytest.approx(float(full), abs=1e-6)


def test_the_sum_over_outputs_is_estimated_without_bias() -> None:
    generator = torch.Generator().manual_seed(1)
    size = 40
    shares = torch.rand(size, generator=generator) + 0.02
    shares = shares / shares.sum()
    logits = torch.randn(size, generator=generator)
    sampler = Sampler(shares, 6)
    true = float(logits.exp().sum())
    found = []
    for _ in range(4000):
        # The targets are a sample of the text too: one drawn by the frequencies.
        target = torch.multinomial(shares, 1, generator=generator)
        drawn = sampler.draw(target, generator)
        found.append(float((logits[drawn.among] - drawn.log_expected).exp().sum()))
    spread = float(np.std(found)) / math.sqrt(len(found))
    assert abs(float(np.mean(found)) - true) < 4 * spread


def test_targets_are_always_among_the_drawn() -> None:
    generator = torch.Generator().manual_seed(2)
    shares = torch.full((1000,), 1e-3)
    target = torch.randint(0, 1000, (7, 4), generator=generator)
    drawn = Sampler(shares, 10).draw(target, generator)
    assert torch.equal(drawn.among[drawn.target], target.flatten())
    assert len(drawn.among) == len(set(drawn.among.tolist()))
    assert bool((drawn.log_expected <= 0).all())


def test_drawing_is_for_texts_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sampled=5: drawing among outputs is for texts"):
        training.run(override(preset("digits"), sampled=5), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- runs ---


def test_a_run_learns_and_tests_the_whole_text(folder: Path, done: Path) -> None:
    result = rundir.read_result(done)
    task = task_of(folder, steps=10)
    assert result.metric == "perplexity"
    assert result.test < 0.6 * math.exp(float(-(task.frequencies * task.prior).sum()))
    network = load_network(done / rundir.MODEL)
    again = evaluation.evaluate(network, task, "test", 8, torch.Generator())
    assert again.metric == pytest.approx(result.test, rel=1e-5)
    weights = 12 * len(task.vocabulary) * 2 // 2 + 12 * 16 + 16 * 16 + 16 * 12
    assert result.operations_per_step == weights


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_runs_end_alike(folder: Path, tmp_path: Path, precision: str) -> None:
    class Stop(training.Silent):
        def epoch(self, record: Any) -> None:
            raise KeyboardInterrupt

    config = tiny(folder, epochs=2, ema=0.8, sampled=3, precision=precision, dropout_in=0.1)
    whole = training.run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        training.run(config, tmp_path / "cut", progress=Stop())
    cut = training.run(config, tmp_path / "cut", resume=True)
    assert (cut.test, cut.valid) == (whole.test, whole.valid)


def test_a_run_that_goes_on_knows_its_data(tmp_path: Path) -> None:
    """Words in another order of frequency have other numbers: the weights would be of others."""
    folder = write_texts(tmp_path / "texts")
    two = tiny(folder, epochs=2)

    class Stop(training.Silent):
        def epoch(self, record: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.run(two, tmp_path / "run", progress=Stop())
    train = folder / "my.train.txt"
    kept = train.read_text(encoding="utf-8")
    first, second = WORDS[:2]
    swapped = {first: second, second: first}
    lines = kept.splitlines()
    train.write_text(
        "\n".join(" ".join(swapped.get(w, w) for w in line.split()) for line in lines) + "\n"
    )
    with pytest.raises(UsageError, match="the data are not those that the run began with"):
        training.run(two, tmp_path / "run", resume=True)
    train.write_text(kept, encoding="utf-8")
    assert training.run(two, tmp_path / "run", resume=True).epochs == 2


def test_one_word_more_is_another_text() -> None:
    """Sizes and symbols are exact, however large; means may differ in their last digits."""
    here = torch.tensor([929588, 73759, 82429, 2.0**47, 301.5, 0.25, 299.0, 0.5]).double()
    near, longer, others = here.clone(), here.clone(), here.clone()
    near[4:] += 1e-5
    longer[0] += 1
    others[3] += 1
    assert [known_again(one, here) for one in (near, longer, others)] == [True, False, False]


def test_weights_of_other_words_are_no_start(done: Path, folder: Path, tmp_path: Path) -> None:
    again = tiny(folder, epochs=1, start=str(done))
    assert training.run(again, tmp_path / "same").epochs == 1
    other = write_texts(tmp_path / "other")
    path = other / "my.train.txt"
    path.write_text(path.read_text(encoding="utf-8") + f"{WORDS[-1]} " * 500, encoding="utf-8")
    with pytest.raises(UsageError, match="its symbols are not those of these texts, or are in"):
        training.run(tiny(other, epochs=1, start=str(done)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_words_that_training_lacks_are_told(tmp_path: Path, folder: Path) -> None:
    assert task_of(folder).notes == ()
    other = write_texts(tmp_path / "texts")
    (other / "my.test.txt").write_text("never heard\nof\n", encoding="utf-8")
    (told,) = task_of(other).notes
    said = "60 % of the words to test on are not in the vocabulary and count as <unk>"
    assert told == said
    for split in ("train", "valid"):
        (other / f"my.{split}.txt").write_text("a b c\nc a b\n", encoding="utf-8")
    assert task_of(other).notes == (f"{said}, which occurs nowhere in training",)
    notes = task_of(folder, vocabulary=3).notes
    assert [note.partition("words to ")[2].split()[0] for note in notes] == [
        "train",
        "validate",
        "test",
    ]
    assert all(note.endswith("count as <unk>") for note in notes)


def test_characters_have_a_folder_of_their_own(folder: Path) -> None:
    words, characters = (
        preset("text", "lstm", "files", data_dir=str(folder), level=level)
        for level in ("word", "char")
    )
    assert rundir.default_folder(words).name == f"{folder.name}-lstm-0"
    assert rundir.default_folder(characters).name == f"{folder.name}-char-lstm-0"


def test_averaged_weights_are_those_of_the_file(folder: Path, tmp_path: Path) -> None:
    """With an average that forgets at once, validation is that of the last weights."""
    plain = training.run(tiny(folder, epochs=2), tmp_path / "plain")
    slow = training.run(tiny(folder, epochs=2, ema=0.999), tmp_path / "slow")
    assert slow.valid != plain.valid
    quick = training.run(tiny(folder, epochs=2, ema=1e-9), tmp_path / "quick")
    assert quick.valid == pytest.approx(plain.valid, rel=1e-4)


def test_symbols_without_an_embedding(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, unit="snu", embedding=0, tied=False, epochs=1)
    assert training.run(config, tmp_path / "run").test > 1
    with pytest.raises(UsageError, match="unit=lstm: with symbols it needs an embedding"):
        training.run(override(config, unit="lstm"), tmp_path / "lstm")


# --- writing ---


def test_a_writer_goes_on_and_repeats_itself(done: Path) -> None:
    writer = Writer(done)
    text = writer.go_on("the cat", SamplePlan(20, temperature=1.0, top=0, seed=3))
    assert text.startswith("the cat")
    assert "<unk>" not in text
    assert text == writer.go_on("the cat", SamplePlan(20, temperature=1.0, top=0, seed=3))
    assert text != writer.go_on("the cat", SamplePlan(20, 2.0, top=0, seed=4))
    assert set(text.split()) <= set(WORDS)
    likeliest = writer.go_on("the", SamplePlan(5, 0.0, top=0))
    assert likeliest == writer.go_on("the", SamplePlan(5, 0.0, top=0, seed=9))
    assert likeliest == writer.go_on("the", SamplePlan(5, 1.0, top=1, seed=5))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("RUN --prompt 'the zebra'", "the network does not know 'zebra'"),
        ("RUN --length 0", "length=0: it must be at least 1"),
        ("RUN --temperature -1", "temperature=-1.0: it must be 0 or lie in [0.01"),
        ("RUN --temperature 1e-310", "temperature=1e-310: it must be 0 or lie in [0.01, 100]"),
        ("RUN --seed 99999999999999999999999", "seed=99999999999999999999999: it must lie in [0"),
        ("RUN --top -1", "top=-1: it must be at least 0"),
        ("nowhere", "nowhere: there is no complete run in it"),
        ("digits", "digits: it is a run of the task digits, which writes no text"),
    ],
)
def test_wrong_usage(
    line: str,
    message: str,
    done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small = override(preset("digits"), hidden=(4,), epochs=1, steps=2, threads=1)
    if line == "digits":
        training.run(small, "digits")
    assert cli.main(["sample", "text", *shlex.split(line.replace("RUN", str(done)))]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_the_command_samples(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "text", str(done), "--prompt", "a bird", "--length", "8"]) == 0
    assert capsys.readouterr().out.startswith("a bird")
    assert cli.main(["sample", "text", str(done), "--length", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == ""


def test_characters_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    line = (
        f"train text --data-dir {folder} --level char --unit snu --hidden 16 --epochs 1 "
        f"--embedding 0 --no-tied --steps 20 --threads 1 --out {out}"
    )
    assert cli.main(shlex.split(line)) == 0
    said = capsys.readouterr().out
    assert "test bpc:" in said
    page = (out / rundir.REPORT).read_text(encoding="utf-8")
    assert "bits per character" in page
    text = Writer(out).go_on("the ", SamplePlan(12))
    assert text.startswith("the ")
    assert len(text) == 16


# --- the page ---


def test_the_page_shows_the_text_and_its_surprises(done: Path, tmp_path: Path) -> None:
    page = write(done, tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('class="symbol"') == 60
    assert "expected: " in page
    with np.load(done / rundir.EXAMPLES, allow_pickle=False) as archive:
        assert archive["output"].shape == (10, 6, 6)
        assert (archive["output"][..., 1] >= archive["output"][..., 2]).all()


def test_hostile_words_stay_text(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts", (30, 5, 20))
    for path in folder.iterdir():
        path.write_text(path.read_text().replace("cat", "<script>alert(1)</script>"))
    out = tmp_path / "run"
    training.run(tiny(folder, epochs=1), out)
    page = write(out).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


# --- files ---


def test_files_that_are_not_as_they_must_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_texts(tmp_path / "none")
    one = tmp_path / "one" / "train-valid-test.txt"
    one.parent.mkdir()
    one.write_text("one two\n")
    with pytest.raises(DataError, match="found a file; give the folder"):
        find_texts(one)
    with pytest.raises(
        DataError, match=r"three files.*found train-valid-test\.txt.*split the text"
    ):
        find_texts(one.parent)
    folder = write_texts(tmp_path / "texts")
    (folder / "other.train.txt").write_text("x")
    with pytest.raises(DataError, match=r"one file with train .*my\.train\.txt, other\.train"):
        find_texts(folder)
    (folder / "other.train.txt").unlink()
    (folder / "my.test.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match="bytes at place 3 that are not UTF-8; save it as UTF-8"):
        task_of(folder)
    (folder / "my.test.txt").write_text("")
    with pytest.raises(DataError, match="at least 2 symbols; found 0"):
        task_of(folder)
