"""Music from a trained network: a seed phrase, continued frame by frame from what it expects."""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikebridge.base.records import RunError, UsageError
from spikebridge.nn.network import Network
from spikebridge.runs import rundir
from spikebridge.runs.evaluation import evaluating, trained
from spikebridge.runs.load import load_run
from spikebridge.settings.plans import ComposePlan
from spikebridge.settings.tasks import MusicConfig
from spikebridge.trained import midi as sound

PROMPT_FRAMES = 16
LONGEST_S = 3600
USUAL_SHARE = 0.99


@dataclass(frozen=True)
class Written:
    """Where a composition lies, and the content of its composition.json without the notes."""

    midi: Path
    wav: Path
    facts: dict[str, Any]


def compose(directory: Path, plan: ComposePlan, out: Path | None = None) -> Written:
    """Continue a seed phrase with the network of a finished run of the task music.

    Writes composition.mid, composition.wav and composition.json (last: what they are made of) into
    the run's folder, or into `out`, each whole or not at all.  Equal settings give equal bytes.

    Raises UsageError where the folder holds no finished run of the task music, or the seed phrase
    is not to be had or has no notes; RunError where the run is damaged.
    """
    config, network = trained(directory, "music", "makes no music")
    task: Any = config.task
    folder = directory if out is None else out
    _refuse_reading(plan.midi, folder)
    phrase = seed_phrase(task, plan)
    per_frame_s = 60 / plan.tempo / task.frames_per_quarter
    frames_in_all = len(phrase) + plan.frames
    _check_duration(frames_in_all * per_frame_s)
    voices = plan.voices or _usual_voices(directory)
    frames = go_on(
        network,
        phrase,
        plan.frames,
        temperature=plan.temperature,
        voices=voices,
        random=np.random.default_rng(plan.seed),
    )
    facts = asdict(plan) | {
        "asked": _asked(directory, plan),
        "data": task.data,
        "prompt_frames": len(phrase),
        "voices": voices,
        "frames_per_quarter": task.frames_per_quarter,
        "lowest": task.lowest,
        "seconds": round(len(frames) * per_frame_s, 3),
    }
    with rundir.owning(folder, "compose", make=True):
        return _write(folder, frames, facts, per_frame_s)


def kept(directory: Path, plan: ComposePlan, out: Path | None = None) -> Written | None:
    """What `compose` has written there for this plan and network; None where it has not."""
    midi, wav, about = ((out or directory) / name for name in rundir.COMPOSITION)
    if plan.midi:  # the file may have changed
        return None
    with suppress(RunError, OSError):
        facts = rundir.read_json(about, "compose again")
        facts.pop("notes", None)
        whole = facts.get("sha256") == [_sha256(midi), _sha256(wav)]
        if whole and facts.get("asked") == _asked(directory, plan):
            return Written(midi, wav, facts)
    return None


