"""A small AML assembler: each function returns the bytes of one ACPI term (ACPI 6.4, chapter 20).

Terms nest as function calls do, so a table's source here reads like ASL. Only what the board's DSDT
uses is here.
"""

import re
from typing import NewType

Aml = NewType("Aml", bytes)
"""Bytes of whole AML terms."""

_SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")


def block(*terms: Aml) -> Aml:
    """Several terms, one after the other."""
    return Aml(b"".join(terms))


def integer(value: int) -> Aml:
    """An integer in its shortest encoding (20.2.3)."""
    if value in (0, 1):
        return Aml(bytes([value]))
    for opcode, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 <= value < 1 << 8 * size:
            return Aml(bytes([opcode]) + value.to_bytes(size, "little"))
    raise ValueError(f"not a 64-bit unsigned integer: {value}")


def string(value: str) -> Aml:
    """A zero-terminated ASCII string."""
    return Aml(b"\x0d" + value.encode("ascii") + b"\0")


def buffer(data: bytes) -> Aml:
    """A buffer with these bytes."""
    return Aml(b"\x11" + _package_length(integer(len(data)) + data))


def package(*elements: Aml) -> Aml:
    """A package of constant length."""
    if len(elements) > 255:
        raise ValueError("a package holds at most 255 elements")
    return Aml(b"\x12" + _package_length(bytes([len(elements)]) + b"".join(elements)))


def eisa_id(text: str) -> Aml:
    """A compressed identifier such as "PNP0A08" (19.3.4): three letters, four hex digits."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    if len(text) != 7 or not all(1 <= letter <= 26 for letter in letters):
        raise ValueError(f"not an EISA id: {text!r}")
    code = letters[0] << 10 | letters[1] << 5 | letters[2]
    return Aml(b"\x0c" + code.to_bytes(2, "big") + int(text[3:], 16).to_bytes(2, "big"))


def path(text: str) -> Aml:
    """A name string: "\\\\_SB.PCI0", "^X" or "CDW1" (20.2.2)."""
    match = re.fullmatch(r"(\\|\^*)(.+)", text)
    if match is None:
        raise ValueError("an ACPI name must not be empty")
    segments = match[2].split(".")
    for segment in segments:
        if not _SEGMENT.fullmatch(segment):
            raise ValueError(f"not an ACPI name: {text!r}")
    body = "".join(segment.ljust(4, "_") for segment in segments).encode("ascii")
    if len(segments) == 2:
        body = b"\x2e" + body
    elif len(segments) > 2:
        body = b"\x2f" + bytes([len(segments)]) + body
    return Aml(match[1].encode("ascii") + body)


def name(where: str, value: Aml) -> Aml:
    """Name (where, value)."""
    return Aml(b"\x08" + path(where) + value)


def scope(where: str, *terms: Aml) -> Aml:
    """Scope (where) { terms }."""
    return Aml(b"\x10" + _package_length(path(where) + b"".join(terms)))


def device(where: str, *terms: Aml) -> Aml:
    """Device (where) { terms }."""
    return Aml(b"\x5b\x82" + _package_length(path(where) + b"".join(terms)))


def method(where: str, arguments: int, *terms: Aml, serialized: bool = False) -> Aml:
    """Method (where, arguments) { terms }; serialized if it creates names."""
    flags = arguments | serialized << 3
    return Aml(b"\x14" + _package_length(path(where) + bytes([flags]) + b"".join(terms)))


def arg(index: int) -> Aml:
    """Arg0 to Arg6."""
    return Aml(bytes([0x68 + index]))


def local(index: int) -> Aml:
    """Local0 to Local7."""
    return Aml(bytes([0x60 + index]))


def if_(condition: Aml, *terms: Aml) -> Aml:
    """If (condition) { terms }."""
    return Aml(b"\xa0" + _package_length(condition + b"".join(terms)))


def else_(*terms: Aml) -> Aml:
    """Else { terms }, right after an If."""
    return Aml(b"\xa1" + _package_length(b"".join(terms)))


def equal(left: Aml, right: Aml) -> Aml:
    """LEqual (left, right)."""
    return Aml(b"\x93" + left + right)


def not_equal(left: Aml, right: Aml) -> Aml:
    """LNotEqual (left, right)."""
    return Aml(b"\x92\x93" + left + right)


def and_(left: Aml, right: Aml, target: Aml) -> Aml:
    """And (left, right, target)."""
    return Aml(b"\x7b" + left + right + target)


def or_(left: Aml, right: Aml, target: Aml) -> Aml:
    """Or (left, right, target)."""
    return Aml(b"\x7d" + left + right + target)


def store(value: Aml, target: Aml) -> Aml:
    """Store (value, target)."""
    return Aml(b"\x70" + value + target)


def create_dword_field(source: Aml, offset: int, where: str) -> Aml:
    """CreateDWordField (source, offset, where)."""
    return Aml(b"\x8a" + source + integer(offset) + path(where))


def return_(value: Aml) -> Aml:
    """Return (value)."""
    return Aml(b"\xa4" + value)


def _package_length(body: bytes) -> bytes:
    """`body` behind its PkgLength, which counts itself too (20.2.4)."""
    if len(body) + 1 < 1 << 6:
        return bytes([len(body) + 1]) + body
    for extra in (1, 2, 3):
        total = len(body) + 1 + extra
        if total < 1 << 4 + 8 * extra:
            head = bytes([extra << 6 | total & 0xF])
            return head + (total >> 4).to_bytes(extra, "little") + body
    raise ValueError("an AML package is too long")
