"""`spikebridge complexity`: the measures of NeuroBench for a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from spikebridge.base.records import UsageError
from spikebridge.cli.flags import Flag
from spikebridge.runs import rundir
from spikebridge.settings.tasks import step_name

if TYPE_CHECKING:
    from spikebridge.data.task import Batch

FILE = rundir.COMPLEXITY
SOURCE = "definitions of NeuroBench 2.3.0 (Yik et al. 2025)"


@dataclass(frozen=True)
class Complexity:
    """Measure size, sparsity and synaptic operations of a run's network, as NeuroBench does."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    split: Literal["test", "valid"] = "test"
    """What it is measured on."""
    samples: int = 0
    """How many of its first samples; 0 = all."""
    json: Flag = False
    """Print one JSON object."""

    def run(self) -> None:
        content = of_run(self.run_dir, self.split, self.samples)
        if self.json:
            print(json.dumps(content))
            return
        for line in told(content):
            print(line)
        print(f"written: {self.run_dir / FILE}")


@rundir.owned("complexity")
def of_run(directory: Path, split: str = "test", samples: int = 0) -> dict[str, Any]:
    """Measure the network of a finished run; written to its complexity.json and returned.

    Args:
        directory: of the run.
        split: "test" or "valid"; the inputs are those that the run itself is judged on.
        samples: how many of its first samples; 0 = all.

    Returns the fields of `spikebridge.trained.complexity.Complexity`, `source`, `split`, and `per`:
    "sample", or what a step of a stream is, such as "word".

    Raises UsageError where there is no complete run, or for what cannot be asked for; RunError
    where its network is damaged.
    """
    if split not in ("test", "valid"):
        raise UsageError(f"split={split!r}: choose test or valid; pass --split test")
    if samples < 0:
        raise UsageError(f"samples={samples}: 0 (all) or more; pass --samples 2000")
    from spikebridge import data as tasks
    from spikebridge.base.seeding import generator
    from spikebridge.runs.evaluation import trained
    from spikebridge.trained.complexity import complexity

    config, network = trained(directory)
    task = tasks.load(config.task)
    judge = generator(config.train.eval_seed, split)
    batches: Iterable[Batch] = task.batches(split, config.train.batch_size, judge)
    if samples:
        batches = first(batches, samples, stream=task.carries_state)
    found = complexity(network, batches, carries_state=task.carries_state)
    per = step_name(config.task)
    content = {"source": SOURCE, "split": split, "per": per, **found.to_dict()}
    rundir.write_json(directory / FILE, content)
    return content


def first(batches: Iterable[Batch], samples: int, *, stream: bool) -> Iterator[Batch]:
    """The inputs of the first samples; of parallel streams as many whole steps as hold them."""
    left = samples
    for batch in batches:
        x, mask = batch.x, batch.mask
        if stream:
            x = x[: -(-left // x.shape[1])]
            left -= x.shape[0] * x.shape[1]
        else:
            x, mask = x[:, :left], None if mask is None else mask[:, :left]
            left -= x.shape[1]
        yield batch._replace(x=x, mask=mask)
        if left <= 0:
            return


def told(content: dict[str, Any]) -> list[str]:
    """The table of complexity.json."""
    per, operations = content["per"], content["synaptic_operations"]
    rows = [
        ("footprint", f"{content['footprint']:,}", "bytes"),
        ("parameters", f"{content['parameter_count']:,}", ""),
        ("connection sparsity", f"{content['connection_sparsity']:.4f}", "share of zero weights"),
        ("activation sparsity", f"{content['activation_sparsity']:.4f}", "share of zero outputs"),
        ("effective MACs", f"{operations['Effective_MACs']:,.1f}", f"per {per}"),
        ("effective ACs", f"{operations['Effective_ACs']:,.1f}", f"per {per}"),
        ("dense operations", f"{operations['Dense']:,.1f}", f"per {per}"),
        ("membrane updates", f"{content['membrane_updates']:,.1f}", f"per {per}"),
    ]
    width = max(len(value) for _, value, _ in rows)
    head = f"{content['samples']:,} {per}s of the {content['split']} split; {content['source']}"
    table = [f"  {name:<20} {value:>{width}}  {unit}".rstrip() for name, value, unit in rows]
    return [head, *table]
