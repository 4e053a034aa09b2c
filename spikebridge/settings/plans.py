"""What is asked of a finished run, as frozen records (no torch); the commands' flags are these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from spikebridge.base.records import Bound, Count, Seed, Size, check_types

Temperature = Annotated[float, Bound("[0.01, 100]", or_zero=True)]


@dataclass(frozen=True)
class SamplePlan:
    """How a language model writes."""

    length: Size = 100
    """Symbols (words or characters) to write."""
    temperature: Temperature = 0.8
    """Below 1 keeps to what is likely, above 1 wanders; 0 always takes the likeliest."""
    top: Count = 40
    """Draw among this many likeliest symbols; 0 = among all."""
    seed: Seed = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class ComposePlan:
    """What a network trained on music continues, and how."""

    piece: Count = 0
    """Number of the test piece whose beginning is the seed phrase, from 0."""
    midi: str = ""
    """A MIDI file as the seed phrase, instead of a test piece."""
    prompt_frames: Count = 0
    """Frames of the seed phrase; 0 = 16 of a test piece, all of a MIDI file."""
    frames: Size = 64
    """Frames to add; a frame is a quarter note in jsb and in your own pieces, else an eighth."""
    temperature: Temperature = 0.9
    """Below 1 keeps to the likely notes, above 1 wanders; 0 always takes the likeliest."""
    voices: Count = 0
    """Most notes at once; 0 = as many as the pieces of the run usually have (jsb: 4)."""
    tempo: Annotated[float, Bound("[10, 600]")] = 100.0
    """Quarter notes per minute."""
    seed: Seed = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        check_types(self)
