"""Perfetto traces, read back packet by packet, hold what the timeline does."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

import rr86
from rr86.analysis import timeline_perfetto
from rr86.analysis.timeline import Arrow, Ipi, Kind, Mark, MarkKind, Skip, Span, Timeline

perfetto_trace_pb2: Any = pytest.importorskip(
    "perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="the extra rr86[timeline] is absent"
)
Event = perfetto_trace_pb2.TrackEvent


class ReadBack:
    """What a reader of the format makes of a file."""

    def __init__(self, path: Path) -> None:
        trace = perfetto_trace_pb2.Trace()
        trace.ParseFromString(path.read_bytes())
        self.packets = trace.packet
        self.tracks: dict[int, Any] = {}
        self.slices: dict[str, list[tuple[int, int, int, str, str, dict[str, object]]]] = (
            defaultdict(list)
        )
        self.instants: list[tuple[int, str, str, str, dict[str, object]]] = []
        self.counters: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.flows: dict[int, list[tuple[int, str, bool]]] = defaultdict(list)
        names: dict[int, str] = {}
        categories: dict[int, str] = {}
        notes: dict[int, str] = {}
        open_slices: dict[int, list[Any]] = defaultdict(list)
        for index, packet in enumerate(self.packets):
            cleared = (
                packet.sequence_flags & perfetto_trace_pb2.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
            )
            assert bool(cleared) == (index == 0)
            assert packet.trusted_packet_sequence_id == 1
            for table, rows in (
                (names, packet.interned_data.event_names),
                (categories, packet.interned_data.event_categories),
                (notes, packet.interned_data.debug_annotation_names),
            ):
                for row in rows:
                    assert row.iid not in table
                    table[row.iid] = row.name
            if packet.HasField("track_descriptor"):
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
                continue
            event = packet.track_event
            track = self.tracks[event.track_uuid].name
            if event.type == Event.TYPE_SLICE_END:
                start, name, category, extra = open_slices[event.track_uuid].pop()
                depth = len(open_slices[event.track_uuid])
                self.slices[track].append((start, packet.timestamp, depth, name, category, extra))
                continue
            if event.type == Event.TYPE_COUNTER:
                self.counters[track].append((packet.timestamp, event.counter_value))
                continue
            name, (category,) = names[event.name_iid], [categories[i] for i in event.category_iids]
            extra = {
                notes[n.name_iid]: n.string_value if n.HasField("string_value") else n.uint_value
                for n in event.debug_annotations
            }
            if event.type == Event.TYPE_SLICE_BEGIN:
                open_slices[event.track_uuid].append((packet.timestamp, name, category, extra))
            else:
                self.instants.append((packet.timestamp, track, name, category, extra))
            for flow in event.flow_ids:
                self.flows[flow].append((packet.timestamp, track, False))
            for flow in event.terminating_flow_ids:
                self.flows[flow].append((packet.timestamp, track, True))
        assert not any(open_slices.values())


@pytest.fixture(scope="module")
def written(smp_timeline: Timeline, tmp_path_factory: pytest.TempPathFactory) -> ReadBack:
    path = tmp_path_factory.mktemp("perfetto") / "smp.pftrace"
    timeline_perfetto.write(smp_timeline, path)
    return ReadBack(path)


def test_slices_are_the_spans(written: ReadBack, smp_timeline: Timeline) -> None:
    for vcpu in range(4):
        expected = sorted(
            (s.start, s.end, s.depth, s.title, str(s.kind), smp_timeline.icount_at(s.start))
            for s in smp_timeline.of_vcpu(vcpu)
        )
        found = sorted(
            (start, end, depth, name, category, extra["icount"])
            for start, end, depth, name, category, extra in written.slices[f"vCPU {vcpu}"]
        )
        assert found == expected
        runs = sorted(each[:2] for each in written.slices[f"vCPU {vcpu} runs"])
        assert runs == list(smp_timeline.slices[vcpu])


def test_flows_are_the_arrows_and_ipis(written: ReadBack, smp_timeline: Timeline) -> None:
    def track(vcpu: int | None, what: str) -> str:
        return "devices" if vcpu is None else f"vCPU {vcpu} {what}"

    expected = [
        [(a.time, track(a.source, "memory"), False), (a.time, track(a.to, "memory"), True)]
        for a in smp_timeline.arrows
    ]
    for ipi in smp_timeline.ipis:
        ends = [(ipi.time, track(ipi.source, "IPIs"), False)]
        if ipi.taken is not None:
            ends.append((ipi.taken, track(ipi.to, "IPIs"), True))
        expected.append(ends)
    assert [written.flows[number] for number in sorted(written.flows)] == expected
    pages = Counter(
        extra["page"]
        for _, _, _, category, extra in written.instants
        if category == "hand-off" and extra
    )
    assert pages == Counter(arrow.page for arrow in smp_timeline.arrows)


def test_marks_are_there(written: ReadBack, smp_timeline: Timeline) -> None:
    console = [(time, name) for time, track, name, _, _ in written.instants if track == "console"]
    assert console == [(m.time, m.text) for m in smp_timeline.marks if m.kind is MarkKind.CONSOLE]


def test_counters_are_the_rates(written: ReadBack, smp_timeline: Timeline) -> None:
    for vcpu in range(4):
        track = f"vCPU {vcpu} rate"
        assert written.counters[track] == [
            (start, rates[vcpu]) for start, rates in smp_timeline.rates(2000)
        ]
        (descriptor,) = [t for t in written.tracks.values() if t.name == track]
        assert descriptor.counter.unit_name == "instructions/µs"


def test_tracks_of_a_vcpu_are_below_it(written: ReadBack) -> None:
    by_name = {track.name: track for track in written.tracks.values()}
    root = by_name["rr86 smp.rr86"]
    for vcpu in range(4):
        of_vcpu = by_name[f"vCPU {vcpu}"]
        assert of_vcpu.parent_uuid == root.uuid
        for what in ("runs", "rate", "memory", "IPIs", "blocks"):
            assert by_name[f"vCPU {vcpu} {what}"].parent_uuid == of_vcpu.uuid


def test_everything_that_a_timeline_can_hold_is_written(tmp_path: Path) -> None:
    timeline = Timeline(
        "made",
        2,
        100,
        1100,
        0,
        [
            Span(0, 100, 1100, 0, Kind.TASK, "init", 1),
            Span(0, 200, 300, 1, Kind.EXCEPTION, "page fault", detail="vector 14"),
            Span(1, 100, 1100, 0, Kind.OFF, "off"),
        ],
        [[(100, 600)], []],
        [Arrow(250, None, 0, 0x1000, True, "jiffies")],
        1,
        [Ipi(260, 0, 1, "INIT")],
        [
            Mark(120, 0, MarkKind.STALE_INT3, "block 7"),
            Mark(130, None, MarkKind.INVALIDATION, "block 8"),
            Mark(140, 0, MarkKind.INPUT, "quit\n"),
        ],
        [Skip(600, 1100, 500)],
        ["tasks: none"],
    )
    path = tmp_path / "made.pftrace"
    timeline_perfetto.write(timeline, path)
    back = ReadBack(path)
    assert (100, 1100, 0, "init (1)", "task", {"icount": 100, "pid": 1}) in back.slices["vCPU 0"]
    assert back.slices["vCPU 0"][0][5] == {"icount": 200, "detail": "vector 14"}
    assert [each[:2] for each in back.slices["time jumps"]] == [(600, 1100)]
    assert (
        120,
        "vCPU 0 blocks",
        "stale int3",
        "stale int3",
        {"detail": "block 7"},
    ) in back.instants
    assert (130, "devices", "invalidation", "invalidation", {"detail": "block 8"}) in back.instants
    assert (140, "console", "input: 'quit\\n'", "input", {}) in back.instants
    assert (250, "devices", "write jiffies", "hand-off", {}) in back.instants
    assert (100, "notes", "left out: tasks: none", "note", {}) in back.instants


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smp_timeline: Timeline
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)
    with pytest.raises(rr86.UsageError, match=r"pip install 'rr86\[timeline\]'"):
        timeline_perfetto.write(smp_timeline, tmp_path / "a.pftrace")
    assert not (tmp_path / "a.pftrace").exists()
