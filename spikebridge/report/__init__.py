"""Result files in, one self-contained HTML page out."""

from spikebridge.report.load import ReportError
from spikebridge.report.page import write

__all__ = ["ReportError", "write"]
