"""`spikebridge complexity`: the measures of NeuroBench for a finished run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from spikebridge.base.records import Count
from spikebridge.cli.flags import Output, RunFolder
from spikebridge.runs import rundir

if TYPE_CHECKING:
    from spikebridge.runs.hardware_results import Measured


@dataclass(frozen=True)
class Complexity:
    """Measure size, sparsity and synaptic operations of a run's network, as NeuroBench does.

    Writes complexity.json into the run's folder, and its page anew.
    """

    EXAMPLE: ClassVar[str] = "complexity runs/digits8x8-snu-0 --samples 1000"

    run_dir: RunFolder
    """Folder of a finished run."""
    split: Literal["test", "valid"] = "test"
    """What it is measured on."""
    samples: Count = 0
    """How many of its first samples; 0 = all."""
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        from spikebridge.trained import complexity

        asked = (self.split, self.samples)
        content, folder, page = self.output.of_run(
            self.run_dir,
            "complexity",
            lambda folder: complexity.kept(folder, *asked),
            lambda folder: complexity.of_run(folder, *asked),
        )
        lines = [*text_of(content), f"written: {folder / rundir.COMPLEXITY}"]
        self.output.show(content, lines, report=page)


def text_of(content: Measured) -> list[str]:
    """The table of complexity.json."""
    per, operations = content.per, content.synaptic_operations
    rows = [
        ("footprint", f"{content.footprint:,}", "bytes"),
        ("parameters", f"{content.parameter_count:,}", ""),
        ("connection sparsity", f"{content.connection_sparsity:.4f}", "share of zero weights"),
        ("activation sparsity", f"{content.activation_sparsity:.4f}", "share of zero outputs"),
        ("effective MACs", f"{operations.Effective_MACs:,.1f}", f"per {per}"),
        ("effective ACs", f"{operations.Effective_ACs:,.1f}", f"per {per}"),
        ("dense operations", f"{operations.Dense:,.1f}", f"per {per}"),
        ("membrane updates", f"{content.membrane_updates:,.1f}", f"per {per}"),
    ]
    width = max(len(value) for _, value, _ in rows)
    head = f"{content.samples:,} {per}s of the {content.split} split; {content.source}"
    table = [f"  {name:<20} {value:>{width}}  {unit}".rstrip() for name, value, unit in rows]
    return [head, *table]
