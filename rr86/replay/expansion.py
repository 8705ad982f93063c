"""Expansions: what one full replay of a trace yields and the trace itself does not hold.

An expansion lies beside its trace (`boot.rr86`, `boot.rr86.expansion`). It has the inputs of every
vCPU, so that one can be replayed alone, and on demand the last stores to the lines that more than
one agent touched. It can be made again at any time, so one that is missing, unfinished or of
another trace is simply made; it gets its name only when it is whole.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.errors import ExpansionError
from rr86.session.execution import Tick

if TYPE_CHECKING:
    from rr86._native import ExpansionReader
    from rr86.machine.spec import BoardSpec
    from rr86.replay.recorded import RecordedRun

SUFFIX = ".expansion"
_MAGIC = b"\x89RR86x\r\n"


def beside(trace: "RecordedRun") -> Path:
    """Where the expansion of a trace is, unless somebody names another place."""
    return trace.path.with_name(trace.path.name + SUFFIX)


def why_not(spec: "BoardSpec") -> str | None:
    """Why traces of such a board have no use for an expansion; None if they have."""
    if spec.protocol != "precise":
        return (
            f"the block protocol is {spec.protocol}, and only under precise does a vCPU's run "
            "follow from its inputs alone"
        )
    if not spec.cross_writes:
        return "it was recorded without the log of cross-vCPU writes"
    return None


def find(
    trace: "RecordedRun", path: Path | None = None, stores: bool = False
) -> "ExpansionReader | None":
    """The expansion of a trace if there is a whole one, with the stores if these are needed."""
    from rr86._native import ExpansionReader

    found = ExpansionReader.open(str(trace.path), str(path or beside(trace)))
    return None if found is None or (stores and not found.has_stores()) else found


def expand(
    trace: "RecordedRun",
    path: Path | None = None,
    stores: bool = False,
    tick: Tick | None = None,
) -> Path:
    """The expansion of a trace: the one that is there, if it will do, or else a new one.

    A new one costs a full replay, in which `stores` asks for the last stores to shared lines too.
    `tick` is told how far it is, and ends it with a true answer (`KeyboardInterrupt`).
    """
    reason = why_not(trace.spec)
    if reason is not None:
        raise ExpansionError(f"'{trace.path}' cannot be expanded: {reason}")
    place = path or beside(trace)
    if find(trace, place, stores) is not None:
        return place
    _refuse_foreign(place)
    unfinished = place.with_name(f"{place.name}.{os.getpid()}.unfinished")
    try:
        unfinished.touch()
    except OSError as error:
        raise ExpansionError(
            f"the expansion '{place}' cannot be written ({error.strerror}); name another place for "
            "it with --expansion PATH",
            path=place,
        ) from None
    try:
        _make(trace, unfinished, stores, tick)
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)
    return place


def _make(trace: "RecordedRun", path: Path, stores: bool, tick: Tick | None) -> None:
    session = trace.session()
    session.machine.expand_to(str(trace.path), str(path), stores)
    stop = session.run(tick=tick)
    if not stop.over:
        raise KeyboardInterrupt
    session.machine.finish_expansion()


def _refuse_foreign(place: Path) -> None:
    """Never overwrite a file that is something else."""
    try:
        with place.open("rb") as file:
            head = file.read(len(_MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ExpansionError(
            f"the expansion '{place}' cannot be read ({error.strerror}); name another place for it "
            "with --expansion PATH",
            path=place,
        ) from None
    if head and head != _MAGIC:
        raise ExpansionError(f"'{place}' is not an expansion, and is left as it is", path=place)
