"""Shortcuts of translated code, switched off with RR86_DISABLE."""

import os
from pathlib import Path

import pytest

import rr86
from rr86.errors import SpecError
from tests.demo import record_demo
from tests.guests.build import load_manifest
from tests.guests.machines import record_guest

MANIFEST = load_manifest()

NAMES = ("frame", "marks", "runs", "words", "pins", "ahead", "loops", "apart", "paths", "across")
ALL = ",".join(NAMES)
# Guests that are short, and make use of one shortcut or another.
GUESTS = ("faults", "fpu", "smc", "string")


def test_a_trace_is_the_same_without_shortcuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_them = record_demo(tmp_path, "with")
    monkeypatch.setenv("RR86_DISABLE", ALL)
    without = record_demo(tmp_path, "without")
    first, second = rr86.open_trace(with_them.path), rr86.open_trace(without.path)
    assert list(first.events()) == list(second.events())
    # One made with them replays without them, every digest compared.
    assert first.session().run().reason == "poweroff"


def trace_bytes(folder: Path, name: str) -> dict[str, bytes]:
    """The whole trace of each guest, by its name."""
    traces = {"demo": record_demo(folder, name).path}
    for guest in GUESTS:
        traces[guest] = folder / f"{guest}-{name}.rr86"
        record_guest(MANIFEST[guest], traces[guest])
    return {guest: path.read_bytes() for guest, path in traces.items()}


@pytest.fixture(scope="module")
def with_all_shortcuts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return trace_bytes(tmp_path_factory.mktemp("traces"), "with")


@pytest.mark.parametrize("disabled", [*NAMES, ALL], ids=[*NAMES, "all"])
def test_no_byte_of_a_trace_depends_on_a_shortcut(
    disabled: str,
    with_all_shortcuts: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RR86_DISABLE", disabled)
    for guest, trace in trace_bytes(tmp_path, "without").items():
        assert trace == with_all_shortcuts[guest], guest


def test_a_replay_is_the_same_with_blocks_translated_ahead_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = rr86.open_trace(record_demo(tmp_path).path)
    found = []
    for disabled in ("", "ahead"):
        monkeypatch.setenv("RR86_DISABLE", disabled)
        session = trace.session()
        end = session.run()
        if disabled:
            assert session.machine.stats()["blocks_ahead"] == 0
        found.append((end, session.console))
    assert found[0] == found[1]
    assert found[0][0].reason == "poweroff"
    assert found[0][1]


def test_a_replay_on_one_processor_does_not_translate_ahead(tmp_path: Path) -> None:
    trace = rr86.open_trace(record_demo(tmp_path).path)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        session = trace.session()
        assert session.run().reason == "poweroff"
    finally:
        os.sched_setaffinity(0, before)
    assert session.machine.stats()["blocks_ahead"] == 0


@pytest.mark.parametrize(("recorded", "replayed"), [("", "paths"), ("paths", "")])
def test_superblocks_in_one_of_recording_and_replay_do_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str, replayed: str
) -> None:
    monkeypatch.setenv("RR86_DISABLE", recorded)
    trace = rr86.open_trace(record_demo(tmp_path).path)
    consoles = []
    for disabled in (replayed, recorded):
        monkeypatch.setenv("RR86_DISABLE", disabled)
        session = trace.session()
        # Every digest of the trace is compared on the way.
        assert session.run().reason == "poweroff"
        assert (session.machine.stats()["superblocks"] > 0) == (disabled == "")
        consoles.append(session.console)
    assert consoles[0] == consoles[1]
    assert consoles[0]


def test_an_unknown_shortcut_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RR86_DISABLE", "pins,speed")
    with pytest.raises(SpecError, match=r"speed.*frame, marks"):
        record_demo(tmp_path)
