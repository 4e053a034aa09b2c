"""From a run or comparison directory to one HTML file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from spikebridge.report.theme import CONFIG, LOOK, Section
from spikebridge.runs import rundir
from spikebridge.runs.load import ReportError, Run, load_run
from spikebridge.studies.comparison import COMPARE, load_comparison

TEMPLATES = Path(__file__).parent / "templates"


def write(
    directory: Path,
    output: Path | None = None,
    *,
    sections: Sequence[Callable[[Run], Section]] = (),
) -> Path:
    """Write the page of a run or comparison directory and return its path.

    The file appears whole or not at all; it holds everything it needs and loads nothing from a
    network.

    Args:
        output: report.html inside the directory where it is None.
        sections: functions of your own: each takes the loaded run and returns a Section, which
            stands before the examples.

    Raises ReportError when the directory holds no run, or a file of it is missing or damaged; when
    sections are asked of anything but a run, or a function returns something else.
    """
    directory = Path(directory)
    path = directory / rundir.REPORT if output is None else Path(output)
    for module, package in (("jinja2", "jinja2"), ("PIL", "pillow")):
        if find_spec(module) is None:
            raise ReportError(
                f"{package} is not installed: report pages need it; "
                "install it with pip install 'spikebridge[app]'"
            )
    if output is not None:
        return _write(directory, path, sections)
    with rundir.owning(directory, "report"):
        return _write(directory, path, sections)


def refresh(directory: Path) -> None:
    """Write the page of a comparison, unless there is one no older than its compare.json."""
    page, source = directory / rundir.REPORT, directory / COMPARE
    if not page.exists() or page.stat().st_mtime_ns < source.stat().st_mtime_ns:
        write(directory)


def _write(directory: Path, path: Path, sections: Sequence[Callable[[Run], Section]]) -> Path:
    if (directory / COMPARE).exists():
        from spikebridge.report.compare_page import context

        name, values = "compare.html", context(load_comparison(directory), path)
    elif (directory / "forgetting.json").exists():
        raise ReportError(
            f"{directory}: a table of an earlier version; make it again into this folder with "
            "`spikebridge reproduce`, which keeps its runs"
        )
    elif rundir.has_run(directory):
        from spikebridge.report.run_page import context as run_context

        name, values = "run.html", run_context(load_run(directory), sections)
    else:
        raise ReportError(
            f"{directory}: neither a run (config.json) nor a comparison (compare.json) is in it; "
            "pass a folder that `spikebridge train` or `spikebridge compare` wrote"
        )
    if sections and name != "run.html":
        raise ReportError(
            f"{directory}: sections of your own are made from one run, and this folder holds a "
            "study of several; name a run inside it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_text(path, _render(name, values))
    return path


def _render(name: str, values: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = count(1)
    environment.globals["draw"] = lambda plot: plot.html(next(drawn))
    return environment.get_template(name).render(
        engine=engine(), look={"layout": LOOK}, settings_of_figures=CONFIG, **values
    )


@cache
def engine() -> str:
    """plotly.js with what draws points, lines, bars and heat maps, packed (gzip, base64).

    The file is plotly-cartesian.min.js of the package plotly.js-cartesian-dist-min in the npm
    registry, packed and otherwise unchanged; its version stands in its first lines, its licence
    (MIT) beside it.
    """
    packed = (TEMPLATES / "plotly-cartesian.min.js.gz").read_bytes()
    return base64.b64encode(packed).decode("ascii")
