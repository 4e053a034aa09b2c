"""The command line: one file per command, listed here in the order of `spikebridge --help`."""

COMMANDS = (
    "train",
    "compare",
    "search",
    "report",
    "demo",
    "info",
    "sample",
    "compose",
    "evaluate",
    "predict",
    "reproduce",
    "program",
    "export",
    "verify",
    "complexity",
    "bench",
)
