"""The same search of settings for every unit, judged on the validation set only.

Each unit gets the same number of trials in the same space, but for the terms that only units with a
membrane have.  The test set is never read: a trial trains and validates.  A search that is cut off
goes on where it stopped.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spikebridge import environment, experiment, rundir
from spikebridge.config import Config, from_dict, override, preset, split_variant, to_dict
from spikebridge.metrics import METRICS
from spikebridge.model_config import BASELINES, BINARY, PLAIN
from spikebridge.optimisation import best_epoch
from spikebridge.records import RunError, UsageError

SEARCH, JOURNAL = "search.json", "journal.log"
_FAILED = "failed"

# What each task's trials draw: a list is a choice, a pair of numbers a range on a logarithmic axis.
SHARED: dict[str, dict[str, Any]] = {
    "music": {
        "lr": (2e-3, 6e-2),
        "dropout": [0.1, 0.2, 0.3, 0.4, 0.5],
        "dropout_in": [0.0, 0.1, 0.2],
        "batch_size": [8, 16],
        "ema": [0.0, 0.99, 0.995],
    },
    "digits": {
        "lr": (1e-3, 3e-2),
        "dropout": [0.1, 0.2, 0.3, 0.4, 0.5],
        "dropout_in": [0.0, 0.1],
        "ema": [0.0, 0.99, 0.999],
    },
    "text": {
        "lr": (1e-3, 1e-2),
        "dropout": [0.3, 0.4, 0.5],
        "dropout_in": [0.2, 0.3, 0.4, 0.5],
        "embedding_scale": [2.0, 4.0, 8.0],
    },
    "events": {
        "lr": (1e-3, 3e-2),
        "dropout": [0.1, 0.3, 0.5],
        "ema": [0.0, 0.99],
    },
}
CHARACTERS: dict[str, Any] = {
    "lr": (4e-3, 6.4e-2),
    "dropout": [0.0, 0.1, 0.2, 0.3],
    "dropout_in": [0.0, 0.1],
    "weight_decay": [0.0, 0.03, 0.1],
}
"""In place of those of texts, where characters are predicted."""
MEMBRANE: dict[str, Any] = {
    "decay": [0.1, 0.3, 0.5, 0.8],
    "decay_to": [0.0, 0.9, 0.98],
    "train_decay": [False, True],
    "g": ["identity", "leaky_relu"],
}
RECURRENT: dict[str, Any] = {"dropout_recurrent": [0.0, 0.25, 0.5]}
"""Of every unit with a recurrent matrix, whatever the task."""
SPIKES: dict[str, Any] = {"surrogate_width": [0.5, 1.0]}
# A text needs a longer memory than other tasks; what a soft unit keeps hangs on its threshold too.
LONG: dict[str, Any] = {"decay_to": [0.0, 0.9, 0.98, 0.995], "threshold": [1.0, 2.5]}


def space(task: str, variant: str, base: Config | None = None) -> dict[str, Any]:
    """What a unit's trials on a task draw; characters of a text (in base) have their own.

    Raises UsageError for a task without a space.
    """
    if task not in SHARED:
        raise UsageError(f"task={task!r}: there is no search space for it; see search.SHARED")
    unit, recurrent = split_variant(variant)
    by_characters = base is not None and getattr(base.task, "level", "") == "char"
    found = dict(CHARACTERS if by_characters else SHARED[task])
    if unit not in (*BASELINES, *PLAIN, *BINARY):  # a binary unit's decay and g are its name
        found |= MEMBRANE | (LONG if task == "text" else {})
    if recurrent or unit in BASELINES:
        found |= RECURRENT
    if unit not in (*BASELINES, *PLAIN, "softsnu"):
        found |= SPIKES
    return found


def search(
    task: str,
    variant: str,
    directory: Path,
    *,
    trials: int,
    data: str | None = None,
    settings: dict[str, Any] | None = None,
    folds: int = 0,
    tell: Callable[[int, float, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Find settings for a unit; written to directory/VARIANT/search.json and returned.

    Args:
        task, variant, data: as for `config.preset`, which the trials start from.
        directory: where the search is kept; one that lies there goes on.
        trials: number in all; the first is the preset itself.
        settings: what holds for all trials instead of the preset, such as epochs or data_dir.
        folds: K > 1 judges each trial by cross-validation, for tasks with `folds`: the mean over K
            trainings, each of which validates on another K-th of the training data.
        tell: is told of each trial: number, validation metric, settings.

    Raises UsageError, also where a search of other settings or another space lies there.
    """
    if trials < 1:
        raise UsageError(f"trials={trials}: it must be at least 1; pass --trials 12")
    base = preset(task, variant, data, **(settings or {}), **_first_fold(task, folds))
    drawn = space(task, variant, base)
    folder = directory / variant
    folder.mkdir(parents=True, exist_ok=True)
    study = _study(folder, base, drawn)
    found = [_told(trial) for trial in study.trials if trial.value is not None]
    done = len(found) + sum(_FAILED in trial.user_attrs for trial in study.trials)
    for number in range(done, trials):
        study.sampler = _sampler(number)
        trial = study.ask()
        chosen = {} if number == 0 else {name: _draw(trial, name, drawn[name]) for name in drawn}
        try:
            history = _validated(override(base, **chosen), folds)
        except RunError as error:  # a learning rate that is too high: a bad trial, not the end
            trial.set_user_attr(_FAILED, str(error))
            study.tell(trial, state=_fail())
            warnings.warn(f"trial {number + 1} of {variant} failed: {error}", stacklevel=2)
            continue
        except UsageError:
            if number == 0:  # such as data that are missing: the next search may be another one
                (folder / JOURNAL).unlink()
                if not any(folder.iterdir()):  # what else lies there is the user's
                    folder.rmdir()
            raise
        record = history[best_epoch(history) - 1]
        trial.set_user_attr("settings", chosen)
        trial.set_user_attr("best_epoch", record["epoch"])
        trial.set_user_attr("seconds", round(sum(epoch["seconds"] for epoch in history), 1))
        study.tell(trial, record["valid"])
        found.append(_told(study.trials[-1]))
        rundir.write_json(folder / SEARCH, _content(base, drawn, found))
        if tell is not None:
            tell(number + 1, record["valid"], chosen)
    return _content(base, drawn, found)


