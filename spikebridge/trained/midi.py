"""Frames of notes as MIDI and as sound.

Frames are (T, 88) of 0 and 1 everywhere here: column k is the MIDI note lowest + k, and lowest is
21, so that they are the keys of a piano, unless given.  A note that sounds in consecutive frames is
one held note.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spikebridge.base.records import UsageError
from spikebridge.runs.rundir import replace

LOWEST, KEYS = 21, 88
RATE = 22_050
"""Samples of sound per second."""
PEAK = 0.89
"""Loudest sample, as a share of what 16 bits can hold: 1 dB below."""
VELOCITY = 80
TICKS_PER_QUARTER = 480
LONGEST = 20_000
"""Frames of a MIDI file that are read at most: a larger one is no seed phrase."""
DRUMS = 9
"""The channel of percussion, whose numbers are no pitches."""
SILENCING = (120, 123)
"""Controllers that end all notes of a channel."""
ATTACK_S, RELEASE_S, DECAY_PER_S = 0.008, 0.06, 1.1
HARMONICS = 8


class Note(NamedTuple):
    """A held note: it sounds in the frames from start up to, not including, end."""

    pitch: int
    start: int
    end: int


def held_notes(frames: np.ndarray, lowest: int = LOWEST) -> list[Note]:
    """The held notes of frames (T, 88), by start and then pitch."""
    edges = np.diff(np.pad((frames > 0).astype(np.int8), ((1, 1), (0, 0))), axis=0)
    result = []
    for key in range(frames.shape[1]):
        starts, ends = np.flatnonzero(edges[:, key] > 0), np.flatnonzero(edges[:, key] < 0)
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        result += [Note(lowest + key, start, end) for start, end in pairs]
    return sorted(result, key=lambda note: (note.start, note.pitch))


def write_midi(
    path: Path,
    frames: np.ndarray,
    tempo: float,
    frames_per_quarter: int,
    marks: dict[int, str],
    lowest: int = LOWEST,
) -> None:
    """Write frames (T, 88) as a MIDI file of one piano, whole or not at all.

    tempo is in quarter notes per minute; marks are texts that stand in the file at a frame.
    Raises UsageError where mido is not installed.
    """
    mido = _mido()

    def tick(frame: int) -> int:
        return frame * TICKS_PER_QUARTER // frames_per_quarter

    def on(pitch: int, velocity: int) -> Any:
        return mido.Message("note_on", note=pitch, velocity=velocity)

    head = [(0, mido.MetaMessage("set_tempo", tempo=round(6e7 / tempo)))]
    head += [(tick(frame), mido.MetaMessage("text", text=text)) for frame, text in marks.items()]
    notes = held_notes(frames, lowest)
    # A note ends before the next of its pitch begins, though at one tick: velocity 0 ends it.
    piano = [(tick(note.end), on(note.pitch, 0)) for note in notes]
    piano += [(tick(note.start), on(note.pitch, VELOCITY)) for note in notes]
    named = [(0, mido.MetaMessage("track_name", name="spikebridge"))]
    song = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_QUARTER)
    for events in (head, [*named, *sorted(piano, key=lambda event: event[0])]):
        track, now = song.add_track(), 0
        for at, message in events:
            track.append(message.copy(time=at - now))
            now = at
    replace(path, lambda part: song.save(part))


def read_midi(path: Path, frames_per_quarter: int, lowest: int = LOWEST) -> np.ndarray:
    """The notes of a MIDI file as frames (T, 88), on the file's own beat; drums are left out.

    A note starts and ends at the nearest frame, half-way between two at the later one, and lasts
    for one at least.  Where notes of one pitch overlap, it sounds from the first to the last.  A
    note that is never ended lasts to the next of its pitch, or to the end of its track; a
    UserWarning says so.

    Raises UsageError where the file is missing, damaged, far too long, without notes or beats, or
    has notes that the frames have no place for.
    """
    song = _parsed(path)
    notes, unended = _notes(song.tracks)
    if unended:
        warnings.warn(
            f"{path}: {unended} of {len(notes)} notes are never ended; each lasts to the next of "
            "its pitch, or to the end of its track",
            stacklevel=2,
        )
    if not notes:
        raise UsageError(f"{path}: there are no notes in it; give a MIDI file with a melody")
    outside = sorted({note.pitch for note in notes} - set(range(lowest, lowest + KEYS)))
    if outside:
        raise UsageError(
            f"{path}: MIDI pitch {outside[0]} is in it, and the network knows those from {lowest} "
            f"to {lowest + KEYS - 1}; transpose the file"
        )

    def frame(tick: int) -> int:  # Python's own rounding would go to the even frame
        return (2 * tick * frames_per_quarter + song.ticks_per_beat) // (2 * song.ticks_per_beat)

    spans = [(note.pitch, frame(note.start), frame(note.end)) for note in notes]
    length = max(max(start + 1, end) for _, start, end in spans)
    if length > LONGEST:
        raise UsageError(
            f"{path}: {length:,} frames are in it, {LONGEST:,} are read at most; give its beginning"
        )
    frames = np.zeros((length, KEYS), np.uint8)
    for pitch, start, end in spans:
        frames[start : max(start + 1, end), pitch - lowest] = 1
    return frames


def _notes(tracks: Any) -> tuple[list[Note], int]:
    """All notes of a file, in ticks, and how many of them are never ended."""
    result: list[Note] = []
    unended = 0
    for track in tracks:
        now = 0
        held: dict[tuple[int, int], list[int]] = defaultdict(list)
        starts: dict[tuple[int, int], list[int]] = defaultdict(list)
        for message in track:
            now += message.time
            if message.type == "control_change" and message.control in SILENCING:
                for key in [key for key in held if key[0] == message.channel]:
                    result += [Note(key[1], start, now) for start in held.pop(key)]
            if message.type not in ("note_on", "note_off") or message.channel == DRUMS:
                continue
            key = message.channel, message.note
            if message.type == "note_on" and message.velocity:
                held[key].append(now)
                starts[key].append(now)
            elif held[key]:
                # The last that began, but not at this very tick where there is another.
                before = [start for start in held[key] if start < now]
                start = before[-1] if before else held[key][-1]
                held[key].remove(start)
                result.append(Note(key[1], start, now))
        for key, left in held.items():
            for start in left:
                end = min((other for other in starts[key] if other > start), default=now)
                result.append(Note(key[1], start, end))
                unended += 1
    return result, unended


def _parsed(path: Path) -> Any:
    mido = _mido()
    try:
        song = mido.MidiFile(path)
    except EOFError as error:
        raise UsageError(f"{path}: it is no whole MIDI file; give another one") from error
    except OSError as error:
        why = error.strerror or f"it is no MIDI file ({error})"
        raise UsageError(f"{path}: it cannot be read: {why}; give a MIDI file") from error
    except Exception as error:  # on damaged files the parser raises whatever it stumbles over
        raise UsageError(
            f"{path}: it is no whole MIDI file ({type(error).__name__}: {error}); give another one"
        ) from error
    if song.type == 2:
        raise UsageError(
            f"{path}: it holds songs side by side (format 2); save one of them as format 0 or 1"
        )
    if song.ticks_per_beat <= 0:
        raise UsageError(
            f"{path}: its times are in seconds (SMPTE), and frames follow beats; save it with "
            "ticks per quarter note"
        )
    return song


def _mido() -> Any:
    try:
        import mido
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed, and MIDI files need it; pip install 'spikebridge[app]'"
        ) from error
    return mido


def write_wav(
    path: Path, frames: np.ndarray, seconds_per_frame: float, lowest: int = LOWEST
) -> None:
    """Write how frames (T, 88) sound: 16 bit, mono, 22,050 Hz; whole or not at all."""
    from scipy.io import wavfile

    samples = np.round(PEAK * 32767 * synthesize(frames, seconds_per_frame, lowest)).astype(
        np.int16
    )

    def write(part: Path) -> None:
        with part.open("wb") as file:  # given a name, scipy would go by its ending
            wavfile.write(file, RATE, samples)

    replace(path, write)


def synthesize(frames: np.ndarray, seconds_per_frame: float, lowest: int = LOWEST) -> np.ndarray:
    """The sound of frames (T, 88) as samples in [-1, 1], float32, T x seconds_per_frame long.

    The loudest sample is 1 (0 where no note sounds), so nothing is ever clipped.
    """

    def sample(frame: int) -> int:
        return round(frame * seconds_per_frame * RATE)

    mixed = np.zeros(sample(len(frames)), np.float32)
    for note in held_notes(frames, lowest):
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
