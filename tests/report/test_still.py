"""The words beside still pictures and tables."""

from __future__ import annotations

from spikebridge.report.still import _by_paper


def test_sources_of_one_paper_are_put_together() -> None:
    sources = ["A 2020, chart: SNU", "B 2018, table", "A 2020, chart: LSTM", "A 2020, chart: SNU"]
    assert _by_paper(sources) == ["A 2020, chart: SNU; LSTM", "B 2018, table"]
    assert _by_paper([]) == []
