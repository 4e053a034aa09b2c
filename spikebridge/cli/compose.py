"""`spikebridge compose`: a network trained on music continues a phrase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spikebridge.cli.flags import Output, RunFolder
from spikebridge.settings.plans import ComposePlan


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
    plan: ComposePlan = field(default_factory=ComposePlan)
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        from spikebridge.trained import music

        written = None
        if not self.output.overwrite:
            written = music.kept(self.run_dir, self.plan, self.output.out)
        if written is None:
            written = music.compose(self.run_dir, self.plan, self.output.out)
        # The page shows what lies beside it.
        beside = written.midi.resolve().parent == self.run_dir.resolve()
        facts = written.facts
        lines = [
            f"{facts['prompt_frames']} frames of seed phrase and {facts['frames']} composed, "
            f"{facts['seconds']:.1f} s at {facts['tempo']:g} quarter notes per minute",
            f"midi: {written.midi}",
            f"wav: {written.wav}",
        ]
        files = {"midi": str(written.midi), "wav": str(written.wav)}
        page = self.output.page(self.run_dir) if beside else None
        self.output.show({"made": facts}, lines, **files, report=page)
