"""Frames of notes as MIDI and as sound.

Frames are (T, 88) of 0 and 1 everywhere here: column k is MIDI note 21 + k, the keys of a piano.  A
note that sounds in consecutive frames is one held note.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spikebridge.records import UsageError
from spikebridge.rundir import replace

LOWEST, KEYS = 21, 88
RATE = 22_050
"""Samples of sound per second."""
PEAK = 0.89
"""Loudest sample, as a share of what 16 bits can hold: 1 dB below."""
VELOCITY = 80
TICKS_PER_QUARTER = 480
LONGEST_QUARTERS = 20_000
"""Quarter notes of a MIDI file at most: pretty_midi refuses times of ten million ticks."""
LONGEST = 20_000
"""Frames of a MIDI file that are read at most: a larger one is no seed phrase."""
ATTACK_S, RELEASE_S, DECAY_PER_S = 0.008, 0.06, 1.1
HARMONICS = 8


class Note(NamedTuple):
    """A held note: it sounds in the frames from start up to, not including, end."""

    pitch: int
    start: int
    end: int


def held_notes(frames: np.ndarray) -> list[Note]:
    """The held notes of frames (T, 88), by start and then pitch."""
    edges = np.diff(np.pad((frames > 0).astype(np.int8), ((1, 1), (0, 0))), axis=0)
    found = []
    for key in range(frames.shape[1]):
        starts, ends = np.flatnonzero(edges[:, key] > 0), np.flatnonzero(edges[:, key] < 0)
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        found += [Note(LOWEST + key, start, end) for start, end in pairs]
    return sorted(found, key=lambda note: (note.start, note.pitch))


def write_midi(
    path: Path, frames: np.ndarray, tempo: float, frames_per_quarter: int, marks: dict[int, str]
) -> None:
    """Write frames (T, 88) as a MIDI file of one piano, whole or not at all.

    tempo is in quarter notes per minute; marks are texts that stand in the file at a frame.
    Raises UsageError where pretty_midi is not installed.
    """
    midi = _pretty_midi()
    # The file holds whole microseconds per quarter note, and pretty_midi cuts fractions off: half
    # a microsecond more keeps rounding from making it one less.
    per_quarter_us = round(6e7 / tempo) + 0.5
    song = midi.PrettyMIDI(resolution=TICKS_PER_QUARTER, initial_tempo=6e7 / per_quarter_us)

    def time(frame: int) -> float:
        return song.tick_to_time(frame * TICKS_PER_QUARTER // frames_per_quarter)

    piano = midi.Instrument(program=0, name="spikebridge")
    piano.notes = [
        midi.Note(VELOCITY, note.pitch, time(note.start), time(note.end))
        for note in held_notes(frames)
    ]
    song.instruments.append(piano)
    song.text_events = [midi.Text(text, time(frame)) for frame, text in marks.items()]
    replace(path, lambda part: song.write(part))


def read_midi(path: Path, frames_per_quarter: int) -> np.ndarray:
    """The notes of a MIDI file as frames (T, 88), on the file's own beat; drums are left out.

    A note starts and ends at the nearest frame and lasts for one at least.
    Raises UsageError where the file is missing, damaged, far too long, without notes, or has notes
    that no piano has.
    """
    song = _parsed(path)
    ticks = song.resolution / frames_per_quarter
    notes = []
    for instrument in song.instruments:
        for note in [] if instrument.is_drum else instrument.notes:
            start = round(song.time_to_tick(note.start) / ticks)
            end = round(song.time_to_tick(note.end) / ticks)
            notes.append(Note(note.pitch, start, max(start + 1, end)))
    if not notes:
        raise UsageError(f"{path}: there are no notes in it; give a MIDI file with a melody")
    outside = sorted({note.pitch for note in notes} - set(range(LOWEST, LOWEST + KEYS)))
    if outside:
        raise UsageError(
            f"{path}: MIDI pitch {outside[0]} is in it, and the network knows those of a piano, "
            f"{LOWEST} to {LOWEST + KEYS - 1}; transpose the file"
        )
    length = max(note.end for note in notes)
    if length > LONGEST:
        raise UsageError(
            f"{path}: {length:,} frames are in it, {LONGEST:,} are read at most; give its beginning"
        )
    frames = np.zeros((length, KEYS), np.uint8)
    for note in notes:
        frames[note.start : note.end, note.pitch - LOWEST] = 1
    return frames


def _parsed(path: Path) -> Any:
    midi = _pretty_midi()
    try:
        return midi.PrettyMIDI(str(path))
    except OSError as error:
        why = error.strerror or f"it is no MIDI file ({error})"
        raise UsageError(f"{path}: it cannot be read: {why}; give a MIDI file") from error
    except Exception as error:  # on damaged files the parser raises whatever it stumbles over
        raise UsageError(
            f"{path}: it is no whole MIDI file ({type(error).__name__}: {error}); give another one"
        ) from error


def _pretty_midi() -> Any:
    try:
        import pretty_midi
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed, and MIDI files need it; pip install 'spikebridge[app]'"
        ) from error
    return pretty_midi


def write_wav(path: Path, frames: np.ndarray, seconds_per_frame: float) -> None:
    """Write how frames (T, 88) sound: 16 bit, mono, 22,050 Hz; whole or not at all."""
    from scipy.io import wavfile

    samples = np.round(PEAK * 32767 * synthesize(frames, seconds_per_frame)).astype(np.int16)

    def write(part: Path) -> None:
        with part.open("wb") as file:  # given a name, scipy would go by its ending
            wavfile.write(file, RATE, samples)

    replace(path, write)


def synthesize(frames: np.ndarray, seconds_per_frame: float) -> np.ndarray:
    """The sound of frames (T, 88) as samples in [-1, 1], float32, T x seconds_per_frame long.

    The loudest sample is 1 (0 where no note sounds), so nothing is ever clipped.
    """

    def sample(frame: int) -> int:
        return round(frame * seconds_per_frame * RATE)

    mixed = np.zeros(sample(len(frames)), np.float32)
    for note in held_notes(frames):
        start, end = sample(note.start), sample(note.end)
        mixed[start:end] += _tone(note.pitch, end - start)
    loudest = float(np.abs(mixed).max(initial=0))
    return mixed / loudest if loudest else mixed


@lru_cache(maxsize=256)
def _tone(pitch: int, samples: int) -> np.ndarray:
    """One struck note: harmonics that fade, the higher the faster, with soft ends (no clicks)."""
    t = np.arange(samples) / RATE
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    wave = np.zeros(samples)
    for harmonic in range(1, HARMONICS + 1):
        if harmonic * frequency < 0.45 * RATE:  # above half the rate it would sound as another
            fading = np.exp(-DECAY_PER_S * harmonic * t) / harmonic**1.3
            wave += fading * np.sin(2 * np.pi * harmonic * frequency * t)
    left = t[::-1]
    wave *= np.minimum(1, t / ATTACK_S) * np.minimum(1, left / min(RELEASE_S, samples / RATE / 3))
    wave = wave.astype(np.float32)
    wave.setflags(write=False)  # shared by all notes of this pitch and length
    return wave
