"""Commands that are killed, interrupted, or have nowhere to write: what they leave, and say."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rr86.replay.trace import open_trace
from tests.soak.death import Deaths

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from rr86.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
# The guest of `hang` runs so far that a replay of it can be met on its way.
LONG = ["--limit-instructions", "330M"]


def start(folder: Path, *words: str, redirect: str = "") -> subprocess.Popen[str]:
    """A command by way of a shell, which can close streams."""
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *COMMAND, *words],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Status and standard error."""
    _, said = process.communicate(timeout=300)
    assert "Traceback" not in said, said
    return process.returncode, said


def recording(image: Path, output: str, *more: str) -> list[str]:
    return ["record", "--smp", "2", "-m", "32M", *more, "-o", output, str(image)]


@pytest.fixture(scope="module")
def long_trace(
    tmp_path_factory: pytest.TempPathFactory, guest_image: Callable[[str], Path]
) -> Path:
    folder = tmp_path_factory.mktemp("long")
    status, said = finish(start(folder, *recording(guest_image("hang"), "long.rr86", *LONG)))
    assert status == 3, said
    return folder / "long.rr86"


def test_what_is_killed_replays_and_replaces_nothing_by_half(tmp_path: Path) -> None:
    deaths = Deaths(12, tmp_path)
    for number in range(24):
        deaths.run(number)
    assert deaths.tally.findings == []
    assert deaths.tally.kills > 0


def test_a_killed_recorder_loses_nothing_that_a_call_of_run_came_back_from(
    tmp_path: Path, guest_image: Callable[[str], Path]
) -> None:
    """The chunk under way is far from full, so without the side file the trace has no slices."""
    program = (
        "import os, signal, sys, rr86\n"
        "kernel = sys.argv[1]\n"
        "recorder = rr86.start_recording(kernel, smp=2, memory='32M', output='cut.rr86')\n"
        "stop = recorder.run(max_instructions=2_000_000)\n"
        "print(stop.icount, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(guest_image("textpoke"))],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL
    trace = open_trace(tmp_path / "cut.rr86")
    assert trace.side_file is not None
    assert (trace.side_file.path.name, trace.side_file.left_out) == ("cut.rr86.tail", None)
    assert trace.replay().icount == int(done.stdout) >= 2_000_000
    shown = finish_text(tmp_path, "info", "cut.rr86")
    assert f"goes on with {trace.side_file.events:,} events of cut.rr86.tail" in shown
    # A moved trace takes its side file along, or ends where its chunks do.
    (tmp_path / "cut.rr86").rename(tmp_path / "moved.rr86")
    moved = open_trace(tmp_path / "moved.rr86")
    assert moved.side_file is None
    assert moved.replay().icount < 2_000_000


def finish_text(folder: Path, *words: str) -> str:
    process = start(folder, *words)
    text, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return text


def test_checkpoints_of_a_cut_trace_take_its_side_file_in(
    tmp_path: Path, long_trace: Path, guest_image: Callable[[str], Path]
) -> None:
    place = tmp_path / "cut.rr86"
    process = start(tmp_path, *recording(guest_image("hang"), place.name))
    # Stopped while it is looked at, so that it is killed where the side file has something to add.
    while not place.exists() or open_trace_or_none(place) < 130_000_000 or not adds(place):
        assert process.poll() is None
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
    process.kill()
    finish(process)
    before = open_trace(place)
    assert before.side_file is not None
    assert before.side_file.events > 0
    end = before.replay().icount
    status, said = finish(start(tmp_path, "checkpoint", place.name, "--every", "100M"))
    assert status == 0, said
    after = open_trace(place)
    assert len(after.checkpoints()) == end // 100_000_000
    assert (after.complete, after.side_file) == (False, None)
    assert after.replay().icount == end
    assert sorted(each.name for each in tmp_path.iterdir()) == [place.name]


def adds(place: Path) -> bool:
    """Whether a trace's side file has events that are in no whole chunk."""
    side_file = open_trace(place).side_file
    return side_file is not None and side_file.events > 0


def open_trace_or_none(place: Path) -> int:
    """The last moment of a trace that is being written; 0 before there is one."""
    with contextlib.suppress(Exception):
        return open_trace(place).summary()["last_icount"]
    return 0


def test_two_recorders_do_not_write_one_trace(
    tmp_path: Path, guest_image: Callable[[str], Path]
) -> None:
    place = tmp_path / "one.rr86"
    first = start(tmp_path, *recording(guest_image("hang"), place.name))
    while not open_trace_or_none(place):
        assert first.poll() is None
        time.sleep(0.02)
    status, said = finish(start(tmp_path, *recording(guest_image("hang"), place.name)))
    assert status == 1
    assert said == "rr86: error: one.rr86 is being written by another recording\n"
    first.send_signal(signal.SIGINT)
    assert finish(first)[0] == 128 + signal.SIGINT
    assert open_trace(place).complete
    assert open_trace(place).replay().over


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "words", [["checkpoint", "--every", "100M"], ["replay", "--vcpu", "0"], ["replay"]]
)
def test_an_interrupted_command_leaves_the_trace_and_nothing_else(
    tmp_path: Path, long_trace: Path, number: signal.Signals, words: list[str]
) -> None:
    place = tmp_path / "a.rr86"
    shutil.copy(long_trace, place)
    process = start(tmp_path, *words, place.name)
    if words != ["replay"]:
        # Its unfinished work is there: it is on its way.
        while len(list(tmp_path.iterdir())) == 1 and process.poll() is None:
            time.sleep(0.005)
    else:
        time.sleep(1)
    process.send_signal(number)
    status, said = finish(process)
    # The end may have come first.
    assert status in (0, 3, 128 + number, -number)
    if status not in (0, 3):
        assert place.read_bytes() == long_trace.read_bytes()
        assert list(tmp_path.iterdir()) == [place]
        assert said.count("\n") <= 1
    assert open_trace(place).complete