def _first_fold(task: str, folds: int) -> dict[str, int]:
    if folds == 0:
        return {}
    if task != "events":
        raise UsageError(f"folds={folds}: only events are cut into folds; leave --folds out")
    return {"folds": folds, "fold": 0}


def _validated(config: Config, folds: int) -> list[dict[str, Any]]:
    """The epochs of a training; with folds of several, epoch by epoch their mean."""
    if folds == 0:
        return experiment.validate(config)
    histories = [experiment.validate(override(config, fold=fold)) for fold in range(folds)]
    curve = [
        {
            "epoch": epochs[0]["epoch"],
            "valid": statistics.fmean(epoch["valid"] for epoch in epochs),
            "seconds": sum(epoch["seconds"] for epoch in epochs),
        }
        for epochs in zip(*histories, strict=False)  # a patient training may end sooner
    ]
    pick = max if higher_is_better(config) else min
    chosen = pick(curve, key=lambda epoch: epoch["valid"])
    return [epoch | {"best": epoch is chosen} for epoch in curve]


def best(content: dict[str, Any]) -> dict[str, Any]:
    """The settings that were best on validation.  Raises RunError where no trial came to an end."""
    if not content["trials"]:
        raise RunError("every trial of the search failed; start from other settings")
    higher = content["higher_is_better"]
    pick = max if higher else min
    return dict(pick(content["trials"], key=lambda trial: trial["valid"])["settings"])


def _study(folder: Path, base: Config, drawn: dict[str, Any]) -> Any:
    """The search of a folder, without what was cut off; UsageError where it is another one."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise UsageError(
            "optuna is not installed, and a search needs it; pip install 'spikebridge[app]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(
        storage=storage,
        study_name="search",
        load_if_exists=True,
        direction="maximize" if higher_is_better(base) else "minimize",
    )
    if not study.trials:
        study.set_user_attr("base", to_dict(base))
        study.set_user_attr("space", _plain(drawn))
    kept = study.user_attrs
    if kept.get("space") != _plain(drawn):
        raise UsageError(
            f"{folder}: the search there draws from another space; give another folder"
        )
    rundir.refuse_others(folder, from_dict(kept["base"]), base, "search")
    for trial in study.trials:
        if not trial.state.is_finished():  # cut off in its middle: it is done anew
            study.tell(trial.number, state=_fail())
    return study


def _sampler(number: int) -> Any:
    """One for each trial, so that a search that was cut off draws what it would have drawn."""
    import optuna

    return optuna.samplers.TPESampler(seed=number, n_startup_trials=5)


def _plain(drawn: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: list(options) for name, options in drawn.items()}


def _fail() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _draw(trial: Any, name: str, options: Any) -> Any:
    if isinstance(options, tuple):
        return float(f"{trial.suggest_float(name, *options, log=True):.3g}")
    return trial.suggest_categorical(name, options)


def higher_is_better(base: Config) -> bool:
    """Whether the metric of a config's task is one of those that should be high."""
    metric = {"music": "nll", "forecast": "rmse"}.get(base.task.NAME, "accuracy")
    return METRICS["perplexity" if base.task.NAME == "text" else metric].higher_is_better


def _told(trial: Any) -> dict[str, Any]:
    attributes = trial.user_attrs
    return {
        "settings": attributes["settings"],
        "valid": trial.value,
        "best_epoch": attributes["best_epoch"],
        "seconds": attributes["seconds"],
    }


def _content(base: Config, drawn: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "base": to_dict(base),
        "space": _plain(drawn),
        "higher_is_better": higher_is_better(base),
        "sampler": "optuna TPE, seeded with the trial's number, 5 random trials first; "
        "the first trial is the base",
        "environment": environment.collect(),
        "trials": found,
    }
