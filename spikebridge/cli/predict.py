"""`spikebridge predict`: a trained network on other data."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from spikebridge.base.metrics import METRICS
from spikebridge.base.quantities import plural
from spikebridge.base.records import UsageError
from spikebridge.cli.flags import Output, RunFolder
from spikebridge.runs import rundir


@dataclass(frozen=True)
class Predict:
    """Test a trained network on other data and write its predictions to a file.

    The file is predictions.npz in the run's folder, of a table predictions.csv; --out names
    another .npz or .csv.
    """

    EXAMPLE: ClassVar[str] = "predict runs/digits8x8-snu-0 --split valid"

    run_dir: RunFolder
    """Folder of a run of npz, forecast, digits or events."""
    data_dir: Path | None = None
    """npz: an .npz file (y may be missing) or a folder with test.npz or a single one; digits and
    events: a folder as for `spikebridge train`.  Without it the run's own data."""
    file: Path | None = None
    """forecast: a table with the columns of the training."""
    split: Literal["test", "valid"] = "test"
    """Of the run's own data: which part."""
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        if self.data_dir is not None and self.file is not None:
            raise UsageError("--data-dir and --file name the same thing; give one of them")
        from spikebridge.trained import prediction

        data = self.data_dir or self.file
        if self.output.out is not None:
            prediction.check_format(self.output.out)
            prediction.refuse_reading(self.run_dir, data, self.output.out)
        result = prediction.predict(self.run_dir, data, split=self.split)
        file = self.output.out or self.run_dir / rundir.PREDICTIONS[bool(result.names)]
        with nullcontext() if self.output.out else rundir.owning(self.run_dir, "predict"):
            result.write(file)
        if self.output.json:
            print(json.dumps({"metric": result.metric, "value": result.value, "file": str(file)}))
            return
        metric = METRICS[result.metric]
        count = plural(len(result.prediction), "row" if result.names else "sample")
        if result.value is None:
            print(f"{count}, without answers to judge by")
        else:
            figure = metric.figure(result.value)
            print(f"{count}, {result.metric}: {figure} {metric.unit}".rstrip())
        print(f"predictions: {file}")
