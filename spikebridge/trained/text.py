"""Text from a trained language model, one symbol after the other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikebridge.base.records import RunError, UsageError
from spikebridge.runs import rundir
from spikebridge.runs.evaluation import evaluating, trained
from spikebridge.settings.plans import SamplePlan

END, UNKNOWN = "<eos>", "<unk>"


class Writer:
    """A finished run of the task text, ready to go on with a prompt.

    Raises UsageError where the folder holds no such run, RunError where it is damaged.
    """

    def __init__(self, directory: Path) -> None:
        config, self.network = trained(directory, "text", "writes no text")
        self.by_words = getattr(config.task, "level", "word") == "word"
        result = rundir.read_json(directory / rundir.SYMBOLS, "train again with --overwrite")
        self.symbols: list[str] = result.get("symbols", [])
        listed = isinstance(self.symbols, list)
        if not (listed and all(isinstance(symbol, str) for symbol in self.symbols)):
            raise RunError(
                f"{directory / rundir.SYMBOLS}: symbols is no list of words; train again with "
                "--overwrite"
            )
        self.numbers = {symbol: number for number, symbol in enumerate(self.symbols)}
        readout = self.network.readout
        bias: Any = readout.bias if self.network.tied else readout.linear.bias
        if len(bias) != len(self.symbols):
            raise RunError(
                f"{directory / rundir.MODEL}: the network has {len(bias)} outputs, "
                f"{rundir.SYMBOLS} names {len(self.symbols)} symbols; train again with --overwrite"
            )

    def encode(self, prompt: str) -> list[int]:
        """Numbers of a prompt's symbols.  Raises UsageError where training did not hold one."""
        pieces = self._pieces(prompt)
        missing = sorted({piece for piece in pieces if piece not in self.numbers})
        if missing:
            shown = ", ".join(map(repr, missing[:5]))
            kind = "words" if self.by_words else "characters"
            others = f" (for words that are not in it, {UNKNOWN})" if self.by_words else ""
            raise UsageError(
                f"prompt: the network does not know {shown}; use {kind} of its training text"
                + others
            )
        return [self.numbers[piece] for piece in pieces]

    def go_on(self, prompt: str, plan: SamplePlan) -> str:
        """The prompt with more symbols, each drawn from what the network expects.

        An empty prompt starts at the beginning of a line.  Raises UsageError for a prompt that the
        network cannot read.
        """
        numbers = self.encode(prompt)
        start = END if self.by_words else "\n"
        inputs = [self.numbers[start], *numbers] if start in self.numbers else numbers
        if not inputs:
            raise UsageError("prompt: it is empty, and the text has no lines; pass --prompt")
        draws = torch.Generator().manual_seed(plan.seed)
        written: list[int] = []
        with evaluating(self.network):
            output, state = self.network(torch.tensor(inputs)[:, None])
            for _ in range(plan.length):
                number = self._draw(output[-1, 0], plan.temperature, plan.top, draws)
                written.append(number)
                output, state = self.network(torch.tensor([[number]]), state)
        return self._text([*numbers, *written])

    def _draw(self, logits: Tensor, temperature: float, top: int, draws: torch.Generator) -> int:
        logits = logits.double()
        if UNKNOWN in self.numbers:  # it says nothing to a reader
            logits[self.numbers[UNKNOWN]] = -math.inf
        if temperature == 0:
            return int(logits.argmax())
        if top:
            lowest = logits.topk(min(top, len(logits))).values[-1]
            logits[logits < lowest] = -math.inf
        return int(torch.multinomial((logits / temperature).softmax(0), 1, generator=draws))

    def _pieces(self, text: str) -> list[str]:
        return text.replace("\n", f" {END} ").split() if self.by_words else list(text)

    def _text(self, numbers: list[int]) -> str:
        pieces = [self.symbols[number] for number in numbers]
        if not self.by_words:
            return "".join(pieces)
        return " ".join(pieces).replace(f" {END}", "\n").replace(f"{END}", "").replace("\n ", "\n")
