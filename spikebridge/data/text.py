"""Language modelling: predict the next word, or character, of a running text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from spikebridge.base.metrics import MetricName
from spikebridge.data.files import DataError, check_folder, fetch, read_bytes, single, visible
from spikebridge.data.task import (
    SPLITS,
    Batch,
    Readout,
    Task,
    check_batch_size,
    check_split,
    stream_chunks,
)
from spikebridge.settings.tasks import TextConfig

UNKNOWN, END = "<unk>", "<eos>"
VALID_STREAMS = 10
LN_2 = 0.6931471805599453
_VERBS = {"train": "train on", "valid": "validate on", "test": "test on"}


class Vocabulary:
    """Symbols and their numbers: by falling frequency in the training text, ties in its order."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        self.numbers = {symbol: number for number, symbol in enumerate(self.symbols)}
        self.unknown = self.numbers.get(UNKNOWN)

    @classmethod
    def of(cls, text: Sequence[str], largest: int = 0) -> Vocabulary:
        """The symbols of a text; at most `largest` of them, where that is above 0."""
        counts = Counter(text)
        result = [symbol for symbol, _ in counts.most_common()]
        if UNKNOWN not in counts:
            result.append(UNKNOWN)
        if largest and len(result) > largest:
            known = [symbol for symbol in result if symbol != UNKNOWN]
            result = [*known[: largest - 1], UNKNOWN]
        return cls(result)

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: Sequence[str]) -> Tensor:
        """Numbers (n,) int64; what training did not hold is <unk>."""
        unknown = self.numbers[UNKNOWN]
        return torch.tensor([self.numbers.get(symbol, unknown) for symbol in text])


class Text(Task):
    """Predict symbol t + 1 from those up to t; the state is carried over the whole text.

    The training text runs in `batch_size` streams side by side, each an equal stretch of it, in
    chunks of `steps`; validation in ten streams, and the test in one, so that its perplexity is
    that of the whole text read once.  Loss: cross-entropy in nats; score: nats, or bits per
    character.
    """

    name = "text"
    readout: Readout = "each"
    symbols = True
    carries_state = True

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        if config.data_dir:
            paths = find_texts(Path(config.data_dir).expanduser())
        else:
            paths = {split: fetch(f"ptb/ptb.{split}.txt") for split in SPLITS}
        texts = {split: read_symbols(path, config.level) for split, path in paths.items()}
        self.vocabulary = Vocabulary.of(texts["train"], config.vocabulary)
        self._numbers = {split: self.vocabulary.encode(texts[split]) for split in SPLITS}
        self.metric = cast(MetricName, config.metric())
        self.input_size = self.output_size = len(self.vocabulary)
        counts = torch.bincount(self._numbers["train"], minlength=self.output_size)
        self.notes = tuple(self._unknown(texts, int(counts[self.vocabulary.numbers[UNKNOWN]])))
        self.frequencies = counts.double() / counts.sum()
        self.prior = torch.log((counts + 1.0) / (counts.sum() + len(counts))).float()

    def _unknown(self, texts: Mapping[str, Sequence[str]], trained: int) -> Iterator[str]:
        """A sentence for each split with symbols that are not in the vocabulary."""
        what = {"word": "words", "char": "characters"}[self.config.level]
        never = "" if trained else ", which occurs nowhere in training"
        for split, text in texts.items():
            count = sum(symbol not in self.vocabulary.numbers for symbol in text)
            if count:
                yield (
                    f"{100 * count / len(text):.3g} % of the {what} to {_VERBS[split]} are not in "
                    f"the vocabulary and count as {UNKNOWN}{never}"
                )

    def symbol_names(self) -> list[str]:
        """The words or characters by number."""
        return list(self.vocabulary.symbols)

    def size(self, split: str) -> int:
        """Number of predicted symbols of a split."""
        return len(self._numbers[check_split(split)]) - 1

    def count_batches(self, batch_size: int) -> int:
        """Number of chunks in an epoch."""
        length = self._length("train", self._streams("train", batch_size))
        return -(-length // self.config.steps)

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Chunks of x and target (T, B) int64 with T = steps, the last one shorter.

        In training the first chunk has a length drawn from the generator and the last one makes up
        for it, so that the cuts, over which no gradient passes, fall elsewhere in each epoch.  Of
        the text, less than `batch_size` symbols at its end are left out in training, and less than
        ten in validation.
        """
        check_batch_size(batch_size)
        streams = self._streams(split, batch_size)
        length = self._length(split, streams)
        numbers = self._numbers[split][: streams * length + 1]
        x = numbers[:-1].view(streams, length).t()
        target = numbers[1:].view(streams, length).t()
        drawn = generator if split == "train" else None
        return (
            Batch(x[start:end].contiguous(), target[start:end].contiguous(), None)
            for start, end in stream_chunks(length, self.config.steps, drawn)
        )

    def score(self, output: Tensor, batch: Batch) -> tuple[float, int]:
        """(nats or bits, symbols)."""
        nats = float(self.loss(output, batch)) * batch.counted
        return (nats / LN_2 if self.metric == "bpc" else nats), batch.counted

    def _streams(self, split: str, batch_size: int) -> int:
        wanted = {"train": batch_size, "valid": VALID_STREAMS, "test": 1}[check_split(split)]
        return max(1, min(wanted, self.size(split)))

    def _length(self, split: str, streams: int) -> int:
        return self.size(split) // streams


def read_symbols(path: Path, level: str) -> list[str]:
    """The words of a text with <eos> after each line, or its characters.  Raises DataError."""
    expected, remedy = "a text in UTF-8 of at least 2 symbols", "give another file"
    try:
        # Editors may put a mark before the text, and any mark at the end of lines.
        text = read_bytes(path, expected, remedy).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        actual = f"bytes at place {error.start} that are not UTF-8"
        raise DataError(path, expected, actual, "save it as UTF-8") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if level == "char":
        symbols = list(text)
    else:
        lines = text.removesuffix("\n").split("\n") if text else []
        symbols = [word for line in lines for word in (*line.split(), END)]
    if len(symbols) < 2:
        raise DataError(path, expected, f"{len(symbols)} of them", remedy)
    return symbols


def find_texts(folder: Path) -> dict[str, Path]:
    """The text files of a folder by split: those whose names hold train, valid and test."""
    check_folder(folder, "a folder with three texts", "give the folder by --data-dir")
    files = visible(folder)
    actual: dict[str, Path] = {}
    for split in SPLITS:
        named = [path for path in files if split in path.name.lower()]
        expected = f"one file with {split} in its name"
        remedy = "name the three files train, valid and test"
        actual[split] = single(named, folder, expected, remedy)
    if len(set(actual.values())) < len(SPLITS):
        have = ", ".join(sorted({path.name for path in actual.values()}))
        raise DataError(
            folder, "three files, one for each of train, valid and test", have,
            "a network that is tested on what it has learnt tells nothing: split the text",
        )  # fmt: skip
    return actual
