"""What a timeline gets from the trace alone: hand-offs as arrows, blocks and input as marks."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from rr86.analysis.schedule import Clock, Schedule
from rr86.analysis.timeline import Arrow, Mark, MarkKind
from rr86.trace.events import Event
from rr86.trace.vocabulary import NO_VCPU, STALE_ENTRY, STALE_INT3

if TYPE_CHECKING:
    from rr86.replay.recorded import RecordedRun

MOST_MARKS = 60_000
"""Marks of one kind that are kept."""


def arrows_of(
    trace: "RecordedRun",
    schedule: Schedule,
    begin: int,
    end: int,
    most: int,
    left_out: list[str],
) -> tuple[list[Arrow], int]:
    """Hand-offs as arrows, and how many there are."""
    clock = Clock(schedule)
    timed = ((clock.time_of(each.icount), each) for each in trace.cross_writes())
    all_of_them = [(time, each) for time, each in timed if begin <= time < end]
    step = -(-len(all_of_them) // max(most, 1))
    names = functools.cache(trace.names().lookup)
    arrows = []
    for time, each in all_of_them[:: max(step, 1)]:
        lines = each.addresses
        name = names(lines[0]) if lines else None
        arrows.append(
            Arrow(time, each.writer, each.reader, each.page, each.for_writing, name or "")
        )
    if len(arrows) < len(all_of_them):
        left_out.append(
            f"{len(all_of_them) - len(arrows):,} of {len(all_of_them):,} hand-offs: "
            f"one of {step:,} is an arrow"
        )
    return arrows, len(all_of_them)


def marks_of(
    trace: "RecordedRun",
    schedule: Schedule,
    symbolize: Callable[[int], str | None],
    begin: int,
    end: int,
    left_out: list[str],
) -> list[Mark]:
    """What the trace tells of blocks and input."""
    clock = Clock(schedule)
    found: dict[MarkKind, list[Mark]] = {}
    total: dict[MarkKind, int] = {}
    places = {each.id: each.pc for each in trace.stale_blocks().candidates}
    for event in trace.events(("invalidate", "flush", "stale", "input")):
        time = clock.time_of(event.icount)
        told = _mark(event, places, symbolize) if begin <= time < end else None
        if told is None:
            continue
        kind, vcpu, text = told
        total[kind] = total.get(kind, 0) + 1
        if total[kind] <= MOST_MARKS:
            found.setdefault(kind, []).append(Mark(time, vcpu, kind, text))
    for kind, count in total.items():
        if count > MOST_MARKS:
            left_out.append(f"the last {count - MOST_MARKS:,} of {count:,}: {kind}")
    return [mark for each in found.values() for mark in each]


def _mark(
    event: Event, places: dict[int, int], symbolize: Callable[[int], str | None]
) -> tuple[MarkKind, int | None, str] | None:
    """Kind, vCPU and words of a mark; None for an event that is none. `places` are the addresses of
    stale blocks."""
    if event.kind == "input":
        raw = event.fields["bytes"]
        text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else ""
        return MarkKind.INPUT, None, text
    if event.kind == "flush":
        return MarkKind.FLUSH, event.vcpu, "all blocks: the cache was full"
    fields = {name: int(value) for name, value in event.fields.items()}
    block = fields["id"]
    if event.kind == "invalidate":
        by = None if fields["by"] == NO_VCPU else fields["by"]
        text = f"block {block}, {fields['len']} bytes at {fields['paddr']:#x}"
        return MarkKind.INVALIDATION, by, text
    kinds = {STALE_ENTRY: MarkKind.STALE, STALE_INT3: MarkKind.STALE_INT3}
    kind = kinds.get(fields["what"])
    if kind is None:
        return None
    place = places.get(block)
    where = [] if place is None else ["at", f"{place:#x}", symbolize(place) or ""]
    return kind, event.vcpu, " ".join(["block", str(block), *filter(None, where)])
