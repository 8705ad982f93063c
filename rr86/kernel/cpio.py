"""Reading an initrd: cpio archives, each compressed or not, one behind the other.

That is what Linux unpacks at its start (init/initramfs.c): archives may be padded with zeros, and
each may be packed in its own way. What comes later replaces what came before.

Source: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's sources.
"""

import bz2
import lzma
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from rr86.cpu import lz4
from rr86.errors import GuestImageError, KernelImageError

_MAGICS = (b"070701", b"070702")
_HEADER = 110
_END = "TRAILER!!!"
# An image comes out of a trace, and must not fill the host's memory.
_LARGEST = 1 << 30
_FILE_TYPE, _REGULAR = 0o170000, 0o100000


@dataclass(frozen=True)
class ArchivedFile:
    """A file in an archive: its path without a leading slash, and its content."""

    path: str
    data: bytes


def files(image: bytes) -> Iterator[ArchivedFile]:
    """The regular files of an initrd, in their order.

    Raises `GuestImageError` where it is damaged, after what comes before.
    """
    left = _LARGEST
    while True:
        image = image.lstrip(b"\0")
        if not image:
            return
        if image[:6] in _MAGICS:
            end = yield from _archive(image)
            image = image[end:]
            continue
        data, image = _unpacked(image, left)
        left -= len(data)
        # An archive in a compressed piece ends with that, and nothing is packed twice.
        while data := data.lstrip(b"\0"):
            end = yield from _archive(data)
            if not end:
                raise _damaged("what is packed in it is no cpio archive")
            data = data[end:]


def _archive(image: bytes) -> Generator[ArchivedFile, None, int]:
    """The files of the archive at the start, and where it ends."""
    at = 0
    while image[at : at + 6] in _MAGICS:
        try:
            fields = [int(image[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        except ValueError:
            raise _damaged("a header in it makes no sense") from None
        mode, size, name_size = fields[1], fields[6], fields[11]
        start = at + _HEADER
        name = image[start : start + name_size].rstrip(b"\0").decode("utf-8", "replace")
        content = (start + name_size + 3) & -4
        if not name_size or content + size > len(image):
            raise _damaged("it is cut short")
        at = (content + size + 3) & -4
        if name == _END:
            break
        if mode & _FILE_TYPE == _REGULAR:
            yield ArchivedFile(name.lstrip("./"), image[content : content + size])
    return at


def _unpacked(image: bytes, limit: int) -> tuple[bytes, bytes]:
    """The content of the compressed piece at the start, and what follows it."""
    try:
        if image[:3] == b"\x1f\x8b\x08":
            return _by(zlib.decompressobj(31), image, limit)
        if image[:3] == b"BZh":
            return _by(bz2.BZ2Decompressor(), image, limit)
        if image[:6] == b"\xfd7zXZ\0":
            return _by(lzma.LZMADecompressor(lzma.FORMAT_XZ), image, limit)
        if image[:3] == b"\x5d\0\0":
            return _by(lzma.LZMADecompressor(lzma.FORMAT_ALONE), image, limit)
        if image[:4] == lz4.LEGACY_MAGIC:
            return _by_lz4(image, limit)
        if image[:4] == b"\x28\xb5\x2f\xfd":
            return _by_zstd(image, limit)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, KernelImageError) as error:
        raise _damaged(str(error)) from None
    raise _damaged("it is neither a cpio archive nor packed in a way that rr86 knows")


class _Unpacker(Protocol):
    """What zlib, bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, limit: int, /) -> bytes: ...


def _by(unpacker: _Unpacker, image: bytes, limit: int) -> tuple[bytes, bytes]:
    data = unpacker.decompress(image, limit)
    if not unpacker.eof:
        raise _damaged("it is cut short, or implausibly large")
    return data, unpacker.unused_data


def _by_zstd(image: bytes, limit: int) -> tuple[bytes, bytes]:
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    try:
        parts, size = [], 0
        for start in range(0, len(image), 1 << 20):
            parts.append(unpacker.decompress(image[start : start + (1 << 20)]))
            size += len(parts[-1])
            if size > limit:
                raise _damaged("it is implausibly large")
            if unpacker.eof:
                rest = unpacker.unused_data + image[start + (1 << 20) :]
                return b"".join(parts), rest
    except zstandard.ZstdError as error:
        raise _damaged(str(error)) from None
    raise _damaged("it is cut short")


def _by_lz4(image: bytes, limit: int) -> tuple[bytes, bytes]:
    """A legacy frame, which ends where what follows is no length of a block."""
    parts, size, at = [], 0, len(lz4.LEGACY_MAGIC)
    while at + 4 <= len(image):
        length = int.from_bytes(image[at : at + 4], "little")
        if not 0 < length <= len(image) - at - 4 or image[at : at + 6] in _MAGICS:
            break
        parts.append(lz4.decode_block(image[at + 4 : at + 4 + length]))
        size += len(parts[-1])
        if size > limit:
            raise _damaged("it is implausibly large")
        at += 4 + length
        if len(parts[-1]) < lz4.LEGACY_BLOCK_SIZE:
            break
    return b"".join(parts), image[at:]


def _damaged(why: str) -> GuestImageError:
    return GuestImageError(f"the initrd cannot be read: {why}", role="initrd")
