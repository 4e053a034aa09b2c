"""Result files in, one self-contained HTML page out."""

from spikebridge.report.page import write
from spikebridge.runs.load import ReportError

__all__ = ["ReportError", "write"]
