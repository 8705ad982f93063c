"""Block protocols that users describe (docs/block-protocols.md): recorded, replayed, and with the
windows that their order of steps has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rr86
from rr86.cli.app import app
from rr86.replay.bisect import bisect_invalidation
from tests.demo import record_demo
from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, assert_same_run, record_guest, replay
from tests.guests.test_patched_code import ALL_WINDOWS, EXIT_CLEAN, EXIT_STALE

MANIFEST = load_manifest()
RACES = ("xmod", "xmod-shared", "xmod-alias", "xmod-string")
# Numbers of slice ends that are windows; see docs/trace-format.md.
FETCH, STORE, UNGUARD = 5, 6, 7

GUARD_FIRST = rr86.Protocol("guard-first", block="guard fetch | link", stores_wait=True)
COMMIT_FIRST = rr86.Protocol("commit-first", store="commit | check | unguard")


def windows(recorded: Recorded) -> set[int]:
    """The windows in which a vCPU was switched out."""
    ends = {event.fields["stop"] for event in recorded.trace().events(["slice"])}
    return {each for each in ends if isinstance(each, int)} & {FETCH, STORE, UNGUARD}


def race(name: str, protocol: rr86.Protocol, path: Path, **options: Any) -> Recorded:
    recorded = record_guest(
        MANIFEST[name], path, protocol=protocol, window_bias=ALL_WINDOWS, **options
    )
    assert_same_run(replay(recorded), recorded.outcome)
    return recorded


def stale(recorded: Recorded) -> tuple[int, int]:
    """Stale blocks, and how often they were executed."""
    footer = recorded.trace().footer
    assert footer is not None
    return footer.statistics["stale_blocks"], footer.statistics["stale_entries"]


@pytest.mark.parametrize("name", RACES)
def test_a_guard_before_the_fetch_and_stores_that_wait_close_an_open_window(
    name: str, tmp_path: Path
) -> None:
    recorded = race(name, GUARD_FIRST, tmp_path / "x.rr86")
    assert windows(recorded) == {FETCH}
    assert recorded.outcome.code == EXIT_CLEAN
    assert stale(recorded) == (0, 0)


@pytest.mark.parametrize("block", ["guard fetch | link", "fetch | link guard"])
def test_with_stores_that_do_not_wait_blocks_are_born_stale(block: str, tmp_path: Path) -> None:
    protocol = rr86.Protocol("no-waiting", block=block)
    recorded = race("xmod-shared", protocol, tmp_path / "x.rr86")
    assert windows(recorded) == {FETCH}
    assert recorded.outcome.code == EXIT_STALE
    assert stale(recorded) > (0, 0)


@pytest.mark.parametrize("name", RACES)
def test_blocks_run_stale_between_a_commit_and_its_check_and_not_after_it(
    name: str, tmp_path: Path
) -> None:
    recorded = race(name, COMMIT_FIRST, tmp_path / "x.rr86")
    assert STORE in windows(recorded)
    assert FETCH not in windows(recorded)
    blocks, executions = stale(recorded)
    assert 0 < blocks < executions
    # What the guest checks when its store is done is right again.
    assert recorded.outcome.code == EXIT_CLEAN
    trace = recorded.trace()
    removed = {event.fields["id"] for event in trace.events(["invalidate"])}
    assert {event.fields["id"] for event in trace.events(["stale"])} <= removed


def test_replays_begin_at_checkpoints_within_the_windows(tmp_path: Path) -> None:
    protocol = rr86.Protocol(
        "all-of-it", block="guard fetch | link", store="commit | check | unguard"
    )
    recorded = race("xmod-shared", protocol, tmp_path / "x.rr86", quantum=1000, checkpoints=5000)
    trace = recorded.trace()
    assert len(trace.checkpoints()) > 10
    for each in trace.checkpoints()[:: len(trace.checkpoints()) // 10]:
        session = trace.session(at=each.icount)
        assert session.began == each.icount
        stop = session.run()
        assert (stop.reason, stop.icount) == ("debug-exit", recorded.outcome.icount)
        assert session.machine.digests() == recorded.outcome.digests


def test_a_bisection_names_the_gap_of_a_users_protocol(tmp_path: Path) -> None:
    recording = record_demo(tmp_path, protocol=COMMIT_FIRST, window_bias=ALL_WINDOWS)
    finding = bisect_invalidation(rr86.open_trace(recording.path))
    assert finding is not None
    assert (finding.protocol, finding.window) == ("commit-first", "W2'")


def test_the_command_records_with_a_described_protocol(tmp_path: Path) -> None:
    kernel = tmp_path / "demo.elf"
    record_demo(tmp_path)
    runner = CliRunner()
    out = tmp_path / "mine.rr86"
    call = ["record", str(kernel), "--smp", "4", "-m", "64M", "-q", "--no-input", "-o", str(out)]
    steps = "mine = block: guard fetch | link; stores-wait"
    assert runner.invoke(app, [*call, "--block-protocol", steps]).exit_code == 0
    spec = rr86.open_trace(out).spec
    assert spec.block_protocol == rr86.Protocol(
        "mine", block="guard fetch | link", stores_wait=True
    )
    shown = runner.invoke(app, ["info", str(out)]).stdout
    assert "block: guard fetch | link; store: check commit unguard; stores-wait" in shown
    assert runner.invoke(app, ["replay", str(out), "-q"]).exit_code == 0
    for wrong, why in (("mine=block: fetch", "no order 'fetch'"), ("mine", "unknown block prot")):
        refused = runner.invoke(app, [*call, "--block-protocol", wrong])
        assert refused.exit_code == 2
        assert why in refused.stderr


def test_the_header_has_the_steps_of_a_users_protocol_alone(tmp_path: Path) -> None:
    trace = rr86.open_trace(record_demo(tmp_path, protocol=GUARD_FIRST).path)
    assert trace.header.spec["protocol"] == "guard-first"
    assert trace.header.spec["protocol_steps"] == GUARD_FIRST.text
    plain = rr86.open_trace(record_demo(tmp_path, "plain", protocol="qemu-10").path)
    assert plain.header.spec["protocol"] == "qemu-10"
    assert "protocol_steps" not in plain.header.spec


def test_a_header_that_describes_no_protocol_is_an_error(tmp_path: Path) -> None:
    trace = rr86.open_trace(record_demo(tmp_path, protocol=GUARD_FIRST).path)
    damaged = {**trace.header.spec, "protocol_steps": "block: link"}
    trace.header = replace(trace.header, spec=damaged)
    with pytest.raises(rr86.TraceContentError, match=r"board makes no sense.*no order 'link'"):
        trace.session()
