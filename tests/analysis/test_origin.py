"""Where values come from: a guest sends them on known ways, and every hop is checked."""

from collections.abc import Callable
from pathlib import Path

import pytest

import rr86
from rr86.analysis.hops import ENDS, Hop, without_saves
from rr86.analysis.origin import origin
from rr86.replay.travel import TimeTravel
from tests.guests.build import load_manifest
from tests.guests.machines import record_guest

VALUE = (0x1122334455667788).to_bytes(8, "little")
Trip = Callable[[str], list[Hop]]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> rr86.Trace:
    path = tmp_path_factory.mktemp("origin") / "origin.rr86"
    recorded = record_guest(load_manifest()["origin"], path, seed=1, quantum=2000)
    assert b"0 failed" in recorded.outcome.console
    return recorded.trace()


@pytest.fixture(scope="module")
def travel(trace: rr86.Trace) -> TimeTravel:
    travel = TimeTravel(trace)
    travel.goto(travel.last)
    return travel


@pytest.fixture(scope="module")
def trip(travel: TimeTravel) -> Trip:
    """The way back of the eight bytes at a symbol, at the end of the run."""
    table = travel.trace.symbols().table
    assert table is not None

    def look(name: str, size: int = 8) -> list[Hop]:
        return origin(travel, table.address(name), size)

    return look


def ways(hops: list[Hop]) -> list[tuple[str, str | None]]:
    return [(hop.kind, hop.symbol) for hop in hops]


def test_every_instruction_that_passed_a_value_on_is_named(trip: Trip) -> None:
    hops = trip("place_final")
    assert ways(hops) == [
        ("store", "way_final"),
        # The conditional move that was not taken is passed over.
        ("move", "way_taken"),
        ("move", "way_bswap_back"),
        ("move", "way_bswap"),
        ("load", "way_failed_cas"),
        ("store", "way_cas"),
        ("load", "way_cas_load"),
        ("store", "way_xchg"),
        # The handler of an interrupt saved the register, and took it back.
        ("load", "trap_return+0x6"),
        ("store", "trap_common+0xf"),
        ("load", "way_before_irq"),
        ("copy", "way_rep_movs"),
        ("store", "way_array_store"),
        ("load", "way_array_load"),
        ("store", "way_from_xmm"),
        ("move", "way_xmm"),
        ("move", "way_to_xmm"),
        ("load", "way_alias_load"),
        ("store", "way_store"),
        ("load", "way_pop"),
        ("store", "way_push"),
        ("constant", "way_constant"),
    ]
    assert [hop.parent for hop in hops] == [None, *range(len(hops) - 1)]
    moments = [hop.icount for hop in hops if hop.icount is not None]
    assert moments == sorted(moments, reverse=True)
    on_other = {hop.symbol for hop in hops if hop.vcpu == 1}
    assert on_other == {"way_alias_load", "way_to_xmm", "way_xmm", "way_from_xmm"}
    assert {hop.value for hop in hops if hop.symbol != "way_bswap"} == {VALUE}
    assert next(hop.value for hop in hops if hop.symbol == "way_bswap") == VALUE[::-1]


def test_saves_on_the_stack_can_be_left_out(trip: Trip) -> None:
    hops = trip("place_final")
    brief = without_saves(hops)
    gone = {"trap_return+0x6", "trap_common+0xf"}
    assert [hop.symbol for hop in brief] == [h.symbol for h in hops if h.symbol not in gone]
    # What was pushed from one register and popped into another has moved.
    assert {"way_push", "way_pop"} <= {hop.symbol for hop in brief}
    assert [hop.parent for hop in brief] == [None, *range(len(brief) - 1)]


def test_memory_is_followed_through_page_tables_to_its_physical_place(
    trip: Trip, travel: TimeTravel
) -> None:
    table = travel.trace.symbols().table
    assert table is not None
    hops = {hop.symbol: hop for hop in trip("place_final")}
    # Loaded at another linear address than it was stored to.
    assert hops["way_alias_load"].paddr == hops["way_store"].paddr == table.address("place_a")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", [("store", "sum_store"), ("computed", "sum_add")]),
        ("constant_place", [("constant", "constant_store")]),
        ("zeroed", [("store", "zero_store"), ("constant", "zero_xor")]),
        ("from_image", [("store", "image_store"), ("load", "image_load"), ("loaded", None)]),
    ],
)
def test_ways_that_end_at_once(
    trip: Trip, name: str, expected: list[tuple[str, str | None]]
) -> None:
    assert ways(trip(name)) == expected


def test_what_was_computed_names_its_inputs_with_their_values(trip: Trip) -> None:
    computed = trip("sum")[-1]
    assert computed.value == (12).to_bytes(8, "little")
    assert [text.split(" = ")[1] for text in computed.inputs] == ["0x5", "0x7"]


def test_with_through_the_inputs_are_followed_too(travel: TimeTravel) -> None:
    table = travel.trace.symbols().table
    assert table is not None
    hops = origin(travel, table.address("sum"), 8, through=True)
    assert [hop.kind for hop in hops] == ["store", "computed", "load", "loaded", "loaded"]
    assert [hop.parent for hop in hops] == [None, 0, 1, 2, 1]
    assert hops[3].paddr == table.address("in_a")
    assert hops[4].paddr == table.address("in_b")


@pytest.mark.parametrize(
    ("name", "size", "symbol", "source"),
    [
        ("from_port", 1, "port_in", "port 0x71, CMOS and RTC data"),
        ("from_mmio", 4, "mmio_load", "memory-mapped I/O at 0xfee00030, the local APIC"),
        ("from_tsc", 4, "tsc_read", "time-stamp counter"),
        ("from_cpuid", 4, "cpuid_ask", "CPUID leaf 0x0, subleaf 0x0"),
    ],
)
def test_what_came_in_from_outside(
    travel: TimeTravel, name: str, size: int, symbol: str, source: str
) -> None:
    table = travel.trace.symbols().table
    assert table is not None
    store, end = origin(travel, table.address(name), size)
    assert store.kind == "store"
    assert (end.kind, end.symbol, end.source) == ("input", symbol, source)


