"""Bounds of a run."""

from dataclasses import dataclass

from rr86.errors import UsageError
from rr86.session.stop import Stop


@dataclass(frozen=True)
class Limits:
    """Bounds of a recording; None is unlimited.

    `instructions` counts all vCPUs, `time_ns` is virtual time, `trace_bytes` the file's size. The
    last two are looked at between calls of the core, so a run may go a little beyond them.
    """

    instructions: int | None = None
    time_ns: int | None = None
    trace_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("instructions", "time_ns", "trace_bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"the limit '{name}' must be positive, not {value}")

    def reached(self, stop: Stop, trace_bytes: int) -> str | None:
        """Which limit this moment has reached, in words."""
        if self.instructions is not None and stop.icount >= self.instructions:
            return f"{self.instructions:,} instructions"
        if self.time_ns is not None and stop.time_ns >= self.time_ns:
            return f"{self.time_ns / 1e9:g} s of virtual time"
        if self.trace_bytes is not None and trace_bytes >= self.trace_bytes:
            return f"a trace of {self.trace_bytes:,} bytes"
        return None
