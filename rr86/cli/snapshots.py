"""The option that says how much memory the snapshots of a replay may take."""

from typing import Annotated

from typer import Option

from rr86.cli.values import parse_bytes

SnapshotMemory = Annotated[
    int | None,
    Option(
        "--memory-for-snapshots",
        metavar="SIZE",
        parser=parse_bytes,
        help="How much memory the moments may take that going back begins at; by default 1G.",
    ),
]
