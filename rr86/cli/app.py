"""The command line: typer reads it, and of the commands' modules the one that is called is
imported."""

import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from rr86.cli.arguments import prepared
from rr86.cli.commands import COMMANDS
from rr86.cli.status import EPILOG, say
from rr86.version import __version__


class _Commands(TyperGroup):
    """The commands of rr86, each imported when it is asked for: help asks for all of them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # The names are there from the beginning: typer looks among them for what was meant.
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order in which help lists them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; None if there is none."""
        if self.commands.get(cmd_name) is None and cmd_name in COMMANDS:
            module, epilog = COMMANDS[cmd_name]
            alone = typer.Typer(**_SETTINGS)
            alone.command(cmd_name, epilog=epilog)(import_module(module).command)
            self.commands[cmd_name] = get_command(alone)
        return self.commands.get(cmd_name)


# What would import rich, or more, is left out.
_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="rr86",
    cls=_Commands,
    help="Record and replay whole multi-core x86-64 machines, bit-exactly.",
    epilog=EPILOG,
    no_args_is_help=True,
    **_SETTINGS,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rr86 {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


# The root of the errors in how a command was called, whichever click typer brings along.
CallError: Any = typer.BadParameter.__mro__[2]


def _end_by(error: Any) -> NoReturn:
    """End with what is wrong with a call."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        message = " ".join(error.format_message().split()).rstrip(".")
        path = context.command_path if context else "rr86"
        say(f"error: {message} (see '{path} --help')")
    sys.exit(error.exit_code)


def run() -> NoReturn:
    """Run the command line."""
    try:
        sys.exit(app(prepared(sys.argv[1:]), prog_name="rr86", standalone_mode=False))
    except CallError as error:
        _end_by(error)
    except typer.Abort:
        sys.exit(128 + signal.SIGINT)
