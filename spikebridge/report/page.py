"""From a run or comparison directory to one HTML file."""

from __future__ import annotations

import base64
import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spikebridge.report.theme import CONFIG, LOOK
from spikebridge.runs import rundir
from spikebridge.runs.load import COMPARE, ReportError, load_comparison, load_run

TEMPLATES = Path(__file__).parent / "templates"


def write(directory: Path, output: Path | None = None) -> Path:
    """Write the page of a run or comparison directory and return its path.

    output defaults to report.html inside the directory; the file appears whole or not at all.
    The page holds everything it needs and loads nothing from a network.
    Raises ReportError when the directory holds no run, or a file of it is missing or damaged.
    """
    directory = Path(directory)
    path = directory / rundir.REPORT if output is None else Path(output)
    _need_app()
    if output is not None:
        return _write(directory, path)
    with rundir.owning(directory, "report"):
        return _write(directory, path)


def refresh(directory: Path) -> None:
    """Write the page of a comparison, unless there is one no older than its compare.json."""
    page, source = directory / rundir.REPORT, directory / COMPARE
    if not page.exists() or page.stat().st_mtime_ns < source.stat().st_mtime_ns:
        write(directory)


def _write(directory: Path, path: Path) -> Path:
    if (directory / "forgetting.json").exists():
        from spikebridge.report.continual import table_context

        name, values = "sections.html", table_context(directory)
    elif (directory / "continual.json").exists():
        from spikebridge.report.continual import run_context as sequence_context

        name, values = "sections.html", sequence_context(directory)
    elif (directory / COMPARE).exists():
        from spikebridge.report.compare_page import context

        name, values = "compare.html", context(load_comparison(directory), path)
    elif rundir.has_run(directory):
        from spikebridge.report.run_page import context as run_context

        name, values = "run.html", run_context(load_run(directory))
    else:
        raise ReportError(
            f"{directory}: neither a run (config.json) nor a comparison (compare.json) is in it; "
            "pass a folder that `spikebridge train` or `spikebridge compare` wrote"
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
    return environment.get_template(name).render(
        engine=engine(), look={"layout": LOOK}, settings_of_figures=CONFIG, **values
    )


@cache
def engine() -> str:
    """plotly.js with what draws points, lines, bars and heat maps, packed (gzip, base64).

    The file is plotly-cartesian.min.js of the package plotly.js-cartesian-dist-min in the npm
    registry, unchanged; its version stands in its first lines, its licence (MIT) beside it.
    """
    script = (TEMPLATES / "plotly-cartesian.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, mtime=0)).decode("ascii")


def _need_app() -> None:
    if find_spec("jinja2") is None:
        raise ReportError(
            "jinja2 is not installed: report pages need it; "
            "install it with pip install 'spikebridge[app]'"
        )
