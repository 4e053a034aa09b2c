"""`spikebridge compose`: a network trained on music continues a phrase."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import ClassVar

from spikebridge.cli.flags import Output, RunFolder, page_of


@dataclass(frozen=True)
class Compose:
    """Let a network trained on music continue a phrase; writes MIDI, sound and the page.

    The files are composition.mid and composition.wav in the run's folder; another folder by --out
    leaves the run and its page as they are.
    """

    EXAMPLE: ClassVar[str] = "compose runs/jsb-snu-0 --frames 64"
    MAIN: ClassVar[tuple[str, ...]] = ("piece", "frames", "temperature", "tempo", "out")

    run_dir: RunFolder
    """Folder of a finished `spikebridge train music`."""
    piece: int = 0
    """Number of the test piece whose beginning is the seed phrase, from 0."""
    midi: str = ""
    """A MIDI file as the seed phrase, instead of a test piece."""
    prompt_frames: int = 0
    """Frames of the seed phrase; 0 = 16 of a test piece, all of a MIDI file."""
    frames: int = 64
    """Frames to add; a frame is a quarter note in jsb and in your own pieces, else an eighth."""
    temperature: float = 0.9
    """Below 1 keeps to the likely notes, above 1 wanders; 0 always takes the likeliest."""
    voices: int = 0
    """Most notes at once; 0 = as many as the pieces of the run usually have (jsb: 4)."""
    tempo: float = 100.0
    """Quarter notes per minute."""
    seed: int = 0
    """Seed of the draws."""
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        from spikebridge.trained import music

        names = [f.name for f in dataclasses.fields(music.Settings)]
        settings = music.Settings(**{name: getattr(self, name) for name in names})
        written = music.compose(self.run_dir, settings, self.output.out)
        # The page shows what lies beside it.
        beside = written.midi.resolve().parent == self.run_dir.resolve()
        page = page_of(self.run_dir) if beside and not self.output.no_report else None
        made = written.facts
        if self.output.json:
            files = {"midi": str(written.midi), "wav": str(written.wav), "report": page}
            print(json.dumps({"made": made, **files}))
            return
        print(
            f"{made['prompt_frames']} frames of seed phrase and {made['frames']} composed, "
            f"{made['seconds']:.1f} s at {made['tempo']:g} quarter notes per minute"
        )
        print(f"midi: {written.midi}\nwav: {written.wav}")
        if page:
            print(f"page: {page}")
