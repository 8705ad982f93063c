"""The CPU model: what CPUID says, and that it says it consistently."""

import hashlib
import struct
from dataclasses import replace

import pytest

from rr86.cpu import model
from rr86.cpu.model import (
    DEFAULT,
    NOT_AFFECTED,
    WESTMERE,
    CpuidRow,
    cpu_model,
    with_features,
)
from rr86.errors import SpecError
from rr86.machine.spec import SEMANTICS, BoardSpec
from rr86.record.recorder import board_spec


def lookup(rows: list[CpuidRow], leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """CPUID as the core answers it."""
    for want in (subleaf, -1):
        for row in rows:
            if row[:2] == (leaf, want):
                return row[2:]
    return 0, 0, 0, 0


def test_vendor_is_spelled_in_ebx_edx_ecx_order() -> None:
    _, ebx, ecx, edx = lookup(DEFAULT.cpuid_rows(1), 0)
    assert struct.pack("<3I", ebx, edx, ecx) == b"GenuineIntel"


def test_signature_decodes_to_family_model_stepping() -> None:
    eax, *_ = lookup(DEFAULT.cpuid_rows(1), 1)
    assert (eax >> 8) & 0xF == DEFAULT.family
    assert (eax >> 4) & 0xF | (eax >> 12) & 0xF0 == DEFAULT.model
    assert eax & 0xF == DEFAULT.stepping


def test_families_above_15_use_the_extended_family() -> None:
    later = replace(DEFAULT, name="x", family=0x19, model=0x01, stepping=1)
    assert later.signature() == 0x00A0_0F11


@pytest.mark.parametrize("leaf", [1, 7, 0x8000_0001])
def test_every_named_feature_has_its_bit_and_no_other_is_set(leaf: int) -> None:
    rows = DEFAULT.cpuid_rows(1)
    registers = dict(zip(("eax", "ebx", "ecx", "edx"), lookup(rows, leaf), strict=True))
    for name, (at, register, bit) in model.FEATURES.items():
        # Leaf 1 EBX holds counts, not features, and no feature lives there.
        if at == leaf:
            assert bool(registers[register] >> bit & 1) == (name in DEFAULT.features), name


def test_no_two_features_share_a_bit() -> None:
    places = list(model.FEATURES.values())
    assert len(places) == len(set(places))


def test_model_leaves_out_what_the_engine_does_not_offer() -> None:
    absent = {"vme", "pcid", "avx", "rdrand", "rdseed", "fsrm", "invpcid", "bmi1", "bmi2"}
    assert not DEFAULT.features & absent
    required = {"smep", "smap", "umip", "fsgsbase", "x2apic", "tsc_deadline_timer", "hypervisor"}
    assert required <= DEFAULT.features


def test_clock_leaves_agree_on_one_gigahertz() -> None:
    rows = DEFAULT.cpuid_rows(1)
    denominator, numerator, crystal, _ = lookup(rows, 0x15)
    assert crystal * numerator // denominator == 1_000_000_000
    assert lookup(rows, 0x16)[0] == 1000
    assert lookup(rows, 0x4000_0010)[:2] == (1_000_000, 1_000_000)
    assert lookup(rows, 0x8000_0007)[3] >> 8 & 1


def test_hypervisor_signature_is_our_own() -> None:
    eax, *name = lookup(DEFAULT.cpuid_rows(1), 0x4000_0000)
    assert eax == 0x4000_0010
    assert struct.pack("<3I", *name) == b"rr86rr86rr86"
    # What guests that look for KVM, Xen or Hyper-V in the further ranges get.
    assert lookup(DEFAULT.cpuid_rows(1), 0x4000_0100) == (0, 0, 0, 0)


def test_xsave_is_x87_and_sse_only() -> None:
    rows = DEFAULT.cpuid_rows(1)
    assert lookup(rows, 0xD, 0) == (3, 576, 576, 0)
    assert lookup(rows, 0xD, 1) == (1, 0, 0, 0)
    assert lookup(rows, 0xD, 2) == (0, 0, 0, 0)


def test_xsave_grows_with_a_components_offset_and_size() -> None:
    avx = replace(DEFAULT, xsave_components=(model.XsaveComponent(2, 256, 576),))
    rows = avx.cpuid_rows(1)
    assert lookup(rows, 0xD, 0) == (7, 576, 832, 0)
    assert lookup(rows, 0xD, 2) == (256, 576, 0, 0)


@pytest.mark.parametrize(
    ("vcpus", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (33, 6), (64, 6)]
)
def test_topology_is_one_package_with_one_thread_per_core(vcpus: int, bits: int) -> None:
    rows = DEFAULT.cpuid_rows(vcpus)
    assert lookup(rows, 0xB, 0) == (0, 1, 0x100, 0)
    assert lookup(rows, 0xB, 1) == (bits, vcpus, 0x201, 0)
    assert lookup(rows, 0xB, 2)[:2] == (0, 0)
    _, ebx, _, edx = lookup(rows, 1)
    assert ebx >> 16 & 0xFF == 1 << bits
    assert edx >> 28 & 1 == (vcpus > 1)
    for subleaf in range(4):
        eax = lookup(rows, 4, subleaf)[0]
        assert eax >> 26 == (1 << bits) - 1
        # Only the last level is shared.
        assert (eax >> 14) & 0xFFF == ((1 << bits) - 1 if subleaf == 3 else 0)


def test_cache_leaf_gives_the_sizes_and_ends() -> None:
    rows = DEFAULT.cpuid_rows(2)
    sizes = []
    for subleaf in range(4):
        _, ebx, ecx, _ = lookup(rows, 4, subleaf)
        sizes.append(((ebx >> 22) + 1) * ((ebx & 0xFFF) + 1) * (ecx + 1) // 1024)
    assert sizes == [48, 32, 2048, 16384]
    assert lookup(rows, 4, 4) == (0, 0, 0, 0)
    assert lookup(rows, 0x8000_0006)[2] == 2048 << 16 | 0x8040


def test_leaf_2_has_no_register_marked_invalid() -> None:
    registers = lookup(DEFAULT.cpuid_rows(1), 2)
    assert registers[0] & 0xFF == 1
    assert not any(value >> 31 for value in registers)


def test_address_widths_and_brand() -> None:
    rows = DEFAULT.cpuid_rows(1)
    assert lookup(rows, 0x8000_0008)[0] == 48 << 8 | 40
    brand = b"".join(struct.pack("<4I", *lookup(rows, 0x8000_0002 + i)) for i in range(3))
    assert brand.rstrip(b"\0").decode() == "rr86 Virtual CPU"


def test_rows_are_unique_and_32_bits_wide() -> None:
    rows = DEFAULT.cpuid_rows(64)
    assert len({row[:2] for row in rows}) == len(rows)
    assert all(0 <= value < 1 << 32 for row in rows for value in row[2:])


def test_arch_capabilities_promises_no_flaw_and_no_control() -> None:
    msrs = dict(DEFAULT.msr_rows())
    value = msrs[0x10A]
    for bit in (0, 1, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62):
        assert value >> bit & 1, f"bit {bit}"
    # RSBA, TSX_CTRL, FB_CLEAR, FB_CLEAR_CTRL, RRSBA, XAPIC_DISABLE, GDS_CTRL, RFDS_CLEAR: each
    # would tell a guest of a flaw, or of an MSR that does not exist.
    for bit in (2, 7, 17, 18, 19, 21, 25, 28):
        assert not value >> bit & 1, f"bit {bit}"
    assert value == sum(1 << bit for bit in NOT_AFFECTED.values())


def test_branch_history_control_is_found_by_walking_the_subleaves() -> None:
    rows = DEFAULT.cpuid_rows(1)
    assert lookup(rows, 7, 0)[0] == 2
    assert lookup(rows, 7, 1) == (0, 0, 0, 0)
    assert lookup(rows, 7, 2) == (0, 0, 0, 1 << 4)


def test_fast_strings_are_enabled_or_linux_drops_erms() -> None:
    assert dict(DEFAULT.msr_rows())[0x1A0] & 1


def test_unknown_model_is_named_with_the_known_ones() -> None:
    assert cpu_model("default") is DEFAULT
    with pytest.raises(SpecError, match=r"'max'.*default"):
        cpu_model("max")


def test_unknown_feature_is_refused() -> None:
    assert "avx" in with_features(DEFAULT, "more", ["avx"]).features
    with pytest.raises(ValueError, match="sse9"):
        with_features(DEFAULT, "more", ["sse9"])


@pytest.mark.parametrize("vcpus", [0, 65])
def test_vcpu_count_is_limited(vcpus: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        DEFAULT.cpuid_rows(vcpus)


# What user code may expect of a processor that says that it is this one: /proc/cpuinfo of an
# X5670, without what only a kernel can use.
OF_WESTMERE = (
    "fpu tsc msr cx8 sep cmov clflush mmx fxsr sse sse2 pni pclmulqdq ssse3 cx16 sse4_1 sse4_2 "
    "popcnt aes lahf_lm syscall nx pdpe1gb rdtscp lm constant_tsc"
)


def test_westmere_has_all_that_its_number_promises_and_nothing_that_it_cannot_translate() -> None:
    assert WESTMERE.features >= set(OF_WESTMERE.split())
    # A number of a processor with AVX sends programs to code that is not there.
    assert not WESTMERE.features & {"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"}
    eax, *_ = lookup(WESTMERE.cpuid_rows(1), 1)
    assert eax == 0x206C2
    rows = WESTMERE.cpuid_rows(1)
    brand = b"".join(struct.pack("<4I", *lookup(rows, 0x8000_0002 + i)) for i in range(3))
    assert brand.startswith(b"Westmere")


def test_westmere_differs_from_the_first_model_by_name_and_two_features() -> None:
    assert WESTMERE.features - DEFAULT.features == {"aes", "pclmulqdq"}
    assert DEFAULT.features <= WESTMERE.features
    assert WESTMERE.msr_rows() == DEFAULT.msr_rows()


def test_the_first_model_never_changes() -> None:
    """Traces that name it replay only if every row stays."""
    digest = hashlib.sha256(repr((DEFAULT.cpuid_rows(4), DEFAULT.msr_rows())).encode()).hexdigest()
    assert digest == "22896b32c1661367166c557ca8cb677ea473cb7aec7999172f646eb3ee8ee886"


def test_the_newest_board_has_westmere() -> None:
    assert BoardSpec().cpu_model == "westmere"
    assert board_spec().cpu_model == "westmere"
    assert board_spec().semantics == SEMANTICS
