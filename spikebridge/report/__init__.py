"""Result files in, one self-contained HTML page out.

A section of your own is a function that takes the loaded run and returns a Section, whose blocks
hold cards, tables and figures: `write(folder, sections=[function])`.
"""

from spikebridge.report.page import write
from spikebridge.report.theme import Block, Card, Chart, Section, Table, figure, figures
from spikebridge.runs.load import ReportError

__all__ = [
    "Block",
    "Card",
    "Chart",
    "ReportError",
    "Section",
    "Table",
    "figure",
    "figures",
    "write",
]
