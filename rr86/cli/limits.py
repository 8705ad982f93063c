"""The options of commands that run a guest live: where the run ends, and its checkpoints."""

from typing import Annotated

from typer import Option

from rr86.cli.values import parse_bytes, parse_count, parse_duration

LimitInstructions = Annotated[
    int | None,
    Option(
        "--limit-instructions",
        metavar="N",
        parser=parse_count,
        help="End after so many, counted from power-on, as 500M or 2G.",
    ),
]
LimitVirtualTime = Annotated[
    int | None,
    Option(
        "--limit-virtual-time",
        metavar="TIME",
        parser=parse_duration,
        help="End after so long, counted from power-on, as 10s or 2m.",
    ),
]
LimitTraceSize = Annotated[
    int | None,
    Option(
        "--limit-trace-size",
        metavar="SIZE",
        parser=parse_bytes,
        help="End at this size, as 100M or 2G.",
    ),
]
Checkpoints = Annotated[
    int | None,
    Option(
        "--checkpoints",
        metavar="EVERY",
        parser=parse_count,
        help="Keep the whole machine after every so many instructions, as 200M: replays then "
        "reach later moments at once.",
    ),
]