def test_parts_from_several_places_are_followed_each(trip: Trip) -> None:
    mixed = trip("mixed")
    assert ways(mixed) == [
        ("constant", "mix_low"),
        ("store", "mix_high"),
        ("load", "mix_load"),
        ("loaded", None),
    ]
    assert [hop.parent for hop in mixed] == [None, None, 1, 2]
    widened = trip("widened")
    assert ways(widened) == [
        ("store", "wide_store"),
        ("load", "wide_load"),
        ("loaded", None),
        ("constant", "wide_load"),
    ]
    assert (widened[2].value, widened[3].value) == (b"\xc3", bytes(7))


def test_what_is_left_of_a_register_is_older_than_its_part(trip: Trip) -> None:
    hops = trip("partial")
    assert [(hop.kind, hop.symbol, hop.value.hex()) for hop in hops] == [
        ("store", "partial_store", "88c3665544332211"),
        ("load", "partial_byte", "c3"),
        ("loaded", None, "c3"),
        ("constant", "partial_whole", "88"),
        ("constant", "partial_whole", "665544332211"),
    ]


def test_looking_back_in_shorter_stretches_finds_the_same(
    trip: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rr86.analysis import past

    names = ("place_final", "faulted", "mixed", "from_image")
    expected = [trip(name) for name in names]
    monkeypatch.setattr(past, "_FIRST_WRITES", 3)
    monkeypatch.setattr(past, "_FIRST_PATH", 2)
    assert [trip(name) for name in names] == expected


def test_an_instruction_that_faulted_has_set_nothing(trip: Trip) -> None:
    hops = trip("faulted")
    assert ways(hops) == [
        ("store", "fault_store"),
        ("load", "fault_read"),
        ("copy", "memcpy+0x6"),
        ("store", "trap_common+0x1"),
        ("constant", "fault_constant"),
    ]


def test_the_search_leaves_the_recording_where_it_stood(travel: TimeTravel, trip: Trip) -> None:
    before = travel.icount, travel.session.registers(0), travel.session.registers(1)
    trip("sum")
    assert before == (travel.icount, travel.session.registers(0), travel.session.registers(1))


def test_the_console_names_the_moment_at_which_something_was_typed(tmp_path: Path) -> None:
    guest = load_manifest()["echo"]
    recorded = record_guest(guest, tmp_path / "echo.rr86")
    travel = TimeTravel(recorded.trace())
    travel.goto(travel.last)
    table = travel.trace.symbols().table
    assert table is not None
    ends = [hop for hop in origin(travel, table.address("ring"), 4) if hop.is_end]
    assert [hop.value for hop in ends] == [guest.input[n : n + 1].encode() for n in range(4)]
    (typed,) = [event.icount for event in travel.trace.events(("input",))]
    assert {hop.source for hop in ends} == {
        f"port 0x3f8, COM1's receive buffer; typed before instruction {typed:,}"
    }


def test_the_byte_in_place_of_a_stale_int3_leads_to_the_write_that_was_missed() -> None:
    from rr86.replay.bisect import bisect_invalidation

    trace = rr86.open_trace(Path(__file__).parents[2] / "traces/stale-int3.rr86")
    finding = bisect_invalidation(trace)
    assert finding is not None
    assert finding.write is not None
    write = finding.write
    travel = TimeTravel(trace)
    stop = travel.run("stale-int3")
    assert stop.reason == "condition"
    hops = origin(travel, write.paddr, 1)
    assert (hops[0].icount, hops[0].vcpu, hops[0].rip) == (write.checked, write.vcpu, write.rip)
    assert hops[0].value == write.new[:1]
    assert hops[-1].is_end
    # And the INT3 itself, before it was overwritten, is a constant of the one who patches.
    travel.goto(write.checked)
    assert travel.session.memory(write.paddr, 1) == b"\xcc"
    before = origin(travel, write.paddr, 1)
    assert (before[0].value, before[-1].value) == (b"\xcc", b"\xcc")
    assert before[-1].kind in ENDS
    assert "lost" not in [hop.kind for hop in (*hops, *before)]


def test_a_branch_knows_nothing_from_before_it_began(trace: rr86.Trace, tmp_path: Path) -> None:
    table = trace.symbols().table
    assert table is not None
    final = next(hop for hop in _final(trace) if hop.symbol == "way_xchg")
    assert final.icount is not None
    session = trace.session()
    session.run(f"icount={final.icount}")
    with session.branch(output=tmp_path / "branch.rr86", schedule="recorded") as branch:
        branch.run()
    hops = _final(rr86.open_trace(tmp_path / "branch.rr86"))
    assert hops[-1].kind == "beginning"
    assert (
        hops[-1].source
        == f"r12 of vCPU 0 where the recording begins, at instruction {final.icount:,}"
    )
    assert hops[-2].symbol == "way_xchg"


def _final(trace: rr86.Trace) -> list[Hop]:
    table = trace.symbols().table
    assert table is not None
    travel = TimeTravel(trace)
    travel.goto(travel.last)
    return origin(travel, table.address("place_final"), 8)


def test_bytes_that_are_no_memory_are_refused(travel: TimeTravel) -> None:
    with pytest.raises(rr86.AddressError, match="not all RAM"):
        origin(travel, 0xFEE00000, 4)
    with pytest.raises(rr86.UsageError, match="1 to 64 bytes"):
        origin(travel, 0, 65)
