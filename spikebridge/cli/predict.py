"""`spikebridge predict`: a trained network on other data."""

from __future__ import annotations

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
    another .npz or .csv.  All is computed anew each time: the data may have changed.
    """

    EXAMPLE: ClassVar[str] = "predict runs/digits8x8-snu-0 --split valid"
    REFUSES: ClassVar[dict[str, str]] = {
        "overwrite": "all is computed anew anyway, since the data may have changed; leave it out",
        "no_report": "this command writes no page; leave it out",
    }

    run_dir: RunFolder
    """Folder of a run of npz, speech, forecast, digits, events or ecg."""
    data_dir: Path | None = None
    """npz: an .npz file (y may be missing) or a folder with test.npz or a single one; speech: a
    folder with test.csv or with .wav files, or an .h5 file; digits, events and ecg: a folder as for
    `spikebridge train`.  Without it the run's own data."""
    file: Path | None = None
    """forecast: a table with the columns of the training."""
    split: Literal["test", "valid"] = "test"
    """Of the run's own data: which part."""
    output: Output = field(default_factory=Output)

    def run(self) -> None:
        if self.data_dir is not None and self.file is not None:
            raise UsageError("--data-dir and --file name the same thing; give one of them")
        from spikebridge.trained import prediction

        data, out = self.data_dir or self.file, self.output.out
        if out is not None:
            prediction.check_format(out)
            prediction.refuse_reading(self.run_dir, data, out)
        result = prediction.predict(self.run_dir, data, split=self.split)
        file = out or self.run_dir / rundir.PREDICTIONS[result.of_table]
        with nullcontext() if out else rundir.owning(self.run_dir, "predict"):
            result.write(file)
        metric = METRICS[result.metric]
        line = plural(len(result.prediction), "row" if result.of_table else "sample")
        if result.value is None:
            line += ", without answers to judge by"
        else:
            line += f", {result.metric}: {metric.figure(result.value)} {metric.unit}".rstrip()
        content = {"metric": result.metric, "value": result.value, "file": str(file)}
        self.output.show(content, [line, f"predictions: {file}"])
