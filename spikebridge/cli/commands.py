"""What the commands do: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import in_words, plural
from spikebridge.base.records import RunError, UsageError
from spikebridge.cli import progress
from spikebridge.runs import environment, rundir
from spikebridge.runs.rundir import FOLDER, Result
from spikebridge.settings.config import Config, flatten, variant_of
from spikebridge.settings.crossbar import MemoryConfig
from spikebridge.studies import catalog, forgetting, record, tune
from spikebridge.studies import compare as comparison
from spikebridge.studies.catalog.continual import FORGETTING, ForgettingEntry
from spikebridge.studies.verdict import verdict

THE_PRESET = "the preset"


def train(
    config: Config,
    out: Path | None,
    *,
    resume: bool,
    overwrite: bool,
    page: bool,
    as_json: bool,
) -> None:
    """Train one unit and tell what came out."""
    named = out
    out = named or rundir.default_folder(config)
    if resume and named is None and not rundir.has_run(out):
        rundir.refuse_absent(config)
    say(f"{out}:\n{_settings(flatten(config))}")
    rundir.refuse_reading(out, config)
    result = None
    if rundir.is_complete(out) and not overwrite:  # answered before torch is loaded
        result = rundir.earlier(out, config, resume)
    with rundir.owning(out, "train", make=True) if result is None else nullcontext():
        if result is None:
            result = _trained(config, out, resume, overwrite)
        written = page_of(out) if page else None
    if as_json:
        print(json.dumps({**result.to_dict(), "directory": str(out), "report": written}))
        return
    for line in _told(result):
        print(line)
    if written:
        print(f"page: {written}")


def _trained(config: Config, out: Path, resume: bool, overwrite: bool) -> Result:
    if rundir.has_run(out) and not overwrite:
        rundir.earlier(out, config, resume)  # what is wrong is said before torch is loaded
    from spikebridge.runs import training

    if reason := training.looped_by(config.model):
        say(f"{config.model.unit} runs in the Python loop, which is slower: {reason}")
    name = f"{variant_of(config.model)}-{config.train.seed}"
    with progress.display() as display:
        return training.run(config, out, resume=resume, overwrite=overwrite, progress=display(name))


def compare(
    configs: Sequence[Config],
    seeds: Sequence[int],
    out: Path | None,
    *,
    jobs: int,
    overwrite: bool,
    page: bool,
    as_json: bool,
) -> None:
    """Train units over seeds and show them side by side."""
    contenders = [comparison.of_unit(config) for config in configs]
    out = out or comparison.default_folder(contenders, seeds, jobs)
    planned = comparison.plan(contenders, seeds, out, jobs=jobs)
    say(_shared_settings([run.config for run in planned]))
    kept = 0 if overwrite else sum(run.complete for run in planned)
    tell_of_kernels(jobs)
    say(f"{plural(len(planned), 'run')} in {out}" + (f", {kept} of them complete" if kept else ""))
    with progress.display(whole=ahead(planned, jobs, overwrite)) as display:
        content = comparison.compare(planned, out, jobs=jobs, overwrite=overwrite, progress=display)
    if page:
        refresh_page(out)
    show(content, out, page, as_json)


def reproduce(
    name: str,
    out: Path | None,
    *,
    seeds: int,
    quick: bool,
    jobs: int,
    overwrite: bool,
    to: Path | None,
    as_json: bool,
) -> None:
    """Make a table of the catalog again: runs, table, picture, page and, in `to`, its record."""
    if any(name == entry.name for entry in FORGETTING):
        _forgetting(name, out, seeds, quick, jobs, overwrite, to, as_json)
        return
    entry = catalog.find(name)
    out = out or FOLDER / f"reproduce-{name}{'-quick' if quick else ''}"
    say(f"{entry.title}\n{entry.source}")
    tell_of_kernels(jobs)
    with rundir.owning(out, "reproduce", make=True):
        content, pictures = _made_again(entry, out, seeds, quick, jobs, overwrite)
        if to is not None:
            say("record: " + ", ".join(map(str, record.write(name, content, out, to))))
    show(content, out, True, as_json)
    if not as_json:
        for what, path in pictures:
            print(f"{what}: {path}")


def _forgetting(
    name: str,
    out: Path | None,
    seeds: int,
    quick: bool,
    jobs: int,
    overwrite: bool,
    to: Path | None,
    as_json: bool,
) -> None:
    """Make a table of forgetting again."""
    from spikebridge.report import continual_text

    entry = next(entry for entry in FORGETTING if entry.name == name)
    out = out or FOLDER / f"reproduce-{name}{'-quick' if quick else ''}"
    say(f"{entry.title}\n{entry.source}")
    with rundir.owning(out, "reproduce", make=True):
        content = forgetting.compare(
            entry, out, seeds=range(seeds or (1 if quick else entry.seeds)), quick=quick,
            jobs=jobs, overwrite=overwrite, tell=say,
        )  # fmt: skip
        continual_text.write(content, out)
        page = page_of(out)
        if to is not None:
            say("record: " + ", ".join(map(str, record.write(name, content, out, to))))
    if as_json:
        print(json.dumps(content))
        return
    print("\n".join(continual_text.lines(content)))
    print(f"table: {out / 'table.md'}\nplot: {out / 'plot.png'}\npage: {page}")


def _made_again(
    entry: catalog.Entry, out: Path, seeds: int, quick: bool, jobs: int, overwrite: bool
) -> tuple[dict[str, Any], list[tuple[str, Path]]]:
    """The content of an entry's compare.json, and the files that show it."""
    contenders = comparison.of_entry(entry, quick=quick)
    contenders = tune.tune(
        entry, contenders, out, quick=quick, jobs=jobs, anew=overwrite, tell=_tell_of_trial
    )
    count = seeds or (1 if quick else entry.seeds)
    planned = comparison.plan(contenders, range(count), out, jobs=jobs)
    kept = 0 if overwrite else sum(run.complete for run in planned)
    takes = "" if quick or not entry.minutes else f"; about {entry.minutes:,.0f} min on 2 cores"
    say(
        f"{plural(len(planned), 'run')} in {out}{takes}"
        + (f"; {kept} are complete" if kept else "")
    )
    with progress.display(whole=ahead(planned, jobs, overwrite)) as display:
        content = comparison.compare(
            planned,
            out,
            jobs=jobs,
            overwrite=overwrite,
            progress=display,
            about=entry.title,
            finish=lambda run: _on_hardware(entry, run, quick),
            by_steps=() if quick else entry.by_steps,
            more=lambda: verdict(entry, planned, out),
        )
    from spikebridge.report import still

    refresh_page(out)
    pictures = still.write(content, out, entry.source)
    return content, [("table", out / still.TABLE), *(("plot", path) for path in pictures)]


