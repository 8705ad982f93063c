"""Kernel files that are compressed as a whole: a `vmlinux.gz`, a `vmlinuz.zst`, a Multiboot kernel
in gzip as GRUB loads it.

An initrd is not unpacked here: Linux does that itself, and may be given several in one file.
"""

import zlib
from collections.abc import Callable

from rr86.errors import GuestImageError

# No kernel is larger; a damaged or hostile file must not fill the host's memory.
LARGEST = 1 << 30
# Input that zstd gets at a time: what comes out of so much is no more than 128 MiB.
_PIECE = 4096


class _Damaged(Exception):
    """A compressed file that makes no sense; the message says why."""


def _gzip(data: bytes) -> bytes:
    """All members, as gzip(1) does; what follows them is passed over."""
    out = bytearray()
    while data[:2] == b"\x1f\x8b":
        member = zlib.decompressobj(31)
        out += member.decompress(data, LARGEST + 1 - len(out))
        if len(out) > LARGEST:
            break
        if not member.eof:
            raise _Damaged("it is cut off")
        data = member.unused_data
    return bytes(out)


def _zstd(data: bytes) -> bytes:
    """All frames."""
    import zstandard

    out = bytearray()
    at = 0
    while at < len(data) and len(out) <= LARGEST:
        frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        while not frame.eof and len(out) <= LARGEST:
            if at >= len(data):
                raise _Damaged("it is cut off")
            try:
                out += frame.decompress(data[at : at + _PIECE])
            except zstandard.ZstdError as error:
                raise _Damaged(str(error)) from None
            at += _PIECE
        at = min(at, len(data)) - len(frame.unused_data)
    return bytes(out)


def _xz(data: bytes) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
    try:
        out = stream.decompress(data, LARGEST + 1)
    except lzma.LZMAError as error:
        raise _Damaged(str(error)) from None
    if len(out) <= LARGEST and not stream.eof:
        raise _Damaged("it is cut off")
    return out


_KINDS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b\x08", "gzip", _gzip),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\xfd7zXZ\0", "xz", _xz),
)


def is_packed(data: bytes) -> bool:
    """Whether a file that begins like this is one of a kind that `unpacked` unpacks."""
    return any(data.startswith(magic) for magic, _, _ in _KINDS)


def unpacked(data: bytes, what: str) -> bytes:
    """The contents of a kernel file that is compressed; other contents as they are.

    `what` names the file. Raises `GuestImageError` for one that is damaged, or holds more than
    1 GiB.
    """
    for magic, kind, unpack in _KINDS:
        if not data.startswith(magic):
            continue
        try:
            content = unpack(data)
        except (_Damaged, zlib.error) as error:
            raise GuestImageError(f"{what} cannot be unpacked from {kind}: {error}") from None
        if len(content) > LARGEST:
            raise GuestImageError(f"{what} unpacks to more than {LARGEST >> 30} GiB")
        if not content:
            raise GuestImageError(f"{what} is {kind} with nothing in it")
        return content
    return data
