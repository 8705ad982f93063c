"""What every loader takes and returns, and how it claims guest memory."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from rr86.errors import GuestImageError
from rr86.machine.memory_map import EBDA_BASE, MIB, MemoryMap

PAGE = 4096
SETUP_SECTS = 0x1F1
"""Offset of the number of 512-byte sectors that a bzImage's setup has behind the first."""

EXPECTED = "expected: a Linux bzImage, a 64-bit vmlinux or a Multiboot kernel"
"""What can be booted, for messages about something else."""

Bytes = bytes | memoryview
"""Contents; a view is one of a part of a `bytes`."""


@dataclass(frozen=True)
class BootFiles:
    """The contents of the files that a machine boots from."""

    kernel: bytes
    initrd: bytes = b""
    """Initial RAM disk of a Linux kernel; for Multiboot the first module."""
    modules: tuple[tuple[str, bytes], ...] = ()
    """Further Multiboot modules: (command line, contents)."""

    @cached_property
    def bzimage_parts(self) -> tuple[bytes, memoryview]:
        """Real-mode setup and protected-mode kernel of a bzImage, cut apart once for all users.

        The kernel is a view: a copy of so many megabytes would show in the time of a start.
        """
        size = (self.kernel[SETUP_SECTS] or 4) * 512 + 512
        return self.kernel[:size], memoryview(self.kernel)[size:]


class Load(NamedTuple):
    """Bytes that have to be in guest RAM before the first instruction."""

    address: int
    data: Bytes
    what: str
    """A word or two for messages."""

    @property
    def end(self) -> int:
        """First address behind the bytes."""
        return self.address + len(self.data)


class LoadedKernel(NamedTuple):
    """Result of a loader: memory contents and the boot processor's registers."""

    protocol: str
    """"linux" or "multiboot"."""
    loads: tuple[Load, ...]
    registers: dict[str, int]


@dataclass
class Layout:
    """Collects loads, and refuses those that leave RAM or overlap."""

    memory: MemoryMap
    loads: list[Load] = field(default_factory=list)
    _claims: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, address: int, data: Bytes, what: str, size: int = 0) -> None:
        """Put `data` at `address` and claim at least `size` bytes there."""
        self.claim(address, max(size, len(data)), what)
        if data:
            self.loads.append(Load(address, data, what))

    def room(self, wanted: int, size: int, *, behind: int) -> int:
        """Where `size` bytes can lie that nothing else has: at `wanted`, elsewhere in conventional
        memory, or at `behind`."""
        places: list[int] = [wanted, *range(PAGE, EBDA_BASE - size + 1, PAGE)]
        for address in places:
            end = address + size
            if not any(address < stop and start < end for start, stop, _ in self._claims):
                return address
        return behind

    def claim(self, address: int, size: int, what: str) -> None:
        """Claim memory without contents, such as room for a kernel to unpack itself."""
        end = address + size
        if address < 0 or end > self.memory.tables_base:
            raise GuestImageError(
                f"{what} does not fit: it needs {address:#x} to {end:#x}, and this machine has "
                f"room up to {self.memory.tables_base:#x} ({self.memory.memory // MIB} MiB)"
            )
        for start, stop, other in self._claims:
            if size and address < stop and start < end:
                raise GuestImageError(
                    f"{what} at {address:#x} to {end:#x} would overlap {other} at "
                    f"{start:#x} to {stop:#x}"
                )
        if size:
            self._claims.append((address, end, what))


def align_up(value: int, alignment: int) -> int:
    """The next multiple of `alignment` (a power of two)."""
    return (value + alignment - 1) & -alignment
