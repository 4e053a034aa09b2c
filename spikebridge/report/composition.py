"""What a network composed: the notes, and the sound inside the page."""

from __future__ import annotations

import base64
import io
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikebridge.base.records import RunError
from spikebridge.report.example_charts import note_bars
from spikebridge.report.theme import Plot, figure
from spikebridge.report.wording import frame_text, number, plural, seconds_text
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


@dataclass(frozen=True)
class Composition:
    """One composition as the page shows it."""

    heading: str
    player: str
    """The sound as a data address."""
    below: str
    """What of the sound is in the page, and where the files lie."""
    plot: Plot | None


def composition(run: Run) -> Composition | None:
    """The composition in a run's folder; None without a whole one.

    Raises ReportError where one of its files is damaged.
    """
    midi, wav, about = (run.directory / name for name in rundir.COMPOSITION)
    if not (wav.exists() and about.exists()):
        return None
    try:
        facts = rundir.read_json(about, REMEDY)
    except RunError as error:
        raise ReportError(str(error)) from error
    notes = _notes(about, facts)
    seconds, prompt = number(facts.get("seconds")), number(facts.get("prompt_frames"))
    if not seconds or prompt is None or not 0 <= prompt <= len(notes):
        raise ReportError(f"{about}: 'seconds' or 'prompt_frames' is not as it must be; {REMEDY}")
    per_frame_s = seconds / len(notes)
    player, shown_s = embedded(wav)
    below = f"The files are {midi.name} (for a sequencer or notation) and {wav.name}."
    if shown_s < seconds - 0.5:
        below = f"Here are the first {seconds_text(shown_s)} of {seconds_text(seconds)}. {below}"
    return Composition(
        heading=_heading(facts, int(prompt), len(notes) - int(prompt)),
        player=player,
        below=below,
        plot=figure(
            note_bars(notes, int(prompt), per_frame_s, run.unit, _lowest(facts)),
            "Piano roll of the composition",
            f"{CAPTION} A frame{frame_text(run.data)} lasts {per_frame_s:.2g} s.",
            wide=True,
        ),
    )


def _heading(facts: dict[str, Any], prompt: int, composed: int) -> str:
    """Where the seed phrase is from and how it was continued, in words."""
    piece, midi = number(facts.get("piece")), facts.get("midi")
    source = f"of {Path(str(midi)).name}" if midi else f"of test piece {int(piece or 0) + 1}"
    words = [f"{name} {facts[name]}" for name in ("temperature", "seed") if name in facts]
    if voices := number(facts.get("voices")):
        words.insert(1, f"at most {plural(int(voices), 'note')} at once")
    if tempo := number(facts.get("tempo")):
        words.append(f"{tempo:g} quarter notes per minute")
    return (
        f"The network heard {plural(prompt, 'frame')} {source} and went on for "
        f"{plural(composed, 'frame')}, drawing each from its own expectation ({', '.join(words)})."
    )


def _lowest(facts: dict[str, Any]) -> int:
    """MIDI pitch of the first of 88 notes; a piano's, in compositions that do not say it."""
    return int(number(facts.get("lowest")) or LOWEST)


def _notes(path: Path, facts: dict[str, Any]) -> np.ndarray:
    """The frames (T, 88) that composition.json lists as MIDI pitches."""
    listed = facts.get("notes")
    lowest = _lowest(facts)
    keys = range(lowest, lowest + KEYS)
    fine = isinstance(listed, list) and all(
        isinstance(frame, list) and all(type(pitch) is int and pitch in keys for pitch in frame)
        for frame in listed
    )
    if not fine or not listed:
        raise ReportError(f"{path}: 'notes' is no list of MIDI pitches per frame; {REMEDY}")
    frames = np.zeros((len(listed), KEYS), np.uint8)
    for row, pitches in zip(frames, listed, strict=True):
        row[[pitch - lowest for pitch in pitches]] = 1
    return frames


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