def _asked(directory: Path, plan: ComposePlan) -> dict[str, Any]:
    """What decides a composition: the plan and the network."""
    return asdict(plan) | {"network_sha256": _sha256(directory / rundir.MODEL)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seed_phrase(task: MusicConfig, plan: ComposePlan) -> np.ndarray:
    """The first frames (K, 88) of a test piece or of a MIDI file.  Raises UsageError."""
    if plan.midi:
        path = Path(plan.midi).expanduser()
        whole = sound.read_midi(path, task.frames_per_quarter, task.lowest)
        name, count = plan.midi, plan.prompt_frames or len(whole)
    else:
        from spikebridge.data.music import locate, read_songs

        pieces = read_songs(locate(task))["test"]
        if plan.piece >= len(pieces):
            raise UsageError(
                f"piece={plan.piece}: the test set has {len(pieces)} pieces, the first is 0; "
                f"pass --piece {len(pieces) - 1} or less"
            )
        name, whole = f"piece {plan.piece}", pieces[plan.piece]
        count = plan.prompt_frames or PROMPT_FRAMES
    if count > len(whole):
        raise UsageError(
            f"prompt_frames={count}: {name} has only {len(whole)} frames; "
            f"pass --prompt-frames {len(whole)} or less"
        )
    phrase = whole[:count]
    if not phrase.any():
        raise UsageError(
            f"the first {count} frames of {name} are silent: a seed phrase needs a note; pass a "
            "larger --prompt-frames, or another piece"
        )
    return phrase


def go_on(
    network: Network,
    phrase: np.ndarray,
    count: int,
    *,
    temperature: float,
    voices: int,
    random: np.random.Generator,
) -> np.ndarray:
    """The phrase (K, 88) with `count` more frames, each drawn from what the network expects.

    The state is carried from frame to frame; every drawn frame is what the network hears next.

    Returns:
        (K + count, 88) uint8 of 0 and 1.
    """
    frames = [phrase.astype(np.uint8)]
    with evaluating(network):
        output, state = network(torch.from_numpy(phrase).float()[:, None])
        for step in range(count):
            drawn = draw(output[-1, 0].double().numpy(), temperature, voices, random)
            frames.append(drawn[None])
            if step + 1 < count:
                output, state = network(torch.from_numpy(drawn).float()[None, None], state)
    return np.concatenate(frames)


def draw(
    logits: np.ndarray, temperature: float, voices: int, random: np.random.Generator
) -> np.ndarray:
    """A frame (88,) of 0 and 1 from logits (88,), with at most `voices` notes.

    The network expects each note independently of the others, so a frame drawn note by note often
    has too many or none.  Here the number of notes is the expected one, rounded up as often as its
    fraction says; which notes, given that number, is drawn exactly as independent notes would fall
    (conditional Bernoulli sampling: Chen, Liu 1997).  The temperature acts on which notes alone:
    below 1 the likely ones win more often, 0 takes the likeliest.
    """
    expected = float(np.exp(-np.logaddexp(0, -logits)).sum())
    chance = 0.5 if temperature == 0 else random.random()
    left = min(math.floor(expected + chance), voices, len(logits))
    frame = np.zeros(len(logits), np.uint8)
    if temperature == 0:
        frame[np.argsort(-logits, kind="stable")[:left]] = 1
        return frame
    scaled = logits / temperature
    sums = log_sums(scaled, left)
    for note in range(len(logits) - 1, -1, -1):
        if not left:
            break
        # Among sets of `left` of the notes up to this one: the share of those that hold it.
        share = math.exp(min(0.0, scaled[note] + sums[note, left - 1] - sums[note + 1, left]))
        if random.random() < share:
            frame[note] = 1
            left -= 1
    return frame


def log_sums(logits: np.ndarray, most: int) -> np.ndarray:
    """(n + 1, most + 1): at [i, k] the log of the sum, over sets of k of the first i notes, of
    exp(sum of their logits); -inf where there are no such sets."""
    table = np.full((len(logits) + 1, most + 1), -np.inf)
    table[:, 0] = 0
    for i, logit in enumerate(logits):
        table[i + 1, 1:] = np.logaddexp(table[i, 1:], table[i, :-1] + logit)
    return table


def _refuse_reading(midi: str, folder: Path) -> None:
    ours = folder / rundir.COMPOSITION[0]
    if midi and Path(midi).expanduser().resolve() == ours.resolve():
        raise UsageError(
            f"midi={midi!r}: the composition would be written over it; give another folder with "
            "--out, or copy the file elsewhere"
        )


def _usual_voices(directory: Path) -> int:
    """Notes at once that all but one in a hundred frames of the run's examples stay within."""
    examples = load_run(directory).examples
    if examples is None or examples.target.ndim != 3:
        return sound.KEYS
    real = np.arange(len(examples.target))[:, None] < examples.length
    counts = examples.target.sum(-1)[real]
    return (
        max(1, int(np.quantile(counts, USUAL_SHARE, method="higher")))
        if len(counts)
        else sound.KEYS
    )


def _check_duration(seconds: float) -> None:
    if seconds > LONGEST_S:
        raise UsageError(
            f"the composition would last {seconds:,.0f} s; it may last {LONGEST_S:,} s at most: "
            "pass fewer --frames, or a higher --tempo"
        )


def _write(
    folder: Path, frames: np.ndarray, facts: dict[str, Any], seconds_per_frame: float
) -> Written:
    midi, wav, about = (folder / name for name in rundir.COMPOSITION)
    about.unlink(missing_ok=True)  # without it, old and new files are not taken for one composition
    marks = {0: "seed phrase", facts["prompt_frames"]: "continuation"}
    lowest = facts["lowest"]
    sound.write_midi(midi, frames, facts["tempo"], facts["frames_per_quarter"], marks, lowest)
    sound.write_wav(wav, frames, seconds_per_frame, lowest)
    notes = [(np.flatnonzero(frame) + lowest).tolist() for frame in frames]
    facts |= {"sha256": [_sha256(midi), _sha256(wav)]}
    rundir.write_json(about, facts | {"notes": notes})
    return Written(midi, wav, facts)
