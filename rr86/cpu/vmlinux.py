"""Unpacking the kernel proper (vmlinux) out of a bzImage.

The setup header says where the compressed payload is (`payload_offset`, `payload_length`, boot
protocol 2.08; Documentation/arch/x86/boot.rst in the kernel's sources). Its first bytes tell the
compression. The payload is an ELF file whose section headers survive, so named sections such as
`.orc_unwind` can be found in it; only the symbol table is stripped.
"""

import bz2
import lzma
import struct
import zlib
from abc import ABC, abstractmethod

from rr86.cpu import lz4
from rr86.cpu.elf import ElfFile
from rr86.errors import KernelImageError

# No kernel is larger; a damaged or hostile image must not fill the host's memory.
_LARGEST = 1 << 30


class Payload(ABC):
    """The bytes of a vmlinux, unpacked on demand."""

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; short at the end."""


class PlainPayload(Payload):
    """A vmlinux that is in memory as a whole."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        """See `Payload.read`."""
        return self._data[offset : offset + length]


class Lz4Payload(Payload):
    """A vmlinux in an LZ4 legacy frame, unpacked block by block."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._blocks = lz4.legacy_blocks(data)
        self._unpacked: dict[int, bytes] = {}

    def _block(self, index: int) -> bytes:
        if index not in self._unpacked:
            offset, length = self._blocks[index]
            block = lz4.decode_block(self._data[offset : offset + length])
            if index + 1 < len(self._blocks) and len(block) != lz4.LEGACY_BLOCK_SIZE:
                raise KernelImageError("an LZ4 frame has a short block in its middle")
            self._unpacked[index] = block
        return self._unpacked[index]

    def read(self, offset: int, length: int) -> bytes:
        """See `Payload.read`."""
        size = lz4.LEGACY_BLOCK_SIZE
        parts = []
        while length > 0 and offset // size < len(self._blocks):
            block = self._block(offset // size)
            part = block[offset % size : offset % size + length]
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)


def _unpack_lzma(data: bytes, form: int) -> bytes:
    try:
        # The x86 BCJ filter that the kernel build adds to xz is part of the stream's own headers.
        return lzma.LZMADecompressor(format=form).decompress(data, _LARGEST)
    except lzma.LZMAError as error:
        raise KernelImageError(f"the kernel's payload is damaged: {error}") from None


def _unpack_zstd(data: bytes) -> bytes:
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    try:
        return unpacker.decompress(data)
    except zstandard.ZstdError as error:
        raise KernelImageError(f"the kernel's payload is damaged: {error}") from None


def unpack(data: bytes) -> Payload:
    """Make the compressed payload readable; the compression is told by its first bytes."""
    try:
        if data[:4] == b"\x7fELF":
            return PlainPayload(data)
        if data[:3] == b"\x1f\x8b\x08":
            return PlainPayload(zlib.decompressobj(31).decompress(data, _LARGEST))
        if data[:6] == b"\xfd7zXZ\x00":
            return PlainPayload(_unpack_lzma(data, lzma.FORMAT_XZ))
        if data[:4] == b"\x28\xb5\x2f\xfd":
            return PlainPayload(_unpack_zstd(data))
        if data[:4] == lz4.LEGACY_MAGIC:
            return Lz4Payload(data)
        if data[:3] == b"BZh":
            return PlainPayload(bz2.BZ2Decompressor().decompress(data, _LARGEST))
        if data[:3] == b"\x5d\x00\x00":
            return PlainPayload(_unpack_lzma(data, lzma.FORMAT_ALONE))
    except (zlib.error, OSError, EOFError) as error:
        raise KernelImageError(f"the kernel's payload is damaged: {error}") from None
    if data[:4] == b"\x89LZO":
        raise KernelImageError(
            "the kernel is packed with LZO, which rr86 cannot unpack; its symbols are not available"
        )
    raise KernelImageError("the kernel is packed in a way that rr86 does not know")


def is_bzimage(image: bytes) -> bool:
    """Whether this is a Linux x86 boot image with a setup header."""
    return (
        len(image) > 0x264 and image[0x1FE:0x200] == b"\x55\xaa" and image[0x202:0x206] == b"HdrS"
    )


def payload_of(image: bytes) -> bytes:
    """The compressed payload of a bzImage."""
    if not is_bzimage(image):
        raise KernelImageError("not a bzImage: it has no Linux setup header")
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x208:
        raise KernelImageError(
            f"boot protocol {version >> 8}.{version & 255:02} does not say where the kernel proper "
            "is (2.08 and later do)"
        )
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if length == 0 or start + length > len(image):
        raise KernelImageError("the bzImage is cut short: its payload lies beyond its end")
    return image[start : start + length]


class Vmlinux(ElfFile):
    """The kernel proper, from a bzImage or from an ELF file as it is."""

    def __init__(self, image: bytes) -> None:
        payload = PlainPayload(image) if image[:4] == b"\x7fELF" else unpack(payload_of(image))
        super().__init__(payload.read)
