"""The rules by which the execution of a stale block is judged."""

from collections.abc import Sequence

from rr86.replay.finding import Victim, Write
from rr86.translate.protocols import Protocol

# Slice ends that are windows of a block protocol; see docs/trace-format.md.
WINDOW_ENDS = {
    5: "switched out between fetch and link",
    6: "switched out between check and commit",
    7: "switched out before the guard is dropped",
}


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


def window(protocol: Protocol, victim: Victim, write: Write) -> tuple[str, str]:
    """Name and description of the gap in the protocol that the write went through."""
    if not protocol.windows:
        return protocol.name, protocol.mistake or protocol.text
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
    if write.passage == "checked" and protocol.properties()["commit_first"]:
        return (
            "W2'",
            "the store's data was in memory before it looked for this block, which ran meanwhile",
        )
    if write.passage in ("unguarded", "no-code"):
        return "W3", "the page's guard had been dropped, so the store was never checked"
    return "?", f"a store that was {write.passage} left the block in place"
