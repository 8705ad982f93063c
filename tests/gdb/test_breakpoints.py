"""Conditions of breakpoints and watched memory, as a debugger of our own asks for them."""

from __future__ import annotations

import re

import pytest

import rr86
from rr86.gdb.breakpoints import BreakpointError, pieces
from rr86.session.conditions import Rip
from tests.gdb.client import Client
from tests.gdb.test_server import RSP, hits_of

PAGE = 4096


@pytest.fixture(scope="module")
def symbols(recorded: rr86.Trace) -> dict[str, int]:
    table = recorded.symbols().table
    assert table is not None
    return {symbol.name: address for address, symbol in table.search()}


def register_is(number: int, value: int) -> bytes:
    """gdb's bytecode for `$register == value`: reg, const64, equal, end."""
    return b"\x26" + number.to_bytes(2, "big") + b"\x25" + value.to_bytes(8, "big") + b"\x13\x27"


def agents(*codes: bytes) -> str:
    return "".join(f";X{len(code):x},{code.hex()}" for code in codes)


@pytest.fixture(scope="module")
def calls(recorded: rr86.Trace, symbols: dict[str, int]) -> list[tuple[int, int, int]]:
    """Moment, vCPU and stack pointer of calls of a job, by several vCPUs."""
    session = recorded.session()
    session.run("icount=5000000")
    found = []
    for _ in range(12):
        stop = session.run(Rip(symbols["job0"]))
        found.append((stop.icount, stop.vcpu, session.registers(stop.vcpu)["rsp"]))
    assert len({rsp for _, _, rsp in found}) > 1
    return found


def test_a_breakpoint_with_a_condition_stops_where_it_is_true(
    client: Client, symbols: dict[str, int], calls: list[tuple[int, int, int]]
) -> None:
    stack = next(rsp for _, _, rsp in calls if rsp != calls[0][2])
    expected = [moment for moment, _, rsp in calls if rsp == stack]
    client.ok(f"Z0,{symbols['job0']:x},1{agents(register_is(RSP, stack))}")
    for moment in expected:
        assert client.stop("vCont;c").because("swbreak")
        assert client.moment() == moment
        assert client.register(RSP) == stack
    for moment in reversed(expected[:-1]):
        client.stop("bc")
        assert client.moment() == moment


def test_of_several_conditions_one_has_to_be_true(
    client: Client, symbols: dict[str, int], calls: list[tuple[int, int, int]]
) -> None:
    other = next(rsp for _, _, rsp in calls if rsp != calls[0][2])
    both = agents(register_is(RSP, calls[0][2]), register_is(RSP, other))
    client.ok(f"Z1,{symbols['job0']:x},1{both}")
    expected = [moment for moment, _, rsp in calls if rsp in (calls[0][2], other)]
    for moment in expected[:6]:
        assert client.stop("vCont;c").because("hwbreak")
        assert client.moment() == moment


def test_a_breakpoint_that_is_inserted_again_has_the_new_condition(
    client: Client, symbols: dict[str, int], calls: list[tuple[int, int, int]]
) -> None:
    client.ok(f"Z0,{symbols['job0']:x},1{agents(register_is(RSP, 1))}")
    client.ok(f"Z0,{symbols['job0']:x},1")
    client.stop("vCont;c")
    assert client.moment() == calls[0][0]


@pytest.mark.parametrize("code", [b"\xff\x27", b"\x26\x7f\xff\x27", b"\x22"])
def test_a_condition_that_cannot_be_evaluated_holds(
    client: Client,
    symbols: dict[str, int],
    calls: list[tuple[int, int, int]],
    code: bytes,
) -> None:
    client.ok(f"Z0,{symbols['job0']:x},1{agents(code)}")
    client.stop("vCont;c")
    assert client.moment() == calls[0][0]
    client.stop("vCont;c")
    client.stop("bc")
    assert client.moment() == calls[0][0]


def operand_at(client: Client, recorded: rr86.Trace, address: int) -> str:
    """The instruction that the stopped vCPU is about to execute, which has to touch an address
    relative to its own."""
    session = recorded.session()
    session.run(f"icount={client.moment()}")
    instruction = session.disassemble(0, client.register(16), 1)[0]
    match = re.search(r"\[rip ([+-]) (0x[0-9a-f]+)\]", instruction.text)
    assert match is not None, instruction.text
    distance = int(match[2], 16) * (-1 if match[1] == "-" else 1)
    assert instruction.address + len(instruction.code) + distance == address
    return instruction.text


