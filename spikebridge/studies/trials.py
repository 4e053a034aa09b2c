"""Trials of settings on validation, kept in a file so that what was cut off goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spikebridge.base.records import ConfigError
from spikebridge.runs import rundir

TUNING = "tuning.json"

Key = tuple[str, Any]
Known = dict[Key, float | None]


class Trial(NamedTuple):
    """Settings that are tried for a row of a table, with the config that they make."""

    row: str
    settings: dict[str, Any]
    config: Any

    @property
    def key(self) -> Key:
        """All that decides its numbers."""
        return self.row, self.config


def known(path: Path, trials: Iterable[Trial], from_dict: Callable[[Any], Any]) -> Known:
    """What trials that lie there have found, as far as asked for; None where one failed."""
    found: Known = {}
    if not path.exists():
        return found
    asked = {trial.key for trial in trials}
    for record in rundir.read_json(path, "remove it to tune anew")["trials"]:
        try:
            key = (record["row"], from_dict(record["config"]))
        except (KeyError, ConfigError):  # of settings as they are no more
            continue
        if key in asked:
            found[key] = record["valid"]
    return found


def write(
    path: Path,
    trials: Sequence[Trial],
    known: Mapping[Key, float | None],
    chosen: Mapping[str, dict[str, Any]],
    to_dict: Callable[[Any], dict[str, Any]],
) -> dict[str, Any]:
    """Write the trials that are done, in the order given, and what was chosen; what was written."""
    records = [
        {
            "row": trial.row,
            "settings": trial.settings,
            "seed": trial.config.train.seed,
            "valid": known[trial.key],
            "config": to_dict(trial.config),
        }
        for trial in trials
        if trial.key in known
    ]
    content = {"trials": records, "chosen": chosen}
    rundir.write_json(path, content)
    return content
