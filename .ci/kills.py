"""Trainings that are killed at random moments and resumed end like one that was not.

python .ci/kills.py FOLDER [KILLS]
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

TRAIN = "train digits --data digits8x8 --hidden 32 32 --epochs 12 --seed 3 --threads 1 --no-report"


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "spikebridge", *TRAIN.split(), "--out", str(out), *more]


def main(folder: Path, kills: int) -> None:
    """Exit status 1 where a resumed training differs or leaves something behind."""
    folder.mkdir(parents=True)
    begun = time.monotonic()
    subprocess.run(command(folder / "whole"), check=True, capture_output=True)
    takes_s = time.monotonic() - begun
    wanted = (folder / "whole" / "model.safetensors").read_bytes()
    drawn, done, round_ = random.Random(0), 0, 0
    while done < kills:
        out, more = folder / f"killed-{round_}", []
        for _ in range(4):
            process = subprocess.Popen(
                command(out, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(drawn.uniform(0.2, 1.0) * takes_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
            more = ["--resume"] if (out / "config.json").exists() else []
        subprocess.run(command(out, *more), check=True, capture_output=True)
        assert (out / "model.safetensors").read_bytes() == wanted, f"{out}: another model"
        left = {path.name for path in out.iterdir()} - {
            path.name for path in (folder / "whole").iterdir()
        }
        assert not left, f"{out}: left behind {left}"
        round_ += 1
    print(f"{done} trainings killed, {round_} resumed to the end: all models equal, nothing left")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 24)
