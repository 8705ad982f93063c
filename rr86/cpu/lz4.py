"""Reading LZ4 "legacy" frames, in which distributions pack their fastest-starting kernels.

A legacy frame is a magic number followed by independent blocks of 8 MiB (uncompressed) each, so
one block can be unpacked without the others. That is what makes pure Python fast enough here:
kernel symbols live in one or two of a kernel's eight blocks. Formats: lz4_Block_format.md and
lz4_Frame_format.md ("Legacy frame").
"""

from rr86.errors import KernelImageError

LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LEGACY_BLOCK_SIZE = 8 << 20


def decode_block(source: bytes, limit: int = LEGACY_BLOCK_SIZE) -> bytes:
    """Unpack one LZ4 block; more than `limit` bytes of output, or nonsense, is an error."""
    out = bytearray()
    position = 0
    end = len(source)
    try:
        while True:
            token = source[position]
            position += 1
            literals = token >> 4
            if literals:
                if literals == 15:
                    while (more := source[position]) == 255:
                        literals += 255
                        position += 1
                    literals += more
                    position += 1
                stop = position + literals
                if stop > end:
                    raise KernelImageError("an LZ4 block ends inside its literals")
                out += source[position:stop]
                position = stop
            if position == end:
                break
            distance = source[position] | source[position + 1] << 8
            position += 2
            length = token & 15
            if length == 15:
                while (more := source[position]) == 255:
                    length += 255
                    position += 1
                length += more
                position += 1
            length += 4
            start = len(out) - distance
            if start < 0 or not distance:
                raise KernelImageError("an LZ4 block refers to bytes before its start")
            if distance >= length:
                out += out[start : start + length]
            else:
                # The copy overlaps its own output: the last `distance` bytes repeat.
                pattern = bytes(out[start:])
                out += (pattern * (length // distance + 1))[:length]
            if len(out) > limit:
                break
    except IndexError:
        raise KernelImageError("an LZ4 block ends in the middle of a sequence") from None
    if len(out) > limit:
        raise KernelImageError(f"an LZ4 block unpacks to more than {limit} bytes")
    return bytes(out)


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
