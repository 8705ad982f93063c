"""Moving in a recording: a moment is the same state from wherever one comes, and the last stop
before a moment is the last one that a run forward makes."""

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import capstone
import pytest
from capstone import x86

import rr86
from rr86.errors import NativeError, UsageError
from rr86.replay.travel import TimeTravel
from rr86.session.conditions import (
    Access,
    Before,
    Condition,
    Every,
    Read,
    Rip,
    RipWhere,
    Write,
    asked_at,
)
from rr86.session.view import GuestView
from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, record_guest
from tests.guests.test_guests import short

MANIFEST = load_manifest()
# Instructions: stretches short enough for small guests to have many snapshots.
SPACING = 20_000


def record(name: str, path: Path, protocol: str = "precise") -> Recorded:
    """A guest, with " small" behind its name on a machine with few blocks, which are often made
    anew."""
    name, _, small = name.partition(" ")
    guest, append = MANIFEST[name], short(name)
    blocks: dict[str, Any] = {"block_capacity": 48, "max_block": 5} if small else {}
    return record_guest(
        guest, path, append=append, protocol=protocol, quantum=3000, window_bias=20_000, **blocks
    )


@pytest.fixture(scope="module")
def smp(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record("smp", tmp_path_factory.mktemp("smp") / "smp.rr86")


def travel(recorded: Recorded, memory: int = 1 << 28) -> TimeTravel:
    return TimeTravel(recorded.trace(), spacing=SPACING, memory_for_snapshots=memory)


def state(there: TimeTravel) -> object:
    vcpus = range(there.session.inspector.vcpus)
    registers = [there.session.registers(vcpu) for vcpu in vcpus]
    return there.icount, there.vcpu, there.session.machine.digests(), registers, there.console


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("smp", "precise"),
        ("timers", "precise"),
        ("fpu", "precise"),
        ("modes", "precise"),
        ("string", "precise"),
        ("faults", "precise"),
        ("xmod", "qemu-7.2"),
        ("textpoke", "qemu-7.2"),
        ("smc", "qemu-10"),
        ("rel-walk", "walk-unchecked"),
        ("rel-chain", "chain-kept"),
        ("smp small", "precise"),
        ("xmod small", "qemu-7.2"),
    ],
)
def test_a_moment_is_the_same_from_wherever_one_comes(
    name: str, protocol: str, tmp_path: Path
) -> None:
    recorded = record(name, tmp_path / "guest.rr86", protocol)
    draw = random.Random(name)
    last = recorded.outcome.icount
    moments = [0, 1, *(draw.randrange(last) for _ in range(6)), last - 1]
    forward = {}
    once = travel(recorded)
    for moment in sorted(moments):
        # Straight on, past no snapshot that is begun at.
        once.goto(moment)
        forward[moment] = state(once)
    there = travel(recorded)
    assert there.run().over
    assert there.session.machine.digests() == recorded.outcome.digests
    for moment in draw.sample(moments, len(moments)) + draw.sample(moments, len(moments)):
        there.goto(moment)
        assert state(there) == forward[moment], moment
    # And from there to the end, as it was recorded.
    assert there.run().over
    assert there.session.machine.digests() == recorded.outcome.digests
    assert there.console == recorded.outcome.console
    assert len(there.snapshots) > last // SPACING // 2 or protocol == "chain-kept"


def test_a_thousand_steps_back_and_forward_end_where_they_began(smp: Recorded) -> None:
    there = travel(smp)
    begin = smp.outcome.icount // 2
    there.goto(begin)
    before = state(there)
    vcpu = there.vcpu
    moments = []
    for _ in range(1000):
        there.step_back(vcpu)
        moments.append(there.icount)
        assert there.vcpu == vcpu
    assert moments == sorted(set(moments), reverse=True)
    for moment in reversed(moments):
        assert there.icount == moment
        there.step(vcpu)
    there.goto(begin)
    assert state(there) == before


def forward_stops(recorded: Recorded, condition: Condition) -> list[int]:
    """The moments at which a condition stops the run, each where `run_back` would stand."""
    there = travel(recorded)
    found = []
    stop = there.run(condition)
    while stop.reason == "condition":
        found.append(stop.icount - isinstance(condition, Write | Read | Access))
        stop = there.run(condition)
    return found


def lines_written_in_turns(recorded: Recorded) -> list[int]:
    """Lines that several vCPUs write, the busiest first."""
    turns = Counter(
        address
        for each in recorded.trace().cross_writes()
        for address in each.addresses
        if each.for_writing
    )
    return [address for address, count in turns.most_common() if count > 1]


