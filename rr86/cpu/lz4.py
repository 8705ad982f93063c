"""Reading LZ4 "legacy" frames, in which distributions pack their fastest-starting kernels.

A legacy frame is a magic number followed by independent blocks of 8 MiB (uncompressed) each, so
one block can be unpacked without the others: kernel symbols live in one or two of a kernel's eight
blocks. Python's lz4 library knows blocks and newer frames, not these. Formats: lz4_Block_format.md
and lz4_Frame_format.md ("Legacy frame").
"""

from rr86.errors import KernelImageError

LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LEGACY_BLOCK_SIZE = 8 << 20


def decode_block(source: bytes, limit: int = LEGACY_BLOCK_SIZE) -> bytes:
    """Unpack one LZ4 block; more than `limit` bytes of output, or nonsense, is an error."""
    # Imported here because only looking at a kernel needs it.
    from lz4 import block

    try:
        unpacked: bytes = block.decompress(source, uncompressed_size=limit)
    except (block.LZ4BlockError, ValueError) as error:
        raise KernelImageError(
            f"an LZ4 block is damaged, or unpacks to more than {limit} bytes: {error}"
        ) from None
    return unpacked


def legacy_blocks(data: bytes) -> list[tuple[int, int]]:
    """Offset and compressed length of each block of the legacy frame at the start of `data`.

    The kernel build appends the unpacked size (4 bytes) to the frame; it is not a block.
    """
    if data[:4] != LEGACY_MAGIC:
        raise KernelImageError("not an LZ4 legacy frame")
    blocks = []
    position = 4
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        position += 4
        if length == int.from_bytes(LEGACY_MAGIC, "little"):
            continue
        if length == 0 or position + length > len(data):
            raise KernelImageError("an LZ4 frame is cut short")
        blocks.append((position, length))
        position += length
    return blocks
