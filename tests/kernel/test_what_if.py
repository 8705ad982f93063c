"""Branches of a boot of Linux, and where values in its memory come from."""

from pathlib import Path

import rr86
from rr86.analysis.origin import origin
from rr86.replay.travel import TimeTravel
from tests.kernel.debian import Boot

# Of `struct new_utsname`, with which `init_uts_ns` begins: sysname, nodename, release.
RELEASE = 2 * 65


def test_what_a_branch_changed_is_what_the_guest_sees(boot: Boot, tmp_path: Path) -> None:
    session = boot.trace.session(verify=False)
    session.run(until="console=@release")
    ((names, _),) = boot.trace.names().ranges("init_uts_ns")
    heard = bytearray()
    path = tmp_path / "branch.rr86"
    with session.branch(
        output=path,
        console=heard.extend,
        schedule="recorded",
        writes=[(names + RELEASE, b"what-if\0")],
    ) as branch:
        stop = branch.run(until="console=@modules", limits=rr86.Limits(boot.last + 100_000_000))
        assert stop.reason == "condition"
    assert b"\nwhat-if\r" in heard
    replayed = rr86.open_trace(path).session()
    again = replayed.run(until="console=@modules")
    assert (again.icount, again.vcpu) == (stop.icount, stop.vcpu)
    replayed.run()
    assert replayed.compared_digests()[0] > 0
    assert replayed.console.startswith(bytes(heard))


def test_the_task_of_each_cpu_is_followed_through_the_scheduler(boot: Boot) -> None:
    names = boot.trace.names()
    # Since 6.2 it is the first member of a structure.
    symbol = next(
        each
        for each in ("current_task", "pcpu_hot")
        if boot.trace.symbols().table is not None and _has(boot, each)
    )
    travel = TimeTravel(boot.trace)
    travel.goto(boot.moments["tasks"])
    (paddr, _), *_ = names.ranges(symbol)
    hops = origin(travel, paddr, 8)
    assert "lost" not in [hop.kind for hop in hops]
    assert hops[0].symbol is not None
    assert hops[0].symbol.startswith("__switch_to")
    assert {hop.value for hop in hops} == {travel.session.memory(paddr, 8)}
    assert hops[-1].is_end
    assert len(hops) > 5


def _has(boot: Boot, symbol: str) -> bool:
    try:
        return bool(boot.trace.names().ranges(symbol))
    except rr86.SymbolsError:
        return False
