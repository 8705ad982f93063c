import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rr86.cpu.guest_symbols import GuestSymbols
from rr86.errors import ConditionError, SymbolsError
from rr86.session.conditions import (
    VALID,
    AnyInt3,
    AtSymbol,
    Condition,
    Console,
    End,
    Icount,
    Int3,
    Irq,
    Panic,
    Rip,
    Stale,
    StaleInt3,
    Write,
    WriteSymbol,
    as_conditions,
    parse,
)
from rr86.session.lowering import lower
from tests.images import elf


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("int3", Int3()),
        ("any-int3", AnyInt3()),
        ("stale-int3", StaleInt3()),
        ("stale", Stale()),
        ("panic", Panic()),
        ("end", End()),
        ("rip=0xffffffff81000000", Rip(0xFFFFFFFF81000000)),
        ("rip=ffffffff81000000", Rip(0xFFFFFFFF81000000)),
        ("rip=81000000", Rip(0x81000000)),
        ("symbol=do_one_initcall", AtSymbol("do_one_initcall")),
        ("symbol=__mod_timer+0x1c3", AtSymbol("__mod_timer", 0x1C3)),
        ("icount=1_000", Icount(1000)),
        ("console=login: a=b", Console("login: a=b")),
        ("write=0x1000", Write(0x1000, 1)),
        ("write=0x1000:8", Write(0x1000, 8)),
        ("write=fee", Write(0xFEE, 1)),
        ("write=fee+0", WriteSymbol("fee")),
        ("write=jiffies", WriteSymbol("jiffies")),
        ("write=jiffies:4", WriteSymbol("jiffies", 0, 4)),
        ("write=init_task+0x10:8", WriteSymbol("init_task", 0x10, 8)),
        ("icount=1G", Icount(10**9)),
        ("icount=1.5m", Icount(1_500_000)),
        ("icount=1,656,123,908", Icount(1_656_123_908)),
        ("irq=236", Irq(236)),
        ("irq=0xec", Irq(236)),
    ],
)
def test_conditions_are_understood(text: str, condition: Condition) -> None:
    assert parse(text) == condition
    assert parse(str(condition)) == condition


@pytest.mark.parametrize(
    ("text", "problem", "position"),
    [
        ("", "nothing", 1),
        ("int4", "unknown condition 'int4'", 1),
        ("int3=1", "takes no value", 5),
        ("rip", "needs a value", 4),
        ("rip=", "needs a value", 5),
        ("rip=xyz", "expected an address", 5),
        ("rip=10000000000000000", "must be between", 5),
        ("icount=-1", "must be between", 8),
        ("irq=256", "must be between", 5),
        ("write=0x10:0", "a length of 0", 12),
        ("write=0x10:z", "expected a length", 12),
        ("write=jiffies:0", "a length of 0", 15),
        ("write=1x", "expected a physical address or a symbol", 7),
        ("write=ffffffff82a07980", "a linear address", 7),
        ("icount=1X", "expected a number of instructions", 8),
        ("icount=99999999T", "must be between", 8),
        ("symbol=f+zz", "expected an offset", 10),
    ],
)
def test_mistakes_are_shown_with_their_place_and_what_is_valid(
    text: str, problem: str, position: int
) -> None:
    with pytest.raises(ConditionError) as caught:
        parse(text)
    message = str(caught.value)
    assert problem in message
    assert f"at character {position} " in message
    assert VALID in message


@given(st.text(max_size=40))
def test_any_text_parses_or_gives_our_error(text: str) -> None:
    with contextlib.suppress(ConditionError):
        parse(text)


def test_callers_may_mix_text_and_objects() -> None:
    assert as_conditions(["int3", Icount(5)]) == [Int3(), Icount(5)]
    assert as_conditions("end") == [End()]
    assert as_conditions(None) == []


def test_lowering_keeps_track_of_who_is_who() -> None:
    symbols = GuestSymbols(elf([("main", 0x100000, 8)]))
    conditions = [End(), Console("b"), AtSymbol("main", 4), Write(8, 2), Console("a")]
    lowered = lower(conditions, symbols)
    assert lowered.native == [
        ("console", 0, 0),
        ("rip", 0x100004, 0),
        ("write", 8, 2),
        ("console", 1, 0),
    ]
    assert lowered.patterns == [b"b", b"a"]
    assert lowered.owners == conditions[1:]


def test_int3_means_stale_ones_where_there_are_any() -> None:
    symbols = GuestSymbols(elf([("main", 0x100000, 8)]))
    conditions = [Int3(), AnyInt3(), StaleInt3()]
    without = [kind for kind, _, _ in lower(conditions, symbols).native]
    assert without == ["int3", "int3", "stale-int3"]
    among = [kind for kind, _, _ in lower(conditions, symbols, stale_int3=True).native]
    assert among == ["stale-int3", "int3", "stale-int3"]


def test_panic_is_the_symbol_where_there_is_one() -> None:
    symbols = GuestSymbols(elf([("panic", 0x100000, 8)]))
    assert lower([Panic()], symbols).native == [("rip", 0x100000, 0)]


def test_panic_without_symbols_listens_to_the_console() -> None:
    lowered = lower([Panic()], GuestSymbols(b"no symbols here"))
    assert lowered.native == [("console", 0, 0)]
    assert lowered.patterns == [b"Kernel panic"]


def test_a_symbol_is_watched_where_it_is_in_physical_memory() -> None:
    symbols = GuestSymbols(elf([("counter", 0x100010, 8)]))
    condition = WriteSymbol("counter")
    lowered = lower([condition], symbols, places=lambda _: [(0x5010, 8), (0x9010, 8)])
    assert lowered.native == [("write", 0x5010, 8), ("write", 0x9010, 8)]
    assert lowered.owners == [condition, condition]
    assert not lowered.waiting
    assert lower([condition], symbols, places=lambda _: None).waiting
    with pytest.raises(SymbolsError, match="no symbol 'countr'; near names: counter"):
        lower([WriteSymbol("countr")], symbols)


def test_symbols_that_cannot_be_found_are_errors_at_once() -> None:
    with pytest.raises(SymbolsError, match="no symbol 'nain'; near names: main"):
        lower([AtSymbol("nain")], GuestSymbols(elf([("main", 0x100000, 8)])))
    with pytest.raises(ConditionError, match="neither a bzImage nor an ELF"):
        lower([AtSymbol("main")], GuestSymbols(b"no symbols here"))
