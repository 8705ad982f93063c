"""Options of several commands about where a guest's output and a command's report go."""

import errno
import os
from pathlib import Path
from typing import Annotated

from typer import Option

ConsoleFile = Annotated[
    str | None,
    Option("--console", metavar="FILE", help="The serial console's output into this file."),
]
DebugconFile = Annotated[
    str | None,
    Option(
        "--debugcon",
        metavar="FILE|-",
        help="The debug console's output (ports 0xe9 and 0x402) into this file, or to stdout; "
        "by default it is on the console until the guest uses its serial port.",
    ),
]
Programs = Annotated[
    list[Path] | None,
    Option(
        "--symbols",
        metavar="FILE",
        help="An ELF file with the symbols of a program that the guest runs under this name, for "
        "symbol=PROGRAM:NAME and for call stacks; may be given several times. Programs in the "
        "initrd are found without.",
    ),
]
AsJson = Annotated[
    bool,
    Option("--json", help="The report as one JSON object on stdout; the console on stderr."),
]


def expect_folder(path: Path) -> None:
    """Raises `OSError` where a file cannot be because its folder is not there: long work shall not
    end by that."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
