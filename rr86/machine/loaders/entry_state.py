"""Processor states at a kernel's entry: registers, GDT and first page tables.

Segments are set with their hidden parts; `attr` holds descriptor bits 40 to 55 with the limit's
nibble cleared (SDM vol. 3A, 3.4.5). The GDT in memory says the same, so a kernel that reloads a
selector finds what it had.
"""

import struct

from rr86.machine.memory_map import GIB

CODE64_ATTR = 0xA09B
"""Present, DPL 0, execute/read, accessed, L, G."""
CODE32_ATTR = 0xC09B
"""Present, DPL 0, execute/read, accessed, D, G."""
DATA_ATTR = 0xC093
"""Present, DPL 0, read/write, accessed, B, G."""
LDT_ATTR = 0x0082
TSS_ATTR = 0x008B
"""A busy TSS, as TR has it after reset."""

CR0_PE_ET = 1 << 0 | 1 << 4
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME_LMA = 1 << 8 | 1 << 10
RFLAGS_FIXED = 1 << 1

PAGE_TABLES_SIZE = 6 * 4096
_PRESENT_WRITABLE = 0x3
_LARGE = 1 << 7


def descriptor(attr: int) -> bytes:
    """A flat 4 GiB segment descriptor (base 0, limit 0xFFFFF pages)."""
    return struct.pack("<Q", 0xFFFF | (attr | 0xF00) << 40)


def identity_page_tables(base: int) -> bytes:
    """PML4, PDPT and four page directories at `base` that map the first 4 GiB to themselves."""
    entries = 512
    pml4 = [base + 0x1000 | _PRESENT_WRITABLE] + [0] * (entries - 1)
    pdpt = [base + 0x2000 + index * 0x1000 | _PRESENT_WRITABLE for index in range(4)]
    pdpt += [0] * (entries - 4)
    directories = [address | _PRESENT_WRITABLE | _LARGE for address in range(0, 4 * GIB, 2 << 20)]
    return struct.pack(f"<{6 * entries}Q", *pml4, *pdpt, *directories)


def long_mode(*, entry: int, rsi: int, rsp: int, cr3: int, gdt: int) -> dict[str, int]:
    """64-bit mode as the Linux 64-bit boot protocol wants it: __BOOT_CS 0x10, __BOOT_DS 0x18."""
    return {
        **_segments(0x10, CODE64_ATTR, 0x18),
        **_tables(gdt, 4 * 8),
        "rip": entry,
        "rsi": rsi,
        "rsp": rsp,
        "rflags": RFLAGS_FIXED,
        "cr0": CR0_PE_ET | CR0_PG,
        "cr3": cr3,
        "cr4": CR4_PAE,
        "efer": EFER_LME_LMA,
    }


def long_mode_gdt() -> bytes:
    """The GDT that goes with `long_mode`: two null descriptors, code, data."""
    return bytes(16) + descriptor(CODE64_ATTR) + descriptor(DATA_ATTR)


def protected_mode(*, entry: int, eax: int, ebx: int, gdt: int) -> dict[str, int]:
    """Flat 32-bit protected mode without paging, as Multiboot wants it."""
    return {
        **_segments(0x08, CODE32_ATTR, 0x10),
        **_tables(gdt, 3 * 8),
        "rip": entry,
        "rax": eax,
        "rbx": ebx,
        "rflags": RFLAGS_FIXED,
        "cr0": CR0_PE_ET,
        "cr3": 0,
        "cr4": 0,
        "efer": 0,
    }


def protected_mode_gdt() -> bytes:
    """The GDT that goes with `protected_mode`: null, code, data."""
    return bytes(8) + descriptor(CODE32_ATTR) + descriptor(DATA_ATTR)


def _segments(code: int, code_attr: int, data: int) -> dict[str, int]:
    values = _segment("cs", code, 0xFFFF_FFFF, code_attr)
    for name in ("es", "ss", "ds", "fs", "gs"):
        values |= _segment(name, data, 0xFFFF_FFFF, DATA_ATTR)
    values |= _segment("ldtr", 0, 0xFFFF, LDT_ATTR)
    values |= _segment("tr", 0, 0xFFFF, TSS_ATTR)
    return values


def _segment(name: str, selector: int, limit: int, attr: int) -> dict[str, int]:
    return {name: selector, f"{name}_base": 0, f"{name}_limit": limit, f"{name}_attr": attr}


def _tables(gdt: int, size: int) -> dict[str, int]:
    return {"gdtr_base": gdt, "gdtr_limit": size - 1, "idtr_base": 0, "idtr_limit": 0}
