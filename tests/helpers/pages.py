"""Report pages as tests read them: without plotly.js, each figure held against plotly's schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from spikebridge import report
from spikebridge.report.page import engine

FIGURE = re.compile(
    r'<div class="drawing" id="(figure-\d+)"[^>]*></div>\n'
    r'<script type="application/json">(.*?)</script>'
)


def page_of(directory: Path, output: Path | None = None, **options: Any) -> str:
    """The page without plotly.js, whose own text is not of interest."""
    page = report.write(directory, output, **options).read_text(encoding="utf-8")
    assert page.count(engine()) == 1
    check_figures(page)
    return page.replace(engine(), "")


def figures_of(page: str) -> dict[str, dict[str, Any]]:
    """The figures of a page by their ids, as plotly.js gets them."""
    return {name: json.loads(content) for name, content in FIGURE.findall(page)}


def check_figures(page: str) -> None:
    """Every figure is one that plotly.js knows how to draw, with what is packed into the page."""
    from plotly.graph_objects import Figure

    for figure in figures_of(page).values():
        Figure(figure)
        assert {trace["type"] for trace in figure["data"]} <= {"scatter", "bar", "heatmap"}
