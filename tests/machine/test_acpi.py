"""ACPI tables: structure, checksums and the links between them."""

import struct

import pytest

from rr86.machine.acpi import AcpiImage, aml, build_acpi, resources

BASE = 0x1FFF_0000


def table_at(image: AcpiImage, address: int) -> bytes:
    offset = address - image.base
    (length,) = struct.unpack_from("<I", image.tables, offset + 4)
    assert offset >= 0
    assert offset + length <= len(image.tables)
    return image.tables[offset : offset + length]


def tables(image: AcpiImage) -> dict[bytes, bytes]:
    """All tables by signature, found as a guest finds them."""
    (root,) = struct.unpack_from("<Q", image.rsdp, 24)
    xsdt = table_at(image, root)
    found = {b"XSDT": xsdt}
    for (address,) in struct.iter_unpack("<Q", xsdt[36:]):
        found[table_at(image, address)[:4]] = table_at(image, address)
    fadt = found[b"FACP"]
    found[b"DSDT"] = table_at(image, struct.unpack_from("<Q", fadt, 140)[0])
    found[b"FACS"] = table_at(image, struct.unpack_from("<I", fadt, 36)[0])
    return found


@pytest.mark.parametrize("vcpus", [1, 4, 64])
def test_every_table_is_reachable_and_sums_to_zero(vcpus: int) -> None:
    image = build_acpi(vcpus, BASE)
    found = tables(image)
    assert set(found) == {b"XSDT", b"FACP", b"APIC", b"HPET", b"MCFG", b"DSDT", b"FACS"}
    for signature, data in found.items():
        if signature != b"FACS":
            assert sum(data) % 256 == 0, signature
    assert sum(image.rsdp[:20]) % 256 == 0
    assert sum(image.rsdp) % 256 == 0
    assert len(image.rsdp) == 36


def test_facs_is_aligned_to_64() -> None:
    fadt = tables(build_acpi(1, BASE))[b"FACP"]
    assert struct.unpack_from("<I", fadt, 36)[0] % 64 == 0
    # X_FIRMWARE_CTRL must be zero while FIRMWARE_CTRL is used.
    assert struct.unpack_from("<Q", fadt, 132)[0] == 0


def test_fadt_describes_the_power_management_block_of_ich9() -> None:
    fadt = tables(build_acpi(1, BASE))[b"FACP"]
    assert len(fadt) == 276
    assert fadt[8] == 6
    assert struct.unpack_from("<H", fadt, 46)[0] == 9
    assert struct.unpack_from("<IBB", fadt, 48) == (0xB2, 2, 3)
    assert struct.unpack_from("<I", fadt, 56)[0] == 0x600
    assert struct.unpack_from("<I", fadt, 64)[0] == 0x604
    assert struct.unpack_from("<I", fadt, 76)[0] == 0x608
    assert struct.unpack_from("<I", fadt, 80)[0] == 0x620
    assert tuple(fadt[88:94]) == (4, 2, 0, 4, 16, 0)
    assert fadt[108] == 0x32
    flags = struct.unpack_from("<I", fadt, 112)[0]
    assert flags >> 10 & 1
    assert not flags >> 20 & 1, "not hardware-reduced"
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 0x0F)


