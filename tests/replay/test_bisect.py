"""Bisecting stale blocks on real recordings: the write that is named is the one the guest made."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rr86
from rr86.cli.app import app
from rr86.replay.bisect import Choice, bisect_invalidation
from rr86.replay.finding import Finding
from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, finished, record_guest, replay
from tests.guests.poking import poking
from tests.guests.test_patched_code import ALL_WINDOWS, EXPOSES, Guilty, guilty_stores


def test_a_recording_that_goes_stale_replays(stale: Recorded) -> None:
    assert replay(stale) == stale.outcome


@pytest.mark.parametrize("seed", [2, 3])
def test_a_fetch_window_right_after_an_ipi_replays(tmp_path: Path, seed: int) -> None:
    recorded = poking(tmp_path / "t.rr86", "qemu-7.2", 40, seed=seed)
    assert replay(recorded) == recorded.outcome


def test_logging_writes_does_not_change_the_run(stale: Recorded) -> None:
    session = stale.trace().session()
    half = stale.outcome.icount // 2
    session.run(f"icount={half}")
    registers = session.registers(0)
    code = session.machine.translate(0, registers["rip"])
    assert code is not None
    # Code, data and stacks: all of the guest's image.
    session.machine.log_writes([(0x100000, 0x200000)])
    stop = session.run()
    assert stop.icount == stale.outcome.icount
    assert session.machine.digests() == stale.outcome.digests
    writes = session.machine.logged_writes()
    assert writes
    assert all(half <= write["committed"] <= stop.icount for write in writes)
    assert all(len(write["old"]) == len(write["new"]) for write in writes)


def test_the_named_write_is_the_one_that_the_guest_logged(stale: Recorded) -> None:
    console = stale.outcome.console.decode()
    told = re.search(r"STRAY INT3 on vCPU (\d+) at ([0-9a-f]+) after .* memory: (\w+)", console)
    assert told is not None
    site = int(told[2], 16)

    finding = bisect_invalidation(stale.trace())
    assert finding is not None
    assert finding.proved
    assert finding.execution.grade == "A"
    assert finding.execution.int3
    assert finding.execution.address == site
    write = finding.write
    assert write is not None
    # Identity-mapped text, written through the poking tables.
    assert write.paddr == site
    assert write.linear == 0x8000000000 + site % 4096
    assert finding.alias
    assert (write.old, write.new) == (b"\xcc", bytes.fromhex(told[3])[:1])
    assert finding.window == "W1"
    assert finding.victim.born_stale
    assert finding.victim.fetched <= write.committed <= finding.victim.linked

    # The guest logged the round before it noticed: who wrote, what, and the TSC just before.
    log = stale.outcome.debugcon.decode()
    rounds = re.findall(r"round=\d+ vcpu=(\d+) .* at=(\w+) old=\w+ new=(\w+) .* first=(\d+)", log)
    vcpu, at, new, first = rounds[-1]
    assert (write.vcpu, site, told[3]) == (int(vcpu), int(at, 16), new)
    assert int(first) < write.committed < int(first) + 200


def test_the_proof_is_a_run_in_which_the_guest_is_well(stale: Recorded) -> None:
    finding = bisect_invalidation(stale.trace())
    assert finding is not None
    assert finding.proof is not None
    session = stale.trace().session()
    session.run(f"icount={finding.write.checked if finding.write else 0}")
    victim = finding.victim
    session.divert().refetch_block(victim.id, victim.vcpu, victim.fetched)
    stop = session.run("console=STRAY", max_instructions=2_000_000)
    assert stop.reason == "limit"
    assert b"STRAY" not in session.console


def test_choices_lead_to_the_same_block(stale: Recorded) -> None:
    trace = stale.trace()
    default = bisect_invalidation(trace)
    assert default is not None
    for choice in (Choice(block=default.victim.id), Choice(at=default.execution.icount)):
        found = bisect_invalidation(trace, choice)
        assert found is not None
        assert (found.victim, found.write) == (default.victim, default.write)
    # Several blocks may have gone stale at one address; the first that was executed counts.
    there = bisect_invalidation(trace, Choice(pc=default.execution.address))
    assert there is not None
    assert there.victim.pc == default.victim.pc
    assert bisect_invalidation(trace, Choice(at=stale.outcome.icount)) is None
    assert bisect_invalidation(trace, Choice(block=1 << 40)) is None


@pytest.mark.parametrize("name", ["textpoke", "xmod", "xmod-shared"])
def test_a_block_that_was_removed_is_never_executed(name: str, tmp_path: Path) -> None:
    """Neither a chain nor a jump cache leads to it, also if its code was made a second time."""
    guest = load_manifest()[name]
    recorded = record_guest(
        guest, tmp_path / "guest.rr86", protocol="qemu-7.2", window_bias=ALL_WINDOWS
    )
    removed: set[int | bytes] = set()
    stale = 0
    for event in recorded.trace().events(("invalidate", "stale")):
        if event.kind == "invalidate":
            removed.add(event.fields["id"])
        else:
            stale += 1
            assert event.fields["id"] not in removed
    assert stale > 0


def test_stops_at_each_stale_execution_do_not_change_the_run(stale: Recorded) -> None:
    session = stale.trace().session()
    stops = 0
    while not (stop := session.run("stale")).over:
        stops += 1
    assert stops > 0
    assert finished(session, stop) == stale.outcome


def test_a_clean_run_is_told_so(clean: Recorded) -> None:
    assert bisect_invalidation(clean.trace()) is None


def test_the_command_reports_and_its_status_tells(
    stale: Recorded, clean: Recorded, tmp_path: Path
) -> None:
    runner = CliRunner()
    page = tmp_path / "report.html"
    command = ["bisect-invalidation", str(stale.path)]
    result = runner.invoke(app, [*command, "--html", str(page)])
    assert result.exit_code == 0
    assert "W1: " in result.stdout
    assert "proved: " in result.stdout
    assert "an alias of the executed address" in result.stdout
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "http" not in text
    found = json.loads(runner.invoke(app, [*command, "--json"]).stdout)
    assert found["proof"]["proved"] is True
    assert found["write"]["old"] == "cc"
    nothing = runner.invoke(app, ["bisect-invalidation", str(clean.path)])
    assert nothing.exit_code == 1
    assert "no block was executed that memory did not hold" in nothing.output
    missing = runner.invoke(app, ["bisect-invalidation", str(tmp_path / "no.rr86")])
    assert missing.exit_code == 2


def test_the_stale_kind_of_events_can_be_listed(stale: Recorded) -> None:
    kinds = {event.kind for event in stale.trace().events(("stale",))}
    assert kinds == {"stale"}
    assert rr86.open_trace(stale.path).spec.protocol == "qemu-7.2"


def assert_is_what_the_guest_tells(finding: Finding, store: Guilty) -> None:
    """The write that was found is this store of the guest's, to the byte and to the moment."""
    write = finding.write
    assert finding.proved
    assert write is not None
    assert store.paddr <= write.paddr
    offset = write.paddr - store.paddr
    assert store.old[offset:].startswith(write.old)
    assert store.new[offset:].startswith(write.new)
    assert store.tsc <= write.committed <= store.until
    assert store.vcpu == ("device" if write.vcpu is None else str(write.vcpu))


