"""Replays of the embedded guest on the real core: exact stops, independent sessions, damage."""

from pathlib import Path

import pytest

import rr86
from rr86.errors import Error
from rr86.replay.trace import open_trace


@pytest.fixture(scope="module")
def whole(demo_trace: Path) -> tuple[rr86.Stop, bytes]:
    session = open_trace(demo_trace).session()
    stop = session.run()
    return stop, session.console


def test_a_replay_ends_like_its_recording(whole: tuple[rr86.Stop, bytes]) -> None:
    stop, console = whole
    assert stop.reason == "poweroff"
    assert b"All is well" in console


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.33, 0.5, 0.77, 0.999])
def test_icount_stops_exactly_there_on_every_way(
    demo_trace: Path, whole: tuple[rr86.Stop, bytes], share: float
) -> None:
    end, console = whole
    moment = int(end.icount * share)
    trace = open_trace(demo_trace)
    direct, stepwise = trace.session(), trace.session()
    stop = direct.run(f"icount={moment}")
    assert (stop.reason, stop.icount) == ("condition", moment)
    for each in (moment // 3, moment // 2, moment - 1, moment):
        stepwise.run(f"icount={each}")
    for vcpu in range(4):
        assert direct.registers(vcpu) == stepwise.registers(vcpu)
    assert direct.machine.digests() == stepwise.machine.digests()
    assert stepwise.run().icount == end.icount
    assert stepwise.console == console


def test_a_console_stop_is_at_the_last_byte(demo_trace: Path) -> None:
    session = open_trace(demo_trace).session()
    stop = session.run("console=vCPUs running")
    assert str(stop.condition) == "console=vCPUs running"
    assert session.console.endswith(b"vCPUs running")
    rip = session.registers(stop.vcpu)["rip"]
    # OUT DX, AL is one byte long.
    assert session.disassemble(stop.vcpu, rip - 1, 1)[0].text == "out dx, al"


def test_an_irq_stop_is_at_the_handlers_first_instruction(demo_trace: Path) -> None:
    session = open_trace(demo_trace).session()
    stop = session.run("irq=0x40")
    assert stop.reason == "condition"
    registers = session.registers(stop.vcpu)
    gate = session.read_virtual(registers["idtr_base"] + 0x40 * 16, 16, stop.vcpu)
    low, high = int.from_bytes(gate[0:2], "little"), int.from_bytes(gate[6:12], "little")
    assert stop.rip == low | high << 16


def test_a_write_stop_follows_a_store_to_those_bytes(demo_trace: Path) -> None:
    trace = open_trace(demo_trace)
    shared = next(e for e in trace.events(["hand-off"], first=1_000_000) if e.fields["write"])
    page = shared.fields["page"]
    assert isinstance(page, int)
    session = trace.session()
    session.run("icount=1000000")
    stop = session.run(f"write={page << 12:#x}:4096")
    assert stop.reason == "condition"
    before = trace.session()
    before.run(f"icount={stop.icount - 1}")
    storing = before.disassemble(stop.vcpu, count=1)[0].text
    assert storing.startswith(("mov", "inc", "add", "lock", "xchg", "xadd", "cmpxchg")), storing


def test_of_several_conditions_the_first_to_hold_stops(demo_trace: Path) -> None:
    stop = open_trace(demo_trace).replay(["icount=4000000", "console=Hello", "irq=0x40"])
    assert str(stop.condition) == "console=Hello"


def test_sessions_do_not_disturb_each_other(demo_trace: Path) -> None:
    trace = open_trace(demo_trace)
    alone = trace.session()
    alone.run("icount=2000000")
    one, other = trace.session(), trace.session()
    for step in range(1, 11):
        one.run(f"icount={200_000 * step}")
        other.run(f"icount={170_000 * step}")
    assert one.machine.digests() == alone.machine.digests()


def test_a_trace_cut_anywhere_replays_its_beginning_or_says_why_not(
    demo_trace: Path, tmp_path: Path, whole: tuple[rr86.Stop, bytes]
) -> None:
    content = demo_trace.read_bytes()
    path = tmp_path / "cut.rr86"
    replayed = 0
    for length in [*range(0, len(content), len(content) // 25), len(content) - 1]:
        path.write_bytes(content[:length])
        try:
            session = open_trace(path).session()
            stop = session.run()
        except Error:
            continue
        replayed += 1
        assert whole[1].startswith(session.console)
        assert stop.icount <= whole[0].icount
    assert replayed > 0


def test_a_flipped_bit_is_found_or_does_not_matter(
    demo_trace: Path, tmp_path: Path, whole: tuple[rr86.Stop, bytes]
) -> None:
    content = demo_trace.read_bytes()
    path = tmp_path / "flipped.rr86"
    found = 0
    for at in range(3, len(content), len(content) // 25):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        try:
            session = open_trace(path).session()
            stop = session.run()
        except Error:
            found += 1
            continue
        assert (stop.icount, session.console) == (whole[0].icount, whole[1])
    assert found > 10
