"""What commands print at a stop."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rr86.cli.status import tell

if TYPE_CHECKING:
    from rr86.cpu.inspection import Inspector
    from rr86.replay.oracle import OracleReport
    from rr86.session.stop import Stop

# Gaps of the log that are shown; the report has more.
_GAPS_SHOWN = 20
# Stops after which people ask "what was it doing?".
WORTH_A_LOOK = frozenset({"condition", "triple-fault", "deadlock"})


def show_stop(stop: "Stop", inspector: "Inspector") -> None:
    """The reason and the moment; where it helps, the state of the vCPUs too."""
    if stop.reason not in WORTH_A_LOOK:
        tell(f"rr86: {stop.describe()}")
        return
    tell(f"rr86: {stop.describe(inspector.symbolizer(stop.vcpu), inspector.running)}")
    for line in inspector.report(stop.vcpu):
        tell(line)
    problem = inspector.symbols.problem
    if problem is not None:
        tell(f"rr86: no symbols: {problem}")
    elif inspector.symbols.offset is None:
        tell("rr86: no symbols yet: the kernel has not placed itself")


def show_oracle(report: "OracleReport", inspector: "Inspector") -> None:
    """What the oracle found, with the first gaps."""
    tell(
        f"rr86: oracle: {report.accesses:,} accesses seen, {report.foreign:,} of them to bytes "
        f"that another wrote, {report.missing:,} not told by {report.hand_offs:,} hand-offs"
    )
    if report.unseen is not None:
        tell(f"rr86: oracle: no write was seen to physical {report.unseen:#x}")
    for gap in report.gaps[:_GAPS_SHOWN]:
        tell(f"  {gap.describe(inspector.symbolize)}")
    if len(report.gaps) > _GAPS_SHOWN:
        tell("  …")


def show_statistics(statistics: Mapping[str, int], seconds: Mapping[str, float]) -> None:
    """The core's counters, and where the host's time went, one a line."""
    times = {f"seconds_{name}": value for name, value in seconds.items()}
    width = max((len(name) for name in (*statistics, *times)), default=0)
    for name, value in sorted(statistics.items()):
        tell(f"  {name:<{width}} {value:>20,}")
    for name, time in sorted(times.items(), key=lambda row: -row[1]):
        tell(f"  {name:<{width}} {time:>20.3f}")
