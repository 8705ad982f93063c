"""A trace as people get it from `rr86.open_trace`: what is in the file, replays of it, and the
answers that take a replay."""

from pathlib import Path
from typing import TYPE_CHECKING

from rr86.replay.recorded import RecordedRun

# What only some questions need is imported when they are asked: most traces are just replayed.
if TYPE_CHECKING:
    from rr86.replay.alone import AloneSession, ParallelReplay
    from rr86.replay.writers import WriteRecord
    from rr86.session.devices import Given
    from rr86.session.execution import Tick


class Trace(RecordedRun):
    """A trace file and ways to replay it. Opening reads its header; everything else is read when
    asked for."""

    def alone(
        self,
        vcpu: int,
        verify: bool = True,
        expansion: str | Path | None = None,
        tick: "Tick | None" = None,
    ) -> "AloneSession":
        """A replay of one vCPU without the others, at power-on. Needs the trace's expansion, which
        is made beside it (or at `expansion`) if there is none; `tick` watches that.

        Raises `UsageError` if the trace has no such vCPU, `ExpansionError` if it cannot have an
        expansion or that cannot be written, and what `session` and `ReplaySession.run` raise.
        """
        from rr86.replay.alone import alone

        return alone(self, vcpu, verify, None if expansion is None else Path(expansion), tick)

    def replay_parallel(
        self,
        jobs: int | None = None,
        verify: bool = True,
        expansion: str | Path | None = None,
    ) -> "ParallelReplay":
        """Replay every vCPU alone, several at a time; see `rr86.replay.alone.replay_parallel`.

        Raises what `alone` raises, and the first `DivergenceError` of any vCPU.
        """
        from rr86.replay.alone import replay_parallel

        return replay_parallel(self, jobs, verify, None if expansion is None else Path(expansion))

    def who_wrote(
        self,
        paddr: int,
        size: int = 1,
        at: int | None = None,
        expansion: str | Path | None = None,
    ) -> "list[WriteRecord]":
        """The last writes to bytes of physical memory before a moment (None: the trace's end). For
        many questions, `rr86.replay.WriteHistory` keeps what they share.

        Raises `AddressError` if that is not all RAM, and what `session` and `ReplaySession.run`
        raise.
        """
        from rr86.replay.writers import who_wrote

        return who_wrote(self, paddr, size, at, expansion)


def open_trace(path: str | Path, devices: "Given" = ()) -> Trace:
    """Open a trace file. `devices` are classes of devices in Python that it was recorded with, if
    it was: rr86 imports none by itself.

    Raises `TraceError` if there is none, or it is of another version, and `TraceContentError` if
    its header makes no sense.
    """
    return Trace(path, devices)
