"""Registers for people: flags by name, the CPU's mode, and a compact dump.

The dump follows the order of Linux's own oops output, so that it can be laid beside one; see the
Intel SDM, volume 1, section 3.4.3 for RFLAGS and volume 3, section 2.5 for the control registers.
"""

from collections.abc import Mapping

_FLAGS = (
    (21, "ID"),
    (20, "VIP"),
    (19, "VIF"),
    (18, "AC"),
    (17, "VM"),
    (16, "RF"),
    (14, "NT"),
    (11, "OF"),
    (10, "DF"),
    (9, "IF"),
    (8, "TF"),
    (7, "SF"),
    (6, "ZF"),
    (4, "AF"),
    (2, "PF"),
    (0, "CF"),
)
_EFER_LMA = 1 << 10
_ATTR_L = 1 << 13
_ATTR_DB = 1 << 14
_CR0_PE = 1

ACTIVITIES = {0: "running", 1: "halted", 2: "waiting for SIPI", 3: "shut down"}


def flag_names(rflags: int) -> str:
    """The flags that are set, by name; IOPL when it is not 0."""
    names = [name for bit, name in _FLAGS if rflags >> bit & 1]
    iopl = rflags >> 12 & 3
    if iopl:
        names.append(f"IOPL={iopl}")
    return " ".join(names)


def code_bits(registers: Mapping[str, int]) -> int:
    """The size of the code that runs: 16, 32 or 64 bits."""
    if not registers["cr0"] & _CR0_PE:
        return 16
    attributes = registers["cs_attr"]
    if registers["efer"] & _EFER_LMA and attributes & _ATTR_L:
        return 64
    return 32 if attributes & _ATTR_DB else 16


def linear_rip(registers: Mapping[str, int]) -> int:
    """The linear address of the next instruction."""
    if code_bits(registers) == 64:
        return registers["rip"]
    return registers["cs_base"] + registers["rip"] & 0xFFFF_FFFF


def linear_rsp(registers: Mapping[str, int]) -> int:
    """The linear address of the top of the stack."""
    if code_bits(registers) == 64:
        return registers["rsp"]
    mask = 0xFFFF_FFFF if registers["ss_attr"] & _ATTR_DB else 0xFFFF
    return registers["ss_base"] + (registers["rsp"] & mask) & 0xFFFF_FFFF


def dump(registers: Mapping[str, int]) -> list[str]:
    """The general, segment and control registers in a few lines."""
    r = registers

    def row(*names: str) -> str:
        return " ".join(f"{name.upper():>3}: {r[name]:016x}" for name in names)

    return [
        f"RSP: {r['ss']:04x}:{r['rsp']:016x} "
        f"RFLAGS: {r['rflags']:08x} [{flag_names(r['rflags'])}] CPL: {r['cpl']}",
        row("rax", "rbx", "rcx"),
        row("rdx", "rsi", "rdi"),
        row("rbp", "r8", "r9"),
        row("r10", "r11", "r12"),
        row("r13", "r14", "r15"),
        f" FS: {r['fs']:04x} {r['fs_base']:016x}  GS: {r['gs']:04x} {r['gs_base']:016x}  "
        f"kernel GS: {r['kernel_gs_base']:016x}",
        f" CS: {r['cs']:04x} DS: {r['ds']:04x} ES: {r['es']:04x}  CR0: {r['cr0']:08x} "
        f"CR2: {r['cr2']:016x}",
        f"CR3: {r['cr3']:016x} CR4: {r['cr4']:08x} EFER: {r['efer']:08x} ({code_bits(r)}-bit code)",
    ]
