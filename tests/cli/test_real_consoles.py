"""Consoles, progress and widths of the commands as processes, on the real core."""

import gzip
import json
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

import rr86 as package
from rr86.guests import demo_image
from tests.cli.test_real_commands import COMMAND, ENVIRONMENT, rr86
from tests.demo import record_demo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "demo.elf").write_bytes(demo_image())
    return tmp_path


def on_a_terminal(folder: Path, *arguments: str, columns: int = 80) -> tuple[int, str]:
    """Exit status and output of a command on a terminal of its own, both streams."""
    controller, terminal = pty.openpty()
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("COLUMNS", "NO_COLOR")}
    set_width = f'stty cols {columns} rows 30 && exec "$@"'
    process = subprocess.Popen(
        ["sh", "-c", set_width, "sh", *COMMAND, *arguments],
        cwd=folder,
        env={**environment, "TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            piece = os.read(controller, 65536)
        except OSError:
            break
        if not piece:
            break
        output += piece
    os.close(controller)
    return process.wait(timeout=60), output.decode(errors="replace").replace("\r\n", "\n")


def test_the_debug_console_of_a_guest_without_another_is_its_console(
    folder: Path, guest_image: Callable[[str], Path]
) -> None:
    image = str(guest_image("textpoke"))
    options = ("--smp", "4", "-m", "64M", "--block-protocol", "qemu-7.2", "--quantum", "1000")
    recorded = rr86(folder, "record", *options, image, "-o", "t.rr86", "--debugcon", "log")
    log = (folder / "log").read_text()
    assert log
    assert log not in recorded.stdout
    replayed = rr86(folder, "replay", "t.rr86", "--debugcon", "again", "--json")
    assert (folder / "again").read_text() == log
    assert replayed.stderr == recorded.stdout
    assert json.loads(replayed.stdout)["exit_status"] == replayed.returncode
    both = rr86(folder, "replay", "t.rr86", "--debugcon", "-")
    assert sorted(both.stdout.splitlines()) == sorted((recorded.stdout + log).splitlines())
    session = package.open_trace(folder / "t.rr86").session()
    session.run()
    assert session.debugcon.decode() == log


def test_a_line_of_output_does_not_wait_for_the_run_to_come_back(
    demo_trace: Path,
) -> None:
    """It comes at the end of the slice that completed it."""
    trace = package.open_trace(demo_trace)
    heard: list[tuple[int, bytes]] = []

    def note(data: bytes) -> None:
        heard.append((session.statistics()["instructions"], data))

    session = trace.session(console=note)
    session.run()
    # How much had been heard, and when.
    sent, moments = 0, []
    for moment, data in heard:
        sent += len(data)
        moments.append((sent, moment))
    slices = trace.events(["slice"])
    ends = [each.icount + int(each.fields["instructions"]) for each in slices]
    probe = trace.session()
    lines = 0
    while (stop := probe.run("console=\n")).reason == "condition":
        lines += 1
        came = next(moment for length, moment in moments if length >= len(probe.console))
        assert came == next(end for end in ends if end >= stop.icount)
    assert lines > 10


def test_who_listens_does_not_change_a_trace(tmp_path: Path) -> None:
    silent = record_demo(tmp_path, "silent")
    heard = record_demo(
        tmp_path, "heard", console=lambda data: None, debugcon=lambda data, alone: None
    )
    assert silent.path.read_bytes() == heard.path.read_bytes()


def test_a_packed_kernel_boots_and_replays(folder: Path, demo_trace: Path) -> None:
    (folder / "demo.gz").write_bytes(gzip.compress(demo_image()))
    recorded = rr86(folder, "record", "--smp", "4", "-m", "64M", "demo.gz", "-o", "gz.rr86")
    assert (recorded.returncode, recorded.stdout) == (
        0,
        rr86(folder, "replay", str(demo_trace)).stdout,
    )
    trace = package.open_trace(folder / "gz.rr86")
    assert trace.image("kernel") == demo_image()
    assert trace.replay().reason == "poweroff"
    (folder / "demo.zst").write_bytes(zstandard.compress(demo_image()))
    named = rr86(folder, "symbols", "demo.zst", "counter").stdout
    assert named == rr86(folder, "symbols", "demo.elf", "counter").stdout != ""


def test_a_program_as_kernel_is_refused_with_what_was_expected(folder: Path) -> None:
    program = folder / "program"
    program.write_bytes(Path("/proc/self/exe").read_bytes())
    done = rr86(folder, "record", "program")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "expected: a Linux bzImage, a 64-bit vmlinux or a Multiboot kernel" in done.stderr
    assert not list(folder.glob("*.rr86"))


def test_a_symbol_is_watched_for_writes(folder: Path, demo_trace: Path) -> None:
    trace = package.open_trace(demo_trace)
    address = trace.symbols().table.address("counter")  # type: ignore[union-attr]
    by_address = trace.replay(f"write={address:#x}:4")
    assert by_address.reason == "condition"
    for condition in ("write=counter:4", "write=counter+0:4"):
        by_name = trace.replay(condition)
        assert (by_name.icount, by_name.rip) == (by_address.icount, by_address.rip)
        assert str(by_name.condition).startswith("write=counter")
    recorded = rr86(
        folder, "record", "--smp", "4", "-m", "64M", "demo.elf", "--until", "write=counter:4"
    )
    assert f"met at instruction {by_address.icount:,} " in recorded.stderr


def test_a_full_replay_counts_equal_digests(folder: Path, demo_trace: Path) -> None:
    done = rr86(folder, "replay", str(demo_trace))
    trace = package.open_trace(demo_trace)
    sets = [each.fields for each in trace.events(["digests"])]
    count = sum(map(len, sets))
    line = f"rr86: {count} digests were compared at {len(sets)} moments, and all are equal\n"
    assert done.stderr.count(line) == 1
    session = trace.session(verify=False)
    session.run()
    assert session.compared_digests() == (0, 0)


def test_checkpoints_are_told_as_json(folder: Path) -> None:
    rr86(folder, "record", "--smp", "4", "-m", "64M", "--checkpoints", "5M", "demo.elf")
    done = rr86(folder, "checkpoint", "--every", "5M", "--json", "-o", "c.rr86")
    shown = json.loads(rr86(folder, "info", "--json", "c.rr86").stdout)["checkpoints"]
    assert json.loads(done.stdout) == {"trace": "c.rr86", "checkpoints": shown}
    assert shown
    (folder / "notes").write_text("not to be lost")
    refused = rr86(folder, "checkpoint", "c.rr86", "-o", "notes")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "'notes' is not a trace" in refused.stderr
    assert (folder / "notes").read_text() == "not to be lost"


def test_replays_of_single_vcpus_are_told_as_json(folder: Path, demo_trace: Path) -> None:
    (folder / "demo.rr86").write_bytes(demo_trace.read_bytes())
    one = json.loads(rr86(folder, "replay", "--vcpu", "1", "--json", "demo.rr86").stdout)
    done = rr86(folder, "replay", "--parallel", "--json", "demo.rr86")
    assert done.stderr == ""
    rows = json.loads(done.stdout)["vcpus"]
    assert [each["instructions"] for each in rows] == package.open_trace(demo_trace).retired()
    assert one["vcpus"][0]["instructions"] == rows[1]["instructions"]


def test_an_event_is_one_line_within_the_terminals_width(folder: Path, demo_trace: Path) -> None:
    columns = 60
    arguments = ("events", "--symbols", "--limit", "3000", str(demo_trace))
    status, text = on_a_terminal(folder, *arguments, columns=columns)
    lines = text.splitlines()
    assert (status, len(lines)) == (0, 3000)
    assert max(map(len, lines)) == columns
    assert {line.split()[2] for line in lines} >= {"slice", "digests", "link", "hand-off"}
    whole = rr86(folder, *arguments).stdout.splitlines()
    for line, full in zip(lines, whole, strict=True):
        assert line == full or (line[-1] == "…" and full.startswith(line[:-1]))
    wide = rr86(folder, "events", "--json", "--kind", "digests", str(demo_trace)).stdout
    assert len(wide.splitlines()[0]) > 500
    writes = on_a_terminal(
        folder, "events", "--cross-writes", "--symbols", str(demo_trace), columns=columns
    )[1]
    assert max(map(len, writes.splitlines())) <= columns


def test_who_wrote_shows_that_it_expands(folder: Path, demo_trace: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.rr86").write_bytes(demo_trace.read_bytes())
    status, text = on_a_terminal(folder, "who-wrote", "--expand", "a.rr86", "0x3f00000")
    assert status == 1
    assert "expanding" in text
    assert "\x1b[" in text
    quiet = rr86(folder, "who-wrote", "--expand", "b.rr86", "0x3f00000")
    assert quiet.returncode == 1
    assert "expanding" not in quiet.stderr + quiet.stdout
    assert "\x1b" not in quiet.stderr + quiet.stdout
    assert "made b.rr86.expansion" in quiet.stderr


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_is_as_good_as_none(folder: Path, closed: int) -> None:
    """Neither a traceback, nor somebody's words in the trace, which would get that number."""
    script = f'exec "$@" {closed}{"<" if closed == 0 else ">"}&-'
    limited = ["record", "--smp", "4", "-m", "64M", "--limit-instructions", "3M", "demo.elf"]
    for arguments, status in ((limited, 3), (["replay"], 0)):
        done = subprocess.run(
            ["sh", "-c", script, "sh", *COMMAND, *arguments],
            cwd=folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert (done.stdout == "") == (closed == 1)
        assert "Traceback" not in done.stderr
    assert package.open_trace(folder / "demo.elf-001.rr86").complete
