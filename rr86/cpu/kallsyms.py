"""Reading the symbol tables that a Linux kernel carries for itself (kallsyms).

No System.map is needed: the tables are found by their structure. They are written by
scripts/kallsyms.c in the kernel's sources, 8-byte aligned in .rodata, in one of two orders:

    offsets relative_base num_syms names markers [seqs_of_names] token_table token_index
    num_syms names markers token_table token_index offsets relative_base [seqs_of_names]

(the second since 6.4; without relative addresses, before 4.6, `addresses` stands in place of the
first two). A name is a length and that many token numbers; a token is a short string. Tokens that
stand for one character have that character's number, so the digits stand in a row in every
kernel's token table, which is where the search starts.
"""

import itertools
import struct
from dataclasses import dataclass

from rr86.cpu.elf import SHT_NOBITS
from rr86.cpu.symbols import Symbol
from rr86.cpu.vmlinux import Vmlinux
from rr86.errors import KernelImageError

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_TOKENS = 256
_LONGEST_TOKEN = 64
_MOST_SYMBOLS = 1_000_000
_NAMES_PER_MARKER = 256
_KERNEL_HALF = 1 << 63


@dataclass(frozen=True)
class _Tokens:
    start: int
    end: int
    strings: list[bytes]


def _align(value: int, to: int = 8) -> int:
    return (value + to - 1) & -to


def _tokens_around(data: bytes, digits: int) -> _Tokens | None:
    """The token table whose digits are at `digits`, if its index confirms it."""
    start = digits
    for _ in range(ord("0")):
        before = data.rfind(b"\0", max(0, start - 1 - _LONGEST_TOKEN), start - 1)
        if before < 0:
            return None
        start = before + 1
    strings = []
    offsets = []
    position = start
    for _ in range(_TOKENS):
        stop = data.find(b"\0", position, position + _LONGEST_TOKEN)
        if stop < 0:
            return None
        strings.append(data[position:stop])
        offsets.append(position - start)
        position = stop + 1
    index = struct.pack(f"<{_TOKENS}H", *offsets) if offsets[-1] < 65536 else b""
    where = data.find(index, position, position + 16 + len(index)) if index else -1
    if where < 0:
        return None
    return _Tokens(start, where + len(index), strings)


def _find_tokens(data: bytes) -> _Tokens | None:
    position = data.find(_DIGITS)
    while position >= 0:
        found = _tokens_around(data, position)
        if found is not None:
            return found
        position = data.find(_DIGITS, position + 1)
    return None


def _skip_names(data: bytes, position: int, count: int) -> int:
    """The position after `count` names."""
    for _ in range(count):
        length = data[position]
        position += 1
        if length & 0x80:
            # Since 6.1 a name may need two bytes of length, 7 bits each.
            length = length & 0x7F | data[position] << 7
            position += 1
        position += length
    return position


@dataclass(frozen=True)
class _Names:
    count: int
    count_at: int
    start: int


def _names_with_markers_at(data: bytes, markers_at: int) -> _Names | None:
    """The names whose markers start at `markers_at`, or None if those are no markers."""
    first = struct.unpack_from("<4I", data, markers_at)
    if first[0] != 0 or not all(
        _NAMES_PER_MARKER <= b - a <= _NAMES_PER_MARKER * 200 for a, b in itertools.pairwise(first)
    ):
        # A kernel has tens of thousands of symbols, so it has four markers at the least.
        return None
    # The last marker is followed by at most 256 names, which bounds where the names start.
    last = first[-1]
    count = 4
    position = markers_at + 16
    while position + 4 <= len(data):
        (value,) = struct.unpack_from("<I", data, position)
        if not _NAMES_PER_MARKER <= value - last <= _NAMES_PER_MARKER * 512:
            break
        last = value
        count += 1
        position += 4
    return _names_before(data, markers_at, count, last)


