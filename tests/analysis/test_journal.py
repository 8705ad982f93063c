"""The core's journal: what it notes is what happened, and noting it changes nothing."""

from __future__ import annotations

from collections import Counter

import pytest

import rr86
from rr86.session.conditions import Rip
from tests.analysis.conftest import Record
from tests.guests.machines import Recorded, assert_same_run, finished

Row = tuple[int, int, int, str, tuple[int | bytes, ...]]
Probes = list[tuple[int, list[tuple[str, int, int]]]]


def journal(session: rr86.ReplaySession, probes: Probes) -> tuple[rr86.Stop, list[Row]]:
    """Replay to the end with a journal."""
    rows: list[Row] = []
    session.machine.keep_journal(probes)

    def take(_: rr86.Stop) -> None:
        found, left_out = session.machine.take_journal()
        assert not left_out
        rows.extend(found)

    stop = session.run(tick=take)
    take(stop)
    return stop, rows


def address(trace: rr86.Trace, name: str) -> int:
    table = trace.symbols().table
    assert table is not None
    return table.address(name)


def test_a_journal_with_probes_leaves_the_run_as_it_was(smp: Recorded) -> None:
    trace = smp.trace()
    probes: Probes = [(address(trace, name), [("rsp", 0, 64)]) for name in ("meet", "on_ipi")]
    session = trace.session()
    stop, rows = journal(session, probes)
    assert any(row[3] == "probe" for row in rows)
    assert_same_run(finished(session, stop), smp.outcome)


def test_every_interrupt_is_noted_with_its_return(smp: Recorded) -> None:
    session = smp.trace().session()
    _, rows = journal(session, [])
    kinds = Counter(row[3] for row in rows)
    assert kinds["interrupt"] == session.statistics()["interrupts"] > 100
    assert kinds["return"] == kinds["interrupt"] + kinds["nmi"] + kinds["exception"]
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)


def test_console_output_is_noted_byte_by_byte(smp: Recorded) -> None:
    session = smp.trace().session()
    _, rows = journal(session, [])
    sent = bytes(row[4][0] for row in rows if row[3] == "output")  # type: ignore[misc]
    assert sent == smp.outcome.console


def test_a_probe_notes_what_a_stop_at_its_place_shows(smp: Recorded) -> None:
    trace = smp.trace()
    place = address(trace, "on_ipi")
    _, rows = journal(trace.session(), [(place, [("rdi", 0, 0), ("rdi", 0, 16), ("rsp", -8, 0)])])
    noted = [(row[1], row[2], row[4][1]) for row in rows if row[3] == "probe"]
    session = trace.session()
    seen = []
    while (stop := session.run(Rip(place))).reason == "condition":
        registers = session.registers(stop.vcpu)
        seen.append(
            (
                stop.icount,
                stop.vcpu,
                registers["rdi"].to_bytes(8, "little")
                + session.read_virtual(registers["rdi"], 16, stop.vcpu)
                + (registers["rsp"] - 8).to_bytes(8, "little"),
            )
        )
    assert noted == seen
    assert len(seen) > 100


def test_a_condition_stops_where_there_is_a_probe_too(smp: Recorded) -> None:
    trace = smp.trace()
    place = address(trace, "meet")
    without = trace.session().run(Rip(place))
    session = trace.session()
    session.machine.keep_journal([(place, [])])
    stop = session.run(Rip(place))
    assert (stop.reason, stop.icount, stop.vcpu) == ("condition", without.icount, without.vcpu)
    again = session.run(Rip(place))
    assert again.icount > stop.icount
    rows, _ = session.machine.take_journal()
    assert [row[1] for row in rows if row[3] == "probe"] == [stop.icount, again.icount]


def test_unmapped_memory_is_noted_as_zeros(smp: Recorded) -> None:
    trace = smp.trace()
    _, rows = journal(trace.session(), [(address(trace, "meet"), [("rsp", 1 << 45, 24)])])
    noted = {row[4][1] for row in rows if row[3] == "probe"}
    assert noted == {bytes(24)}


def test_system_calls_and_returns_to_programs_are_noted(record: Record) -> None:
    recorded = record("user")
    _, rows = journal(recorded.trace().session(), [])
    calls = [row[4][0] for row in rows if row[3] == "system-call"]
    # What u_syscall and u_sysenter have in rax.
    assert {0x77, 0x99} == set(calls)
    assert any(row[3] == "system-return" for row in rows)
    to_user = [row for row in rows if row[3] == "return" and row[4][0]]
    assert to_user
    software = [row[4] for row in rows if row[3] == "software"]
    assert (0x80, 1) in {(fields[0], int(bool(fields[2]))) for fields in software}


def test_interrupts_of_the_local_timer_are_told_from_others(record: Record) -> None:
    recorded = record("timers")
    _, rows = journal(recorded.trace().session(), [])
    timer = Counter(row[4][0] for row in rows if row[3] == "interrupt" and row[4][1])
    others = Counter(row[4][0] for row in rows if row[3] == "interrupt" and not row[4][1])
    # The guest's vectors: 0x31 for the APIC's timer; PIT, HPET and RTC have others.
    assert set(timer) == {0x31}
    assert {0x30, 0x32, 0x38} <= set(others)


@pytest.mark.parametrize(
    ("fetch", "message"),
    [(("rip", 0, 0), "no register 'rip'|no register \"rip\""), (("rax", 0, 5000), "at most 4096")],
)
def test_probes_that_make_no_sense_are_refused(
    smp: Recorded, fetch: tuple[str, int, int], message: str
) -> None:
    with pytest.raises(rr86.NativeError, match=message):
        smp.trace().session().machine.keep_journal([(0x100000, [fetch])])
