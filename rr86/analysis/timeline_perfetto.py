"""Timelines as Perfetto traces, for ui.perfetto.dev and its trace processor.

A track per vCPU holds the spans, nested. Below it are tracks for when the vCPU ran, its instruction
rate, the memory it got or gave, and what happened to blocks. Arrows are flows between them. Format:
perfetto/protos/perfetto/trace/track_event/track_event.proto in Perfetto's sources; timestamps are
virtual time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rr86.analysis.timeline import Mark, MarkKind, Span, Timeline
from rr86.errors import UsageError

if TYPE_CHECKING:
    from typing import BinaryIO

_ROOT = 1
_CONSOLE = 2
_JUMPS = 3
_NOTES = 4
_DEVICES = 5
# Tracks of vCPU n have these numbers, added to this many times n + 1.
_OF_VCPU = 16
_SPANS, _RUNS, _RATE, _MEMORY, _IPIS, _BLOCKS = range(6)
_SEQUENCE = 1
_PACKET = b"\x0a"
# Time steps of the counters.
_STEPS = 2000
_HAND_OFF, _IPI = "hand-off", "ipi"


def check() -> None:
    """Raises `UsageError` without the package `perfetto` (the extra rr86[timeline])."""
    _proto()


def write(timeline: Timeline, path: str | Path) -> None:
    """Write a timeline to a .pftrace file.

    Raises `UsageError` without the package `perfetto` (the extra rr86[timeline]), and `OSError`
    where the file cannot be written.
    """
    proto = _proto()
    with Path(path).open("wb") as file:
        _Writer(file, proto).write(timeline)


def _proto() -> Any:
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError:
        raise UsageError(
            "a .pftrace file needs the package 'perfetto': pip install 'rr86[timeline]'"
        ) from None
    return perfetto_trace_pb2


class _Writer:
    def __init__(self, file: "BinaryIO", proto: Any) -> None:
        self._file = file
        self._proto = proto
        self._names: dict[str, int] = {}
        self._categories: dict[str, int] = {}
        self._notes: dict[str, int] = {}
        self._first = True
        self._flows = 0

    def write(self, timeline: Timeline) -> None:
        self._tracks(timeline)
        for vcpu in range(timeline.vcpus):
            track = _track(vcpu, _SPANS)
            for time, span in _edges(timeline.of_vcpu(vcpu)):
                if span is None:
                    self._end(time, track)
                else:
                    self._span(timeline, time, track, span)
            for start, end in timeline.slices[vcpu]:
                self._begin(start, _track(vcpu, _RUNS), "runs", "runs")
                self._end(end, _track(vcpu, _RUNS))
        for start, rates in timeline.rates(_STEPS):
            for vcpu, rate in enumerate(rates):
                self._count(start, _track(vcpu, _RATE), rate)
        self._memory(timeline)
        self._ipis(timeline)
        for mark in timeline.marks:
            self._mark(mark)
        for skip in timeline.skips:
            self._begin(skip.start, _JUMPS, "time jumps", "jump")
            self._end(skip.end, _JUMPS)
        for text in timeline.left_out:
            self._instant(timeline.begin, _NOTES, f"left out: {text}", "note")

    # -- tracks ------------------------------------------------------------------------------------

    def _tracks(self, timeline: Timeline) -> None:
        self._track(_ROOT, None, f"rr86 {timeline.title}", 0, ordered=True)
        self._track(_CONSOLE, _ROOT, "console", 0)
        self._track(_JUMPS, _ROOT, "time jumps", 1)
        if any(None in (each.source, each.to) for each in timeline.arrows) or any(
            mark.vcpu is None for mark in timeline.marks
        ):
            self._track(_DEVICES, _ROOT, "devices", 2)
        if timeline.left_out:
            self._track(_NOTES, _ROOT, "notes", 3)
        for vcpu in range(timeline.vcpus):
            name = f"vCPU {vcpu}"
            self._track(_track(vcpu, _SPANS), _ROOT, name, 10 + vcpu, ordered=True)
            below = ("runs", "rate", "memory", "IPIs", "blocks")
            for number, what in enumerate(below, start=_RUNS):
                self._track(
                    _track(vcpu, number),
                    _track(vcpu, _SPANS),
                    f"{name} {what}",
                    number,
                    counter="instructions/µs" if number == _RATE else None,
                )

    def _track(
        self,
        uuid: int,
        parent: int | None,
        name: str,
        rank: int,
        ordered: bool = False,
        counter: str | None = None,
    ) -> None:
        packet = self._proto.TracePacket()
        track = packet.track_descriptor
        track.uuid, track.name, track.sibling_order_rank = uuid, name, rank
        if parent is not None:
            track.parent_uuid = parent
        if ordered:
            track.child_ordering = self._proto.TrackDescriptor.EXPLICIT
        if counter is not None:
            track.counter.unit_name = counter
        self._put(packet)

    # -- events ------------------------------------------------------------------------------------

    def _span(self, timeline: Timeline, time: int, track: int, span: Span) -> None:
        notes: dict[str, int | str] = {"icount": timeline.icount_at(time)}
        if span.pid is not None:
            notes["pid"] = span.pid
        if span.detail:
            notes["detail"] = span.detail
        self._begin(time, track, span.title, span.kind, notes)

    def _memory(self, timeline: Timeline) -> None:
        for arrow in timeline.arrows:
            flow = self._new_flow()
            name = f"{'write' if arrow.for_writing else 'read'} {arrow.name}".rstrip()
            source, to = _agent(arrow.source, _MEMORY), _agent(arrow.to, _MEMORY)
            self._instant(arrow.time, source, name, _HAND_OFF, flow=flow)
            self._instant(arrow.time, to, name, _HAND_OFF, {"page": arrow.page}, flow, last=True)

    def _ipis(self, timeline: Timeline) -> None:
        for ipi in timeline.ipis:
            flow = self._new_flow()
            source, to = _track(ipi.source, _IPIS), _track(ipi.to, _IPIS)
            self._instant(ipi.time, source, f"{ipi.name} to vCPU {ipi.to}", _IPI, flow=flow)
            if ipi.taken is not None:
                text = f"{ipi.name} from vCPU {ipi.source}"
                self._instant(ipi.taken, to, text, _IPI, flow=flow, last=True)

    def _mark(self, mark: Mark) -> None:
        if mark.kind in (MarkKind.CONSOLE, MarkKind.INPUT):
            name = mark.text if mark.kind is MarkKind.CONSOLE else f"input: {mark.text!r}"
            self._instant(mark.time, _CONSOLE, name, mark.kind)
        else:
            track = _agent(mark.vcpu, _BLOCKS)
            self._instant(mark.time, track, mark.kind, mark.kind, {"detail": mark.text})

    def _new_flow(self) -> int:
        self._flows += 1
        return self._flows

    # -- packets -----------------------------------------------------------------------------------

    def _begin(
        self,
        time: int,
        track: int,
        name: str,
        category: str,
        notes: dict[str, int | str] | None = None,
    ) -> None:
        packet = self._event(time, track, "TYPE_SLICE_BEGIN")
        self._label(packet, name, category)
        self._annotate(packet, notes)
        self._put(packet)

    def _end(self, time: int, track: int) -> None:
        self._put(self._event(time, track, "TYPE_SLICE_END"))

    def _instant(
        self,
        time: int,
        track: int,
        name: str,
        category: str,
        notes: dict[str, int | str] | None = None,
        flow: int | None = None,
        last: bool = False,
    ) -> None:
        packet = self._event(time, track, "TYPE_INSTANT")
        self._label(packet, name, category)
        self._annotate(packet, notes)
        if flow is not None:
            event = packet.track_event
            (event.terminating_flow_ids if last else event.flow_ids).append(flow)
        self._put(packet)

    def _count(self, time: int, track: int, value: int) -> None:
        packet = self._event(time, track, "TYPE_COUNTER")
        packet.track_event.counter_value = value
        self._put(packet)

    def _event(self, time: int, track: int, kind: str) -> Any:
        packet = self._proto.TracePacket()
        packet.timestamp = time
        packet.track_event.track_uuid = track
        packet.track_event.type = getattr(self._proto.TrackEvent, kind)
        return packet

    def _label(self, packet: Any, name: str, category: str) -> None:
        event = packet.track_event
        event.name_iid = self._interned(packet, "event_names", self._names, name)
        event.category_iids.append(
            self._interned(packet, "event_categories", self._categories, str(category))
        )

    def _annotate(self, packet: Any, notes: dict[str, int | str] | None) -> None:
        for name, value in (notes or {}).items():
            note = packet.track_event.debug_annotations.add()
            note.name_iid = self._interned(packet, "debug_annotation_names", self._notes, name)
            if isinstance(value, int):
                note.uint_value = value
            else:
                note.string_value = value

    def _interned(self, packet: Any, table: str, known: dict[str, int], text: str) -> int:
        """The number of a text, which is written down with its first use."""
        number = known.get(text)
        if number is None:
            number = known[text] = len(known) + 1
            row = getattr(packet.interned_data, table).add()
            row.iid, row.name = number, text
        return number

    def _put(self, packet: Any) -> None:
        packet.trusted_packet_sequence_id = _SEQUENCE
        flags = self._proto.TracePacket
        packet.sequence_flags = flags.SEQ_NEEDS_INCREMENTAL_STATE
        if self._first:
            packet.sequence_flags |= flags.SEQ_INCREMENTAL_STATE_CLEARED
            self._first = False
        data = packet.SerializeToString()
        self._file.write(_PACKET + _varint(len(data)) + data)


def _track(vcpu: int, which: int) -> int:
    return _OF_VCPU * (vcpu + 1) + which


def _agent(vcpu: int | None, which: int) -> int:
    return _DEVICES if vcpu is None else _track(vcpu, which)


def _edges(spans: list[Span]) -> Iterator[tuple[int, Span | None]]:
    """Begins (with their spans) and ends of nested spans, in the order of time."""
    ends: list[int] = []
    for span in spans:
        while len(ends) > span.depth:
            yield ends.pop(), None
        yield span.start, span
        ends.append(span.end)
    while ends:
        yield ends.pop(), None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
