"""`rr86 drgn`: drgn on a moment of a recording."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from rr86.cli.devices import Devices
from rr86.cli.moment import At, standing_at
from rr86.cli.status import ERROR, Exit, fail, reporting_errors

if TYPE_CHECKING:
    import drgn

    from rr86.replay.session import ReplaySession


@reporting_errors
def command(
    arguments: Annotated[
        list[str] | None,
        Argument(
            metavar="[TRACE] [SCRIPT [ARGUMENT]...]",
            help="A trace, by default the newest one here; and a script, whose name ends with .py, "
            "with its arguments.",
        ),
    ] = None,
    at: At = None,
    execute: Annotated[
        str | None, Option("-e", "--exec", metavar="CODE", help="Python to run instead.")
    ] = None,
    vmlinux: Annotated[
        Path | None,
        Option(
            "--vmlinux",
            metavar="FILE",
            help="The kernel with debugging information, of the guest's own build. By default that "
            "of an installed debug package, if there is one for this kernel.",
        ),
    ] = None,
    device: Devices = None,
) -> None:
    """Look into the Linux that runs in the guest with drgn: at a prompt, or by a script.

    `prog` is the guest's memory at the moment, `session` the replay that stands there. Without
    debugging information, types are those that the kernel carries (BTF), symbols those of its
    kallsyms: tasks, structures and stacks work, source lines and local variables do not. Needs
    drgn: pip install 'rr86[drgn]'.
    """
    words = list(arguments or ())
    trace = Path(words.pop(0)) if words and not words[0].endswith(".py") else None
    if execute is not None and words:
        fail("--exec and a script exclude each other", 2)
    if words and not Path(words[0]).is_file():
        fail(f"'{words[0]}' does not exist")
    with standing_at(trace, at, device) as (_, session):
        prog = session.drgn(vmlinux)
        if execute is not None:
            _execute(prog, session, execute)
        elif words:
            _script(prog, session, words)
        else:
            _prompt(prog, session)


def _names(prog: "drgn.Program", session: "ReplaySession") -> dict[str, Any]:
    """What a script or a prompt has from the start, as drgn's own has it."""
    import importlib

    import drgn

    names: dict[str, Any] = {"prog": prog, "session": session, "drgn": drgn}
    for module in ("drgn", "drgn.helpers.common", "drgn.helpers.linux"):
        found = importlib.import_module(module)
        names |= {name: getattr(found, name) for name in getattr(found, "__all__", ())}
    return names


def _execute(prog: "drgn.Program", session: "ReplaySession", code: str) -> None:
    import drgn

    drgn.set_default_prog(prog)
    with _own_errors("<exec>"):
        exec(compile(code, "<exec>", "exec"), {"__name__": "__main__", **_names(prog, session)})


def _script(prog: "drgn.Program", session: "ReplaySession", words: list[str]) -> None:
    import runpy
    import sys

    import drgn

    drgn.set_default_prog(prog)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    with _own_errors(words[0]):
        runpy.run_path(words[0], {"prog": prog, "session": session}, "__main__")


@contextmanager
def _own_errors(name: str) -> Iterator[None]:
    """Show what went wrong in a user's code from where that begins."""
    try:
        yield
    except Exception as error:
        import traceback

        at = error.__traceback__
        while at is not None and at.tb_frame.f_code.co_filename != name:
            at = at.tb_next
        # A syntax error has no frame in the code.
        traceback.print_exception(error.with_traceback(at), limit=None if at else 0)
        raise Exit(ERROR) from None


def _prompt(prog: "drgn.Program", session: "ReplaySession") -> None:
    from drgn.cli import run_interactive

    def names(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "session": session}

    moment = f"The guest stands before instruction {session.icount:,}: prog is its memory."
    run_interactive(prog, banner_func=lambda banner: f"{banner}\n{moment}", globals_func=names)
