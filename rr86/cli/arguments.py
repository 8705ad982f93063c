"""What typer cannot say of a command line, put into words that it understands."""

import re
from collections.abc import Sequence

GDB_ARGUMENT = "--gdb-argument"


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments with which typer is called.

    `--gdb` may have an address behind it, and need not; what is behind `--` belongs to gdb.
    """
    found = list(arguments)
    if found[:1] == ["replay"]:
        return _with_address(found)
    if found[:1] == ["gdb"] and "--" in found:
        at = found.index("--")
        return found[:at] + [f"{GDB_ARGUMENT}={each}" for each in found[at + 1 :]]
    return found


def _with_address(arguments: list[str]) -> list[str]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for at in range(1, end):
        if arguments[at] == "--gdb":
            following = arguments[at + 1] if at + 1 < end else ""
            # A trace may follow, too: none is called like an address.
            if re.fullmatch(r"unix:.+|(.*:)?[0-9]+", following) is None:
                arguments[at] = "--gdb="
    return arguments
