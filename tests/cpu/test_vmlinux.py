import bz2
import contextlib
import gzip
import lzma
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rr86.cpu import lz4
from rr86.cpu.vmlinux import Vmlinux, is_bzimage, payload_of, unpack
from rr86.errors import KernelImageError
from tests.images import elf

KERNEL = elf([("start", 0x100000, 16)])


def lz4_literals(data: bytes) -> bytes:
    """One LZ4 block that holds its content as literals."""
    length = len(data)
    if length < 15:
        return bytes([length << 4]) + data
    rest = length - 15
    return b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + data


def legacy(*blocks: bytes) -> bytes:
    return lz4.LEGACY_MAGIC + b"".join(struct.pack("<I", len(b)) + b for b in blocks)


def bzimage(payload: bytes, version: int = 0x20F) -> bytes:
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x1FE:0x200] = b"\x55\xaa"
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, version)
    struct.pack_into("<II", header, 0x248, 32, len(payload))
    return bytes(header) + bytes(32) + payload


@pytest.mark.parametrize(
    "packed",
    [
        KERNEL,
        gzip.compress(KERNEL),
        lzma.compress(
            KERNEL,
            filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2}],
            check=lzma.CHECK_CRC32,
        ),
        lzma.compress(KERNEL, format=lzma.FORMAT_ALONE),
        bz2.compress(KERNEL),
        zstandard.compress(KERNEL),
        legacy(lz4_literals(KERNEL)),
    ],
    ids=["plain", "gzip", "xz-bcj", "lzma", "bzip2", "zstd", "lz4"],
)
def test_every_compression_yields_the_kernel(packed: bytes) -> None:
    # The kernel build appends the unpacked size.
    image = bzimage(packed + struct.pack("<I", len(KERNEL)))
    assert [s.name for s in Vmlinux(image).symbols()] == ["start"]


def test_lzo_and_unknown_compressions_are_named() -> None:
    with pytest.raises(KernelImageError, match="LZO"):
        unpack(b"\x89LZO\x00\r\n\x1a\n")
    with pytest.raises(KernelImageError, match="does not know"):
        unpack(b"garbage!")


@pytest.mark.parametrize("packed", [gzip.compress(KERNEL), zstandard.compress(KERNEL)])
def test_a_damaged_payload_is_an_error_of_ours(packed: bytes) -> None:
    with pytest.raises(KernelImageError):
        Vmlinux(bzimage(packed[:40] + b"\xff" * (len(packed) - 40)))


def test_what_is_no_bzimage_is_refused() -> None:
    assert not is_bzimage(b"MZ")
    with pytest.raises(KernelImageError, match="setup header"):
        payload_of(bytes(4096))
    with pytest.raises(KernelImageError, match=r"2\.06"):
        payload_of(bzimage(b"x", version=0x206))
    with pytest.raises(KernelImageError, match="cut short"):
        payload_of(bzimage(b"x" * 100)[:-1])


def test_lz4_copies_may_overlap_their_output() -> None:
    # "ab", then 9 bytes from 2 back, then twelve literals.
    end = b"!" * 12
    assert lz4.decode_block(b"\x25ab\x02\x00\xc0" + end) == b"ababababab" + b"a" + end


@pytest.mark.parametrize(
    "block",
    [b"", b"\x50ab", b"\x10a\x02\x00\x00", b"\x10a\x00\x00\x00", b"\xf0\xff"],
    ids=["empty", "literals", "before-start", "distance-0", "length"],
)
def test_damaged_lz4_blocks_are_errors(block: bytes) -> None:
    with pytest.raises(KernelImageError):
        lz4.decode_block(block)


def test_an_lz4_block_cannot_grow_without_bound() -> None:
    bomb = b"\x1fa\x01\x00" + b"\xff" * 40000 + b"\x00\x10!"
    with pytest.raises(KernelImageError, match="more than"):
        lz4.decode_block(bomb, limit=1 << 20)


@given(st.binary(max_size=300))
def test_lz4_takes_any_bytes(data: bytes) -> None:
    with contextlib.suppress(KernelImageError):
        lz4.decode_block(data, limit=1 << 16)


@given(st.integers(0, len(KERNEL) - 1), st.integers(0, 255))
def test_one_wrong_byte_in_an_elf_file_is_survived(place: int, value: int) -> None:
    data = bytearray(KERNEL)
    data[place] = value
    with contextlib.suppress(KernelImageError):
        Vmlinux(bytes(data)).symbols()


@given(st.integers(16, 60), st.binary(min_size=1, max_size=8))
def test_any_elf_header_is_survived(place: int, value: bytes) -> None:
    data = bytearray(KERNEL)
    data[place : place + len(value)] = value
    with contextlib.suppress(KernelImageError):
        kernel = Vmlinux(bytes(data))
        kernel.symbols()
        for section in kernel.sections:
            assert len(kernel.section_bytes(section)) <= len(data)


def test_section_names_without_an_end_are_no_names() -> None:
    # Whoever looked for their end would read the file once for each of four thousand sections.
    header = bytearray(64)
    struct.pack_into("<4sBBB", header, 0, b"\x7fELF", 2, 1, 1)
    struct.pack_into("<HHI", header, 16, 2, 62, 1)
    struct.pack_into("<Q", header, 40, 64)
    struct.pack_into("<HHH", header, 58, 64, 4096, 0)
    row = struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64 + 4096 * 64, 1 << 25, 0, 0, 1, 0)
    kernel = Vmlinux(bytes(header) + row * 4096 + b"x" * (1 << 25))
    assert {section.name for section in kernel.sections} == {""}
    assert len(kernel.sections) == 4096