@pytest.mark.parametrize("name", sorted(EXPOSES))
def test_each_relative_s_guilty_writes_are_named(name: str, tmp_path: Path) -> None:
    """Every case of a guest: what the trace says went stale, and which store the guest blames."""
    protocol, cases = EXPOSES[name]
    recorded = record_guest(load_manifest()[name], tmp_path / "guest.rr86", protocol=protocol)
    stores = guilty_stores(recorded.outcome.debugcon)
    trace = recorded.trace()
    blocks = [e.fields["id"] for e in trace.events(("stale",)) if e.fields["what"] == 2]
    assert len(blocks) == len(stores) == cases
    for block, store in zip(blocks, stores, strict=True):
        assert isinstance(block, int)
        finding = bisect_invalidation(trace, Choice(block=block))
        assert finding is not None
        assert (finding.window, finding.execution.int3) == (protocol, False)
        assert not finding.victim.born_stale
        assert_is_what_the_guest_tells(finding, store)
    # Without a choice, it is one of them.
    chosen = bisect_invalidation(trace)
    assert chosen is not None
    assert chosen.victim.id in blocks


@pytest.mark.parametrize(
    "name", [*sorted(EXPOSES), "xmod", "xmod-shared", "xmod-alias", "textpoke"]
)
def test_under_precise_nothing_is_stale(name: str, tmp_path: Path) -> None:
    guest = load_manifest()[name]
    recorded = record_guest(guest, tmp_path / "guest.rr86", protocol="precise")
    assert recorded.outcome.code == guest.code
    told = CliRunner().invoke(app, ["bisect-invalidation", str(recorded.path)])
    assert told.exit_code == 1
    assert "no block was executed that memory did not hold" in told.output


# Guest, protocol, and which windows the write may have gone through.
RACES = [
    ("xmod", "qemu-7.2", {"W1'", "W2", "W3"}),
    ("xmod", "qemu-10", {"W1'", "W2", "W3"}),
    ("xmod-alias", "qemu-7.2", {"W1'", "W2", "W3"}),
    ("xmod-alias", "qemu-10", {"W1'", "W2", "W3"}),
    ("xmod-string", "qemu-7.2", {"W1'", "W2", "W3"}),
    ("xmod-string", "qemu-10", {"W1'", "W2", "W3"}),
    ("xmod-shared", "qemu-7.2", {"W1", "W2"}),
    ("xmod-shared", "qemu-10", {"W2"}),
]


@pytest.mark.parametrize(("name", "protocol", "windows"), RACES)
def test_the_named_write_of_a_race_is_one_that_the_guest_calls_guilty(
    name: str, protocol: str, windows: set[str], tmp_path: Path
) -> None:
    recorded = record_guest(
        load_manifest()[name],
        tmp_path / "guest.rr86",
        protocol=protocol,
        window_bias=ALL_WINDOWS,
    )
    finding = bisect_invalidation(recorded.trace())
    assert finding is not None
    assert finding.window in windows
    write = finding.write
    assert write is not None
    stores = [
        store
        for store in guilty_stores(recorded.outcome.debugcon)
        if store.paddr <= write.paddr < store.paddr + len(store.new)
        and store.tsc <= write.committed <= store.until
    ]
    assert len(stores) == 1
    assert_is_what_the_guest_tells(finding, stores[0])