def _on_hardware(entry: catalog.Entry, run: comparison.Planned, quick: bool) -> None:
    """Export a complete run to the chip or program it into cells, where its table says so."""
    if entry.chip is not None and not (run.directory / rundir.DIGITAL).exists():
        from spikebridge.trained import on_chip

        say(f"{run.name}: exported to the digital chip")
        on_chip.export(run.directory, on_chip.Plan(dict(entry.chip)))
    if entry.cells is not None and not (run.directory / rundir.MEMORY).exists():
        from spikebridge.trained import on_cells

        say(f"{run.name}: programmed into memory cells")
        plan = on_cells.Plan(MemoryConfig(**entry.cells), chips=2 if quick else 10)
        on_cells.deploy(run.directory, plan)


def ahead(
    planned: Sequence[comparison.Planned], jobs: int, overwrite: bool
) -> progress.Whole | None:
    """What is to be done of some runs, told with the time that it will take, by a few batches.

    None where nothing is to be done.  Raises UsageError where the data are missing.
    """
    todo = [run for run in planned if overwrite or not run.complete]
    if not todo:
        return None
    kinds = {run.contender.name: run.config for run in todo}
    epochs = {run.name: run.config.train.epochs for run in todo}
    alike = {run.name: run.contender.name for run in todo}
    guesses = _rehearsed(kinds)
    whole = progress.Whole(epochs, alike, guesses, min(jobs, len(todo)))
    left = whole.seconds_left()
    takes = "" if left is None else f", about {in_words(float(f'{left:.2g}'))} in all"
    several = sorted({config.train.epochs for config in kinds.values()})
    shown = " to ".join(map(str, dict.fromkeys((several[0], several[-1]))))
    say(
        f"{plural(len(todo), 'training')} of {shown} "
        f"{'epoch' if several[-1] == 1 else 'epochs'}{takes}, by a few batches of each"
    )
    return whole


