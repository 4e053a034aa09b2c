"""The same search of settings for every unit, judged on the validation set only.

Each unit gets the same number of trials in the same space, but for the terms that only units with a
membrane have.  The test set is never read: a trial trains and validates.  A search that is cut off
goes on where it stopped.
"""

from __future__ import annotations

import shlex
import statistics
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from spikebridge import data as tasks
from spikebridge.base.metrics import METRICS, Metric
from spikebridge.base.records import RunError, UsageError, to_plain
from spikebridge.runs import environment, rundir, training
from spikebridge.runs.optimizers import best_epoch
from spikebridge.runs.results import Epoch, SearchResult, SearchTrial
from spikebridge.settings.config import (
    Config,
    from_dict,
    override,
    split_variant,
    to_dict,
    unit_in_path,
    variant_of,
)
from spikebridge.settings.model import norm_of
from spikebridge.settings.names import BASELINES, BINARY, PLAIN
from spikebridge.settings.tasks import TASKS

SEARCH, JOURNAL, BEST = "search.json", "journal.log", "best.json"
Tell = Callable[[int, float | None, dict[str, Any]], None]
_FAILED = "failed"

MEMBRANE: dict[str, Any] = {
    "decay": [0.1, 0.3, 0.5, 0.8],
    "decay_to": [0.0, 0.9, 0.98],
    "train_decay": [False, True],
    "g": ["identity", "leaky_relu"],
}
RECURRENT: dict[str, Any] = {"dropout_recurrent": [0.0, 0.25, 0.5]}
"""Of every unit with a recurrent matrix, whatever the task."""
SPIKES: dict[str, Any] = {"surrogate_width": [0.5, 1.0]}
# The second trial of data of one's own: what brought most on two sets of recordings.
SECOND: dict[str, Any] = {"lr": 1e-2, "schedule": "onecycle", "batch_size": 16, "dropout": 0.0}
# Spiking units need a reset, or gradients grow through their recurrence; a narrow surrogate too.
SECOND_OF_SPIKES: dict[str, Any] = {
    "g": "leaky_relu",
    "reset": "gate",
    "surrogate_width": 0.5,
}
SECOND_OF_MEMBRANES: dict[str, Any] = {
    "lr": 2e-2,
    "decay": 0.8,
    "decay_to": 0.995,
    "train_decay": True,
    "g": "identity",
    "reset": "none",
    "norm": "none",
}


def space(task: str, variant: str, base: Config | None = None) -> dict[str, Any]:
    """What a unit's trials on a task draw; characters of a text (in base) have their own.

    Raises UsageError for a task without a space.
    """
    if task not in TASKS:
        raise UsageError(f"task={task!r}: there is no such task; choose one of {', '.join(TASKS)}")
    kind = TASKS[task]
    unit, recurrent = split_variant(variant)
    result = dict(kind.SPACE if base is None else base.task.space())
    if unit not in (*BASELINES, *PLAIN, *BINARY):  # a binary unit's decay and g are its name
        result |= MEMBRANE | kind.MEMBRANES
        if unit == "li-snu":  # lateral inhibition is its reset
            result.pop("reset", None)
    if recurrent or unit in BASELINES:
        result |= RECURRENT
    if unit not in (*BASELINES, *PLAIN, "softsnu"):
        result |= SPIKES
    return result


def search(
    base: Config,
    directory: Path,
    *,
    trials: int,
    fixed: Collection[str] = (),
    folds: int = 0,
    tell: Tell | None = None,
) -> SearchResult:
    """Search settings for a unit; written to directory/VARIANT/search.json and returned.

    Args:
        base: the first trial, from which the others differ in what is drawn.
        directory: where the search is kept; one that lies there goes on.
        trials: number in all.
        fixed: names of settings that are not drawn.
        folds: K > 1 judges each trial by cross-validation, for tasks with `folds`: the mean over K
            trainings, each of which validates on another K-th of the training data.
        tell: is called with each trial's number, validation metric (None: it failed), settings.

    Raises UsageError, also where a search of other settings or another space lies there, or one is
    going on.
    """
    if trials < 1:
        raise UsageError(f"trials={trials}: it must be at least 1; pass --trials 12")
    if base.sequence.used:
        raise UsageError(
            f"protocol={base.sequence.protocol}: a search is of a single task; leave --protocol out"
        )
    if folds:
        if base.task.NAME != "events":
            raise UsageError(f"folds={folds}: only events are cut into folds; leave --folds out")
        base = override(base, folds=folds, fold=0)
    whole = space(base.task.NAME, variant_of(base.model), base)
    drawn = {name: options for name, options in whole.items() if name not in fixed}
    metric = metric_of(base)  # of data that are missing: before anything is written
    folder = directory / unit_in_path(base)
    with rundir.owning(folder, "search", make=True):
        return _go_on(folder, base, drawn, metric, trials, folds, tell)