def a_written_address(recorded: Recorded) -> int:
    """One that is read and written no more than a few thousand times: every access is a stop."""
    for address in sorted(lines_written_in_turns(recorded), reverse=True):
        session = recorded.trace().session(verify=False)
        for _ in range(6000):
            if session.run(Access(address, 64)).over:
                return address
    raise AssertionError("no line is accessed rarely")


@pytest.mark.parametrize(
    "kind", ["rip", "write", "read", "access", "irq", "every", "asked", "both"]
)
def test_the_last_stop_before_a_moment_is_the_last_one_of_a_run_forward(
    kind: str, smp: Recorded
) -> None:
    line = a_written_address(smp)
    somewhere = travel(smp)
    somewhere.goto(smp.outcome.icount // 3)
    rip = somewhere.session.registers(somewhere.vcpu)["rip"]

    @asked_at(Rip(rip))
    def odd(stop: GuestView) -> bool:
        return stop.registers()["rax"] % 2 == 1

    conditions: dict[str, Condition] = {
        "rip": Rip(rip),
        "write": Write(line, 64),
        "read": Read(line, 64),
        "access": Access(line, 64),
        "irq": rr86_condition("irq=32"),
        "every": Every(7001),
        "asked": odd,
        "both": RipWhere(rip, 1),
    }
    condition = conditions[kind]
    stops = forward_stops(smp, condition)
    assert stops or kind in ("irq", "asked", "both")
    there = travel(smp)
    there.run()
    draw = random.Random(kind)
    ends = [smp.outcome.icount, *(draw.randrange(1, smp.outcome.icount) for _ in range(8))]
    for end in ends:
        there.goto(end)
        stop = there.run_back(condition)
        wanted = max((each for each in stops if each < end), default=None)
        if wanted is None:
            assert (stop.reason, there.icount) == ("begin", 0)
        else:
            assert (stop.reason, there.icount) == ("condition", wanted)


def rr86_condition(text: str) -> Condition:
    from rr86.session.conditions import parse

    return parse(text)


def test_going_back_again_finds_the_stop_before(smp: Recorded) -> None:
    condition = Write(a_written_address(smp), 64)
    stops = forward_stops(smp, condition)
    there = travel(smp)
    there.run()
    for wanted in reversed(stops[-20:]):
        assert there.run_back(condition).icount == wanted
    # Forward again, the run stops behind the instruction.
    assert there.run(condition).icount == stops[-20:][0] + 1


def operand_addresses(there: TimeTravel, vcpu: int, write: bool) -> list[tuple[int, int]] | None:
    """Physical ranges that the vCPU's next instruction reads, or writes, by its operands; None for
    one whose accesses its operands do not tell."""
    registers = there.session.registers(vcpu)
    code = there.session.read_virtual(registers["rip"], 15, vcpu)
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = True
    instruction = next(engine.disasm(code, registers["rip"], 1))
    implied = (x86.X86_GRP_CALL, x86.X86_GRP_RET, x86.X86_GRP_INT, x86.X86_GRP_IRET)
    name = instruction.mnemonic.split()[-1]
    if any(instruction.group(each) for each in implied) or name.startswith(
        # Of CMPXCHG, capstone does not say that it writes.
        ("push", "pop", "rep", "movs", "stos", "lods", "cmps", "scas", "leave", "cmpxchg")
    ):
        return None
    wanted = capstone.CS_AC_WRITE if write else capstone.CS_AC_READ
    found = []
    for operand in instruction.operands:
        if operand.type != x86.X86_OP_MEM or not operand.access & wanted:
            continue
        memory = operand.mem
        if memory.segment in (x86.X86_REG_FS, x86.X86_REG_GS):
            return None

        def value(number: int, end: int = instruction.address + instruction.size) -> int:
            if number == 0:
                return 0
            if number == x86.X86_REG_RIP:
                return end
            return registers[instruction.reg_name(number)]

        address = value(memory.base) + value(memory.index) * memory.scale + memory.disp
        paddr = there.session.machine.translate(vcpu, address & (1 << 64) - 1)
        if paddr is not None:
            found.append((paddr, operand.size))
    return found


@pytest.mark.parametrize("write", [False, True])
def test_watchpoints_stop_at_every_instruction_that_makes_such_an_access(
    write: bool, smp: Recorded
) -> None:
    line = lines_written_in_turns(smp)[0]
    condition = Write(line, 64) if write else Read(line, 64)
    there = travel(smp)
    there.goto(smp.outcome.icount // 2)
    begin = there.run(condition).icount - 200
    there.goto(begin)
    wanted, unknown = set(), set()
    for moment in range(begin, begin + 1500):
        there.goto(moment)
        ranges = operand_addresses(there, there.vcpu, write)
        if ranges is None:
            unknown.add(moment)
        elif any(at < line + 64 and line < at + size for at, size in ranges):
            wanted.add(moment)
    there.goto(begin)
    found = set()
    while there.run(condition).icount <= begin + 1500:
        found.add(there.icount - 1)
    assert wanted
    assert wanted <= found
    assert found <= wanted | unknown


def test_watchpoints_and_breakpoints_change_nothing(smp: Recorded) -> None:
    line = a_written_address(smp)
    session = smp.trace().session()
    rip = session.registers(0)["rip"]
    stop = session.run([Access(line, 64), Rip(rip)])
    stops = 0
    while stop.reason == "condition":
        stops += 1
        stop = session.run([Access(line, 64), Rip(rip)])
    assert stops > 100
    assert session.machine.digests() == smp.outcome.digests
    assert session.compared_digests()[0] > 0


def test_agent_expressions_choose_among_the_hits_of_a_breakpoint(smp: Recorded) -> None:
    somewhere = travel(smp)
    somewhere.goto(smp.outcome.icount // 3)
    rip = somewhere.session.registers(somewhere.vcpu)["rip"]
    all_hits = forward_stops(smp, Rip(rip))
    # reg 0 (rax), const8 1, bit_and, end.
    odd = RipWhere(rip, None, (bytes([0x26, 0, 0, 0x22, 1, 0x0F, 0x27]),))
    there = travel(smp)
    wanted = []
    for moment in all_hits[:200]:
        there.goto(moment)
        if there.session.registers(there.vcpu)["rax"] & 1:
            wanted.append(moment)
    found = forward_stops(smp, odd)
    assert [each for each in found if each <= all_hits[:200][-1]] == wanted
    # Memory that is not mapped: the debugger is to look itself.
    unmapped = RipWhere(rip, None, (bytes([0x25, *[0x7F] * 8, 0x1A, 0x27]),))
    assert forward_stops(smp, unmapped) == all_hits


def test_little_memory_for_snapshots_costs_time_and_nothing_else(smp: Recorded) -> None:
    there = travel(smp, memory=1 << 20)
    there.run()
    end = state(there)
    assert len(there.snapshots) < smp.outcome.icount // SPACING
    for moment in (5, smp.outcome.icount // 2, smp.outcome.icount // 3):
        there.goto(moment)
        assert there.icount == moment
    there.goto(there.last)
    assert state(there) == end


def test_the_console_is_handed_on_once_and_is_what_was_sent_so_far(smp: Recorded) -> None:
    seen = bytearray()
    there = TimeTravel(smp.trace(), spacing=SPACING, console=seen.extend)
    there.run()
    there.goto(0)
    assert there.console == b""
    there.run()
    assert bytes(seen) == there.console == smp.outcome.console


def test_a_text_on_the_console_is_found_backwards_where_a_snapshot_cuts_it(
    smp: Recorded,
) -> None:
    text = smp.outcome.console.decode().strip()[-12:]
    condition = rr86_condition(f"console={text}")
    stops = forward_stops(smp, condition)
    there = TimeTravel(smp.trace(), spacing=50)
    there.goto(max(0, stops[-1] - 2000))
    there.run()
    assert there.run_back(condition).icount == stops[-1]


def test_snapshots_are_taken_on_the_way_and_close_to_a_moment_gone_back_to(smp: Recorded) -> None:
    there = travel(smp)
    there.goto(there.last)
    gaps = [b - a for a, b in itertools.pairwise([*there.snapshots, there.last])]
    assert max(gaps) < 2 * SPACING
    # Of a trace with few snapshots, the way back leaves some.
    few = TimeTravel(smp.trace(), spacing=10 * there.last)
    few.goto(there.last)
    assert few.snapshots == [0]
    few.goto(there.last - 10)
    assert there.last - 10 - few.snapshots[-1] < 300_000


def test_moments_that_the_recording_does_not_have_are_refused(smp: Recorded) -> None:
    there = travel(smp)
    with pytest.raises(UsageError, match="not in the recording"):
        there.goto(there.last + 1)
    assert there.step_back().reason == "begin"
    assert there.goto(there.last).over
    assert there.step_back().icount == there.last - 1


def test_a_tick_can_end_the_way_and_backwards_nothing_has_moved(smp: Recorded) -> None:
    there = travel(smp)
    there.run()
    end = there.icount
    stop = there.run_back(Write(1 << 40), tick=lambda _: True)
    assert (stop.reason, there.icount) == ("interrupted", end)


@pytest.mark.parametrize(
    "name",
    ["page-loops", "string", "fpu", "modes", "user", "paging", "smc", "loop-faults", "debug"],
)
def test_pages_may_be_watched_anywhere_in_any_kind_of_code(name: str, tmp_path: Path) -> None:
    """Stops in the middle of blocks, loops, string instructions and pushes leave every register,
    flag and byte as they were: the replay is verified."""
    recorded = record(name, tmp_path / "guest.rr86")
    draw = random.Random(name)
    session = recorded.trace().session()
    stop = session.run(max_instructions=recorded.outcome.icount // 20)
    stops = 0
    while not stop.over:
        registers = session.registers(stop.vcpu)
        near = [registers[each] for each in ("rsp", "rip", "rsi", "rdi", "rbx", "rax")]
        linear = draw.choice(near)
        paddr = session.machine.translate(stop.vcpu, linear)
        page = (paddr if paddr is not None else draw.randrange(1 << 22)) & ~4095
        watched = [Access(page, 4096), Read(page + 4096, 64)]
        for _ in range(40):
            stop = session.run(watched, max_instructions=recorded.outcome.icount // 50)
            if stop.reason != "condition":
                break
            stops += 1
    assert stops > 0
    assert session.machine.digests() == recorded.outcome.digests


def test_what_page_walks_write_stops_at_the_instruction_that_walks(tmp_path: Path) -> None:
    """Accessed and dirty bits are set for an access, or for a fetch, of the next instruction."""
    recorded = record("user", tmp_path / "guest.rr86")
    session = recorded.trace().session()
    tables = set()
    stop = session.run(max_instructions=1000)
    while not stop.over:
        tables.add(session.registers(stop.vcpu)["cr3"] & ~4095)
        stop = session.run(max_instructions=3000)
    there = travel(recorded)
    found = 0
    for table in sorted(tables):
        condition = Write(table, 4096)
        there.goto(0)
        for _ in range(30):
            if there.run(condition).over:
                break
            moment = there.icount
            there.goto(moment)
            after = there.session.memory(table, 4096)
            there.goto(moment - 1)
            before = there.session.memory(table, 4096)
            there.goto(moment)
            found += before != after
    assert found >= 3


def test_a_moment_may_be_looked_for_like_a_condition(smp: Recorded) -> None:
    there = travel(smp)
    there.run()
    middle = smp.outcome.icount // 2
    assert there.run_back(Before(middle)).icount == middle
    assert there.run_back(Before(middle)).reason == "begin"
    assert there.run(Before(middle)).icount == middle


def test_a_snapshot_of_another_recording_is_refused(smp: Recorded, tmp_path: Path) -> None:
    other = record("string", tmp_path / "other.rr86")
    elsewhere = other.trace().session()
    elsewhere.run(max_instructions=other.outcome.icount // 2)
    session = smp.trace().session()
    with pytest.raises(rr86.Error, match="cannot be restored"):
        session.rewind(elsewhere.snapshot())
    # What is left of the machine is neither of the two.
    with pytest.raises(NativeError, match="could not be brought to a snapshot"):
        session.run()


def test_a_far_moment_is_reached_from_a_checkpoint_of_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rr86.replay.travel._DETOUR", 100_000)
    guest = MANIFEST["smp"]
    recorded = record_guest(
        guest, tmp_path / "guest.rr86", append=short("smp"), quantum=3000, checkpoints=400_000
    )
    moment = recorded.outcome.icount * 3 // 4
    straight = TimeTravel(recorded.trace(), spacing=SPACING)
    straight.run(Before(moment))
    there = TimeTravel(recorded.trace(), spacing=SPACING)
    there.goto(moment)
    # Begun close to the moment, with the same state but for what the guest said before.
    assert there.snapshots[1] > moment - 400_000 - SPACING
    assert there.session.machine.digests() == straight.session.machine.digests()
    assert straight.console.endswith(there.console)
    there.goto(moment // 2)
    straight.goto(moment // 2)
    assert there.session.machine.digests() == straight.session.machine.digests()
    there.goto(there.last)
    assert there.session.machine.digests() == recorded.outcome.digests