def _rehearsed(kinds: Mapping[str, Config]) -> dict[str, float]:
    """Seconds of an epoch of each kind of run; which ones run in the Python loop is told."""
    from spikebridge import data as tasks
    from spikebridge.runs import training

    loaded: dict[Any, Any] = {}
    found = {}
    for name, config in kinds.items():
        if config.task not in loaded:
            loaded = {config.task: tasks.load(config.task)}  # one at a time: they may be large
        try:
            rehearsal = training.rehearse(config, loaded[config.task])
        except RunError:  # the run itself says so
            continue
        found[name] = rehearsal.epoch_s
        if rehearsal.loop is not None:
            say(f"{name} runs in the Python loop, which is slower: {rehearsal.loop}")
    return found


def _tell_of_trial(row: str, settings: dict[str, Any], seed: int, valid: float | None) -> None:
    told = "failed" if valid is None else f"valid {valid:.5g}"
    say(f"{row}  {_settings(settings).strip()}  seed {seed}  {told}")


def search(
    configs: Sequence[Config],
    out: Path | None,
    *,
    trials: int,
    fixed: Collection[str],
    folds: int,
    as_json: bool,
) -> None:
    """Search settings for units, each from its config, and tell the best and how to use it.

    What is fixed holds for all trials; folds above 0: they are judged by cross-validation.
    """
    from spikebridge.studies import search as searching

    out = out or rundir.shared_folder("search", configs)
    found = {}
    told_of = progress.Trials(trials * len(configs))
    say(f"{plural(len(configs), 'unit')} x {plural(trials, 'trial')} in {out}")
    with rundir.owning(out, "search", make=True):
        for place, config in enumerate(configs):
            unit = variant_of(config.model)

            def tell(
                number: int,
                value: float | None,
                chosen: dict[str, Any],
                unit: str = unit,
                before: int = place * trials,
            ) -> None:
                told = "failed" if value is None else f"valid {value:.5g}"
                shown = _settings(chosen).strip() or THE_PRESET
                left = told_of.left(before + number)
                say(f"{unit}  trial {number}/{trials}  {told}  {shown}  {left}")

            found[unit] = searching.search_from(
                config, out, trials=trials, fixed=fixed, folds=folds, tell=tell
            )
        best = {unit: searching.best(content) for unit, content in found.items()}
        rundir.write_json(out / searching.BEST, searching.summary(found, out))
    if as_json:
        print(json.dumps(best))
        return
    for unit, content in found.items():
        metric, trial = METRICS[content["metric"]], rundir.ranked_trials(content)[0]
        print(
            f"{unit}: validation {metric.axis} {metric.figure(trial['valid'])}, trial "
            f"{trial['trial']} of {len(content['trials'])}: "
            f"{_settings(best[unit]).strip() or THE_PRESET}"
        )
    print(f"all trials, the best first: {out / searching.BEST}\ntrain with what was best:")
    for unit, content in found.items():
        print(f"  {searching.command(content, out / unit)}")


def show_catalog(*, as_json: bool) -> None:
    """List what `reproduce` can make, and what it takes on two cores."""
    entries: list[catalog.Entry | ForgettingEntry] = [*catalog.CATALOG, *FORGETTING]
    if as_json:
        rows = [
            {"name": e.name, "title": e.title, "seeds": e.seeds, "minutes": e.minutes}
            for e in entries
        ]
        print(json.dumps({"entries": rows}))
        return
    for entry in entries:
        takes = f"{entry.minutes:,.0f} min" if entry.minutes else "unknown"
        runs = f"{len(entry.rows)} x {entry.seeds} runs"
        print(f"{entry.name:26} {takes:>9}  {runs:12}  {entry.title}")


def tell_of_kernels(jobs: int) -> None:
    """Working processes keep quiet about missing kernels: their parent says it once."""
    from spikebridge.nn.kernels import native

    if jobs > 1 and native.missing is not None:
        say(f"units run in the Python loop, which is slower: {native.missing}")


