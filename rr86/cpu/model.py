"""The CPU models that a guest can see: CPUID rows and MSR values, as data.

A guest never sees the host's processor: what CPUID and the read-only MSRs answer comes from one of
the models here, is handed to the core as plain numbers and is stored in the trace. A model is a set
of feature names plus a few numbers, so another model is another table, not more code.

How the core answers CPUID (leaf = EAX, subleaf = ECX):

* the row with this leaf and exactly this subleaf, otherwise the leaf's row with subleaf -1,
  otherwise zeros (also for leaves above the maximum);
* per vCPU or per state, computed by the core over the row: leaf 1 EBX[31:24] and leaf 0xB EDX (the
  APIC id), leaf 1 ECX[27] (OSXSAVE, a copy of CR4.OSXSAVE), leaf 0xD subleaf 0 EBX (the XSAVE size
  that XCR0 asks for now).

How the core uses MSR rows (index, value): it is the value after reset, on each vCPU (INIT keeps
it). Which MSRs exist and which bits can be written is the core's knowledge; an index that it does
not know otherwise is a read-only register (WRMSR raises #GP). The rows come from
`CpuModel.msr_rows` and, for what firmware would have set up (MTRRs), from
`rr86.machine.memory_map.mtrr_rows`. The one that matters most is 0x10A, IA32_ARCH_CAPABILITIES: see
`NOT_AFFECTED`.

Sources: Intel SDM vol. 2A (CPUID), vol. 4 (MSRs); Linux 6.1 arch/x86/kernel/cpu/common.c, bugs.c
and intel.c for the effect of a choice on a guest.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from rr86.errors import SpecError

CpuidRow = tuple[int, int, int, int, int, int]
"""(leaf, subleaf or -1 for any, eax, ebx, ecx, edx)."""

MsrRow = tuple[int, int]
"""(index, value after reset)."""

TSC_HZ = 1_000_000_000
"""Ticks per second of TSC, core crystal clock and APIC timer: one tick is one nanosecond of virtual
time, so a guest's clock arithmetic is exact and nothing needs to be calibrated."""

MAX_VCPUS = 64
"""As many as the board supports; well below 255, where xAPIC ids run out."""

HYPERVISOR_SIGNATURE = b"rr86rr86rr86"
"""Vendor at leaf 0x40000000. A signature of our own keeps guests from expecting the paravirtual
interfaces (clocks, hypercalls) that a known one promises."""


LEAF_7_2 = 2 << 32 | 7
"""Key of leaf 7, subleaf 2 in `FEATURES`; plain numbers there are leaves with subleaf 0."""

# Where each feature's bit lives: name -> (leaf, register, bit). Names as in /proc/cpuinfo, so that
# they can be compared with a host's.
FEATURES: dict[str, tuple[int, str, int]] = {
    **{
        name: (1, "edx", bit)
        for name, bit in {
            "fpu": 0, "vme": 1, "de": 2, "pse": 3, "tsc": 4, "msr": 5, "pae": 6, "mce": 7,
            "cx8": 8, "apic": 9, "sep": 11, "mtrr": 12, "pge": 13, "mca": 14, "cmov": 15,
            "pat": 16, "pse36": 17, "clflush": 19, "mmx": 23, "fxsr": 24, "sse": 25,
            "sse2": 26, "ss": 27, "ht": 28,
        }.items()
    },
    **{
        name: (1, "ecx", bit)
        for name, bit in {
            "pni": 0, "pclmulqdq": 1, "ssse3": 9, "fma": 12, "cx16": 13, "pcid": 17,
            "sse4_1": 19, "sse4_2": 20, "x2apic": 21, "movbe": 22, "popcnt": 23,
            "tsc_deadline_timer": 24, "aes": 25, "xsave": 26, "avx": 28, "f16c": 29,
            "rdrand": 30, "hypervisor": 31,
        }.items()
    },
    "arat": (6, "eax", 2),
    **{
        name: (7, "ebx", bit)
        for name, bit in {
            "fsgsbase": 0, "tsc_adjust": 1, "bmi1": 3, "avx2": 5, "smep": 7, "bmi2": 8,
            "erms": 9, "invpcid": 10, "zero_fcs_fds": 13, "rdseed": 18, "adx": 19, "smap": 20,
        }.items()
    },
    "umip": (7, "ecx", 2),
    "rdpid": (7, "ecx", 22),
    "fsrm": (7, "edx", 4),
    "md_clear": (7, "edx", 10),
    "spec_ctrl": (7, "edx", 26),
    "arch_capabilities": (7, "edx", 29),
    "bhi_ctrl": (LEAF_7_2, "edx", 4),
    "lahf_lm": (0x8000_0001, "ecx", 0),
    "abm": (0x8000_0001, "ecx", 5),
    "3dnowprefetch": (0x8000_0001, "ecx", 8),
    "syscall": (0x8000_0001, "edx", 11),
    "nx": (0x8000_0001, "edx", 20),
    "pdpe1gb": (0x8000_0001, "edx", 26),
    "rdtscp": (0x8000_0001, "edx", 27),
    "lm": (0x8000_0001, "edx", 29),
    "constant_tsc": (0x8000_0007, "edx", 8),
}  # fmt: skip

