"""Composing: frames, MIDI and sound say the same; draws follow the network; faults are named."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import warnings
import wave
from itertools import combinations
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
from helpers.real_data import real
from helpers.tiny_runs import tiny
from helpers.toy_music import toy_songs, write_mat
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from spikebridge import report
from spikebridge.base.records import ConfigError, RunError, UsageError
from spikebridge.cli import main as cli
from spikebridge.nn.network import load_network
from spikebridge.report.composition import MOST_BYTES, embedded, halved
from spikebridge.runs import rundir, training
from spikebridge.runs.evaluation import evaluating
from spikebridge.runs.load import ReportError
from spikebridge.settings.config import override, preset
from spikebridge.settings.tasks import MusicConfig
from spikebridge.trained import midi as sound
from spikebridge.trained import music

LENGTHS = {"traindata": (30, 40, 25), "validdata": (20, 9), "testdata": (24, 12, 20)}
SHORT = ("--prompt-frames", "6", "--frames", "5", "--tempo", "300")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    songs = toy_songs(LENGTHS)
    songs["testdata"][2][:8] = 0
    write_mat(folder / "toy.mat", songs)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pieces: Path) -> Path:
    config = preset("music", "snu", "mat", data_dir=str(pieces))
    config = override(config, hidden=(6,), epochs=2, batch_size=2, threads=1)
    return training.run(config, tmp_path_factory.mktemp("run") / "run").directory


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy, so that no test sees what another composed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def frames_of(*chords: tuple[int, ...]) -> np.ndarray:
    """Frames (T, 88) of chords given as MIDI pitches."""
    frames = np.zeros((len(chords), 88), np.uint8)
    for frame, chord in zip(frames, chords, strict=True):
        frame[[pitch - 21 for pitch in chord]] = 1
    return frames


CADENCE = frames_of((60, 64), (60, 64), (60, 65, 108), (), (60,), (21,))


# Notes


def test_a_note_that_sounds_on_is_one_held_note() -> None:
    assert sound.held_notes(CADENCE) == [
        (60, 0, 3),
        (64, 0, 2),
        (65, 2, 3),
        (108, 2, 3),
        (60, 4, 5),
        (21, 5, 6),
    ]
    assert sound.held_notes(CADENCE[:0]) == []


@settings(deadline=None, max_examples=30)
@given(
    notes=st.lists(st.lists(st.integers(21, 108), max_size=5), min_size=1, max_size=40),
    tempo=st.floats(10, 600),
    per_quarter=st.sampled_from([1, 2]),
)
def test_midi_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    notes: list[list[int]],
    tempo: float,
    per_quarter: int,
) -> None:
    frames = frames_of((60,), *map(tuple, notes))
    path = tmp_path_factory.mktemp("midi") / "song.mid"
    sound.write_midi(path, frames, tempo, per_quarter, {0: "seed phrase", 1: "continuation"})
    song = mido.MidiFile(path)
    assert [m.tempo for m in song.tracks[0] if m.type == "set_tempo"] == [round(6e7 / tempo)]
    found, sounding, now = [], {}, 0
    for message in song.tracks[1]:
        now += message.time
        if message.type == "note_on" and message.velocity:
            sounding[message.note] = now
        elif message.type == "note_on":
            found.append((message.note, sounding.pop(message.note), now))
    ticks = 480 // per_quarter
    held = sound.held_notes(frames)
    assert sorted(found) == sorted((n.pitch, n.start * ticks, n.end * ticks) for n in held)
    assert not sounding
    marks = [m.text for m in song.tracks[0] if m.type == "text"]
    assert marks == ["seed phrase", "continuation"]
    length = max(note.end for note in sound.held_notes(frames))  # silence at the end is not kept
    np.testing.assert_array_equal(sound.read_midi(path, per_quarter), frames[:length])


def midi(path: Path, *tracks: list[tuple[int, int, int]], **more: Any) -> Path:
    """A file of tracks of (tick, pitch, velocity); 480 ticks are a quarter note."""
    file = mido.MidiFile(type=1, ticks_per_beat=480)
    for events in tracks:
        track, now = file.add_track(), 0
        for tick, pitch, velocity in events:
            kind = {"type": "note_on", "note": pitch, "velocity": velocity} | more
            track.append(mido.Message(**kind, time=tick - now))
            now = tick
    file.save(path)
    return path


def read(path: Path, per_quarter: int = 1) -> list[tuple[int, int, int]]:
    notes = sound.held_notes(sound.read_midi(path, per_quarter))
    return [(note.pitch, note.start, note.end) for note in notes]


def test_other_peoples_midi_is_read_on_its_beat(tmp_path: Path) -> None:
    path = tmp_path / "song.mid"
    by_hand = [(20, 60, 90), (440, 60, 0)]  # about a quarter note
    melody = [(940, 67, 90), (1440, 62, 90), (1460, 62, 0), (1950, 67, 0)]  # one of 20 ticks
    midi(path, by_hand, melody)
    assert read(path) == [(60, 0, 1), (67, 2, 4), (62, 3, 4)]
    assert read(path, 2) == [(60, 0, 2), (67, 4, 8), (62, 6, 7)]
    midi(path, [(0, 36, 90), (960, 36, 0)], channel=9)
    with pytest.raises(UsageError, match="there are no notes in it"):
        read(path)
    midi(path, [(0, 12, 90), (480, 12, 0)])
    with pytest.raises(UsageError, match=r"MIDI pitch 12 .*from 21 to 108; transpose"):
        read(path)
    assert sound.read_midi(path, 1, lowest=9)[0, 3] == 1


@pytest.mark.parametrize("per_quarter", [1, 2, 3, 4])
@pytest.mark.parametrize("late", range(0, 480, 24))
def test_a_legato_melody_stays_one_wherever_it_begins(
    tmp_path: Path, late: int, per_quarter: int
) -> None:
    length = 480 // per_quarter
    events = []
    for k, pitch in enumerate((60, 62, 64, 65, 67)):
        events += [(late + k * length, pitch, 80), (late + (k + 1) * length, pitch, 0)]
    notes = read(
        midi(tmp_path / "song.mid", sorted(events, key=lambda e: (e[0], e[2]))), per_quarter
    )
    first = (2 * late * per_quarter + 480) // 960  # halves go up
    assert notes == [(p, first + k, first + k + 1) for k, p in enumerate((60, 62, 64, 65, 67))]


OVERLAPS: dict[str, tuple[list[Any], list[tuple[int, int, int]]]] = {
    "on on off off": ([(0, 60, 9), (480, 60, 9), (960, 60, 0), (1440, 60, 0)], [(60, 0, 3)]),
    "on and off at once": ([(0, 60, 9), (480, 60, 9), (480, 60, 0), (960, 60, 0)], [(60, 0, 2)]),
    "in two tracks": ([[(0, 60, 9), (960, 60, 0)], [(480, 60, 9), (1440, 60, 0)]], [(60, 0, 3)]),
    "too many ends": ([(0, 60, 0), (480, 60, 9), (960, 60, 0), (1440, 60, 0)], [(60, 1, 2)]),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlapping_notes_of_one_pitch_keep_their_union(tmp_path: Path, name: str) -> None:
    events, wanted = OVERLAPS[name]
    tracks = events if isinstance(events[0], list) else [events]
    assert read(midi(tmp_path / "song.mid", *tracks)) == wanted


UNENDED: dict[str, tuple[list[Any], list[tuple[int, int, int]]]] = {
    "to the end of the track": ([(0, 60, 9), (0, 64, 9), (960, 64, 0)], [(60, 0, 2), (64, 0, 2)]),
    "to the next of its pitch": ([(0, 60, 9), (480, 62, 9), (960, 62, 0), (1440, 60, 9),
                                  (1920, 60, 0)], [(60, 0, 4), (62, 1, 2)]),
    "at the very end": ([(0, 60, 9), (480, 60, 0), (480, 64, 9)], [(60, 0, 1), (64, 1, 2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNENDED)
def test_a_note_that_is_never_ended_is_not_lost(tmp_path: Path, name: str) -> None:
    events, wanted = UNENDED[name]
    with pytest.warns(UserWarning, match="song.mid: 1 of . notes are never ended"):
        assert read(midi(tmp_path / "song.mid", events)) == wanted


def test_a_controller_may_end_all_notes(tmp_path: Path) -> None:
    file = mido.MidiFile(ticks_per_beat=480)
    notes = [mido.Message("note_on", note=60, velocity=80), mido.Message("note_on", note=64)]
    silence = mido.Message("control_change", control=123, time=960)
    file.tracks.append([*notes, silence, mido.MetaMessage("end_of_track", time=4800)])
    file.save(tmp_path / "song.mid")
    assert read(tmp_path / "song.mid") == [(60, 0, 2), (64, 0, 2)]


def test_files_without_beats_or_with_several_songs(tmp_path: Path) -> None:
    path = midi(tmp_path / "song.mid", [(0, 60, 80), (480, 60, 0)])
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:12] + bytes([0xE7, 40]) + whole[14:])  # 25 frames a second
    with pytest.raises(UsageError, match=r"in seconds \(SMPTE\).*ticks per quarter"):
        read(path)
    path.write_bytes(whole[:9] + bytes([2]) + whole[10:])
    with pytest.raises(UsageError, match=r"\(format 2\); save one"):
        read(path)


# The chorales


@pytest.mark.data
def test_chorales_sound_where_their_scores_are() -> None:
    """In C, as the file has them, and within voices: sopranos go up to a'', basses down to C."""
    from spikebridge.data.music import read_songs

    path = real("polymusic/JSB_Chorales.mat") / "polymusic/JSB_Chorales.mat"
    lowest = MusicConfig().lowest
    songs = [song for split in read_songs(path).values() for song in split]
    frames = [frame.nonzero()[0] + lowest for song in songs for frame in song if frame.any()]
    top, low = (np.array([end(frame) for frame in frames]) for end in (np.max, np.min))
    assert (low.min(), top.max()) == (31, 84)  # in the scores 36 and 81, moved by up to 6
    # The middle 98 % of the scores' sopranos are 62 to 78, of their basses 40 to 60.
    assert np.quantile(top, [0.01, 0.99]).tolist() == pytest.approx([62, 78], abs=4)
    assert np.quantile(low, [0.01, 0.99]).tolist() == pytest.approx([40, 60], abs=4)
    last = [(song[-1] if song[-1].any() else song[-2]).argmax() + lowest for song in songs]
    assert sum(pitch % 12 == 0 for pitch in last) > 0.9 * len(last)


@pytest.mark.parametrize("kept", [0, 3, 13, 20, 40, -6])
def test_damaged_midi(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "song.mid"
    sound.write_midi(path, CADENCE, 100, 1, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"song.mid: .*give"):
        sound.read_midi(path, 1)
    path.unlink()
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        sound.read_midi(path, 1)


# Sound


def test_wav_has_the_length_is_heard_and_never_clips(tmp_path: Path) -> None:
    full = np.ones((3, 88), np.uint8)  # all keys at once is as loud as it gets
    for frames, seconds in ((CADENCE, 0.6), (full, 0.31), (CADENCE[:1], 6.0)):
        sound.write_wav(tmp_path / "song.wav", frames, seconds)
        rate, samples = wavfile.read(tmp_path / "song.wav")
        assert (rate, samples.dtype, samples.ndim) == (22_050, np.int16, 1)
        assert len(samples) == round(len(frames) * seconds * 22_050)
        assert 0.85 * 32767 < np.abs(samples.astype(int)).max() < 0.9 * 32767
        assert abs(samples[0]) < 100, "no click at the beginning"
        assert abs(int(samples[-1])) < 100, "no click at the end"
    sound.write_wav(tmp_path / "song.wav", CADENCE, 0.6)
    _, samples = wavfile.read(tmp_path / "song.wav")
    assert not samples[round(3.01 * 0.6 * 22_050) : round(3.99 * 0.6 * 22_050)].any()
    assert not sound.synthesize(np.zeros((4, 88), np.uint8), 0.1).any()
    assert [path.name for path in tmp_path.iterdir()] == ["song.wav"]


@pytest.mark.parametrize("pitch", [33, 69, 100, 108])
def test_a_tone_has_its_pitch(pitch: int) -> None:
    samples = sound.synthesize(frames_of(*[(pitch,)] * 4), 0.5)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    spectrum[:40] = 0  # below 20 Hz: bins are 0.5 Hz wide
    wanted = 440 * 2 ** ((pitch - 69) / 12)
    assert spectrum.argmax() * 0.5 == pytest.approx(wanted, rel=0.02)


# Draws


def test_log_sums_are_sums_over_sets() -> None:
    logits = np.array([0.3, -2.0, 1.1, 0.0])
    table = music.log_sums(logits, 3)
    for notes in range(5):
        for size in range(4):
            weights = [sum(logits[list(some)]) for some in combinations(range(notes), size)]
            wanted = math.log(sum(map(math.exp, weights))) if weights else -math.inf
            assert table[notes, size] == pytest.approx(wanted)


def test_draws_follow_the_conditional_law() -> None:
    logits, random = np.array([0.9, -1.0, 1.3, -0.5]), np.random.default_rng(0)
    expected = float((1 / (1 + np.exp(-logits))).sum())
    draws = np.array([music.draw(logits, 0.7, 4, random) for _ in range(6000)])
    sizes = draws.sum(1)
    assert set(sizes.tolist()) == {math.floor(expected), math.floor(expected) + 1}
    assert sizes.mean() == pytest.approx(expected, abs=0.03)
    for size in set(sizes.tolist()):
        sets = list(combinations(range(4), size))
        weights = np.array([math.exp(sum(logits[list(some)]) / 0.7) for some in sets])
        found = draws[sizes == size]
        counts = [(np.flatnonzero(row).tolist()) for row in found]
        shares = [counts.count(list(some)) / len(found) for some in sets]
        np.testing.assert_allclose(shares, weights / weights.sum(), atol=4 / len(found) ** 0.5)


@settings(deadline=None, max_examples=50)
@given(
    logits=st.lists(st.floats(-60, 60), min_size=1, max_size=88),
    temperature=st.sampled_from([0.0, 0.01, 0.5, 1.0, 100.0]),
    voices=st.integers(1, 100),
    seed=st.integers(0, 9),
)
def test_a_frame_never_has_more_notes_than_voices(
    logits: list[float], temperature: float, voices: int, seed: int
) -> None:
    values = np.array(logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = music.draw(values, temperature, voices, np.random.default_rng(seed))
    assert set(frame.tolist()) <= {0, 1}
    assert frame.sum() <= voices
    expected = float(np.exp(-np.logaddexp(0, -values)).sum())
    assert frame.sum() in {min(voices, math.floor(expected) + more) for more in (0, 1)}
    if temperature == 0:
        chosen = values[frame > 0]
        assert not len(chosen) or chosen.min() >= values[frame == 0].max(initial=-np.inf)


def test_the_state_is_carried_from_frame_to_frame(trained: Path) -> None:
    """Each drawn frame is what the network expects after hearing all frames before it at once."""
    import torch

    network = load_network(trained / rundir.MODEL)
    phrase = toy_songs(LENGTHS)["testdata"][0][:7]
    random = np.random.default_rng(5)
    made = music.go_on(network, phrase, 9, temperature=0.8, voices=5, random=random)
    assert made.shape == (16, 88)
    np.testing.assert_array_equal(made[:7], phrase)
    again = np.random.default_rng(5)
    with evaluating(network):
        for heard in range(7, 16):
            output, _ = network(torch.from_numpy(made[:heard]).float()[:, None])
            wanted = music.draw(output[-1, 0].double().numpy(), 0.8, 5, again)
            np.testing.assert_array_equal(made[heard], wanted)


# Runs


def test_files_say_what_was_composed(run: Path, tmp_path: Path) -> None:
    settings = music.ComposePlan(prompt_frames=6, frames=5, tempo=150, voices=3)
    written = music.compose(run, settings)
    facts = json.loads((run / "composition.json").read_text())
    notes = facts.pop("notes")
    assert facts == written.facts
    assert (facts["prompt_frames"], facts["voices"], facts["seconds"]) == (6, 3, 4.4)
    frames = frames_of(*map(tuple, notes))
    np.testing.assert_array_equal(frames[:6], toy_songs(LENGTHS)["testdata"][0][:6])
    assert frames[6:].sum(1).max() <= 3
    heard = sound.read_midi(written.midi, 1)
    np.testing.assert_array_equal(heard, frames[: len(heard)])
    assert not frames[len(heard) :].any()
    with wave.open(str(written.wav)) as file:
        assert file.getnframes() == round(4.4 * 22_050)
    first = [path.read_bytes() for path in (written.midi, written.wav)]
    for seed, equal in ((0, True), (1, False)):
        other = music.compose(
            run,
            music.ComposePlan(prompt_frames=6, frames=5, tempo=150, voices=3, seed=seed),
            tmp_path / "new" / "folder",
        )
        found = [path.read_bytes() for path in (other.midi, other.wav)]
        assert (found == first) == equal
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(
        rundir.COMPOSITION
    )


def test_a_midi_file_is_the_seed_phrase(run: Path, tmp_path: Path) -> None:
    sound.write_midi(tmp_path / "seed.mid", CADENCE, 70, 1, {})
    settings = music.ComposePlan(midi=str(tmp_path / "seed.mid"), frames=3)
    music.compose(run, settings)
    notes = json.loads((run / "composition.json").read_text())["notes"]
    assert len(notes) == 9
    assert notes[:6] == [[60, 64], [60, 64], [60, 65, 108], [], [60], [21]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"piece": 3}, r"piece=3: the test set has 3 pieces.*pass --piece 2 or less"),
        ({"piece": 1}, r"prompt_frames=16: piece 1 has only 12 frames; pass --prompt-frames 12"),
        ({"piece": 2, "prompt_frames": 8}, r"first 8 frames of piece 2 are silent.*larger"),
        ({"midi": "nowhere.mid"}, r"nowhere.mid: it cannot be read"),
        ({"frames": 36_000, "tempo": 600}, r"would last 3,602 s.*higher --tempo"),
        ({"frames": 3000, "tempo": 10}, r"would last 18,096 s.*3,600 s at most.*fewer --frames"),
    ],
)
def test_seed_phrases_that_are_not_to_be_had(
    run: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        music.compose(run, music.ComposePlan(**changed))
    assert not [name for name in rundir.COMPOSITION if (run / name).exists()]


@pytest.mark.parametrize(
    "changed",
    [
        {"piece": -1},
        {"prompt_frames": -1},
        {"frames": 0},
        {"voices": -1},
        {"seed": -1},
        {"temperature": -1.0},
        {"temperature": 0.001},
        {"tempo": 0.0},
        {"tempo": math.nan},
        {"frames": 2.5},
    ],
)
def test_wrong_settings(changed: dict[str, Any]) -> None:
    (name,) = changed
    with pytest.raises(ConfigError, match=rf"{name}="):
        music.ComposePlan(**changed)


def test_folders_that_cannot_compose(run: Path, tmp_path: Path) -> None:
    wanted = music.ComposePlan(frames=2)
    with pytest.raises(UsageError, match=r"there is no complete run in it; name .*train music"):
        music.compose(tmp_path / "nowhere", wanted)
    digits = training.run(tiny(epochs=1), tmp_path / "digits").directory
    with pytest.raises(UsageError, match=r"a run of the task digits, which makes no music"):
        music.compose(digits, wanted)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"the folder cannot be made .*change --out"):
        music.compose(run, wanted, tmp_path / "file" / "in")
    (run / rundir.MODEL).write_bytes(b"not safetensors")
    with pytest.raises(RunError, match=r"not a whole safetensors file"):
        music.compose(run, wanted)
    (run / rundir.RESULT).unlink()
    (run / rundir.MODEL).unlink()
    with pytest.raises(UsageError, match=r"there is no complete run in it; name a finished run of"):
        music.compose(run, wanted)


def test_a_run_that_starts_anew_forgets_its_composition(run: Path) -> None:
    music.compose(run, music.ComposePlan(frames=2))
    rundir.clear(run)
    assert not list(run.iterdir())


def test_usual_voices_are_those_of_the_examples(run: Path) -> None:
    facts = music.compose(run, music.ComposePlan(frames=1)).facts
    with np.load(run / rundir.EXAMPLES) as arrays:
        target, length = arrays["target"], arrays["length"]
    counts = [target[t, e].sum() for e, steps in enumerate(length) for t in range(steps)]
    assert np.mean(np.array(counts) <= facts["voices"]) >= 0.99
    assert facts["voices"] in counts


def test_frames_per_quarter() -> None:
    assert [MusicConfig(data=name).frames_per_quarter for name in ("jsb", "piano")] == [1, 2]  # type: ignore[arg-type]
    assert MusicConfig(data="mat", data_dir="x").frames_per_quarter == 1


# The command and the page


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compose", str(run), *SHORT]) == 0
    said = capsys.readouterr().out
    assert said.startswith("6 frames of seed phrase and 5 composed, 2.2 s at 300 quarter notes")
    for name in ("midi: {}/composition.mid", "wav: {}/composition.wav", "page: {}/report.html"):
        assert name.format(run) in said
    assert (run / "report.html").exists()
    first = (run / "composition.mid").read_bytes()
    out = tmp_path / "elsewhere"
    assert cli.main(["compose", str(run), *SHORT, "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["midi"] == str(out / "composition.mid")
    assert said["wav"] == str(out / "composition.wav")
    assert said["report"] is None
    assert said["made"]["frames"] == 5
    assert (out / "composition.mid").read_bytes() == first
    (run / "report.html").unlink()
    times = [(run / name).stat().st_mtime_ns for name in rundir.COMPOSITION]
    assert cli.main(["compose", str(run), *SHORT, "--out", f"{run}/"]) == 0
    assert [(run / name).stat().st_mtime_ns for name in rundir.COMPOSITION] == times  # it is kept
    (run / "composition.wav").write_bytes(b"RIFF")  # damaged: composed anew
    for more in ((), ("--overwrite",)):
        assert cli.main(["compose", str(run), *SHORT, *more]) == 0
        assert (run / "composition.wav").stat().st_mtime_ns > times[1]
        assert (run / "composition.mid").read_bytes() == first
        times = [(run / name).stat().st_mtime_ns for name in rundir.COMPOSITION]
    assert cli.main(["compose", str(run), *SHORT]) == 0
    (run / "report.html").unlink()
    assert cli.main(["compose", str(run), *SHORT, "--no-report", "--seed", "4"]) == 0
    assert not (run / "report.html").exists()
    for wrong in ((str(tmp_path),), (str(run), "--tempo", "5"), (str(run), "--piece", "9")):
        capsys.readouterr()
        assert cli.main(["compose", *wrong]) == 2
        assert "pass" in capsys.readouterr().err or wrong == (str(tmp_path),)


def test_the_page_plays_the_composition(run: Path) -> None:
    def page() -> str:
        return report.write(run).read_text(encoding="utf-8")

    assert "<audio" not in page()
    music.compose(run, music.ComposePlan(prompt_frames=6, frames=5, tempo=300))
    text = page()
    assert "The network heard 6 frames of test piece 1 and went on for 5 frames" in text
    assert "at most" in text
    assert '"name":"seed phrase"' in text
    assert '"name":"continuation"' in text
    assert "media-src data:" in text
    (player,) = re.findall(r'<audio controls [^>]*src="data:audio/wav;base64,([^"]*)"', text)
    assert base64.b64decode(player) == (run / "composition.wav").read_bytes()
    assert "://" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    (run / "composition.wav").unlink()  # half a composition is none
    assert "<audio" not in page()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("composition.json", "{", "cannot be read"),
        ("composition.json", "{}", '"notes" is no list'),
        ("composition.json", '{"notes": [[60], [300]]}', '"notes" is no list of MIDI pitches'),
        ("composition.json", '{"notes": [[60, "<b>"]]}', '"notes"'),
        ("composition.json", '{"notes": [[60]], "prompt_frames": 2, "seconds": 1}', '"seconds" or'),
        ("composition.wav", "RIFF", "no whole WAV file"),
    ],
)
def test_damaged_compositions(run: Path, name: str, content: str, message: str) -> None:
    music.compose(run, music.ComposePlan(prompt_frames=6, frames=2))
    (run / name).write_text(content)
    with pytest.raises(ReportError, match=rf"{name}: .*{message}.*compose again"):
        report.write(run)


def test_long_sound_is_made_to_fit_the_page(tmp_path: Path) -> None:
    t = np.arange(150 * 22_050) / 22_050
    hum = np.round(20_000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)
    half = halved(hum)
    np.testing.assert_allclose(half[100:-100], hum[::2][100:-100], atol=60)
    whistle = np.round(20_000 * np.sin(2 * np.pi * 9000 * t[:22_050])).astype(np.int16)
    assert np.abs(halved(whistle)[100:-100]).max() < 150, "it would sound as 2,025 Hz"
    for seconds, rate in ((20, 22_050), (50, 11_025), (150, 11_025)):
        wavfile.write(tmp_path / "x.wav", 22_050, hum[: seconds * 22_050])
        address, shown_s = embedded(tmp_path / "x.wav")
        kind, _, text = address.partition(",")
        assert kind == "data:audio/wav;base64"
        assert len(text) < 4 / 3 * MOST_BYTES + 100
        (tmp_path / "y.wav").write_bytes(base64.b64decode(text))
        found, samples = wavfile.read(tmp_path / "y.wav")
        assert found == rate
        assert shown_s == pytest.approx(min(seconds, 68.03), abs=0.01)
        if seconds > shown_s:
            assert np.abs(samples[-20:]).max() < 100, "it fades out"
        assert np.abs(samples).max() > 19_000
    wavfile.write(tmp_path / "x.wav", 22_050, np.zeros((9, 2), np.int16))
    with pytest.raises(ReportError, match=r"x.wav: it is not mono"):
        embedded(tmp_path / "x.wav")
