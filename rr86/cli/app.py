"""The command line as typer understands it: help, and words for what is wrong with a call."""

import functools
import inspect
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from rr86.cli.commands import COMMANDS
from rr86.cli.options import Argument, declaration
from rr86.cli.status import EPILOG, BadCall, say

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
        from rr86.version import __version__

        typer.echo(f"rr86 {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with typer's exception where it has ours."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BadCall as error:
            raise typer.BadParameter(str(error)) from None

    return called


def for_typer(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its parameters declared in typer's terms."""
    called = _refusing(command)
    parameters = []
    for each in inspect.signature(command).parameters.values():
        kind, declared = declaration(each)
        make: Any = typer.Argument if isinstance(declared, Argument) else typer.Option
        info = make(
            *declared.names,
            help=declared.help,
            metavar=declared.metavar,
            parser=None if declared.parser is None else _refusing(declared.parser),
            min=declared.min,
        )
        parameters.append(each.replace(annotation=Annotated[kind, info]))
    # typer asks for both.
    called.__dict__["__signature__"] = inspect.Signature(parameters)
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


for _name, (_module, _epilog) in COMMANDS.items():
    app.command(_name, epilog=_epilog)(for_typer(import_module(_module).command))


# The root of the errors in how a command was called, whichever click typer brings along.
CallError: Any = typer.BadParameter.__mro__[2]


def end_by(error: Any, path: str) -> NoReturn:
    """End with what is wrong with a call, which was one of `path` if the error does not say."""
    if isinstance(error, BadCall):
        error = typer.BadParameter(str(error))
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        message = " ".join(error.format_message().split()).rstrip(".")
        say(f"error: {message} (see '{context.command_path if context else path} --help')")
    sys.exit(error.exit_code)


def run() -> NoReturn:
    """Run the command line."""
    try:
        sys.exit(app(prog_name="rr86", standalone_mode=False))
    except CallError as error:
        end_by(error, "rr86")
    except typer.Abort:
        sys.exit(128 + signal.SIGINT)
