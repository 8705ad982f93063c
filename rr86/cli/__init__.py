"""The `rr86` command.

One module per command; what a command needs beyond its options is imported when it runs, so that
a mistyped option is answered at once.
"""

import gc
import signal
import sys
from typing import Any

import typer

from rr86.cli import (
    bisect_invalidation,
    checkpoint,
    events,
    info,
    protocols,
    record,
    replay,
    sharing,
    symbols,
    who_wrote,
)
from rr86.cli.status import EPILOG, say

app = typer.Typer(
    name="rr86",
    help="Record and replay whole multi-core x86-64 machines, bit-exactly.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from rr86 import __version__

        typer.echo(f"rr86 {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


app.command("record", epilog=EPILOG)(record.command)
app.command("replay", epilog=EPILOG)(replay.command)
app.command("checkpoint")(checkpoint.command)
app.command("info")(info.command)
app.command("events")(events.command)
app.command("sharing")(sharing.command)
app.command("symbols")(symbols.command)
app.command("protocols")(protocols.command)
app.command("who-wrote")(who_wrote.command)
app.command("bisect-invalidation")(bisect_invalidation.command)


# The root of the errors in how a command was called, whichever click typer brings along.
_CallError: Any = typer.BadParameter.__mro__[2]


def main() -> None:
    """Run the command line; the entry point of the `rr86` script."""
    # What has been imported stays; the collections of a start, some dozens, need not look at it.
    gc.freeze()
    try:
        sys.exit(app(prog_name="rr86", standalone_mode=False))
    except _CallError as error:
        context = error.ctx
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            message = " ".join(error.format_message().split()).rstrip(".")
            say(f"error: {message} (see '{context.command_path if context else 'rr86'} --help')")
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(128 + signal.SIGINT)
