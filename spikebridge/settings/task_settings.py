"""What each record of a task says of it, beside its settings.  Loads no torch."""

from __future__ import annotations

from typing import Any, NamedTuple


class DataSet(NamedTuple):
    """What tables call a data set, what a page says of it, and how its files begin."""

    name: str
    title: str
    files: str = ""


class TaskSettings:
    """What each record says of its task, beside its settings."""

    NAME = ""
    """What the command line calls it."""
    CLASS = ""
    """Where its class is, "module:Class"."""
    SAMPLE, COUNTED = "sample", "sample"
    """What one sample is called, and what its loss is a mean over."""
    METRIC = ""
    """One of `metrics.METRICS`; empty where the data or an object say it."""
    SETS = dict[str, DataSet]()
    """The data sets that it brings."""
    OWN_DATA, OWN_TITLE = "", "{}"
    """The name of the user's own data among its data sets, and what a page says of them."""
    OWN_ONLY = False
    """Whether all its data are the user's."""
    SPACE = dict[str, Any]()
    """What the trials of a search draw: a list is a choice, a pair of numbers a range on a
    logarithmic axis."""
    MEMBRANES = dict[str, Any]()
    """The same for units with a membrane, in place of what they draw elsewhere."""

    def place(self) -> str:
        """Where its class is."""
        return self.CLASS

    def sample_name(self) -> str:
        """What one sample is called."""
        return self.SAMPLE

    def step_name(self) -> str:
        """What a step of a stream is called, such as "word"; "sample" where samples have an end."""
        return self.COUNTED if self.sample_name() == "stream" else "sample"

    def metric(self) -> str:
        """The metric, one of `metrics.METRICS`; empty where the data or an object say it."""
        return self.METRIC

    def space(self) -> dict[str, Any]:
        """What the trials of a search draw."""
        return self.SPACE
