"""Finding out where a Linux kernel put itself (KASLR).

The distance between run time and link time shows in two places: LSTAR holds the address of
entry_SYSCALL_64 once syscall_init ran, and before that the IDT's gate 0 leads to the first stub
of early_idt_handler_array, later to asm_exc_divide_error. Earlier still, nothing tells; but the
virtual offset is a multiple of the kernel's alignment within 1 GiB (arch/x86/boot/compressed/
kaslr.c), so the places where x86_64_start_kernel can be are few enough to watch all of them.
"""

from collections.abc import Callable, Mapping

from rr86.cpu.symbols import SymbolTable

# KERNEL_IMAGE_SIZE with CONFIG_RANDOMIZE_BASE, and CONFIG_PHYSICAL_ALIGN.
_RANGE = 1 << 30
ALIGNMENT = 2 << 20
ENTRY_SYMBOL = "x86_64_start_kernel"

_GATE_SYMBOLS = ("asm_exc_divide_error", "early_idt_handler_array", "divide_error")


def _offset(table: SymbolTable, name: str, runtime: int) -> int | None:
    linked = table.link_address(name)
    if linked is None:
        return None
    offset = runtime - linked
    return offset if 0 <= offset < _RANGE and offset % ALIGNMENT == 0 else None


def offset_from_lstar(table: SymbolTable, lstar: int) -> int | None:
    """The kernel's offset as LSTAR shows it, or None while it holds something else."""
    return _offset(table, "entry_SYSCALL_64", lstar) if lstar else None


def offset_from_registers(
    table: SymbolTable,
    registers: Mapping[str, int],
    read_virtual: Callable[[int, int], bytes],
) -> int | None:
    """The kernel's offset as one vCPU's registers show it, or None while they do not."""
    found = offset_from_lstar(table, registers["lstar"])
    if found is not None:
        return found
    if registers["idtr_limit"] >= 15 and registers["idtr_base"] >> 63:
        gate = read_virtual(registers["idtr_base"], 16)
        if len(gate) == 16:
            handler = (
                int.from_bytes(gate[0:2], "little")
                | int.from_bytes(gate[6:8], "little") << 16
                | int.from_bytes(gate[8:12], "little") << 32
            )
            for name in _GATE_SYMBOLS:
                found = _offset(table, name, handler)
                if found is not None:
                    return found
    return None


def entry_candidates(table: SymbolTable) -> list[int]:
    """Every address at which the kernel's first C function can be; empty if it has none."""
    linked = table.link_address(ENTRY_SYMBOL)
    if linked is None:
        return []
    return [linked + offset for offset in range(0, _RANGE, ALIGNMENT)]
