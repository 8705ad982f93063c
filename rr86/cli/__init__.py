"""The `rr86` command.

One module per command. What a call does not need is not imported: not the other commands, and not
what a command works with before its options are read (docs/decisions/start-up.md).
"""

import gc
import os
import sys


def _open_standard_streams() -> None:
    """Stand /dev/null in for standard streams that the caller has closed: a trace must not get the
    number of one of them, nor what is said there."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def main() -> None:
    """Run the command line; the entry point of the `rr86` script."""
    _open_standard_streams()
    # What is imported stays, and the collector need not look at it two dozen times meanwhile.
    gc.set_threshold(20_000)
    from rr86.cli.app import run

    run()
