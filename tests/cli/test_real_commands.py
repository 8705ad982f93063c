"""The commands as processes, on the real core."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rr86.guests import demo_image
from rr86.replay.trace import open_trace

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from rr86.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def rr86(
    folder: Path, *arguments: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=before,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "demo.elf").write_bytes(demo_image())
    return tmp_path


def test_a_recording_imports_nothing_that_it_does_not_use(folder: Path) -> None:
    program = (
        "import sys; from rr86.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    options = ["record", "-q", "--no-input", "--limit-instructions", "1", "demo.elf"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    imported = done.stderr.split()
    assert "rr86._native" in imported
    costly = {"capstone", "hashlib", "json", "rich.console", "zstandard"}
    assert costly.isdisjoint(imported)


def spinning(folder: Path, image: Path, least_bytes: int) -> "subprocess.Popen[str]":
    """A recording of a guest that never ends, with at least so many bytes in its trace."""
    process = subprocess.Popen(
        [*COMMAND, "record", "--smp", "2", "-m", "32M", str(image), "-o", "spin.rr86"],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    path = folder / "spin.rr86"
    while not path.exists() or path.stat().st_size < least_bytes:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    return process


def last_moment(path: Path) -> int:
    return open_trace(path).summary()["last_icount"]


def test_a_recording_replays_to_the_same_console_and_status(folder: Path) -> None:
    recorded = rr86(folder, "record", "--smp", "4", "-m", "64M", "demo.elf")
    assert recorded.returncode == 0, recorded.stderr
    assert "All is well" in recorded.stdout
    size = (folder / "demo.elf-001.rr86").stat().st_size
    assert f"{size / 1000:.1f} kB in demo.elf-001.rr86" in recorded.stderr
    (folder / "demo.elf").unlink()
    replayed = rr86(folder, "replay")
    assert "using the newest trace here: demo.elf-001.rr86" in replayed.stderr
    assert (replayed.returncode, replayed.stdout) == (0, recorded.stdout)


def test_a_stop_is_shown_with_registers_code_and_the_other_vcpus(
    folder: Path, demo_trace: Path
) -> None:
    shown = rr86(folder, "replay", str(demo_trace), "--until", "irq=0x40", "--until", "int3")
    assert shown.returncode == 0
    text = shown.stderr
    assert "condition irq=64 met at instruction" in text
    for part in ("RIP: ", "RAX: ", "CR3: ", "Code:", "  => 0x", "Call stack:"):
        assert part in text
    assert text.count("\nvCPU ") == 3


def test_a_condition_that_is_never_met_is_said_once(folder: Path, demo_trace: Path) -> None:
    done = rr86(folder, "replay", str(demo_trace), "--until", "stale", "--until", "rip=0x12")
    assert done.returncode == 6
    assert done.stderr.count("never met: stale, rip=0x12\n") == 1


def test_ctrl_c_ends_a_recording_properly(folder: Path, guest_image: Callable[[str], Path]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        process = spinning(folder, guest_image("hang"), 2000)
        process.send_signal(number)
        _, words = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert "interrupted at instruction" in words
        trace = open_trace(folder / "spin.rr86")
        assert trace.complete
        assert trace.replay().reason == "end"
        (folder / "spin.rr86").unlink()


def test_a_killed_recorder_leaves_a_trace_that_replays(
    folder: Path, guest_image: Callable[[str], Path]
) -> None:
    image = guest_image("hang")
    process = spinning(folder, image, 2000)
    # Chunks follow each other every 100 million instructions, however few events there are.
    end = time.monotonic() + 60
    while last_moment(folder / "spin.rr86") < 100_000_000:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    trace = open_trace(folder / "spin.rr86")
    assert not trace.complete
    assert trace.replay().icount >= 100_000_000
    done = rr86(folder, "replay", "spin.rr86")
    assert done.returncode == 0
    assert "warning: the recording is not complete" in done.stderr


def test_a_disk_that_fills_up_is_one_line(folder: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    done = rr86(folder, "record", "--smp", "4", "-m", "64M", "demo.elf", before=small_files)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("rr86: error: ")
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(5000), b"text\n" * 400, b"RR86"])
def test_what_is_no_trace_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "x.rr86").write_bytes(content)
    for command in ("replay", "info", "events"):
        done = rr86(folder, command, "x.rr86")
        assert done.returncode == 1
        assert done.stderr.startswith("rr86: error: ")
        assert done.stderr.count("\n") == 1


def test_events_and_info_agree_on_counts(folder: Path, demo_trace: Path) -> None:
    rows = [
        json.loads(line)
        for line in rr86(folder, "events", str(demo_trace), "--json").stdout.splitlines()
    ]
    summary = json.loads(rr86(folder, "info", str(demo_trace), "--json").stdout)["summary"]
    assert len(rows) == summary["events"]
    for kind in ("slice", "link", "invalidate", "hand-off", "digests", "stop"):
        count = sum(row["kind"] == kind for row in rows)
        assert count == summary[f"{kind}_events"] > 0
    only = rr86(folder, "events", str(demo_trace), "--kind", "slice", "--vcpu", "1", "--limit", "9")
    lines = [line.split() for line in only.stdout.splitlines()]
    assert len(lines) == 9
    assert {(line[1], line[2]) for line in lines} == {("1", "slice")}


def test_a_reader_that_leaves_early_is_no_error(folder: Path, demo_trace: Path) -> None:
    pipe = subprocess.Popen(
        [*COMMAND, "events", str(demo_trace)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert pipe.stdout is not None
    assert pipe.stderr is not None
    pipe.stdout.readline()
    pipe.stdout.close()
    assert pipe.wait(timeout=60) == 141
    assert pipe.stderr.read() == b""
    pipe.stderr.close()


def test_vcpus_are_replayed_alone_and_in_parallel(folder: Path, demo_trace: Path) -> None:
    (folder / "demo.rr86").write_bytes(demo_trace.read_bytes())
    first = rr86(folder, "replay", "--vcpu", "1", "demo.rr86")
    assert first.returncode == 0, first.stderr
    assert "made demo.rr86.expansion" in first.stderr
    assert "vCPU 1, alone: " in first.stderr
    assert "all of its digests are equal" in first.stderr
    everything = rr86(folder, "replay", "--parallel", "--stats", "demo.rr86")
    assert everything.returncode == 0, everything.stderr
    assert "made" not in everything.stderr
    assert "4 vCPUs, each alone, " in everything.stderr
    assert "vCPU 3: " in everything.stderr
    assert rr86(folder, "replay", "-q", "--parallel", "demo.rr86").stderr == ""


def test_a_vcpu_alone_has_no_conditions(folder: Path, demo_trace: Path) -> None:
    for option in (["--vcpu", "0"], ["--parallel"]):
        refused = rr86(folder, "replay", *option, "--until", "int3", str(demo_trace))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "--until needs the whole machine" in refused.stderr
    both = rr86(folder, "replay", "--vcpu", "0", "--parallel", str(demo_trace))
    assert both.returncode == 2


def test_an_expansion_that_cannot_be_written_is_an_error(folder: Path, demo_trace: Path) -> None:
    place = str(folder / "missing" / "x")
    failed = rr86(folder, "replay", "--vcpu", "0", "--expansion", place, str(demo_trace))
    assert failed.returncode == 1
    assert "name another place for it with --expansion PATH" in failed.stderr


def test_an_expansion_that_says_otherwise_is_a_divergence(folder: Path) -> None:
    """The digests of a trace with another seed's expansion, made to look like its own."""
    for seed in "12":
        made = rr86(
            folder,
            *("record", "-q", "--smp", "4", "-m", "64M", "--seed", seed, "demo.elf"),
            *("-o", f"{seed}.rr86"),
        )
        assert made.returncode == 0, made.stderr
        assert rr86(folder, "replay", "-q", "--vcpu", "0", f"{seed}.rr86").returncode == 0
    own, other = (folder / f"{seed}.rr86.expansion" for seed in "12")
    head = own.read_bytes()[:32]
    own.write_bytes(head + other.read_bytes()[32:])
    for option in (["--vcpu", "1"], ["--parallel"]):
        diverged = rr86(folder, "replay", *option, "1.rr86")
        assert diverged.returncode == 4, diverged.stderr
        assert "the replay diverged" in diverged.stderr


