"""The registers of a vCPU as gdb has them, and the target description that says so.

Names, numbers and sizes of the first 66 are those of QEMU's i386-64bit.xml, so that scripts that
were written for QEMU's server work. Behind them come what else a vCPU has and QEMU does not show:
segment bases, descriptor tables, debug registers and the MSRs of system calls. Numbers are written
out, because gdb wants a register in the feature where it looks for it, and QEMU's order is another
one (gdb manual, "Target Descriptions").
"""

from dataclasses import dataclass
from functools import cache

ANNEX = "target.xml"
_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
)
_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
_FPU_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
# Behind QEMU's: name here, name in `ReplaySession.registers`, bits.
MORE = (
    *((f"{name}_base", f"{name}_base", 64) for name in ("cs", "ss", "ds", "es")),
    *(("gdtr_base", "gdtr_base", 64), ("gdtr_limit", "gdtr_limit", 32)),
    *(("idtr_base", "idtr_base", 64), ("idtr_limit", "idtr_limit", 32)),
    *(("ldtr", "ldtr", 32), ("ldtr_base", "ldtr_base", 64)),
    *(("tr", "tr", 32), ("tr_base", "tr_base", 64)),
    *((f"dr{number}", f"dr{number}", 64) for number in (0, 1, 2, 3, 6, 7)),
    *(("star", "star", 64), ("lstar", "lstar", 64), ("sysenter_eip", "sysenter_eip", 64)),
    *(("xcr0", "xcr0", 64), ("cpl", "cpl", 32)),
)

# Flags of each register by bit (SDM, volume 1, section 3.4.3; volume 3, section 2.5).
_FLAGS: dict[str, tuple[int, dict[str, int | tuple[int, int]]]] = {
    "x64_eflags": (
        4,
        {
            **{"CF": 0, "": 1, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10},
            **{"OF": 11, "IOPL": (12, 13), "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19},
            **{"VIP": 20, "ID": 21},
        },
    ),
    "x64_cr0": (
        8,
        {
            **{"PE": 0, "MP": 1, "EM": 2, "TS": 3, "ET": 4, "NE": 5, "WP": 16, "AM": 18},
            **{"NW": 29, "CD": 30, "PG": 31},
        },
    ),
    "x64_cr3": (8, {"PCID": (0, 11), "PDBR": (12, 63)}),
    "x64_cr4": (
        8,
        {
            **{"VME": 0, "PVI": 1, "TSD": 2, "DE": 3, "PSE": 4, "PAE": 5, "MCE": 6, "PGE": 7},
            **{"PCE": 8, "OSFXSR": 9, "OSXMMEXCPT": 10, "UMIP": 11, "LA57": 12, "VMXE": 13},
            **{"SMXE": 14, "FSGSBASE": 16, "PCIDE": 17, "OSXSAVE": 18, "SMEP": 20, "SMAP": 21},
            **{"PKE": 22},
        },
    ),
    "x64_efer": (
        8,
        {
            **{"SCE": 0, "LME": 8, "LMA": 10, "NXE": 11, "SVME": 12, "LMSLE": 13, "FFXSR": 14},
            **{"TCE": 15},
        },
    ),
    "x64_mxcsr": (
        4,
        {
            **{"IE": 0, "DE": 1, "ZE": 2, "OE": 3, "UE": 4, "PE": 5, "DAZ": 6, "IM": 7, "DM": 8},
            **{"ZM": 9, "OM": 10, "UM": 11, "PM": 12, "FZ": 15},
        },
    ),
}
_VECTOR_PARTS = (
    *(("v4_float", "v4f", "ieee_single", 4), ("v2_double", "v2d", "ieee_double", 2)),
    *(("v16_int8", "v16i8", "int8", 16), ("v8_int16", "v8i16", "int16", 8)),
    *(("v4_int32", "v4i32", "int32", 4), ("v2_int64", "v2i64", "int64", 2)),
)


@dataclass(frozen=True)
class Register:
    """A register as gdb has it. Its number is its place in `REGISTERS`."""

    name: str
    bits: int
    kind: str
    feature: str
    group: str | None = None


def _registers() -> list[Register]:
    core, system = "org.gnu.gdb.i386.core", "org.rr86.system"
    found = [
        Register(n, 64, "data_ptr" if n in ("rbp", "rsp") else "int64", core) for n in _GENERAL
    ]
    found += [Register("rip", 64, "code_ptr", core), Register("eflags", 32, "x64_eflags", core)]
    found += [Register(name, 32, "int32", core) for name in _SELECTORS]
    segments = "org.gnu.gdb.i386.segments"
    found += [Register(name, 64, "int64", segments) for name in ("fs_base", "gs_base")]
    found += [Register("k_gs_base", 64, "int64", system)]
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        kind = "int64" if name in ("cr2", "cr8") else f"x64_{name}"
        found.append(Register(name, 64, kind, system))
    found += [Register(f"st{number}", 80, "i387_ext", core) for number in range(8)]
    found += [Register(name, 32, "int", core, "float") for name in _FPU_CONTROL]
    sse = "org.gnu.gdb.i386.sse"
    found += [Register(f"xmm{number}", 128, "vec128", sse) for number in range(16)]
    found += [Register("mxcsr", 32, "x64_mxcsr", sse, "vector")]
    return found + [Register(n, bits, f"int{bits}", system) for n, _, bits in MORE]


REGISTERS: tuple[Register, ...] = tuple(_registers())
"""Every register, by its number in the protocol."""
NUMBERS = {register.name: number for number, register in enumerate(REGISTERS)}


def _flags(name: str) -> list[str]:
    size, fields = _FLAGS[name]
    lines = [f'<flags id="{name}" size="{size}">']
    for field, bits in fields.items():
        start, end = bits if isinstance(bits, tuple) else (bits, bits)
        lines.append(f'<field name="{field}" start="{start}" end="{end}"/>')
    return [*lines, "</flags>"]


def _vectors() -> list[str]:
    lines = [
        f'<vector id="{kind}" type="{element}" count="{count}"/>'
        for _, kind, element, count in _VECTOR_PARTS
    ]
    lines.append('<union id="vec128">')
    lines += [f'<field name="{field}" type="{kind}"/>' for field, kind, _, _ in _VECTOR_PARTS]
    return [*lines, '<field name="uint128" type="uint128"/>', "</union>"]


@cache
def target_description() -> bytes:
    """The document that `qXfer:features:read:target.xml` hands out."""
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">']
    lines += ['<target version="1.0">', "<architecture>i386:x86-64</architecture>"]
    for feature in dict.fromkeys(register.feature for register in REGISTERS):
        lines.append(f'<feature name="{feature}">')
        members = [register for register in REGISTERS if register.feature == feature]
        kinds = {register.kind for register in members}
        for name in _FLAGS:
            lines += _flags(name) if name in kinds else []
        lines += _vectors() if "vec128" in kinds else []
        for register in members:
            group = "" if register.group is None else f' group="{register.group}"'
            lines.append(
                f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}" '
                f'regnum="{NUMBERS[register.name]}"{group}/>'
            )
        lines.append("</feature>")
    return "\n".join([*lines, "</target>", ""]).encode()
