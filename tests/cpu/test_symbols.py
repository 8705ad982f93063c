import struct

import pytest

from rr86.cpu.guest_symbols import GuestSymbols, open_kernel, symbols_of
from rr86.cpu.kaslr import entry_candidates, offset_from_registers
from rr86.cpu.symbols import Symbol, SymbolTable
from rr86.errors import KernelImageError, SymbolsError
from tests.images import elf

BASE = 0xFFFFFFFF81000000
OFFSET = 0x12E00000


def table() -> SymbolTable:
    return SymbolTable(
        [
            Symbol(0x40, "A", "cpu_offset"),
            Symbol(BASE, "T", "_text"),
            Symbol(BASE + 0x100, "t", "local_name"),
            Symbol(BASE + 0x100, "T", "global_name"),
            Symbol(BASE + 0x200, "T", "entry_SYSCALL_64"),
            Symbol(BASE + 0x300, "T", "early_idt_handler_array"),
            Symbol(BASE + 0x400, "T", "x86_64_start_kernel"),
            Symbol(BASE + 0x500, "D", "some_data"),
            Symbol(BASE + 0x600, "B", "_end"),
        ]
    )


def test_lookup_follows_the_offset() -> None:
    moved = table().moved(OFFSET)
    assert moved.lookup(BASE + OFFSET + 0x104) == "global_name+0x4"
    assert moved.lookup(BASE + OFFSET + 0x100) == "global_name"
    assert moved.address("global_name") == BASE + OFFSET + 0x100
    assert moved.address("cpu_offset") == 0x40


def test_addresses_outside_of_the_kernel_have_no_name() -> None:
    assert table().lookup(0x44) is None
    assert table().lookup(BASE - 1) is None
    assert table().lookup(BASE + 0x601) is None


def test_text_and_data_are_told_apart() -> None:
    assert table().is_text(BASE + 0x101)
    assert not table().is_text(BASE + 0x501)


def test_a_missing_symbol_suggests_near_ones() -> None:
    with pytest.raises(SymbolsError, match="global_name"):
        table().address("globl_name")


def test_search_takes_shell_patterns() -> None:
    assert [symbol.name for _, symbol in table().search("*_name")] == ["local_name", "global_name"]


def test_elf_guests_use_their_own_symbol_table() -> None:
    found = symbols_of(open_kernel(elf([("main", 0x100000, 8), ("helper", 0x100010, 4)])))
    assert found.lookup(0x100012) == "helper+0x2"
    assert found.lookup(0x10000C) is None
    assert found.is_text(0x100000)


def test_guest_symbols_of_a_fixed_guest_need_no_offset() -> None:
    symbols = GuestSymbols(elf([("main", 0x100000, 8)]))
    assert symbols.lookup(0x100004) == "main+0x4"


def test_guest_symbols_remember_what_is_wrong() -> None:
    symbols = GuestSymbols(b"no kernel at all")
    assert symbols.table is None
    assert symbols.problem is not None
    with pytest.raises(KernelImageError):
        open_kernel(b"no kernel at all")


def registers(**values: int) -> dict[str, int]:
    return {"lstar": 0, "idtr_base": 0, "idtr_limit": 0, **values}


def no_memory(address: int, length: int) -> bytes:
    return b""


def test_lstar_tells_the_offset() -> None:
    found = offset_from_registers(table(), registers(lstar=BASE + 0x200 + OFFSET), no_memory)
    assert found == OFFSET


@pytest.mark.parametrize("lstar", [0, 0x1234, BASE + 0x200 + OFFSET + 8, BASE - OFFSET])
def test_an_implausible_lstar_tells_nothing(lstar: int) -> None:
    assert offset_from_registers(table(), registers(lstar=lstar), no_memory) is None


def test_the_first_gate_tells_the_offset_before_lstar_is_set() -> None:
    handler = BASE + 0x300 + OFFSET
    gate = struct.pack(
        "<HHHHII", handler & 0xFFFF, 0x10, 0x8E00, handler >> 16 & 0xFFFF, handler >> 32, 0
    )
    values = registers(idtr_base=0xFFFFFE0000000000, idtr_limit=4095)
    assert offset_from_registers(table(), values, lambda address, length: gate[:length]) == OFFSET


def test_the_entry_is_among_its_candidates() -> None:
    candidates = entry_candidates(table())
    assert BASE + 0x400 + OFFSET in candidates
    assert len(candidates) == 512