def _names_before(data: bytes, markers_at: int, markers: int, last: int) -> _Names | None:
    """The names that end where `markers_at` says, the last group of 256 starting at `last`."""
    highest = (markers_at - last) & -8
    lowest = max(8, highest - _NAMES_PER_MARKER * 512)
    for start in range(highest, lowest - 1, -8):
        (count,) = struct.unpack_from("<Q", data, start - 8)
        if not 0 < count <= _MOST_SYMBOLS or -(-count // _NAMES_PER_MARKER) != markers:
            continue
        try:
            rest = count - (markers - 1) * _NAMES_PER_MARKER
            end = _skip_names(data, start + last, rest)
            first_end = _skip_names(data, start, min(count, _NAMES_PER_MARKER))
        except IndexError:
            continue
        second = struct.unpack_from("<I", data, markers_at + 4)[0] if markers > 1 else None
        if _align(end) == markers_at and (second is None or first_end - start == second):
            return _Names(count, start - 8, start)
    return None


def _find_names(data: bytes, tokens: _Tokens) -> _Names | None:
    """Search backwards from the token table, past `seqs_of_names` if that is there."""
    lowest = max(8, tokens.start - 4 * _MOST_SYMBOLS)
    zero = data.rfind(b"\0\0\0\0", lowest, tokens.start)
    while zero >= 0:
        for at in {zero & -8, _align(zero)}:
            if at + 16 > len(data) or data[at : at + 4] != b"\0\0\0\0":
                continue
            names = _names_with_markers_at(data, at)
            if names is not None:
                return names
        zero = data.rfind(b"\0\0\0\0", lowest, (zero & -8) + 3)
    return None


def _ascending(values: list[int]) -> bool:
    return values == sorted(values)


def _relative(data: bytes, at: int, base_at: int, count: int) -> list[int] | None:
    """Addresses from 32-bit offsets at `at` and the base at `base_at`, if they make sense."""
    if at < 0 or base_at + 8 > len(data) or at + 4 * count > len(data):
        return None
    (base,) = struct.unpack_from("<Q", data, base_at)
    if base < _KERNEL_HALF:
        return None
    offsets = struct.unpack_from(f"<{count}i", data, at)
    # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: offsets from 0 up are per-CPU addresses as they are,
    # negative ones are counted down from the base. Otherwise all are unsigned distances.
    mixed = [offset if offset >= 0 else base - 1 - offset for offset in offsets]
    if offsets[-1] < 0 and _ascending(mixed):
        return mixed
    plain = [base + (offset & 0xFFFFFFFF) for offset in offsets]
    return plain if _ascending(plain) else None


def _find_addresses(data: bytes, tokens: _Tokens, names: _Names) -> list[int] | None:
    count = names.count
    base_at = names.count_at - 8
    before = _relative(data, base_at - _align(4 * count), base_at, count)
    if before is not None:
        return before
    offsets_at = _align(tokens.end)
    after = _relative(data, offsets_at, offsets_at + _align(4 * count), count)
    if after is not None:
        return after
    at = names.count_at - 8 * count
    if at >= 0:
        absolute = list(struct.unpack_from(f"<{count}Q", data, at))
        if absolute[-1] >= _KERNEL_HALF and _ascending(absolute):
            return absolute
    return None


def parse_tables(data: bytes) -> list[Symbol] | None:
    """Find and read the tables in a kernel's read-only data; None where there are none.

    `data` has to start at an 8-byte boundary of the kernel.
    """
    tokens = _find_tokens(data)
    if tokens is None:
        return None
    names = _find_names(data, tokens)
    if names is None:
        return None
    addresses = _find_addresses(data, tokens, names)
    if addresses is None:
        return None
    try:
        return _decode(data, names.start, tokens.strings, addresses)
    except IndexError:
        return None


def _decode(data: bytes, position: int, strings: list[bytes], addresses: list[int]) -> list[Symbol]:
    # In bulk: there are a hundred thousand of them.
    coded = []
    for _ in addresses:
        length = data[position]
        position += 1
        if length & 0x80:
            length = length & 0x7F | data[position] << 7
            position += 1
        end = position + length
        coded.append(data[position:end])
        position = end
    expand = [string.decode("utf-8", "replace") for string in strings].__getitem__
    names = ["".join(map(expand, each)) for each in coded]
    return [
        Symbol(address, text[:1], text[1:]) for address, text in zip(addresses, names, strict=True)
    ]


def read_kallsyms(kernel: Vmlinux) -> list[Symbol]:
    """All symbols of a kernel, in ascending order of their link-time addresses."""
    rodata = kernel.section(".rodata")
    if rodata is not None and rodata.kind != SHT_NOBITS and rodata.size:
        symbols = parse_tables(kernel.section_bytes(rodata))
        if symbols is not None:
            return symbols
    for segment in kernel.segments:
        symbols = parse_tables(kernel.bytes_at(segment.vaddr, segment.file_size))
        if symbols is not None:
            return symbols
    raise KernelImageError("the kernel carries no symbol tables (CONFIG_KALLSYMS is off)")
