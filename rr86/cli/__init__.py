"""The `rr86` command.

One module per command. What a call does not need is not imported: not the other commands, not what
a command works with before its options are read, and not typer where there is nothing to say about
the call itself.
"""

import gc
import os
import sys
from importlib import import_module

from rr86.cli.status import EPILOG, BadCall

# Module and closing words of each command, in the order in which help lists them.
COMMANDS: dict[str, tuple[str, str | None]] = {
    "record": ("rr86.cli.record", EPILOG),
    "replay": ("rr86.cli.replay", EPILOG),
    "checkpoint": ("rr86.cli.checkpoint", None),
    "info": ("rr86.cli.info", None),
    "events": ("rr86.cli.events", None),
    "sharing": ("rr86.cli.sharing", None),
    "symbols": ("rr86.cli.symbols", None),
    "protocols": ("rr86.cli.protocols", None),
    "who-wrote": ("rr86.cli.who_wrote", None),
    "bisect-invalidation": ("rr86.cli.bisect_invalidation", None),
}


def _fill_closed_streams() -> None:
    """Give each of stdin, stdout and stderr that was closed the null device.

    Otherwise Python has no stream there, and the next file to be opened, a trace say, would get its
    number: whatever is written to "standard error" then ends up in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def main() -> None:
    """Run the command line; the entry point of the `rr86` script."""
    _fill_closed_streams()
    # What is imported stays, and the collector need not look at it two dozen times meanwhile.
    gc.set_threshold(20_000)
    from rr86.cli.options import understood

    name, arguments = "".join(sys.argv[1:2]), sys.argv[2:]
    if name in COMMANDS:
        command = import_module(COMMANDS[name][0]).command
        values = understood(command, arguments)
        if values is not None:
            try:
                command(**values)
            except BadCall as error:
                from rr86.cli.app import end_by

                end_by(error, f"rr86 {name}")
            sys.exit()
    from rr86.cli.app import run

    run()
