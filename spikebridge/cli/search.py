"""`spikebridge search`: the settings of units, the same trials for each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import plural
from spikebridge.cli import progress
from spikebridge.cli.flags import Output, Units, say, settings_text
from spikebridge.runs import rundir
from spikebridge.runs.results import SearchResult
from spikebridge.settings.config import Config, variant_of

THE_PRESET = "the preset"


@dataclass(frozen=True)
class Search:
    """Goes to runs/search-DATA, with what differs from the presets.

    All other flags hold for every trial, and what they set is not drawn; the rest of each unit's
    settings starts from its own preset.
    """

    EXAMPLE: ClassVar[str] = "search {task} --units snu lstm --trials 12"
    MAIN: ClassVar[tuple[str, ...]] = ("units", "trials", "data", "epochs", "out")
    ABOUT: ClassVar[str] = (
        "Search the settings of units: the same trials and space for each, judged on validation."
    )
    PER_TASK: ClassVar[str] = "Search settings of units: {}."

    REFUSES: ClassVar[dict[str, str]] = {
        "unit": "several units are searched; pass --units snu lstm",
        "no_report": "this command writes no page; leave it out",
    }

    units: Units = ("snu", "softsnu", "lstm")
    """Units to search for, such as snu or recurrent-snu."""
    trials: int = 12
    """Trials of each unit, the first with its preset."""
    output: Output = field(default_factory=Output)

    def run(self, configs: Sequence[Config], fixed: Collection[str]) -> None:
        """Search from each config; what is fixed holds for all trials."""
        out = self.output.out or rundir.shared_folder("search", configs)
        contents = self._search(configs, fixed, out)
        from spikebridge.studies import search

        best = {unit: content.ranked[0].settings for unit, content in contents.items()}
        lines, commands = [], []
        for unit, content in contents.items():
            metric, trial = METRICS[content.metric], content.ranked[0]
            lines.append(
                f"{unit}: validation {metric.axis} {metric.figure(trial.valid)}, trial "
                f"{trial.trial} of {len(content.trials)}: "
                f"{settings_text(best[unit]).strip() or THE_PRESET}"
            )
            commands.append(f"  {search.command(content, out / unit)}")
        lines.append(f"all trials, the best first: {out / search.BEST}")
        self.output.show(best, [*lines, "train with what was best:", *commands])

    def _search(
        self, configs: Sequence[Config], fixed: Collection[str], out: Path
    ) -> dict[str, SearchResult]:
        """The content of each unit's search.json."""
        from spikebridge.studies import search

        folds = getattr(configs[0].task, "folds", 0) if "folds" in fixed else 0
        contents = {}
        clock = progress.Trials(self.trials * len(configs))
        say(f"{plural(len(configs), 'unit')} x {plural(self.trials, 'trial')} in {out}")
        with rundir.owning(out, "search", make=True):
            for place, config in enumerate(configs):
                unit = variant_of(config.model)
                for name in (search.SEARCH, search.JOURNAL) if self.output.overwrite else ():
                    (out / unit / name).unlink(missing_ok=True)

                def tell(
                    number: int,
                    value: float | None,
                    chosen: dict[str, Any],
                    unit: str = unit,
                    before: int = place * self.trials,
                ) -> None:
                    score = "failed" if value is None else f"valid {value:.5g}"
                    shown = settings_text(chosen).strip() or THE_PRESET
                    left = clock.left(before + number)
                    say(f"{unit}  trial {number}/{self.trials}  {score}  {shown}  {left}")

                contents[unit] = search.search(
                    config, out, trials=self.trials, fixed=fixed, folds=folds, tell=tell
                )
            rundir.write_json(out / search.BEST, search.summary(contents, out))
        return contents