@pytest.mark.parametrize(("kind", "name"), [(2, "watch"), (3, "rwatch"), (4, "awatch")])
def test_writes_reads_and_accesses_are_told_apart(
    client: Client, recorded: rr86.Trace, symbols: dict[str, int], kind: int, name: str
) -> None:
    address = symbols["patched_at"]
    wanted = {"watch": {"write"}, "rwatch": {"read"}}.get(name, {"read", "write"})
    seen: list[str] = []
    client.ok(f"Z{kind},{address:x},8")
    while len(seen) < 6 or (set(seen) < wanted and len(seen) < 60):
        stop = client.stop("bc")
        assert int(stop.rows[name], 16) == address
        text = operand_at(client, recorded, address)
        seen.append("write" if re.match(r"mov qword ptr \[", text) else "read")
    assert set(seen) == wanted
    # Forwards it stops behind the same accesses, in the other order.
    before = client.moment()
    stop = client.stop("vCont;c")
    assert (int(stop.rows[name], 16), client.moment()) == (address, before + 1)


def test_a_watchpoint_may_span_pages(
    client: Client, recorded: rr86.Trace, symbols: dict[str, int]
) -> None:
    start = symbols["arrived"] & -PAGE
    session = recorded.session()
    session.run("icount=5000000")
    stop = session.run([f"write={start - PAGE:x}:1000", f"write={start:x}:{PAGE}"])
    client.ok(f"Z2,{start - PAGE:x},{2 * PAGE:x}")
    told = client.stop("vCont;c")
    assert start - PAGE <= int(told.rows["watch"], 16) < start + PAGE
    assert client.moment() == stop.icount
    client.ok(f"z2,{start - PAGE:x},{2 * PAGE:x}")
    assert client.stop("vCont;c").because("replaylog")


def test_what_is_not_mapped_cannot_be_watched(client: Client) -> None:
    assert client.ask("Z2,7fffffff0000,8") == b"E14"
    assert client.ask("Z2,ffffffff81000000,8") == b"E14"


def test_a_step_over_a_watched_write_tells_of_it(
    client: Client, recorded: rr86.Trace, symbols: dict[str, int]
) -> None:
    address = symbols["patched_at"]
    client.ok(f"Z2,{address:x},8")
    stop = client.stop("bc")
    moment = client.moment()
    again = client.stop(f"vCont;s:{stop.thread:x}")
    assert again.because("watch")
    assert client.moment() == moment + 1
    client.ok(f"Hc{stop.thread:x}")
    back = client.stop("bs")
    assert back.because("watch")
    assert client.moment() == moment


def test_a_breakpoint_is_not_met_again_where_it_was_met(
    client: Client, recorded: rr86.Trace, symbols: dict[str, int]
) -> None:
    hits = hits_of(recorded, symbols["job0"], 3)
    client.ok(f"Z0,{symbols['job0']:x},1")
    for moment, _ in hits:
        client.stop("vCont;c")
        assert client.moment() == moment


def test_breakpoints_have_a_bound(client: Client) -> None:
    answers = {client.ask(f"Z0,{address:x},1") for address in range(0x1000, 0x1000 + 1100)}
    assert answers == {b"OK", b"E14"}


def test_a_range_is_translated_page_by_page() -> None:
    pages = {0x1000: 0x9000, 0x2000: 0x5000, 0x3000: 0x7000}

    def translate(address: int) -> int | None:
        page = pages.get(address & -PAGE)
        return None if page is None else page + address % PAGE

    assert list(pieces(0x1FF8, 0x1010, translate)) == [
        (0x1FF8, 0x9FF8, 8),
        (0x2000, 0x5000, 0x1000),
        (0x3000, 0x7000, 8),
    ]
    assert list(pieces(0x1000, 4, translate)) == [(0x1000, 0x9000, 4)]
    with pytest.raises(BreakpointError, match="0x4000 is not mapped"):
        list(pieces(0x3FF0, 32, translate))
