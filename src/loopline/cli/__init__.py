"""The command line, one file per noun; speaks through `sdk.client`; imports lazily so that --help is quick."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``loopline``: exits 0 done, 1 error, 2 wrong usage, 3 the gate refused, 4 it took too long."""
    from loopline.cli.root import run

    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))
