"""Recordings of the embedded guest on the real core."""

from pathlib import Path

import pytest

import rr86
from rr86.record.recorder import start
from rr86.session.limits import Limits
from tests.demo import record_demo


def test_one_seed_gives_one_trace_and_another_seed_another(tmp_path: Path) -> None:
    first = record_demo(tmp_path, "first", seed=7)
    again = record_demo(tmp_path, "again", seed=7)
    other = record_demo(tmp_path, "other", seed=8)
    assert first.path.read_bytes() == again.path.read_bytes()
    slices = [
        [(e.icount, e.vcpu) for e in rr86.open_trace(r.path).events(["slice"])]
        for r in (first, other)
    ]
    assert slices[0] != slices[1]


def test_the_recording_knows_its_size(tmp_path: Path) -> None:
    recording = record_demo(tmp_path)
    assert recording.trace_bytes == recording.path.stat().st_size
    assert 0 < recording.image_bytes < recording.trace_bytes


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(instructions=1_000_000), "1,000,000 instructions"),
        (Limits(time_ns=2_000_000), "0.002 s of virtual time"),
    ],
)
def test_a_limited_recording_replays_to_its_end(tmp_path: Path, limits: Limits, words: str) -> None:
    recording = record_demo(tmp_path, limits=limits)
    stop = recording.stop
    assert stop is not None
    assert (stop.reason, stop.detail) == ("limit", words)
    replayed = rr86.open_trace(recording.path).replay()
    assert (replayed.reason, replayed.icount) == ("end", stop.icount)


@pytest.mark.parametrize(
    "condition", ["icount=1234567", "irq=0x40", "console=shared counter", "write=PAGE:4096"]
)
def test_what_stopped_a_recording_stops_its_replay_at_the_same_moment(
    tmp_path: Path, condition: str
) -> None:
    everything = rr86.open_trace(record_demo(tmp_path, "whole").path)
    shared = next(e for e in everything.events(["hand-off"], first=1_000_000) if e.fields["write"])
    page = shared.fields["page"]
    assert isinstance(page, int)
    condition = condition.replace("PAGE", hex(page << 12))
    stop = everything.replay(condition)
    assert stop.reason == "condition"
    recording = record_demo(tmp_path, "stopped", until=condition)
    assert recording.stop is not None
    assert (recording.stop.icount, recording.stop.rip) == (stop.icount, stop.rip)
    trace = rr86.open_trace(recording.path)
    assert trace.complete
    replayed = trace.replay(condition)
    assert (replayed.condition, replayed.icount) == (stop.condition, stop.icount)
    # The slice under way was completed, perhaps up to the guest's end.
    assert trace.replay().reason in ("end", "poweroff")


def test_a_condition_does_not_change_the_run(tmp_path: Path) -> None:
    whole = record_demo(tmp_path, "whole")
    with start(
        tmp_path / "demo.elf", smp=4, memory="64M", output=tmp_path / "stopped.rr86"
    ) as recorder:
        stops = 0
        while recorder.run(until=["console=e", "irq=0x40", "icount=2000001"]).reason == "condition":
            stops += 1
    assert stops > 20
    events = [list(rr86.open_trace(p).events()) for p in (whole.path, tmp_path / "stopped.rr86")]
    assert events[0] == events[1]