def test_a_replay_begins_at_a_checkpoint_and_says_so(folder: Path) -> None:
    recorded = rr86(folder, "record", "--smp", "4", "-m", "64M", "--checkpoints", "1M", "demo.elf")
    assert recorded.returncode == 0
    trace = open_trace(folder / "demo.elf-001.rr86")
    found = trace.checkpoints()
    assert "checkpoints" in rr86(folder, "info").stdout
    shown = json.loads(rr86(folder, "info", "--json").stdout)["checkpoints"]
    assert [each["icount"] for each in shown] == [each.icount for each in found]
    moment = found[1].icount + 300_000
    late = rr86(folder, "replay", "--from", f"icount={moment}")
    assert late.returncode == 0
    assert recorded.stdout.endswith(late.stdout)
    assert len(late.stdout) < len(recorded.stdout)
    line = (
        f"replaying from the checkpoint at instruction {found[1].icount:,}; console output before"
    )
    assert late.stderr.count(line) == 1
    stop = moment + 1000
    near = rr86(folder, "replay", "--from", str(moment), "--until", f"icount={stop}")
    far = rr86(folder, "replay", "--until", f"icount={stop}")
    # All but the lines about where it began and how fast it was.
    assert near.stderr.splitlines()[2:-1] == far.stderr.splitlines()[1:-1]


