"""Replays from checkpoints are the replays from power-on, whatever was under way; and what is wrong
with a checkpoint is told, whoever made it so."""

from __future__ import annotations

import random
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rr86
from rr86.errors import UsageError
from rr86.replay.bisect import bisect_invalidation
from rr86.replay.checkpoints import add_checkpoints
from rr86.trace.checkpoint import Checkpoint, nearest
from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, finished, record_guest, replay
from tests.guests.test_guests import short
from tests.trace_file import PAGES, STATE, Chunk, chunks, rewrite

MANIFEST = load_manifest()
# Digest of "windows" when no vCPU has anything under way: XXH3-64 of nothing.
NOTHING_UNDER_WAY = 0x2D06800538D394C2
WINDOWS = {"quantum": 1000, "window_bias": 20_000}


def with_checkpoints(name: str, path: Path, number: int, **options: Any) -> Recorded:
    """A guest recorded with about so many checkpoints."""
    append = short(name)
    plain = record_guest(MANIFEST[name], path, append=append, **options)
    every = max(1, plain.outcome.icount // (number + 1))
    return record_guest(MANIFEST[name], path, append=append, checkpoints=every, **options)


def assert_replays_from_everywhere(recorded: Recorded) -> None:
    trace = recorded.trace()
    found = trace.checkpoints()
    assert found
    for checkpoint in found:
        session = trace.session(at=checkpoint.icount)
        assert session.began == session.icount == checkpoint.icount
        seen = finished(session, session.run())
        whole = recorded.outcome
        assert (seen.icount, seen.time_ns, seen.code) == (whole.icount, whole.time_ns, whole.code)
        assert seen.digests == whole.digests
        assert whole.console.endswith(seen.console)
        assert whole.debugcon.endswith(seen.debugcon)


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_every_guest_replays_from_all_of_its_checkpoints(name: str, tmp_path: Path) -> None:
    recorded = with_checkpoints(name, tmp_path / "guest.rr86", 4, quantum=5000)
    assert_replays_from_everywhere(recorded)
    assert replay(recorded).digests == recorded.outcome.digests


@pytest.mark.parametrize("protocol", ["qemu-7.2", "qemu-10"])
@pytest.mark.parametrize("name", ["textpoke", "xmod", "xmod-alias", "xmod-atomic", "xmod-shared"])
def test_what_is_under_way_in_a_window_is_in_the_checkpoint(
    name: str, protocol: str, tmp_path: Path
) -> None:
    recorded = with_checkpoints(name, tmp_path / "guest.rr86", 12, protocol=protocol, **WINDOWS)
    assert_replays_from_everywhere(recorded)


def test_checkpoints_fall_into_windows(tmp_path: Path) -> None:
    path = tmp_path / "guest.rr86"
    recorded = with_checkpoints("xmod-string", path, 150, protocol="qemu-7.2", **WINDOWS)
    trace = recorded.trace()
    digests = {event.icount: event.fields["windows"] for event in trace.events(["digests"])}
    inside = [c for c in trace.checkpoints() if digests[c.icount] != NOTHING_UNDER_WAY]
    assert 0 < len(inside) < len(trace.checkpoints())
    for checkpoint in inside:
        session = trace.session(at=checkpoint.icount)
        assert finished(session, session.run()).digests == recorded.outcome.digests


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    path = tmp_path_factory.mktemp("checkpoints") / "user.rr86"
    return with_checkpoints("user", path, 5)


def test_checkpoints_change_nothing_but_where_digests_are_taken(
    recorded: Recorded, tmp_path: Path
) -> None:
    plain = record_guest(MANIFEST["user"], tmp_path / "plain.rr86")
    assert plain.outcome == recorded.outcome
    events = [row for row in plain.events() if row[0] != "digests"]
    assert events == [row for row in recorded.events() if row[0] != "digests"]
    assert plain.trace().checkpoints() == []


def test_any_moment_is_the_same_from_a_checkpoint(recorded: Recorded) -> None:
    trace = recorded.trace()
    moments = [c.icount + delta for c in trace.checkpoints() for delta in (1, 777)]
    for moment in moments:
        near, far = trace.session(at=moment), trace.session()
        assert 0 < near.began < moment
        assert near.run(f"icount={moment}").icount == moment
        far.run(f"icount={moment}")
        assert near.registers(0) == far.registers(0)
        assert near.machine.digests() == far.machine.digests()


def test_the_nearest_checkpoint_is_not_behind_the_moment(recorded: Recorded) -> None:
    found = recorded.trace().checkpoints()
    assert nearest(found, found[0].icount - 1) is None
    assert nearest(found, found[1].icount) == found[1]
    assert nearest(found, found[2].icount - 1) == found[1]
    assert nearest(found, 1 << 60) == found[-1]
    assert nearest([], 5) is None


def test_only_pages_that_changed_are_stored_again(recorded: Recorded) -> None:
    found = recorded.trace().checkpoints()
    assert found[0].pages > 3 * max(each.pages for each in found[1:]) > 0


def test_checkpoints_can_be_added_and_replaced(recorded: Recorded, tmp_path: Path) -> None:
    original = recorded.trace()
    before = original.checkpoints()
    every = before[0].icount + 1_000_000
    fewer = add_checkpoints(original, every, tmp_path / "fewer.rr86")
    assert original.checkpoints() == before
    assert 0 < len(fewer.checkpoints()) < len(before)
    assert fewer.complete
    assert fewer.footer == original.footer
    assert list(fewer.events()) == list(original.events())
    assert_replays_from_everywhere(Recorded(fewer.path, recorded.outcome))
    again = add_checkpoints(fewer, 1)
    assert again.path == fewer.path
    assert {c.icount for c in again.checkpoints()} >= {c.icount for c in before}
    assert_replays_from_everywhere(Recorded(again.path, recorded.outcome))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fewer.rr86"]


def test_adding_checkpoints_that_is_interrupted_leaves_the_trace(
    recorded: Recorded, tmp_path: Path
) -> None:
    path = tmp_path / "copy.rr86"
    path.write_bytes(recorded.path.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        add_checkpoints(rr86.open_trace(path), 1, tick=lambda _: True)
    with pytest.raises(UsageError, match="at least 1"):
        add_checkpoints(rr86.open_trace(path), 0)
    assert path.read_bytes() == recorded.path.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["copy.rr86"]


def test_adding_checkpoints_that_is_killed_leaves_the_trace_and_nothing_else(
    recorded: Recorded, tmp_path: Path
) -> None:
    path = tmp_path / "copy.rr86"
    path.write_bytes(recorded.path.read_bytes())
    code = (
        "import os, sys, rr86\n"
        "from rr86.replay.checkpoints import add_checkpoints\n"
        "kill = lambda stop: os.kill(os.getpid(), 9)\n"
        "add_checkpoints(rr86.open_trace(sys.argv[1]), 1, tick=kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == recorded.path.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["copy.rr86"]


def test_chains_that_are_kept_cannot_be_checkpointed(tmp_path: Path) -> None:
    guest = MANIFEST["rel-chain"]
    with pytest.raises(rr86.NativeError, match="chain-kept"):
        record_guest(guest, tmp_path / "t.rr86", protocol="chain-kept", checkpoints=10_000)
    with pytest.raises(UsageError, match="at least 1"):
        record_guest(guest, tmp_path / "t.rr86", checkpoints=0)
    plain = record_guest(guest, tmp_path / "t.rr86", protocol="chain-kept")
    with pytest.raises(rr86.NativeError, match="chain-kept"):
        add_checkpoints(plain.trace())


def test_a_trace_that_ends_inside_a_checkpoint_replays_as_far_as_it_goes(
    recorded: Recorded, tmp_path: Path
) -> None:
    data = recorded.path.read_bytes()
    ends, at = [], 16
    for chunk in chunks(data):
        at += 56 + len(chunk.table) + len(chunk.payload)
        ends.append((chunk.kind, at))
    third = [at for kind, at in ends if kind == STATE][2]
    pages = next(at for kind, at in ends if kind == PAGES and at > third)
    path = tmp_path / "cut.rr86"
    whole = recorded.trace().checkpoints()
    for end, there in ((third - 1, 2), (third, 3), (pages - 5, 3), (pages + 7, 3)):
        path.write_bytes(data[:end])
        trace = rr86.open_trace(path)
        assert not trace.complete
        assert trace.checkpoints() == whole[:there]
        last = trace.replay()
        assert last.reason == "end"
        session = trace.session(at=1 << 60)
        assert session.began == whole[there - 1].icount
        assert session.run().icount == last.icount


def damaged(source: Path, target: Path, number: int, content: bytes) -> None:
    """Put another state into a checkpoint of one chunk."""

    def change(all_chunks: list[Chunk]) -> list[Chunk]:
        states = [n for n, chunk in enumerate(all_chunks) if chunk.kind == STATE]
        at = states[number]
        table = all_chunks[at].table[:12] + struct.pack("<QQ", len(content), 0)
        all_chunks[at] = replace(all_chunks[at].holding(content), table=table)
        return all_chunks

    rewrite(source, target, change)


def state_of(path: Path, number: int) -> bytes:
    return [c for c in chunks(path.read_bytes()) if c.kind == STATE][number].content()


@pytest.mark.parametrize("name", ["user", "timers", "paging"])
def test_damage_behind_a_right_checksum_is_an_error(name: str, tmp_path: Path) -> None:
    path, bad = tmp_path / "good.rr86", tmp_path / "bad.rr86"
    append = "rounds=3" if name == "timers" else None
    plain = record_guest(MANIFEST[name], path, append=append, quantum=3000)
    middle = plain.outcome.icount // 2
    record_guest(MANIFEST[name], path, append=append, quantum=3000, checkpoints=middle)
    state = state_of(path, 0)
    draw = random.Random(name)
    refused = 0
    for _ in range(120):
        content = bytearray(state)
        for _ in range(draw.choice((1, 1, 3))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        damaged(path, bad, 0, bytes(content))
        trace = rr86.open_trace(bad)
        try:
            session = trace.session(at=1 << 60)
        except rr86.TraceError:
            refused += 1
            continue
        try:
            session.run(max_instructions=3_000_000)
        except rr86.Error:
            refused += 1
    assert refused > 60


def test_checkpoints_that_make_no_sense_are_refused(recorded: Recorded, tmp_path: Path) -> None:
    bad = tmp_path / "bad.rr86"

    def first(kind: int, **changed: bytes) -> None:
        def change(all_chunks: list[Chunk]) -> list[Chunk]:
            at = next(n for n, chunk in enumerate(all_chunks) if chunk.kind == kind)
            all_chunks[at] = replace(all_chunks[at], **changed)
            return all_chunks

        rewrite(recorded.path, bad, change)

    huge = struct.pack("<IQQQ", 0, 1000, 1 << 50, 0)
    wrong_number = struct.pack("<IQQQ", 7, 1000, 100, 0)
    wrong_place = struct.pack("<IQQQ", 0, 1000, 100, 50)
    for table in (b"", huge, wrong_number, wrong_place):
        first(STATE, table=table)
        with pytest.raises(rr86.TraceError, match=r"chunk \d+ .* malformed"):
            rr86.open_trace(bad).session(at=1 << 60)
        # A replay from power-on has no use for it.
        assert rr86.open_trace(bad).replay().icount == recorded.outcome.icount
    first(PAGES, table=struct.pack("<I", 0) + b"\x02\x02\x02")
    with pytest.raises(rr86.TraceError, match="malformed"):
        rr86.open_trace(bad).checkpoints()


def test_a_page_outside_of_ram_is_refused(recorded: Recorded, tmp_path: Path) -> None:
    bad = tmp_path / "bad.rr86"

    def change(all_chunks: list[Chunk]) -> list[Chunk]:
        at = next(n for n, chunk in enumerate(all_chunks) if chunk.kind == PAGES)
        far = b"\x80\x80\x80\x80\x80\x80\x01"
        table = struct.pack("<I", 0) + far
        all_chunks.insert(at, replace(all_chunks[at].holding(bytes(4096)), table=table))
        return all_chunks

    rewrite(recorded.path, bad, change)
    with pytest.raises(rr86.TraceError, match="is no RAM"):
        rr86.open_trace(bad).session(at=1 << 60)


def test_a_state_of_another_machine_is_refused(recorded: Recorded, tmp_path: Path) -> None:
    bad = tmp_path / "bad.rr86"
    other = with_checkpoints("smp", tmp_path / "smp.rr86", 2)
    damaged(recorded.path, bad, 0, state_of(other.path, 0))
    with pytest.raises(rr86.TraceError, match="number of vCPUs"):
        rr86.open_trace(bad).session(at=recorded.trace().checkpoints()[0].icount)
    damaged(recorded.path, bad, 0, state_of(recorded.path, 1))
    with pytest.raises(rr86.TraceError, match="checkpoint"):
        rr86.open_trace(bad).session(at=recorded.trace().checkpoints()[0].icount)


def test_bisecting_finds_the_same_from_a_checkpoint(tmp_path: Path) -> None:
    guest = replace(MANIFEST["textpoke"], append="rounds=1000")
    options: Any = {"protocol": "qemu-7.2", "seed": 3, "quantum": 2000, "window_bias": 32768}
    plain = record_guest(guest, tmp_path / "plain.rr86", **options)
    quick = record_guest(guest, tmp_path / "quick.rr86", checkpoints=1_000_000, **options)
    assert quick.trace().checkpoints()
    expected, found = bisect_invalidation(plain.trace()), bisect_invalidation(quick.trace())
    assert expected is not None
    assert found is not None
    assert found.proved
    assert found.as_dict() | {"trace": "", "seconds": {}} == expected.as_dict() | {
        "trace": "",
        "seconds": {},
    }


def test_a_checkpoint_says_what_it_costs(recorded: Recorded) -> None:
    found = recorded.trace().checkpoints()
    assert all(isinstance(each, Checkpoint) for each in found)
    assert [each.number for each in found] == list(range(len(found)))
    pieces = [c for c in chunks(recorded.path.read_bytes()) if c.kind in (STATE, PAGES)]
    stored = sum(56 + len(c.table) + len(c.payload) for c in pieces)
    assert sum(each.stored_bytes for each in found) == stored
