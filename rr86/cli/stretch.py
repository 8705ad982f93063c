"""The options of commands that look at a stretch of a recording."""

from typing import Annotated

from typer import Option

from rr86.cli.values import parse_moment

From = Annotated[
    int | None,
    Option("--from", metavar="ICOUNT", parser=parse_moment, help="From this moment."),
]
To = Annotated[
    int | None,
    Option("--to", metavar="ICOUNT", parser=parse_moment, help="Up to this moment."),
]