# IA32_ARCH_CAPABILITIES (SDM vol. 4, MSR 10AH): bit by bit, why the models set it. The goal
# is a kernel that enables no mitigation that costs instructions at every entry, and none that this
# engine would make expensive; speculation does not exist for a guest whose time is a count of
# instructions, so each "not affected" is simply true.
NOT_AFFECTED: dict[str, int] = {
    # No Meltdown, no L1TF: without this bit Linux isolates page tables (KPTI), with two CR3 writes
    # at every kernel entry.
    "RDCL_NO": 0,
    # "Enhanced IBRS": Linux sets SPEC_CTRL.IBRS once per CPU and keeps plain indirect branches.
    # The alternative is retpolines, whose return tricks defeat any translator's return cache.
    # It needs SPEC_CTRL (CPUID 7 EDX 26), hence the MSRs 0x48 (stored) and 0x49 (ignored).
    "IBRS_ALL": 1,
    # A nested hypervisor need not flush L1D. Costs nothing to say.
    "SKIP_L1DFL_VMENTRY": 3,
    # No speculative store bypass: no SSBD handling in prctl, seccomp and context switches.
    "SSB_NO": 4,
    # No MDS, and none of its later kin: no VERW at each return to user mode.
    "MDS_NO": 5,
    # No machine check on page size change: no iTLB-multihit workaround in KVM, no message.
    "PSCHANGE_MC_NO": 6,
    # No TSX asynchronous abort; there is no TSX either.
    "TAA_NO": 8,
    # The three MMIO stale data variants. All three must be set, or Linux takes the CPU for
    # affected or reports "Unknown: No mitigations".
    "SBDR_SSDP_NO": 13,
    "FBSDP_NO": 14,
    "PSDP_NO": 15,
    # No branch history injection: otherwise Linux clears the branch history with a loop at every
    # system call. Debian's 6.1.192 does not look at this bit, and sees the flaw in each virtual CPU
    # and in each with enhanced IBRS; hence bhi_ctrl (CPUID 7.2 EDX 4), which makes it set
    # SPEC_CTRL.BHI_DIS_S once per CPU instead.
    "BHI_NO": 20,
    # No post-barrier RSB weakness of enhanced IBRS: no RSB stuffing at VM exit.
    "PBRSB_NO": 24,
    # No gather data sampling (moot without AVX, but the v3 model shares this table).
    "GDS_NO": 26,
    # No register file data sampling: no VERW.
    "RFDS_NO": 27,
    # No indirect target selection: no thunks for indirect branches and returns.
    "ITS_NO": 62,
}


class Cache(NamedTuple):
    """One row of leaf 4 (deterministic cache parameters); sizes in bytes."""

    level: int
    kind: int
    """1 data, 2 instruction, 3 unified."""
    ways: int
    sets: int
    shared_by_package: bool = False
    line: int = 64

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self.ways * self.sets * self.line


@dataclass(frozen=True)
class XsaveComponent:
    """A state component beyond x87 and SSE: XCR0 bit, size and offset in the standard format."""

    index: int
    size: int
    offset: int