@pytest.mark.parametrize("vcpus", [1, 3, 64])
def test_madt_lists_each_vcpu_once_and_the_overrides(vcpus: int) -> None:
    madt = tables(build_acpi(vcpus, BASE))[b"APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE0_0000, 1)
    entries, offset = [], 44
    while offset < len(madt):
        kind, length = madt[offset], madt[offset + 1]
        assert length >= 2
        entries.append((kind, madt[offset + 2 : offset + length]))
        offset += length
    assert offset == len(madt)
    processors = [struct.unpack("<BBI", body) for kind, body in entries if kind == 0]
    assert processors == [(index, index, 1) for index in range(vcpus)]
    assert [body for kind, body in entries if kind == 1] == [
        struct.pack("<BBII", 0, 0, 0xFEC0_0000, 0)
    ]
    overrides = [struct.unpack("<BBIH", body) for kind, body in entries if kind == 2]
    assert overrides == [(0, 0, 2, 0), (0, 9, 9, 0x0D)]


def test_mcfg_and_hpet_point_at_their_devices() -> None:
    found = tables(build_acpi(1, BASE))
    assert struct.unpack_from("<QHBB", found[b"MCFG"], 44) == (0xB000_0000, 0, 0, 255)
    assert struct.unpack_from("<I", found[b"HPET"], 36)[0] == 0x8086_A201
    assert struct.unpack_from("<Q", found[b"HPET"], 44)[0] == 0xFED0_0000


def walk(data: bytes) -> list[str]:
    """Names of all devices in the AML, by following package lengths through known terms."""
    names: list[str] = []
    offset = 0
    while offset < len(data):
        if data[offset] == 0x10 or data[offset : offset + 2] == b"\x5b\x82":
            start = offset + (1 if data[offset] == 0x10 else 2)
            extra = data[start] >> 6
            length = data[start] & (0x3F if extra == 0 else 0xF)
            for index in range(extra):
                length |= data[start + 1 + index] << 4 + 8 * index
            body = data[start + 1 + extra : start + length]
            skip = 5 if body[:1] == b"\\" else 4
            names.append(body[:skip].decode())
            names += walk(body[skip:])
            offset = start + length
        elif data[offset] in (0x08, 0x14):
            offset = skip_term(data, offset)
        else:
            raise AssertionError(f"unexpected opcode {data[offset]:#x} at {offset}")
    return names


def skip_term(data: bytes, offset: int) -> int:
    """End of a Name or Method term."""

    def sized(start: int) -> int:
        extra = data[start] >> 6
        length = data[start] & (0x3F if extra == 0 else 0xF)
        for index in range(extra):
            length |= data[start + 1 + index] << 4 + 8 * index
        return start + length

    if data[offset] == 0x14:
        return sized(offset + 1)
    value = offset + (6 if data[offset + 1 : offset + 2] == b"\\" else 5)
    fixed = {0x00: 1, 0x01: 1, 0x0A: 2, 0x0B: 3, 0x0C: 5, 0x0E: 9}
    if data[value] in fixed:
        return value + fixed[data[value]]
    if data[value] == 0x0D:
        return data.index(0, value) + 1
    assert data[value] in (0x11, 0x12)
    return sized(value + 1)


def test_dsdt_nests_the_devices_without_a_gap() -> None:
    dsdt = tables(build_acpi(3, BASE))[b"DSDT"]
    assert dsdt[8] == 2, "64-bit integers"
    assert walk(dsdt[36:]) == [
        "\\_SB_", "PCI0", "ISA_", "COM1", "RTC_", "MBRD", "HPET", "CPUS", "C000", "C001", "C002",
    ]  # fmt: skip


def test_tables_depend_on_nothing_but_their_arguments() -> None:
    assert build_acpi(4, BASE) == build_acpi(4, BASE)
    assert build_acpi(4, BASE).tables != build_acpi(5, BASE).tables


@pytest.mark.parametrize(
    ("value", "code"),
    [(0, "00"), (1, "01"), (2, "0a02"), (255, "0aff"), (256, "0b0001"), (0xFFFF, "0bffff"),
     (0x10000, "0c00000100"), (1 << 32, "0e0000000001000000")],
)  # fmt: skip
def test_integers_take_the_shortest_form(value: int, code: str) -> None:
    assert aml.integer(value).hex() == code


@pytest.mark.parametrize("size", [0, 59, 60, 61, 62, 63, 64, 4090, 4093, 4094, 70_000])
def test_package_length_counts_itself(size: int) -> None:
    term = aml.else_(aml.Aml(bytes(size)))
    extra = term[1] >> 6
    length = term[1] & (0x3F if extra == 0 else 0xF)
    for index in range(extra):
        length |= term[2 + index] << 4 + 8 * index
    assert length == len(term) - 1
    # Shortest form: one byte less would not do.
    assert extra == 0 or size + extra >= 1 << (6 if extra == 1 else 4 + 8 * (extra - 1))


def test_names_are_padded_and_prefixed() -> None:
    assert aml.path("\\_SB.PCI0") == b"\\\x2e_SB_PCI0"
    assert aml.path("^A.B.C") == b"^\x2f\x03A___B___C___"
    for bad in ("", "lower", "TOOLONG", "1ABC", "A..B"):
        with pytest.raises(ValueError, match="name"):
            aml.path(bad)


def test_eisa_id_is_compressed() -> None:
    assert aml.eisa_id("PNP0A08") == b"\x0c\x41\xd0\x0a\x08"
    with pytest.raises(ValueError, match="EISA"):
        aml.eisa_id("pnp0A08")


def test_resource_descriptors_carry_their_length() -> None:
    for data in (
        resources.bus_window(0, 255),
        resources.io_window(0, 0xCF7),
        resources.memory_window(0x8000_0000, 0xAFFF_FFFF),
        resources.memory_window_64(1 << 39, (1 << 40) - 1),
        resources.memory32(0xFED0_0000, 0x400),
    ):
        assert struct.unpack_from("<H", data, 1)[0] == len(data) - 3
    assert resources.io(0x3F8, 8) == bytes.fromhex("4701f803f8030008")
    assert resources.irq(4) == bytes.fromhex("221000")
