"""Which kernel runs in a guest: its release and its build-id, from guest memory; and the files of
a debug package that belong to it.

The build-id is a digest that the linker puts into a note of the kernel and of its debug files, so
that equal ones mean the same build.

Source: elf(5), NT_GNU_BUILD_ID; ELF notes in the System V ABI, chapter 5.
"""

import contextlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rr86.cpu.elf import SHT_NOBITS, ElfFile
from rr86.errors import KernelError, KernelImageError, SymbolsError
from rr86.kernel.running import RunningKernel

_NT_GNU_BUILD_ID = 3
_LARGEST_NOTES = 1 << 20
_PLACES = (
    "usr/lib/debug/boot/vmlinux-{release}",
    "usr/lib/debug/lib/modules/{release}/vmlinux",
    "usr/lib/debug/lib/modules/{release}/kernel/vmlinux",
    "lib/modules/{release}/build/vmlinux",
    "boot/vmlinux-{release}",
)


def notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """ELF notes: owner, type and content of each."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        name = data[at + 12 : at + 12 + name_size].rstrip(b"\0")
        content = at + 12 + (name_size + 3 & -4)
        yield name, kind, data[content : content + size]
        at = content + (size + 3 & -4)


def _build_id(data: bytes) -> str | None:
    found = (
        content for name, kind, content in notes(data) if (name, kind) == (b"GNU", _NT_GNU_BUILD_ID)
    )
    return next((content.hex() for content in found), None)


def build_id(kernel: RunningKernel) -> str | None:
    """The running kernel's build-id in hexadecimal; None if it was built without."""
    try:
        start, stop = kernel.address("__start_notes"), kernel.address("__stop_notes")
    except SymbolsError:
        return None
    if not 0 < stop - start <= _LARGEST_NOTES:
        return None
    return next(filter(None, map(_build_id, _constant(kernel, start, stop - start))), None)


def release(kernel: RunningKernel) -> str:
    """The running kernel's release, as `uname -r` says it; empty if the kernel does not tell."""
    try:
        banner = kernel.address("linux_banner")
    except SymbolsError:
        return ""
    for data in _constant(kernel, banner, 256):
        found = re.match(rb"Linux version (\S{1,64}) ", data)
        if found is not None:
            return found[1].decode("utf-8", "replace")
    return ""


def _constant(kernel: RunningKernel, address: int, length: int) -> Iterator[bytes]:
    """What never changes in a kernel: as it is in guest memory, and, should it not be there yet, as
    it is in the image that was booted."""
    with contextlib.suppress(KernelError):
        yield kernel.read(address, length)
    yield kernel.inspector.symbols.kernel.bytes_at(address - kernel.symbols.offset, length)


def build_id_of(file: Path) -> str | None:
    """The build-id of an ELF file. Raises `KernelImageError` if it is none."""
    with file.open("rb") as stream:

        def read(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return stream.read(length)

        elf = ElfFile(read)
        for section in elf.sections:
            if section.name.startswith((".notes", ".note")) and section.kind != SHT_NOBITS:
                found = _build_id(elf.section_bytes(section)[:_LARGEST_NOTES])
                if found is not None:
                    return found
    return None


@dataclass(frozen=True)
class DebugKernel:
    """A vmlinux with debugging information for the kernel that runs: its file, how far the kernel
    moved from the addresses there (gdb: `add-symbol-file FILE -o OFFSET`), and the script with the
    kernel's own gdb commands (`lx-…`), where there is one."""

    path: Path
    offset: int
    scripts: Path | None


def debug_kernel(
    kernel: RunningKernel, named: Path | None = None, root: Path = Path("/")
) -> DebugKernel | None:
    """The vmlinux with debugging information: the `named` one, or that of an installed debug
    package; None where there is none.

    Raises `KernelError` if the named one cannot be read or belongs to another build, with both
    build-ids. Installed ones of another build are passed over.
    """
    wanted = build_id(kernel)
    if named is not None:
        try:
            found = build_id_of(named)
        except KernelImageError as error:
            raise KernelError(f"'{named}' is no vmlinux: {error}") from None
        if wanted is None or found != wanted:
            raise KernelError(
                f"'{named}' has build-id {found or '(none)'}, but the guest's kernel has "
                f"{wanted or '(none)'}: they are not of the same build"
            )
        return _found(kernel, named)
    for path in _installed(kernel, wanted, root):
        try:
            if path.is_file() and wanted is not None and build_id_of(path) == wanted:
                return _found(kernel, path)
        except (OSError, KernelImageError):
            continue
    return None


def _installed(kernel: RunningKernel, wanted: str | None, root: Path) -> Iterator[Path]:
    name = release(kernel)
    # It comes out of guest memory, and must not lead anywhere else.
    if name and "/" not in name and not name.startswith("."):
        yield from (root / place.format(release=name) for place in _PLACES)
    if wanted is not None:
        yield root / f"usr/lib/debug/.build-id/{wanted[:2]}/{wanted[2:]}.debug"


def _found(kernel: RunningKernel, path: Path) -> DebugKernel:
    folder = path.resolve().parent
    scripts = (folder / "vmlinux-gdb.py", folder / "scripts/gdb/vmlinux-gdb.py")
    return DebugKernel(
        path, kernel.symbols.offset, next((each for each in scripts if each.is_file()), None)
    )
