"""Exit statuses, and errors as one line for a person."""

import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NoReturn, ParamSpec

from rr86.errors import DivergenceError, Error, UsageError

if TYPE_CHECKING:
    from rr86.session.conditions import Condition
    from rr86.session.stop import Stop

OK = 0
ERROR = 1
USAGE = 2
UNFINISHED = 3
DIVERGENCE = 4
NEVER_MET = 6

EPILOG = (
    "Exit status: 0 if the guest powered off or asked for a reset, a condition was met or the "
    "trace ended; 1 for an error; 2 for wrong usage; 3 for a limit, a triple fault or a deadlock; "
    "4 if a replay left the recorded path; 6 if the run came to its end and no condition of "
    "--until was met; (v<<1)|1 if the guest wrote v to the debug-exit port, as in QEMU; 128+n if "
    "signal n ended it."
)

P = ParamSpec("P")


class Exit(SystemExit):
    """The end of a command, with its status."""


class Failure(Exit):
    """The end of a command by an error, which has been told."""


def of_stop(stop: "Stop", unmet: bool = False) -> int:
    """The exit status that a stop means; `unmet` if it was to be at a condition, and is at none."""
    if stop.reason == "debug-exit":
        return (stop.code << 1 | 1) & 0xFF
    if stop.reason in ("limit", "triple-fault", "deadlock"):
        return UNFINISHED
    return NEVER_MET if unmet else OK


def never_met(conditions: "Iterable[Condition]", stop: "Stop") -> list[str]:
    """The conditions that a run waited for until it was over, or until a limit ended it."""
    if not stop.over and stop.reason != "limit":
        return []
    return [str(each) for each in conditions if each.kind != "end"]


def fail(message: str, status: int = ERROR) -> NoReturn:
    """End with one line on stderr."""
    say(f"error: {message}")
    raise Failure(status)


def say(message: str) -> None:
    """One line on stderr, in rr86's name."""
    tell(f"rr86: {message}")


def tell(line: str) -> None:
    """One line on stderr; where that cannot be written, a command goes on with its work."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # Python would try once more at the end, and fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _known_error(error: BaseException) -> tuple[str, int] | None:
    """Message and exit status of an error that was raised on purpose."""
    if isinstance(error, DivergenceError):
        return f"the replay diverged: {error}", DIVERGENCE
    if isinstance(error, Error):
        return str(error), USAGE if isinstance(error, UsageError) else ERROR
    if isinstance(error, ModuleNotFoundError) and error.name == "rr86._native":
        return "the native core (rr86._native) is not installed for this Python and host", ERROR
    if isinstance(error, MemoryError):
        return "the host has too little memory for this guest", ERROR
    if isinstance(error, OSError) and error.strerror:
        where = f"'{error.filename}': " if error.filename else ""
        return f"{where}{error.strerror}", ERROR
    return None


def reporting_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Make a command end with one line and a status instead of a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            # Whoever read our output has seen enough; keep Python from complaining at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise Exit(141) from None
        except KeyboardInterrupt:
            raise Exit(130) from None
        except BaseException as error:
            if type(error).__name__ == "PanicException":
                # The core has told about its bug in a line of its own.
                raise Exit(ERROR) from None
            known = _known_error(error)
            if known is None:
                raise
            message, status = known
            fail(" ".join(message.split()), status)

    return wrapped
