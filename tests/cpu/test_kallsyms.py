import pytest

from rr86.cpu.guest_symbols import open_kernel, symbols_of
from rr86.cpu.kallsyms import parse_tables, read_kallsyms
from rr86.cpu.symbols import SymbolTable
from rr86.cpu.vmlinux import Vmlinux
from rr86.errors import KernelImageError
from tests.images import kallsyms, vmlinux

BASE = 0xFFFFFFFF81000000


def kernel_symbols(per_cpu: bool = True) -> list[tuple[int, str, str]]:
    rows = [(0, "A", "fixed_percpu_data"), (0x1000, "A", "irq_stack")] if per_cpu else []
    rows += [(BASE + 16 * n, "t" if n % 3 else "T", f"asm_{n}_handler") for n in range(1500)]
    rows.append((BASE + 0x100000, "T", "a_name_that_is_long_" * 10))
    return rows


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_tables_are_found_in_every_layout(new_order: bool, sequences: bool) -> None:
    rows = kernel_symbols()
    data = kallsyms(rows, new_order=new_order, sequences=sequences)
    found = parse_tables(data)
    assert found is not None
    assert [(s.address, s.kind, s.name) for s in found] == rows


def test_unsigned_offsets_without_per_cpu_symbols_are_understood() -> None:
    rows = kernel_symbols(per_cpu=False)
    found = parse_tables(kallsyms(rows, new_order=True, per_cpu=False))
    assert found is not None
    assert [s.address for s in found] == [row[0] for row in rows]


def test_a_stripped_kernel_gives_a_symbol_table() -> None:
    table = symbols_of(open_kernel(vmlinux(kallsyms(kernel_symbols()))))
    assert isinstance(table, SymbolTable)
    assert table.address("asm_7_handler") == BASE + 16 * 7


def test_a_kernel_without_tables_says_so() -> None:
    with pytest.raises(KernelImageError, match="CONFIG_KALLSYMS"):
        read_kallsyms(Vmlinux(vmlinux(b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00" * 50)))


def test_damage_never_raises_anything_unexpected() -> None:
    data = kallsyms(kernel_symbols())
    for cut in range(0, len(data), 997):
        parse_tables(data[:cut])
        parse_tables(data[:cut] + bytes(64) + data[cut + 64 :])
        parse_tables(data[:cut] + b"\xff" * 64 + data[cut + 64 :])