@pytest.mark.parametrize(
    "redirect",
    [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "2>/dev/full", pytest.param(">/dev/null", id="null")],
)
def test_streams_that_are_closed_or_full_change_no_byte_of_a_trace(
    tmp_path: Path, guest_image: Callable[[str], Path], redirect: str
) -> None:
    words = recording(guest_image("textpoke"), "a.rr86", "--limit-instructions", "600k")
    status, said = finish(start(tmp_path, *words, redirect=redirect))
    assert status == 3, said
    assert finish(start(tmp_path, *words[:-3], "-o", "b.rr86", words[-1]))[0] == 3
    assert (tmp_path / "a.rr86").read_bytes() == (tmp_path / "b.rr86").read_bytes()
    if "2>" not in redirect:
        assert "limit reached" in said
    assert finish(start(tmp_path, "replay", "a.rr86", redirect=redirect))[0] == 0
    assert finish(start(tmp_path, "info", "a.rr86", redirect=redirect))[0] == 0


@pytest.mark.parametrize("words", [["record"], ["replay"], ["info"], ["events"]])
def test_an_output_that_is_full_is_one_line(
    tmp_path: Path, demo_trace: Path, guest_image: Callable[[str], Path], words: list[str]
) -> None:
    limit = ["--limit-instructions", "600k"]
    record = recording(guest_image("textpoke"), "a.rr86", *limit)
    words = record if words == ["record"] else [*words, str(demo_trace)]
    status, said = finish(start(tmp_path, *words, redirect=">/dev/full"))
    assert (status, said) == (1, "rr86: error: No space left on device\n")
    if words == record:
        assert open_trace(tmp_path / "a.rr86").complete


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=2m"):
        pytest.skip(f"a tmpfs cannot be mounted ({os.strerror(ctypes.get_errno())}): needs root")
    try:
        yield place
    finally:
        libc.umount2(bytes(place), 2)


def test_a_full_disk_ends_a_recording_that_then_replays(
    small_disk: Path, guest_image: Callable[[str], Path]
) -> None:
    words = [*("--append", "rounds=100000000"), "--checkpoints", "300k"]
    status, said = finish(start(small_disk, *recording(guest_image("textpoke"), "a.rr86", *words)))
    assert status == 1
    errors = [line for line in said.splitlines() if line.startswith("rr86: error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    trace = open_trace(small_disk / "a.rr86")
    stop = trace.replay()
    assert stop.over
    assert stop.icount > 0


@pytest.mark.parametrize(
    "words",
    [["checkpoint", "--every", "100M"], ["replay", "--vcpu", "0"], ["replay", "--parallel"]],
)
def test_a_full_disk_leaves_a_trace_as_it_was(
    small_disk: Path, long_trace: Path, demo_trace: Path, words: list[str]
) -> None:
    place = small_disk / "a.rr86"
    # One that makes much of its kind.
    before = long_trace if words[0] == "checkpoint" else demo_trace
    shutil.copy(before, place)
    fill = small_disk / "fill"
    with contextlib.suppress(OSError):
        fill.write_bytes(bytes(4 << 20))
    with fill.open("r+b") as file:
        # Room for a beginning.
        file.truncate(max(0, fill.stat().st_size - 8192))
    status, said = finish(start(small_disk, *words, place.name))
    assert status == 1
    assert said.count("\n") == 1
    assert said.startswith("rr86: error: ")
    assert "No space left on device" in said
    assert place.read_bytes() == before.read_bytes()
    assert sorted(each.name for each in small_disk.iterdir()) == ["a.rr86", "fill"]
