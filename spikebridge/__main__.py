"""`spikebridge` and `python -m spikebridge`: the command line, or what it lacks."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; its exit code."""
    try:
        from spikebridge.cli import main as cli
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        print(f"spikebridge: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nspikebridge: interrupted; nothing was begun", file=sys.stderr)
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
