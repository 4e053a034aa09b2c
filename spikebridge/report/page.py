"""From a run or comparison directory to one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spikebridge.runs import rundir
from spikebridge.runs.load import COMPARE, ReportError, load_comparison, load_run


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
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(plotlyjs=get_plotlyjs(), **values)


def _need_app() -> None:
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ModuleNotFoundError as error:
        raise ReportError(
            f"{error.name} is not installed: report pages need it; "
            "install it with pip install 'spikebridge[app]'"
        ) from error
