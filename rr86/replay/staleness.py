"""Stale blocks as a trace tells of them, and the rules by which a stale execution is judged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rr86.replay.finding import Victim, Write
from rr86.replay.trace import Event
from rr86.replay.vocabulary import STALE_BORN, STALE_EXECUTED, STALE_SURVIVED
from rr86.translate.protocols import protocol_named

# Slice ends that are windows of a block protocol; see docs/trace-format.md.
WINDOW_ENDS = {
    5: "switched out between fetch and link",
    6: "switched out between check and commit",
    7: "switched out before the guard is dropped",
}


@dataclass
class Candidate:
    """A block that was executed while memory held something else."""

    id: int
    pc: int
    paddr: int
    length: int
    vcpu: int
    fetched: int
    linked: int
    born_stale: bool
    executed: int
    executed_by: int

    @property
    def first_range(self) -> tuple[int, int]:
        """Physical range of the bytes in the first page."""
        return self.paddr, min(self.length, 4096 - self.paddr % 4096)

    @property
    def crosses(self) -> bool:
        """Whether there are bytes in a second page."""
        return self.first_range[1] < self.length


@dataclass
class Survey:
    """All stale blocks of a trace."""

    born: int = 0
    survived: int = 0
    # Those that were executed, in the order of their first stale execution.
    candidates: list[Candidate] = field(default_factory=list)


def _int(event: Event, name: str) -> int:
    value = event.fields[name]
    assert isinstance(value, int)
    return value


def survey(events: Iterable[Event]) -> Survey:
    """Collect the stale blocks from a trace's fetch, link and stale events."""
    result = Survey()
    # A trace has a hundred thousand of these, and few matter: they are kept as they are.
    fetches: dict[int, Event] = {}
    links: dict[int, tuple[Event, Event | None]] = {}
    born: set[int] = set()
    for event in events:
        vcpu = event.vcpu if event.vcpu is not None else 0
        if event.kind == "fetch":
            fetches[vcpu] = event
        elif event.kind == "link":
            links[_int(event, "id")] = (event, fetches.get(vcpu))
        elif event.kind == "stale":
            number, what = _int(event, "id"), _int(event, "what")
            if what == STALE_BORN:
                result.born += 1
                born.add(number)
            elif what == STALE_SURVIVED:
                result.survived += 1
            elif what == STALE_EXECUTED and number in links:
                link, fetch = links[number]
                same = fetch is not None and all(
                    fetch.fields[name] == link.fields[name]
                    for name in ("paddr", "len", "mode", "digest")
                )
                result.candidates.append(
                    Candidate(
                        id=number,
                        pc=_int(link, "pc"),
                        paddr=_int(link, "paddr"),
                        length=_int(link, "len"),
                        vcpu=link.vcpu or 0,
                        fetched=fetch.icount if same and fetch is not None else link.icount,
                        linked=link.icount,
                        born_stale=number in born,
                        executed=event.icount,
                        executed_by=vcpu,
                    )
                )
    return result


def guilty_write(victim: Victim, writes: Sequence[Write]) -> Write | None:
    """The last write, in the order of commits, that made memory differ from the source bytes.

    Writes of equal values, and rewrites that put the old value back, are judged by value.
    """
    places: dict[int, int] = {}
    offset = 0
    for start, length in victim.ranges:
        for each in range(length):
            places[start + each] = offset
            offset += 1
    image = bytearray(victim.source)
    guilty: Write | None = None
    for write in writes:
        if write.committed < victim.fetched:
            continue
        equal = image == victim.source
        for each, byte in enumerate(write.new):
            place = places.get(write.paddr + each)
            if place is not None:
                image[place] = byte
        if image == victim.source:
            guilty = None
        elif equal:
            guilty = write
    return guilty


def first_difference(source: bytes, memory: bytes) -> int:
    """Offset of the first byte that differs."""
    return next((n for n, (a, b) in enumerate(zip(source, memory, strict=True)) if a != b), 0)


def grade(serialised: int | None, write: Write | None, number: int) -> str:
    """A, B or C; see `rr86.replay.finding.GRADES`."""
    if write is not None and serialised is not None and serialised > write.committed:
        return "A"
    return "B" if number > 1 else "C"


def window(protocol: str, victim: Victim, write: Write) -> tuple[str, str]:
    """Name and description of the gap in the protocol that the write went through."""
    known = protocol_named(protocol)
    if not protocol.startswith("qemu"):
        return protocol, known.mistake if known is not None else "an unknown protocol"
    read_between = write.checked < victim.fetched <= write.committed
    linked_between = write.checked < victim.linked <= write.committed
    if write.passage == "late" and (read_between or linked_between):
        return (
            "W2",
            "the store looked for blocks before this one was linked, and its data came after the "
            "block's bytes had been read",
        )
    if victim.born_stale and write.passage == "no-code":
        return (
            "W1'",
            "the page had no block yet, so the store took the fast path while the block was "
            "fetched and not linked",
        )
    if victim.born_stale:
        return (
            "W1",
            "the store looked through the page's blocks while this one was fetched and not linked",
        )
    if write.passage in ("unguarded", "no-code"):
        return "W3", "the page's guard had been dropped, so the store was never checked"
    return "?", f"a store that was {write.passage} left the block in place"
