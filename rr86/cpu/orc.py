"""Unwinding Linux call stacks by the kernel's ORC tables.

Kernels without frame pointers say for each code address how to find the caller's frame: the two
sections `.orc_unwind_ip` (sorted, 32-bit distances from their own place) and `.orc_unwind`
(6 bytes an entry). They survive in the bzImage. Format: arch/x86/include/asm/orc_types.h; the
bit layout of the last two bytes changed in 6.3 and 6.4, which `OrcLayout` covers.
"""

import functools
import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from rr86.cpu.vmlinux import Vmlinux

_REG_UNDEFINED = 0
_REG_PREVIOUS_SP = 1
_REG_BP = 4
_REG_SP = 5
_REG_BP_INDIRECT = 8
_REG_SP_INDIRECT = 9
# Registers that hold the frame only in entry code and after realigning prologues.
_REG_NAMES = {2: "rdx", 3: "rdi", 6: "r10", 7: "r13"}

_PT_REGS_RIP = 128
_PT_REGS_RSP = 152
_PT_REGS_RBP = 32


@dataclass(frozen=True)
class OrcFrame:
    """What one unwinding step needs to know and tells: the state of a frame."""

    ip: int
    sp: int
    bp: int
    # After an interrupt or exception, ip is the next instruction and not a return address.
    exact: bool


@dataclass(frozen=True)
class OrcLayout:
    """How the kind of an entry is told: numbers of the call, registers and IRET-only kinds."""

    call: int
    regs: int
    partial: int
    kind_mask: int


_BEFORE_6_4 = OrcLayout(call=0, regs=1, partial=2, kind_mask=3)
_SINCE_6_4 = OrcLayout(call=2, regs=3, partial=4, kind_mask=7)


class OrcTable:
    """A kernel's ORC tables, with link-time addresses."""

    def __init__(
        self, addresses: list[int], entries: bytes, layout: OrcLayout | None = None
    ) -> None:
        """`addresses` ascend, `entries` has six bytes for each of them. The layout is guessed from
        many entries, as a kernel has them; of a module it is that of its kernel."""
        self.addresses = addresses
        self.entries = entries
        if layout is not None:
            self.layout = layout
            return
        # Before 6.4 calls were kind 0 and nearly every entry is a call; since then kind 0 is
        # "undefined", which is rare.
        sample = [entries[at + 5] & 7 for at in range(0, min(len(entries), 6 * 20_000), 6)]
        newer = sum(kind == 2 for kind in sample) * 2 > len(sample)
        self.layout = _SINCE_6_4 if newer else _BEFORE_6_4

    @classmethod
    def of(cls, kernel: Vmlinux) -> "OrcTable | None":
        """The tables of a kernel, or None if it was built without them."""
        ips = kernel.section(".orc_unwind_ip")
        rows = kernel.section(".orc_unwind")
        if ips is None or rows is None:
            return None
        distances = kernel.section_bytes(ips)
        entries = kernel.section_bytes(rows)
        count = min(len(distances) // 4, len(entries) // 6)
        if not count:
            return None
        values = struct.unpack_from(f"<{count}i", distances)
        base = ips.address
        addresses = [base + 4 * index + value for index, value in enumerate(values)]
        if addresses != sorted(addresses):
            return None
        return cls(addresses, entries[: 6 * count])

    def step(
        self,
        frame: OrcFrame,
        offset: int,
        read_u64: Callable[[int], int | None],
        register: Callable[[str], int] | None = None,
    ) -> OrcFrame | None:
        """The caller's frame, or None at the stack's end or where the tables say nothing.

        `register` gives other registers of the innermost frame.
        """
        # A return address may be the first byte after a function that never returns.
        ip = frame.ip - offset - (0 if frame.exact else 1)
        index = bisect_right(self.addresses, ip) - 1
        if index < 0:
            return None
        sp_offset, bp_offset, regs, kind = struct.unpack_from("<hhBB", self.entries, 6 * index)
        sp_reg, bp_reg = regs & 15, regs >> 4
        kind &= self.layout.kind_mask
        if sp_reg == _REG_UNDEFINED:
            return None
        base: int | None
        if sp_reg == _REG_SP:
            base = frame.sp + sp_offset
        elif sp_reg == _REG_BP:
            base = frame.bp + sp_offset
        elif sp_reg == _REG_SP_INDIRECT:
            base = read_u64(frame.sp)
            base = None if base is None else base + sp_offset
        elif sp_reg == _REG_BP_INDIRECT:
            base = read_u64(frame.bp + sp_offset)
        elif sp_reg in _REG_NAMES and register is not None:
            base = register(_REG_NAMES[sp_reg])
        else:
            return None
        if base is None:
            return None
        if kind == self.layout.call:
            ip_at, sp = base - 8, base
            return_to = read_u64(ip_at)
            exact = False
        elif kind in (self.layout.regs, self.layout.partial):
            # The base is a struct pt_regs, or (partial) one of which only the IRET frame is set.
            start = base if kind == self.layout.regs else base - _PT_REGS_RIP
            return_to = read_u64(start + _PT_REGS_RIP)
            saved_sp = read_u64(start + _PT_REGS_RSP)
            if saved_sp is None:
                return None
            sp = saved_sp
            exact = True
            if kind == self.layout.regs:
                saved_bp = read_u64(start + _PT_REGS_RBP)
                if return_to is None or saved_bp is None:
                    return None
                return OrcFrame(return_to, sp, saved_bp, True)
        else:
            return None
        if return_to is None:
            return None
        bp: int | None = frame.bp
        if bp_reg == _REG_PREVIOUS_SP:
            bp = read_u64(base + bp_offset)
        elif bp_reg == _REG_BP:
            bp = read_u64(frame.bp + bp_offset)
        return None if bp is None else OrcFrame(return_to, sp, bp, exact)


@functools.lru_cache(maxsize=2)
def orc_of(kernel: Vmlinux) -> OrcTable | None:
    """`OrcTable.of`, read once for each kernel."""
    return OrcTable.of(kernel)