@dataclass(frozen=True)
class CpuModel:
    """A processor as a guest sees it. Immutable; everything follows from the fields."""

    name: str
    brand: str
    """Up to 47 characters for leaves 0x80000002 to 0x80000004."""
    features: frozenset[str]
    arch_capabilities: int
    vendor: str = "GenuineIntel"
    family: int = 6
    model: int = 0x8F
    stepping: int = 8
    physical_bits: int = 40
    linear_bits: int = 48
    caches: tuple[Cache, ...] = ()
    xsave_components: tuple[XsaveComponent, ...] = ()
    microcode: int = 1
    max_basic_leaf: int = 0x16

    def __post_init__(self) -> None:
        unknown = sorted(self.features - FEATURES.keys())
        if unknown:
            raise ValueError(f"CPU model {self.name}: unknown features: {', '.join(unknown)}")
        if len(self.vendor) != 12 or len(self.brand) > 47:
            raise ValueError(f"CPU model {self.name}: vendor must have 12, brand up to 47 letters")

    def register_bits(self, leaf: int, register: str, features: Iterable[str] = ()) -> int:
        """The feature bits of a CPUID register, with `features` added; `leaf` as in `FEATURES`."""
        return sum(
            1 << bit
            for name, (at, reg, bit) in FEATURES.items()
            if (at, reg) == (leaf, register) and (name in self.features or name in features)
        )

    def signature(self) -> int:
        """Leaf 1 EAX: family, model and stepping (families 6 and 15 use the extended model)."""
        base = min(self.family, 15)
        extended = self.family - base
        return (
            self.stepping
            | (self.model & 0xF) << 4
            | base << 8
            | (self.model >> 4) << 16
            | extended << 20
        )

    def cpuid_rows(self, vcpus: int) -> list[CpuidRow]:
        """All CPUID rows of a machine with `vcpus` vCPUs: one package, one thread per core."""
        if not 1 <= vcpus <= MAX_VCPUS:
            raise ValueError(f"vcpus must be 1 to {MAX_VCPUS}, not {vcpus}")
        return [
            *self._basic_rows(vcpus),
            *self._cache_rows(vcpus),
            *self._topology_rows(vcpus),
            *self._xsave_rows(),
            *self._hypervisor_rows(),
            *self._extended_rows(),
        ]

    def msr_rows(self) -> list[MsrRow]:
        """Initial MSR values that belong to the processor; see the module's docstring."""
        return [
            # IA32_PLATFORM_ID: only the microcode loader looks, which a hypervisor bit turns off.
            (0x17, 0),
            # IA32_FEATURE_CONTROL: locked with everything off: no kernel tries to enable VMX.
            (0x3A, 1),
            # IA32_SPEC_CTRL: IBRS (bit 0) and BHI_DIS_S (bit 10) can be set, without effect.
            (0x48, 0),
            # IA32_BIOS_SIGN_ID: microcode revision in the upper half. A guest writes 0, executes
            # CPUID and reads; the value has to be back by then.
            (0x8B, self.microcode << 32),
            # IA32_MTRRCAP: 8 variable ranges, fixed ranges, write combining.
            (0xFE, 0x508),
            # IA32_ARCH_CAPABILITIES.
            (0x10A, self.arch_capabilities),
            # IA32_MCG_CAP, IA32_MCG_STATUS: no error banks, since no error can happen.
            (0x179, 0),
            (0x17A, 0),
            # IA32_MISC_ENABLE: fast strings on (otherwise Linux disables ERMS and says so), BTS and
            # PEBS unavailable, CPUID not limited.
            (0x1A0, 1 << 0 | 1 << 11 | 1 << 12),
            # IA32_PAT: the power-on table WB, WT, UC-, UC, twice.
            (0x277, 0x0007_0406_0007_0406),
        ]

    def _basic_rows(self, vcpus: int) -> list[CpuidRow]:
        vendor = struct.unpack("<3I", self.vendor.encode("ascii"))
        # HTT says that EBX[23:16] counts the package's APIC ids, so it depends on the vCPUs.
        htt = ("ht",) if vcpus > 1 else ()
        count = 1 << _id_bits(vcpus)
        mhz = TSC_HZ // 1_000_000
        return [
            (0, -1, self.max_basic_leaf, vendor[0], vendor[2], vendor[1]),
            (
                1,
                -1,
                self.signature(),
                count << 16 | (64 // 8) << 8,
                self.register_bits(1, "ecx"),
                self.register_bits(1, "edx", htt),
            ),
            # One round; 0xFF sends readers to leaf 4 for caches; TLBs: 128 entries for code (B6),
            # 64 for data (03), 1536 shared (C3); prefetch of 64 bytes (F0).
            (2, -1, 0x03B6_FF01, 0x0000_C3F0, 0, 0),
            # ARAT: the APIC timer never stops, so no broadcast timer is set up.
            (6, -1, self.register_bits(6, "eax"), 0, 0, 0),
            (
                7,
                0,
                2,  # highest subleaf
                self.register_bits(7, "ebx"),
                self.register_bits(7, "ecx"),
                self.register_bits(7, "edx"),
            ),
            (7, 2, 0, 0, 0, self.register_bits(LEAF_7_2, "edx")),
            # TSC = crystal * 1 / 1; crystal in Hz. Linux also takes the APIC timer's rate from it.
            (0x15, -1, 1, 1, TSC_HZ, 0),
            # Base, maximum and bus frequency in MHz.
            (0x16, -1, mhz, mhz, mhz, 0),
        ]

    def _cache_rows(self, vcpus: int) -> list[CpuidRow]:
        package_ids = (1 << _id_bits(vcpus)) - 1
        rows: list[CpuidRow] = []
        for subleaf, cache in enumerate(self.caches):
            sharing = package_ids if cache.shared_by_package else 0
            eax = cache.kind | cache.level << 5 | 1 << 8 | sharing << 14 | package_ids << 26
            ebx = (cache.line - 1) | (cache.ways - 1) << 22
            rows.append((4, subleaf, eax, ebx, cache.sets - 1, 0))
        return rows

    @staticmethod
    def _topology_rows(vcpus: int) -> list[CpuidRow]:
        # Subleaf = level number (ECX[7:0]); types 1 = SMT, 2 = core (ECX[15:8]). EDX is the core's.
        return [
            (0xB, 0, 0, 1, 1 << 8 | 0, 0),
            (0xB, 1, _id_bits(vcpus), vcpus, 2 << 8 | 1, 0),
            (0xB, 2, 0, 0, 2, 0),
        ]

    def _xsave_rows(self) -> list[CpuidRow]:
        if "xsave" not in self.features:
            return []
        mask = 3 | sum(1 << part.index for part in self.xsave_components)
        size = max([576, *(part.offset + part.size for part in self.xsave_components)])
        rows: list[CpuidRow] = [
            # EBX is what XCR0 asks for now: the core computes it; after reset that is 576.
            (0xD, 0, mask, 576, size, 0),
            # XSAVEOPT; no XSAVEC, XGETBV with ECX = 1, or XSAVES.
            (0xD, 1, 1, 0, 0, 0),
        ]
        rows += [(0xD, part.index, part.size, part.offset, 0, 0) for part in self.xsave_components]
        return rows

    @staticmethod
    def _hypervisor_rows() -> list[CpuidRow]:
        name = struct.unpack("<3I", HYPERVISOR_SIGNATURE)
        return [
            (0x4000_0000, -1, 0x4000_0010, *name),
            # TSC and APIC timer in kHz: the convention that VMware began and others follow.
            (0x4000_0010, -1, TSC_HZ // 1000, TSC_HZ // 1000, 0, 0),
        ]

    def _extended_rows(self) -> list[CpuidRow]:
        brand = struct.unpack("<12I", self.brand.encode("ascii").ljust(48, b"\0"))
        l2 = next((cache.size // 1024 for cache in self.caches if cache.level == 2), 0)
        return [
            (0x8000_0000, -1, 0x8000_0008, 0, 0, 0),
            (
                0x8000_0001,
                -1,
                0,
                0,
                self.register_bits(0x8000_0001, "ecx"),
                self.register_bits(0x8000_0001, "edx"),
            ),
            (0x8000_0002, -1, *brand[0:4]),
            (0x8000_0003, -1, *brand[4:8]),
            (0x8000_0004, -1, *brand[8:12]),
            # L2 in KiB, 16 ways (code 8), 64-byte lines.
            (0x8000_0006, -1, 0, 0, l2 << 16 | 8 << 12 | 64, 0),
            (0x8000_0007, -1, 0, 0, 0, self.register_bits(0x8000_0007, "edx")),
            (0x8000_0008, -1, self.linear_bits << 8 | self.physical_bits, 0, 0, 0),
        ]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _id_bits(vcpus: int) -> int:
    """Bits of the APIC id that number the cores of the package."""
    return (vcpus - 1).bit_length()


# The model of traces from before there was `westmere`; its rows must never change.
#
# Family 6, model 0x8F, stepping 8 is Sapphire Rapids: a server with enhanced IBRS that is on none
# of Linux's lists of affected models for SRBDS, MMIO stale data, RETBleed, GDS, RFDS or ITS, and
# has no TSC deadline erratum and no Atom quirks. Its drivers (intel_idle, uncore, C-state and RAPL
# events) stay away for want of MWAIT or because of the hypervisor bit, which also silences the
# checks of the microcode revision.
#
# Left out on purpose:
# vme     VM86 mode is not offered by the engine beyond what protected mode needs.
# ss      self-snoop only saves WBINVD while MTRRs are changed.
# pcid    a guest that uses it expects TLB entries to survive CR3 writes; nothing is gained here.
# rdrand, rdseed  entropy of the host; guests get a seed from the loader instead.
# fsrm    would turn every short memcpy into REP MOVSB, which is slower than moves in a translator.
# md_clear  MDS_NO says that VERW has nothing to clear.
# avx, bmi, movbe  for the richer model.
DEFAULT = CpuModel(
    name="default",
    brand="rr86 Virtual CPU",
    features=_names(
        """
        fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse
        sse2 pni ssse3 cx16 sse4_1 sse4_2 x2apic popcnt tsc_deadline_timer xsave hypervisor
        arat fsgsbase tsc_adjust smep erms zero_fcs_fds smap umip spec_ctrl arch_capabilities
        bhi_ctrl
        lahf_lm syscall nx pdpe1gb rdtscp lm constant_tsc
        """
    ),
    arch_capabilities=sum(1 << bit for bit in NOT_AFFECTED.values()),
    caches=(
        Cache(level=1, kind=1, ways=12, sets=64),
        Cache(level=1, kind=2, ways=8, sets=64),
        Cache(level=2, kind=3, ways=16, sets=2048),
        Cache(level=3, kind=3, ways=16, sets=16384, shared_by_package=True),
    ),
)

# Programs choose code by vendor, family, model and name, not by feature bits alone
# (`__builtin_cpu_is`, `target_clones`, libraries of their own), and trust that the processor of
# that number has what it had when it was sold. So this is family 6, model 0x2C, stepping 2: the
# last of the processors without AVX, and the model offers all that Westmere has to user code,
# AES and PCLMULQDQ included. What comes on top are bits that mostly concern kernels; they are
# found by their bits alone.
#
# What Linux looks up by this number is older than the mitigations that it knows, and
# ARCH_CAPABILITIES answers for those: RDCL_NO for Meltdown and L1TF, MDS_NO, SSB_NO, and so on.
# The TSC deadline timer has no erratum on it.
#
# Left out as in `DEFAULT`, and of what Westmere has: vmx, monitor, ds, dtes64, pdcm, est and
# tm2 (kernels only), ss, pcid and vme (as there).
WESTMERE = replace(
    DEFAULT,
    name="westmere",
    brand="Westmere E56xx/L56xx/X56xx (rr86)",
    family=6,
    model=0x2C,
    stepping=2,
    features=DEFAULT.features | _names("aes pclmulqdq"),
)

MODELS: dict[str, CpuModel] = {model.name: model for model in (WESTMERE, DEFAULT)}


def cpu_model(name: str) -> CpuModel:
    """The model of this name; raises `SpecError` with the names that exist."""
    try:
        return MODELS[name]
    except KeyError:
        known = ", ".join(MODELS)
        raise SpecError(
            f"unknown CPU model {name!r}; known models: {known}", setting="cpu_model"
        ) from None


def with_features(base: CpuModel, name: str, add: Iterable[str]) -> CpuModel:
    """A model like `base` under another name, with more features."""
    return replace(base, name=name, features=base.features | frozenset(add))
