"""Where a run stopped, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.session.conditions import Condition

if TYPE_CHECKING:
    from rr86._native import StopInfo

# Reasons that leave the machine able to go on; after every other one the run is over.
RESUMABLE = frozenset({"condition", "limit", "time-up", "begin"})


@dataclass(frozen=True)
class Stop:
    """A stop: its reason and its moment (`icount` instructions over all vCPUs, and the vCPU).

    `reason` is one of "condition", "limit", "poweroff", "reset", "debug-exit", "triple-fault",
    "deadlock", "end" (of a replayed trace), "begin" (of one that was gone back in) and
    "interrupted" (by the user).
    """

    reason: str
    vcpu: int
    icount: int
    time_ns: int
    rip: int
    condition: Condition | None = None
    code: int = 0
    detail: str = ""

    @property
    def over(self) -> bool:
        """Whether the guest cannot run on from here."""
        return self.reason not in RESUMABLE and self.reason != "interrupted"

    def describe(
        self,
        symbolize: Callable[[int], str | None] | None = None,
        running: Callable[[int], str | None] | None = None,
    ) -> str:
        """Reason and moment in one line. `running` says what a vCPU runs, as `Inspector.running`
        does."""
        what = {
            "condition": f"condition {self.condition} met",
            "limit": "limit reached",
            "poweroff": "guest powered off",
            "reset": "guest asked for a reset",
            "debug-exit": f"guest wrote {self.code} to the debug-exit port",
            "triple-fault": "triple fault",
            "deadlock": "all vCPUs wait for ever",
            "end": "end of the trace",
            "interrupted": "interrupted",
            "begin": "beginning of the trace",
        }.get(self.reason, self.reason)
        name = symbolize(self.rip) if symbolize is not None else None
        place = f"{self.rip:#x} <{name}>" if name else f"{self.rip:#x}"
        process = running(self.vcpu) if running is not None else None
        vcpu = f"vCPU {self.vcpu}, {process}" if process else f"vCPU {self.vcpu}"
        line = (
            f"{what} at instruction {self.icount:,} on {vcpu}, "
            f"{self.time_ns / 1e9:.6f} s of virtual time, rip {place}"
        )
        return f"{line} ({self.detail})" if self.detail else line

    def as_dict(self) -> dict[str, object]:
        """The stop as plain data, for JSON and for trace footers."""
        return {
            "reason": self.reason,
            "condition": None if self.condition is None else str(self.condition),
            "vcpu": self.vcpu,
            "icount": self.icount,
            "time_ns": self.time_ns,
            "rip": self.rip,
            "code": self.code,
            "detail": self.detail,
        }


def from_native(info: "StopInfo", condition: Condition | None) -> Stop:
    """A `Stop` from what the native core reports."""
    return Stop(
        reason=info["reason"],
        vcpu=info["vcpu"],
        icount=info["icount"],
        time_ns=info["time_ns"],
        rip=info["rip"],
        condition=condition,
        code=info["code"],
        detail=info["detail"],
    )