def report(runs: Sequence[Path], *, as_json: bool) -> None:
    """Write the page of each folder."""
    if not runs:
        raise UsageError("no folder is given; name one that train, compare or demo has written")
    pages = [page_of(run) for run in runs]
    if as_json:
        print(json.dumps({"pages": pages}))
    else:
        print("\n".join(pages))


def sample(
    run: Path,
    prompt: str,
    *,
    length: int,
    temperature: float,
    top: int,
    seed: int,
    as_json: bool,
) -> None:
    """Print what a language model writes."""
    from spikebridge.trained.text import Writer

    text = Writer(run).go_on(prompt, length, temperature=temperature, top=top, seed=seed)
    print(json.dumps({"prompt": prompt, "text": text}) if as_json else text)


def evaluate(run: Path, steps: Sequence[int], *, page: bool, as_json: bool) -> None:
    """Test a trained network at several numbers of time steps."""
    from spikebridge.trained import by_steps

    with rundir.owning(run, "evaluate"):
        content = by_steps.by_steps(run, steps, lambda count: say(f"{count} steps tested"))
        written = page_of(run) if page else None
    if as_json:
        print(json.dumps({**content, "report": written}))
        return
    metric = METRICS[content["metric"]]
    print(f"steps  {metric.axis}")
    for count, value in zip(content["steps"], content["test"], strict=True):
        print(f"{count:5}  {metric.figure(value)}")
    if written:
        print(f"page: {written}")


def predict(run: Path, data: Path | None, out: Path | None, *, split: str, as_json: bool) -> None:
    """Test a network on data, write what it predicts, and tell the metric."""
    from spikebridge.trained import prediction

    if out is not None:
        prediction.check_format(out)
        prediction.refuse_reading(run, data, out)
    found = prediction.predict(run, data, split=split)
    written = out or run / rundir.PREDICTIONS[bool(found.names)]
    with nullcontext() if out else rundir.owning(run, "predict"):
        found.write(written)
    if as_json:
        print(json.dumps({"metric": found.metric, "value": found.value, "file": str(written)}))
        return
    metric, count = METRICS[found.metric], len(found.prediction)
    what = "row" if found.names else "sample"
    told = plural(count, what)
    if found.value is None:
        print(f"{told}, without answers to judge by")
    else:
        print(f"{told}, {found.metric}: {metric.figure(found.value)} {metric.unit}".rstrip())
    print(f"predictions: {written}")


def program(runs: Sequence[Path], plan: Any, *, page: bool, as_json: bool) -> None:
    """Program networks into memory cells and tell how they do over time."""
    from spikebridge.trained import on_cells

    if not runs:
        raise UsageError("no run is named; give the folder of a finished run")
    contents = {}
    for run in runs:

        def tell(number: int, time_s: float, value: float, run: Path = run) -> None:
            say(f"{run}  chip {number + 1}/{plan.chips}  {in_words(time_s):>9}  {value:.4f}")

        with rundir.owning(run, "program"):
            contents[str(run)] = content = on_cells.deploy(run, plan, tell)
            written = page_of(run) if page else None
        if as_json:
            continue
        for line in _programmed(content):
            print(line)
        if written:
            print(f"page: {written}")
    if as_json:
        print(json.dumps(contents))


