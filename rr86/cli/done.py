"""What there is to say about a replay that has stopped, for people and for programs."""

from typing import TYPE_CHECKING

from rr86.cli.status import never_met, say

if TYPE_CHECKING:
    from rr86.replay.oracle import OracleReport
    from rr86.replay.session import ReplaySession
    from rr86.replay.trace import Trace
    from rr86.session.conditions import Condition
    from rr86.session.stop import Stop


class Done:
    """A replay that has stopped, and what there is to say about that."""

    def __init__(
        self,
        trace: "Trace",
        session: "ReplaySession",
        stop: "Stop",
        conditions: "list[Condition]",
    ) -> None:
        from rr86.session.int3 import explain

        self.trace = trace
        self.session = session
        self.stop = stop
        self.unmet = never_met(conditions, stop)
        # At a condition that was met, or at an end that was asked for, nothing is missing.
        self.failed = bool(self.unmet) and stop.condition is None
        self.int3 = explain(session.machine, stop.vcpu, stop.condition)

    def report(self, speed: str) -> None:
        """For people, on stderr."""
        from rr86.cli.show import show_stop
        from rr86.session.conditions import Int3

        show_stop(self.stop, self.session.inspector)
        if self.int3 is not None:
            say(self.int3)
        if isinstance(self.stop.condition, Int3):
            stale, blocks = self.trace.stale_int3s, self.trace.stale_executions
            if stale:
                say(
                    f"memory did not hold {stale:,} of the INT3s executed in this trace; int3 "
                    "stops at these alone, any-int3 at every one"
                )
            elif blocks:
                some = f"{blocks:,} block{'s' * (blocks != 1)}"
                say(
                    f"memory held every INT3 executed in this trace, but not {some} of other "
                    "instructions; stale stops there"
                )
        digests, moments = self.session.compared_digests()
        if digests and self.stop.over:
            say(f"{digests:,} digests were compared at {moments:,} moments, and all are equal")
        say(speed)

    def tell_unmet(self) -> None:
        """Say which conditions were waited for in vain."""
        if self.unmet:
            say(f"never met: {', '.join(self.unmet)}")

    def print_json(
        self, status: int, verified: bool, oracle: "OracleReport | None", stats: bool
    ) -> None:
        """For programs, on stdout."""
        from rr86.cli.as_json import of_counters, of_machine, of_oracle, of_run, print_json

        session = self.session
        digests, moments = session.compared_digests()
        content: dict[str, object] = {
            "trace": str(self.trace.path),
            "began": session.began,
            **of_run(self.stop, self.unmet, status),
            "verified": verified,
            "digests_equal": digests,
            "digest_moments": moments,
            "int3": self.int3,
            "stale_int3s": self.trace.stale_int3s,
            **of_machine(self.stop, session.inspector),
        }
        if oracle is not None:
            content["oracle"] = of_oracle(oracle, session.inspector)
        if stats:
            content |= of_counters(session.statistics(), session.seconds())
        print_json(content)
