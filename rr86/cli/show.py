"""What commands print at a stop."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rr86.cpu.inspection import Inspector
    from rr86.replay.oracle import OracleReport
    from rr86.replay.stop import Stop

# Gaps of the log that are shown; the report has more.
_GAPS_SHOWN = 20
# Stops after which people ask "what was it doing?".
WORTH_A_LOOK = frozenset({"condition", "triple-fault", "deadlock"})


def show_stop(stop: "Stop", inspector: "Inspector") -> None:
    """The reason and the moment; where it helps, the state of the vCPUs too."""
    if stop.reason not in WORTH_A_LOOK:
        print(f"rr86: {stop.describe()}", file=sys.stderr)
        return
    print(f"rr86: {stop.describe(inspector.symbolize)}", file=sys.stderr)
    for line in inspector.report(stop.vcpu):
        print(line, file=sys.stderr)
    problem = inspector.symbols.problem
    if problem is not None:
        print(f"rr86: no symbols: {problem}", file=sys.stderr)
    elif inspector.symbols.offset is None:
        print("rr86: no symbols yet: the kernel has not placed itself", file=sys.stderr)


def show_oracle(report: "OracleReport", inspector: "Inspector") -> None:
    """What the oracle found, with the first gaps."""
    print(
        f"rr86: oracle: {report.accesses:,} accesses seen, {report.foreign:,} of them to bytes "
        f"that another wrote, {report.missing:,} not told by {report.hand_offs:,} hand-offs",
        file=sys.stderr,
    )
    if report.unseen is not None:
        print(
            f"rr86: oracle: nobody was seen to write physical {report.unseen:#x}", file=sys.stderr
        )
    for gap in report.gaps[:_GAPS_SHOWN]:
        print(f"  {gap.describe(inspector.symbolize)}", file=sys.stderr)
    if len(report.gaps) > _GAPS_SHOWN:
        print("  …", file=sys.stderr)


def show_statistics(statistics: Mapping[str, int], seconds: Mapping[str, float]) -> None:
    """The core's counters, and where the host's time went, one a line."""
    times = {f"seconds_{name}": value for name, value in seconds.items()}
    width = max((len(name) for name in (*statistics, *times)), default=0)
    for name, value in sorted(statistics.items()):
        print(f"  {name:<{width}} {value:>20,}", file=sys.stderr)
    for name, time in sorted(times.items(), key=lambda row: -row[1]):
        print(f"  {name:<{width}} {time:>20.3f}", file=sys.stderr)