def test_without_checkpoints_a_replay_from_a_moment_begins_at_power_on(
    folder: Path, demo_trace: Path
) -> None:
    whole = rr86(folder, "replay", str(demo_trace))
    late = rr86(folder, "replay", str(demo_trace), "--from", "2000000")
    assert late.returncode == 0
    assert whole.stdout.endswith(late.stdout)
    assert len(late.stdout) < len(whole.stdout)
    assert "replaying from power-on" in late.stderr
    beyond = rr86(folder, "replay", str(demo_trace), "--from", "99000000000")
    assert (beyond.returncode, beyond.stdout) == (6, "")
    assert "never met: icount=99000000000\n" in beyond.stderr


def test_checkpoints_are_added_in_place_or_beside(folder: Path) -> None:
    rr86(folder, "record", "--smp", "4", "-m", "64M", "--checkpoints", "1M", "demo.elf")
    path = folder / "demo.elf-001.rr86"
    before = len(open_trace(path).checkpoints())
    done = rr86(folder, "checkpoint", str(path), "--every", "2M", "-o", "other.rr86")
    assert done.returncode == 0
    fewer = len(open_trace(folder / "other.rr86").checkpoints())
    assert 0 < fewer < before == len(open_trace(path).checkpoints())
    assert f"{fewer} checkpoints" in done.stderr
    assert rr86(folder, "checkpoint", "--every", "2M", str(path)).returncode == 0
    assert len(open_trace(path).checkpoints()) == fewer
    assert rr86(folder, "replay", str(path)).returncode == 0


def test_wrong_uses_of_checkpoints_are_one_line(folder: Path, demo_trace: Path) -> None:
    for status, arguments in (
        (2, ("replay", str(demo_trace), "--from", "rip=0x1000")),
        (2, ("replay", str(demo_trace), "--from", "soon")),
        (2, ("record", "demo.elf", "--checkpoints", "often")),
        (1, ("record", "demo.elf", "--checkpoints", "1M", "--block-protocol", "chain-kept")),
        (1, ("checkpoint", "none.rr86")),
        (1, ("checkpoint", str(demo_trace), "-o", "no/where.rr86")),
    ):
        done = rr86(folder, *arguments)
        assert done.returncode == status, done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("rr86: error: ")


def test_who_wrote_names_the_writer_from_a_replay_and_from_the_log(
    folder: Path, demo_trace: Path
) -> None:
    path = folder / "demo.rr86"
    path.write_bytes(demo_trace.read_bytes())
    trace = open_trace(path)
    event = [e for e in trace.events(["hand-off"], first=1_000_000) if e.fields["from"] in range(4)]
    page, lines = next((int(e.fields["page"]), int(e.fields["lines"])) for e in event)
    line = (lines & -lines).bit_length() - 1
    place = f"{page * 4096 + line * 64:#x}:8"
    replayed = rr86(folder, "who-wrote", "demo.rr86", place)
    assert replayed.returncode == 0, replayed.stderr
    assert "answered by a replay: there is no log of stores" in replayed.stderr
    assert " at instruction " in replayed.stdout
    assert "vCPU " in replayed.stdout
    logged = rr86(folder, "who-wrote", "--expand", "demo.rr86", place)
    assert logged.returncode == 0, logged.stderr
    assert "answered from the trace's log of stores" in logged.stderr
    assert logged.stdout == replayed.stdout
    answer = json.loads(rr86(folder, "who-wrote", "--json", "demo.rr86", place).stdout)
    assert sum(each["size"] for each in answer["writes"]) == 8
    first = next(each for each in answer["writes"] if each["by"] != "none")
    assert first["source"] == "log"
    at = str(first["icount"] + 1)
    again = rr86(folder, "who-wrote", "--json", "demo.rr86", place, "--at", at)
    assert first in [{**each, "source": "log"} for each in json.loads(again.stdout)["writes"]]


def test_who_wrote_tells_no_write_from_an_error(folder: Path, demo_trace: Path) -> None:
    unwritten = rr86(folder, "who-wrote", str(demo_trace), "0x3f00000:16")
    assert (unwritten.returncode, unwritten.stdout.splitlines()[1:]) == (
        1,
        ["  0x3f00000 to 0x3f0000f: not written", "    since power-on: zero"],
    )
    for wrong in (
        ["0x123456789000"],
        ["nosuchsymbol"],
        ["--virtual", "0xffff800000000000"],
        ["--virtual", "--vcpu", "9", "0x1000"],
        ["--vcpu", "1", "0x1000"],
        ["--at", "soon", "0x1000"],
        ["one:two"],
    ):
        failed = rr86(folder, "who-wrote", str(demo_trace), *wrong)
        assert (failed.returncode, failed.stdout) == (2, ""), wrong
        assert failed.stderr.startswith("rr86: error: "), wrong
