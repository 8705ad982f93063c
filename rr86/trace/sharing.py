"""What a trace says of memory that vCPUs share: cross-vCPU writes, and the pages and lines where
they are.

All of it comes from hand-offs. A page is written by one vCPU at a time or read by several; when
another needs it, a hand-off tells who had it, who gets it, and which 64-byte lines were written
since the page's last hand-off. So a cross write is known to the line, and its reader to the page:
that the reader touched the very line is likely, and certain only where a line fills with one thing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.trace.vocabulary import NO_VCPU

if TYPE_CHECKING:
    from rr86._native import SharingRows, _SharedLineRow, _SharedPageRow

PAGE_SHIFT = 12
LINE = 64
_LINES = 64

# (icount, page number, from, to, for writing, lines)
Row = tuple[int, int, int, int, bool, int]


def _agent(number: int) -> int | None:
    return None if number == NO_VCPU else number


@dataclass(frozen=True, slots=True)
class CrossWrite:
    """Writes to one page that another than their writer could see from this moment on.

    `writer` wrote the page last, `reader` gets it, to write it too if `for_writing`; None stands
    for a device or a loader. `page` is a physical address. Bit n of `lines` says that `writer`
    wrote line n (64 bytes) since the page last changed hands; none are set when an earlier cross
    write has told of them, and only one more reads the page.
    """

    icount: int
    writer: int | None
    reader: int | None
    for_writing: bool
    page: int
    lines: int

    @property
    def addresses(self) -> list[int]:
        """Physical addresses of the lines."""
        return [self.page + LINE * n for n in range(_LINES) if self.lines >> n & 1]


def lines_of(address: int, length: int) -> dict[int, int]:
    """Page numbers of a physical range, each with the mask of its lines."""
    masks: dict[int, int] = {}
    last = address + max(length, 1) - 1
    for line in range(address // LINE, last // LINE + 1):
        page = line // _LINES
        masks[page] = masks.get(page, 0) | 1 << line % _LINES
    return masks


def cross_writes(
    hand_offs: Callable[[int, int, set[int] | None], list[Row]],
    first: int,
    last: int,
    vcpu: int | None,
    ranges: Iterable[tuple[int, int]] | None,
) -> Iterator[CrossWrite]:
    """The cross writes among a trace's hand-offs; see `rr86.Trace.cross_writes`."""
    masks: dict[int, int] | None = None
    if ranges is not None:
        masks = {}
        for address, length in ranges:
            for page, mask in lines_of(address, length).items():
                masks[page] = masks.get(page, 0) | mask
    for icount, page, source, to, write, lines in hand_offs(
        first, last, None if masks is None else set(masks)
    ):
        if source == to or (vcpu is not None and vcpu not in (source, to)):
            continue
        mask = -1 if masks is None else masks[page]
        # Of a part of a page, nothing is known where no line was written.
        if not lines & mask and mask not in (-1, (1 << _LINES) - 1):
            continue
        yield CrossWrite(icount, _agent(source), _agent(to), write, page << PAGE_SHIFT, lines)


@dataclass(frozen=True, slots=True)
class SharedLine:
    """A 64-byte line: how many hand-offs told of writes to it, who made them, and who got the
    page then. `address` is physical; None among the agents stands for a device or a loader."""

    address: int
    hand_offs: int
    writers: tuple[int | None, ...]
    readers: tuple[int | None, ...]

    @property
    def contended(self) -> bool:
        """Whether more than one vCPU wrote it."""
        return _vcpus(self.writers) > 1


@dataclass(frozen=True, slots=True)
class SharedPage:
    """A page that changed hands, `for_writing` of the times to be written; `lines` are those that
    were written, by address. `address` is physical."""

    address: int
    hand_offs: int
    for_writing: int
    writers: tuple[int | None, ...]
    readers: tuple[int | None, ...]
    lines: tuple[SharedLine, ...]

    @property
    def contended(self) -> tuple[SharedLine, ...]:
        """Lines that more than one vCPU wrote."""
        return tuple(line for line in self.lines if line.contended)

    @property
    def falsely_shared(self) -> bool:
        """Whether several vCPUs wrote the page, and each kept to lines of its own."""
        return _vcpus(self.writers) > 1 and not self.contended


@dataclass(frozen=True, slots=True)
class Sharing:
    """What hand-offs between different agents add up to: how many there were, of how many pages and
    lines, and the pages and lines with the most of them, in descending order."""

    hand_offs: int
    page_count: int
    line_count: int
    pages: tuple[SharedPage, ...]
    lines: tuple[SharedLine, ...]

    @classmethod
    def from_native(cls, rows: "SharingRows") -> "Sharing":
        """The sum as the core has it."""
        return cls(
            hand_offs=rows["hand_offs"],
            page_count=rows["page_count"],
            line_count=rows["line_count"],
            pages=tuple(_page(row) for row in rows["pages"]),
            lines=tuple(_line(row) for row in rows["lines"]),
        )


def _vcpus(agents: Iterable[int | None]) -> int:
    return sum(agent is not None for agent in agents)


def _agents(numbers: Iterable[int]) -> tuple[int | None, ...]:
    return tuple(_agent(number) for number in numbers)


def _line(row: "_SharedLineRow") -> SharedLine:
    address, hand_offs, writers, readers = row
    return SharedLine(address, hand_offs, _agents(writers), _agents(readers))


def _page(row: "_SharedPageRow") -> SharedPage:
    address, hand_offs, for_writing, writers, readers, lines = row
    return SharedPage(
        address,
        hand_offs,
        for_writing,
        _agents(writers),
        _agents(readers),
        tuple(_line(each) for each in lines),
    )
