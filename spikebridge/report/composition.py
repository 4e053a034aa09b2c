"""What a network composed: the notes, and the sound inside the page."""

from __future__ import annotations

import base64
import io
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikebridge.base.records import RunError, from_content
from spikebridge.report.example_charts import note_bars
from spikebridge.report.theme import figure
from spikebridge.report.wording import frame_text, plural, seconds_text
from spikebridge.runs import rundir
from spikebridge.runs.load import ReportError, Run
from spikebridge.trained.midi import KEYS, LOWEST

REMEDY = "compose again with `spikebridge compose`"
MOST_BYTES = 1_500_000
"""Of sound in the page, before it becomes text, which takes four thirds of that."""
FADE_S = 1.0
CAPTION = (
    "Each bar is one note, as long as it is held. The pale notes are the seed phrase, which the "
    "network only heard; every coloured note it drew itself, hearing what it had drawn before."
)


@dataclass(frozen=True, kw_only=True)
class Composed:
    """What the page reads of composition.json."""

    notes: tuple[tuple[int, ...], ...]
    """MIDI pitches of each frame."""
    seconds: float = 0.0
    prompt_frames: int = -1
    piece: int | None = None
    midi: str | None = None
    temperature: float | None = None
    seed: int | None = None
    voices: int | None = None
    tempo: float | None = None
    lowest: int = LOWEST
    """MIDI pitch of the first of 88 notes; a piano's, in compositions that do not say it."""

    def __post_init__(self) -> None:
        keys = range(self.lowest, self.lowest + KEYS)
        if not self.notes or any(pitch not in keys for frame in self.notes for pitch in frame):
            raise ValueError('"notes" is no list of MIDI pitches per frame')
        if not self.seconds or not 0 <= self.prompt_frames <= len(self.notes):
            raise ValueError('"seconds" or "prompt_frames" is not as it must be')

    def frames(self) -> np.ndarray:
        """(T, 88), 1 where a note is held."""
        frames = np.zeros((len(self.notes), KEYS), np.uint8)
        for row, pitches in zip(frames, self.notes, strict=True):
            row[[pitch - self.lowest for pitch in pitches]] = 1
        return frames


def composition(run: Run) -> dict[str, Any] | None:
    """The composition in a run's folder, for run.html; None without a whole one.

    Raises ReportError where one of its files is damaged.
    """
    midi, wav, about = (run.directory / name for name in rundir.COMPOSITION)
    if not (wav.exists() and about.exists()):
        return None
    try:
        facts = from_content(Composed, rundir.read_json(about, REMEDY))
    except RunError as error:
        raise ReportError(str(error)) from error
    except ValueError as error:
        raise ReportError(f"{about}: {error}; {REMEDY}") from error
    prompt, count = facts.prompt_frames, len(facts.notes)
    per_frame_s = facts.seconds / count
    player, shown_s = embedded(wav)
    below = f"The files are {midi.name} (for a sequencer or notation) and {wav.name}."
    if shown_s < facts.seconds - 0.5:
        below = (
            f"Here are the first {seconds_text(shown_s)} of {seconds_text(facts.seconds)}. {below}"
        )
    source = (
        f"of {Path(facts.midi).name}" if facts.midi else f"of test piece {(facts.piece or 0) + 1}"
    )
    words = {
        "temperature {:g}": facts.temperature,
        "at most {} at once": plural(facts.voices, "note") if facts.voices else None,
        "seed {}": facts.seed,
        "{:g} quarter notes per minute": facts.tempo or None,
    }
    settings = ", ".join(text.format(value) for text, value in words.items() if value is not None)
    chart = note_bars(facts.frames(), prompt, per_frame_s, run.unit, facts.lowest)
    caption = f"{CAPTION} A frame{frame_text(run.data)} lasts {per_frame_s:.2g} s."
    return {
        "heading": f"The network heard {plural(prompt, 'frame')} {source} and went on for "
        f"{plural(count - prompt, 'frame')}, drawing each from its own expectation ({settings}).",
        "player": player,
        "below": below,
        "plot": figure(chart, "Piano roll of the composition", caption, wide=True),
    }


def embedded(path: Path) -> tuple[str, float]:
    """A WAV file (16 bit, mono) as a data address of bounded size, and the seconds that it holds.

    A long one gets half its sampling rate, and a still longer one is faded out early.
    Raises ReportError where the file is damaged.
    """
    try:
        with wave.open(str(path), "rb") as file:
            rate, shape = file.getframerate(), (file.getnchannels(), file.getsampwidth())
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (OSError, EOFError, ValueError, wave.Error) as error:
        raise ReportError(f"{path}: it is no whole WAV file ({error}); {REMEDY}") from error
    if shape != (1, 2):
        raise ReportError(f"{path}: it is not mono with 16 bits per sample; {REMEDY}")
    if samples.nbytes > MOST_BYTES:
        samples, rate = halved(samples), rate // 2
    if samples.nbytes > MOST_BYTES:
        samples = samples[: MOST_BYTES // 2].astype(np.float64)
        last = min(len(samples), round(FADE_S * rate))
        samples[len(samples) - last :] *= np.linspace(1, 0, last)
        samples = np.round(samples).astype("<i2")
    target = io.BytesIO()
    with wave.open(target, "wb") as out:
        out.setparams((1, 2, rate, len(samples), "NONE", "not compressed"))
        out.writeframes(samples.astype("<i2").tobytes())
    text = base64.b64encode(target.getvalue()).decode("ascii")
    return f"data:audio/wav;base64,{text}", len(samples) / rate


def halved(samples: np.ndarray) -> np.ndarray:
    """Every second sample (int16), after what the lower rate cannot hold is filtered out."""
    reach = np.arange(-32, 33)
    low_pass = np.sinc(reach / 2) * np.hamming(len(reach))
    smooth = np.convolve(samples.astype(np.float64), low_pass / low_pass.sum(), mode="same")
    return np.clip(np.round(smooth[::2]), -32768, 32767).astype(np.int16)
