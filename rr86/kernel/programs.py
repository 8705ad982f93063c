"""The programs that run in a guest, as far as their files are known: from the initrd, or named by
whoever asks. Sessions import this: what only a look needs is imported late.
"""

import stat
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rr86.errors import GuestImageError, KernelImageError, SymbolsError

if TYPE_CHECKING:
    from rr86.cpu.symbols import Symbol
    from rr86.kernel.cfi import CallFrames

_STT_FUNC = 2
_ET_DYN = 3


@dataclass(frozen=True)
class _Code:
    """What an ELF file says of its functions."""

    entry: int
    movable: bool
    rows: "list[Symbol]"


class Program:
    """A program's file. What is in it is read when somebody asks for a symbol.

    `path` is where the guest has it, without a leading slash, or only its name.
    """

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.name = PurePosixPath(path).name
        self._data = data

    @cached_property
    def _code(self) -> _Code | None:
        from rr86.cpu.elf import ElfFile
        from rr86.cpu.symbols import Symbol

        data = self._data
        try:
            elf = ElfFile(lambda at, length: data[at : at + length])
        except KernelImageError:
            return None
        if not elf.is_64:
            return None
        rows = [
            Symbol(each.address, "t" if each.local else "T", each.name, each.size)
            for each in elf.symbols()
            if each.kind == _STT_FUNC
        ]
        rows.sort(key=lambda row: row.address)
        entry = int.from_bytes(data[24:32], "little")
        return _Code(entry, int.from_bytes(data[16:18], "little") == _ET_DYN, rows)

    @property
    def is_program(self) -> bool:
        """Whether it is an ELF file for x86-64."""
        return self._code is not None

    @property
    def movable(self) -> bool:
        """Whether it may be loaded anywhere (PIE)."""
        return self._code is not None and self._code.movable

    @property
    def entry(self) -> int:
        """Its entry point, as it was linked."""
        return 0 if self._code is None else self._code.entry

    @cached_property
    def frames(self) -> "CallFrames | None":
        """Its unwind tables; None if it has none."""
        from rr86.cpu.elf import ElfFile
        from rr86.kernel.cfi import CallFrames

        data = self._data
        elf = ElfFile(lambda at, length: data[at : at + length]) if self.is_program else None
        section = None if elf is None else elf.section(".eh_frame")
        if elf is None or section is None:
            return None
        return CallFrames(elf.section_bytes(section), section.address)

    @cached_property
    def _starts(self) -> list[int]:
        return [] if self._code is None else [row.address for row in self._code.rows]

    def address(self, name: str) -> int:
        """The link-time address of a function. Raises `SymbolsError` if there is none."""
        rows = [] if self._code is None else self._code.rows
        if not rows:
            raise SymbolsError(
                f"the program {self.name} has no symbol table; --symbols names a file that does",
                symbol=name,
            )
        found = next((row for row in rows if row.name == name), None)
        if found is None:
            import difflib

            near = difflib.get_close_matches(name, (row.name for row in rows), n=3, cutoff=0.75)
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise SymbolsError(
                f"the program {self.name} has no function {name!r}{hint}",
                symbol=name,
                near=tuple(near),
            )
        return found.address

    def resolve(self, linked: int) -> "tuple[Symbol, int] | None":
        """The function at a link-time address, and the distance from its start."""
        last = bisect_right(self._starts, linked)
        rows = [] if self._code is None else self._code.rows
        first = last - 1
        while first > 0 and self._starts[first - 1] == self._starts[last - 1]:
            first -= 1
        covering = [row for row in rows[max(first, 0) : last] if linked - row.address < row.size]
        # Of several names for one place, globals say more than locals, and plain ones more than
        # those of an implementation.
        best = min(
            covering,
            key=lambda row: (not row.kind.isupper(), row.name.startswith("_")),
            default=None,
        )
        return None if best is None else (best, linked - best.address)


class Programs:
    """All programs whose files are known. `initrd` gives the initrd when that is needed."""

    def __init__(self, initrd: Callable[[], bytes] | None = None) -> None:
        self._initrd = initrd
        self._named: dict[str, Program] = {}

    def add(self, file: Path) -> None:
        """Take the symbols of a program from this file, whichever the guest has under its name.

        Raises `SymbolsError` if it is no program for x86-64, or cannot be read.
        """
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                raise SymbolsError(f"'{file}' is no file")
            program = Program(file.name, file.read_bytes())
        except OSError as error:
            raise SymbolsError(f"'{file}' cannot be read: {error.strerror}") from None
        if not program.is_program:
            raise SymbolsError(f"'{file}' is no ELF file for x86-64")
        self._named[program.name] = program

    @cached_property
    def _archived(self) -> dict[str, Program]:
        from rr86.kernel.cpio import files

        found: dict[str, Program] = {}
        try:
            for each in files(self._initrd() if self._initrd is not None else b""):
                if each.data[:4] == b"\x7fELF":
                    found[each.path] = Program(each.path, each.data)
                else:
                    found.pop(each.path, None)
        except GuestImageError:
            # What came before the damage is there.
            pass
        return found

    def of_path(self, path: str) -> Program | None:
        """The program that the guest has there."""
        named = self._named.get(PurePosixPath(path).name)
        return self._archived.get(path.lstrip("/")) if named is None else named

    def of_name(self, name: str) -> Program:
        """The program of this name or path. Raises `SymbolsError` if none is known."""
        if "/" in name:
            found = self.of_path(name)
        else:
            found = self._named.get(name) or next(
                (each for each in self._archived.values() if each.name == name), None
            )
        if found is None or not found.is_program:
            raise SymbolsError(
                f"nothing is known of a program {name!r}: the initrd has none, and --symbols names "
                "no file of it",
                symbol=name,
            )
        return found