def _go_on(
    folder: Path,
    base: Config,
    drawn: dict[str, Any],
    metric: str,
    trials: int,
    folds: int,
    tell: Tell | None,
) -> SearchResult:
    """The trials that are not done yet."""
    # That of a search that was killed: this one would wait for it.
    (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
    optuna, study = _optuna(), _study(folder, base, drawn, METRICS[metric])
    failures = sum(_FAILED in trial.user_attrs for trial in study.trials)
    for number in range(len(_trials(study)) + failures, trials):
        # One for each trial: a search that was cut off draws what it would have drawn.
        study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=5)
        if number == 1 and base.task.OWN_ONLY:
            study.enqueue_trial(_second(drawn))
        trial = study.ask()
        chosen = {} if number == 0 else _chosen(trial, drawn, study.user_attrs["space"])
        valid = None
        try:
            best, seconds = _tried(override(base, **chosen), folds)
        except RunError as error:  # a learning rate that is too high: a bad trial, not the end
            trial.set_user_attr(_FAILED, str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            warnings.warn(f"trial {number + 1} of {folder.name} failed: {error}", stacklevel=2)
        except UsageError:
            if number == 0:  # such as data that are missing: the next search may be another one
                (folder / JOURNAL).unlink()
            raise
        else:
            for name, value in (
                ("settings", chosen),
                ("best_epoch", best.epoch),
                ("seconds", round(seconds, 1)),
            ):
                trial.set_user_attr(name, value)
            valid = best.valid
            study.tell(trial, valid)
            content = to_plain(_content(base, drawn, metric, _trials(study)))
            rundir.write_json(folder / SEARCH, content)
        if tell is not None:
            tell(number + 1, valid, chosen)
    return _content(base, drawn, metric, _trials(study))


def metric_of(config: Config) -> str:
    """The name of the metric of a config's task; of data of one's own, the data say it."""
    return config.task.metric() or tasks.load(config.task).metric


def _second(drawn: dict[str, Any]) -> dict[str, Any]:
    """What the second trial of data of one's own takes, as far as it is drawn."""
    chosen = SECOND | (SECOND_OF_MEMBRANES if "decay" in drawn else {})
    chosen |= SECOND_OF_SPIKES if "surrogate_width" in drawn else {}
    return {name: value for name, value in chosen.items() if name in drawn}


def _tried(config: Config, folds: int) -> tuple[Epoch, float]:
    """The best epoch of a training, of several folds by their mean, and the seconds of all."""
    configs = [override(config, fold=fold) for fold in range(folds)] if folds else [config]
    histories = [training.validate(config) for config in configs]
    seconds = sum(epoch.seconds for history in histories for epoch in history)
    if not folds:
        return histories[0][best_epoch(histories[0]) - 1], seconds
    curve = [  # a patient training may end sooner
        Epoch(epoch=epochs[0].epoch, valid=statistics.fmean(epoch.valid for epoch in epochs))
        for epochs in zip(*histories, strict=False)
    ]
    pick = max if METRICS[metric_of(config)].higher_is_better else min
    return pick(curve, key=lambda epoch: epoch.valid), seconds


def command(content: SearchResult, folder: Path) -> str:
    """What trains with the best settings of a search in a folder."""
    task = from_dict(content.base).task.NAME
    return shlex.join(["spikebridge", "train", task, "--config", str(folder / SEARCH)])


def summary(contents: dict[str, SearchResult], directory: Path) -> dict[str, Any]:
    """The content of best.json: per unit the trials, the best first, and what trains with it."""
    return {
        unit: {
            "metric": content.metric,
            "higher_is_better": content.higher_is_better,
            "command": command(content, directory / unit),
            "trials": to_plain(content.ranked),
        }
        for unit, content in contents.items()
    }


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError(
            "optuna is not installed, and a search needs it; pip install 'spikebridge[app]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(folder: Path, base: Config, drawn: dict[str, Any], metric: Metric) -> Any:
    """The search of a folder, without what was cut off; UsageError where it is another one."""
    optuna = _optuna()
    journal = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.JournalStorage(journal)
    study = optuna.create_study(
        storage=storage,
        study_name="search",
        load_if_exists=True,
        direction="maximize" if metric.higher_is_better else "minimize",
    )
    if not study.trials:
        study.set_user_attr("base", to_dict(base))
        study.set_user_attr("space", to_plain(drawn))
    kept = study.user_attrs
    space = kept.get("space", {})
    named = space | {"norm": [norm_of(choice) for choice in space.get("norm", ())]}
    if named != {"norm": []} | to_plain(drawn):
        raise UsageError(
            f"{folder}: the search there draws from another space; give another folder"
        )
    rundir.refuse_others(folder, from_dict(kept["base"]), base, "search")
    for trial in study.trials:
        if not trial.state.is_finished():  # cut off in its middle: it is done anew
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _chosen(trial: Any, drawn: dict[str, Any], space: dict[str, Any]) -> dict[str, Any]:
    """The settings of a trial, of norms by the names that a search began with: those must stay."""
    options = drawn | ({"norm": space["norm"]} if "norm" in drawn else {})
    chosen = {name: _draw(trial, name, options[name]) for name in drawn}
    return chosen | ({"norm": norm_of(chosen["norm"])} if "norm" in chosen else {})


def _draw(trial: Any, name: str, options: Any) -> Any:
    if isinstance(options, tuple):
        return float(f"{trial.suggest_float(name, *options, log=True):.3g}")
    return trial.suggest_categorical(name, options)


def _trials(study: Any) -> tuple[SearchTrial, ...]:
    """Those that came to their end."""
    ended = [trial for trial in study.trials if trial.value is not None]
    return tuple(SearchTrial(valid=trial.value, **trial.user_attrs) for trial in ended)


def _content(
    base: Config, drawn: dict[str, Any], metric: str, trials: tuple[SearchTrial, ...]
) -> SearchResult:
    return SearchResult(
        base=to_dict(base),
        space=to_plain(drawn),
        metric=metric,
        higher_is_better=METRICS[metric].higher_is_better,
        sampler="optuna TPE, seeded with the trial's number, 5 random trials first; "
        "the first trial is the base"
        + (", the second what suited other recordings" if base.task.OWN_ONLY else ""),
        environment=environment.collect(),
        trials=trials,
    )