def _programmed(content: dict[str, Any]) -> list[str]:
    """The table of memory.json."""
    from spikebridge.base.quantities import in_si

    metric = METRICS[content["metric"]]
    lines = [
        f"{content['cells']:,} cells, {content['device']['name']}; in software "
        f"{metric.figure(content['software'])}",
        f"{'after':>9}  {metric.axis}, mean and spread of {len(content['plain'])} chips",
    ]
    for i, time_s in enumerate(content["times_s"]):
        cells = []
        for kind in ("plain", "compensated"):
            values = [chip[i] for chip in content[kind]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            mean = statistics.fmean(values)
            cells.append(f"{kind} {metric.figure(mean)} ± {metric.figure(spread)}")
        lines.append(f"{in_words(time_s):>9}  " + "   ".join(cells))
    costs = {f"energy per {content['energy']['per']}": content["energy"]}
    if content["training"]:
        costs["energy of the whole training"] = content["training"]
    for what, parts in costs.items():
        lines.append(f"{what}:")
        for name, found in parts["hardware"].items():
            joules, seconds = found["total_pJ"] * 1e-12, found["seconds_s"]
            lines.append(f"  {name:<24} {in_si(joules, 'J'):>10} {in_si(seconds, 's'):>10}")
    return lines


def compose(
    run: Path, out: Path | None, settings: dict[str, Any], *, page: bool, as_json: bool
) -> None:
    """Continue a phrase of music with a trained network; the settings are compose.Settings'."""
    from spikebridge.trained import music as composing

    written = composing.compose(run, composing.Settings(**settings), out)
    beside = written.midi.resolve().parent == run.resolve()  # the page shows what lies beside it
    report = page_of(run) if page and beside else None
    if as_json:
        files = {"midi": str(written.midi), "wav": str(written.wav), "report": report}
        print(json.dumps({"made": written.facts, **files}))
        return
    made = written.facts
    print(
        f"{made['prompt_frames']} frames of seed phrase and {made['frames']} composed, "
        f"{made['seconds']:.1f} s at {made['tempo']:g} quarter notes per minute"
    )
    print(f"midi: {written.midi}\nwav: {written.wav}")
    if report:
        print(f"page: {report}")


def info(*, as_json: bool) -> None:
    """Show the environment and where data are looked for."""
    facts = environment.collect()
    del facts["command"]
    facts["data"] = environment.data_folders()
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        shown = value if isinstance(value, dict) else {"": value}
        for key, detail in shown.items():
            print(f"{f'{name} {key}'.strip():18} {'unknown' if detail is None else detail}")


def refresh_page(directory: Path) -> None:
    """Write the page of a comparison where it is missing or older than compare.json."""
    from spikebridge.report.page import refresh

    refresh(directory)


def page_of(directory: Path) -> str:
    """Write the page of a folder; its path."""
    from spikebridge.report.page import write

    return str(write(directory))


def _shared_settings(configs: Sequence[Config]) -> str:
    """What all runs share, then what is each unit's own."""
    first = flatten(configs[0])
    shared = {k: v for k, v in first.items() if all(flatten(c).get(k) == v for c in configs)}
    lines = [f"all:\n{_settings(shared)}"]
    for variant, config in {variant_of(config.model): config for config in configs}.items():
        own = {k: v for k, v in flatten(config).items() if k not in shared and k != "seed"}
        lines.append(f"{variant}:\n{_settings(own)}")
    return "\n".join(lines)


def _settings(settings: dict[str, Any]) -> str:
    words = " ".join(f"{name}={_plain(value)}" for name, value in settings.items())
    return textwrap.fill(words, 96, initial_indent="  ", subsequent_indent="  ")


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _told(result: Result) -> list[str]:
    metric = METRICS[result.metric]
    lines = [
        f"{result.label} on {result.data}: {plural(result.parameters, 'parameter')}, "
        f"{plural(result.epochs, 'epoch')} in {result.seconds:.1f} s",
        f"test {result.metric}: {metric.figure(result.test)} {metric.unit} "
        f"(weights of epoch {result.best_epoch}, validation {metric.figure(result.valid)})",
    ]
    if result.spikes_per_inference is not None:
        lines.append(f"spikes per inference: {result.spikes_per_inference:,.1f}")
    if result.published is not None:
        value = metric.figure(result.published["value"])
        lines.append(f"published: {value} {metric.unit} ({result.published['source']})")
    return [*lines, *result.notes, f"run: {result.directory}"]


def show(content: dict[str, Any], out: Path, page: bool, as_json: bool) -> None:
    """Print the tables of a comparison, or its compare.json."""
    if as_json:
        print(json.dumps(content))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a file has no width; never fold the table there
        console = Console(width=160)
    console.print(comparison.table(content))
    for more in (comparison.memory_table(content), comparison.chip_table(content)):
        if more is not None:
            console.print(more)
    if page:
        print(f"page: {out / rundir.REPORT}")


def say(text: str) -> None:
    """Say what is being done."""
    print(text, file=sys.stderr, flush=True)
