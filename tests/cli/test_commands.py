import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rr86.cli.app import app
from rr86.errors import HostError
from rr86.record.recorder import Recorder
from rr86.trace.metadata import Host
from tests.fake_core import FakeCore, Guest, Step
from tests.images import elf


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "guest.elf"
    path.write_bytes(elf([("start", 0x100000, 64)], text=b"\x90" * 2 + b"\xcc" + b"\x90" * 61))
    (tmp_path / "notes.txt").write_text("not to be lost")
    return path


def rr86(*arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=typed)


def assert_one_line_error(result: Result, status: int, *words: str) -> None:
    assert result.exit_code == status
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("rr86: error: ")
    for word in words:
        assert word in lines[0]


def test_record_sends_guest_bytes_to_stdout_and_the_rest_to_stderr(
    core: FakeCore, kernel: Path
) -> None:
    result = rr86("record", str(kernel))
    assert result.exit_code == 0
    assert result.stdout == "hello\n"
    assert "guest powered off at instruction 5 on vCPU 0" in result.stderr
    assert "in guest.elf-001.rr86" in result.stderr
    assert Path("guest.elf-001.rr86").exists()


def test_quiet_says_nothing(core: FakeCore, kernel: Path) -> None:
    result = rr86("record", str(kernel), "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("end", "code", "status"),
    [
        ("poweroff", 0, 0),
        ("reset", 0, 0),
        ("debug-exit", 0, 1),
        ("debug-exit", 0x10, 0x21),
        ("triple-fault", 0, 3),
        ("deadlock", 0, 3),
    ],
)
def test_the_exit_status_tells_how_the_guest_ended(
    core: FakeCore, kernel: Path, end: str, code: int, status: int
) -> None:
    core.guest.end, core.guest.code = end, code
    assert rr86("record", str(kernel), "--no-input").exit_code == status
    assert rr86("replay").exit_code == status


def test_a_limit_is_a_status_of_its_own(core: FakeCore, kernel: Path) -> None:
    result = rr86("record", str(kernel), "--limit-instructions", "3")
    assert result.exit_code == 3
    assert "limit reached at instruction 3" in result.stderr


def test_input_from_a_pipe_reaches_the_guest(
    core: FakeCore, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rr86.cli.terminal.Input.poll", lambda self, wait=0.0: b"ls\n")
    monkeypatch.setattr("rr86.session.execution._FIRST_CALL", 2)
    rr86("record", str(kernel))
    assert core.guest.inputs[0] == b"ls\n"


def test_a_stop_shows_what_the_guest_was_doing(core: FakeCore, kernel: Path) -> None:
    core.guest = Guest(
        [Step(0x100000), Step(0x200000, vcpu=1), Step(0x100002, code=b"\xcc"), Step(0x100003)],
        memory={0x100000: b"\x90" * 2 + b"\xcc" + b"\x90" * 61},
    )
    assert rr86("record", str(kernel), "--smp", "2").exit_code == 0
    result = rr86("replay", "--until", "int3", "--until", "panic")
    assert result.exit_code == 0
    text = result.stderr
    assert "condition int3 met at instruction 2 on vCPU 0" in text
    assert "RIP: 0010:0000000000100002 start+0x2" in text
    assert "[IF ZF PF]" in text
    assert "=> 0x100002: cc" in text
    assert "honest int3: memory holds cc, as block 7 does" in text
    assert "Call stack:" in text
    assert "vCPU 1: running at" in text


def test_a_condition_that_never_held_is_mentioned(core: FakeCore, kernel: Path) -> None:
    rr86("record", str(kernel))
    result = rr86("replay", "--until", "int3", "--until", "end")
    # The end was asked for, and came.
    assert result.exit_code == 0
    assert "never met: int3" in result.stderr


def test_a_run_that_meets_no_condition_has_a_status_of_its_own(
    core: FakeCore, kernel: Path
) -> None:
    for command in (["record", str(kernel)], ["replay"]):
        missed = rr86(*command, "--until", "irq=9", "--until", "rip=0x12")
        assert missed.exit_code == 6
        assert "rr86: never met: irq=9, rip=0x12\n" in missed.stderr
        quiet = rr86(*command, "--until", "irq=9", "--quiet")
        assert (quiet.exit_code, quiet.stderr.count("\n")) == (6, "replay" in command)
        assert rr86(*command, "--until", "irq=9", "--until", "icount=2").exit_code == 0
        assert rr86(*command, "--until", "end").exit_code == 0


@pytest.mark.parametrize(
    ("end", "code", "status"),
    [("debug-exit", 0x10, 0x21), ("triple-fault", 0, 3), ("deadlock", 0, 3), ("reset", 0, 6)],
)
def test_an_end_that_says_something_says_it_whatever_was_waited_for(
    core: FakeCore, kernel: Path, end: str, code: int, status: int
) -> None:
    core.guest.end, core.guest.code = end, code
    for command in (["record", str(kernel), "--no-input"], ["replay"]):
        done = rr86(*command, "--until", "irq=9")
        assert done.exit_code == status
        assert "never met: irq=9" in done.stderr


def test_a_limit_that_comes_before_the_condition_is_a_limit(core: FakeCore, kernel: Path) -> None:
    done = rr86("record", str(kernel), "--limit-instructions", "3", "--until", "irq=9")
    assert done.exit_code == 3
    assert "never met: irq=9" in done.stderr


def test_replay_takes_the_newest_trace_and_says_so(core: FakeCore, kernel: Path) -> None:
    rr86("record", str(kernel))
    rr86("record", str(kernel))
    os.utime("guest.elf-001.rr86", (2**31, 2**31))
    result = rr86("replay")
    assert "using the newest trace here: guest.elf-001.rr86" in result.stderr
    assert result.stdout == "hello\n"


def test_a_divergence_names_component_vcpu_and_moment(core: FakeCore, kernel: Path) -> None:
    rr86("record", str(kernel))
    core.guest.diverges_at = 3
    result = rr86("replay", "guest.elf-001.rr86", "--quiet")
    assert_one_line_error(result, 4, "diverged", "cpu0", "instruction 3", "vCPU 0")


def test_statistics_are_shown_when_asked_for(core: FakeCore, kernel: Path) -> None:
    for command in (["record", str(kernel)], ["replay"]):
        told = rr86(*command, "--stats").stderr.split()
        assert "slices" in told
        assert told[told.index("seconds_guest") + 1] == "2.000"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("record", "missing"), 1, ("kernel 'missing' does not exist",)),
        (("record", "guest.elf", "--smp", "0"), 2, ("vcpus", "not 0")),
        (("record", "guest.elf", "--smp", "300"), 2, ("vcpus", "not 300")),
        (("record", "guest.elf", "-m", "1M"), 2, ("memory",)),
        (("record", "guest.elf", "-o", "."), 1, ("is a directory",)),
        (("record", "guest.elf", "-o", "none/x.rr86"), 1, ("none/x.rr86", "No such file")),
        (("record", "guest.elf", "--until", "int4"), 2, ("unknown condition 'int4'", "panic")),
        (("record", "guest.elf", "--until", "symbol=nope"), 1, ("no symbol 'nope'",)),
        (("record", "guest.elf", "--until", "write=nope"), 1, ("no symbol 'nope'",)),
        (("record", "guest.elf", "-o", "notes.txt"), 1, ("'notes.txt' is not a trace",)),
        (("record", "guest.elf", "-o", "/dev/null"), 1, ("not a regular file",)),
        (("replay",), 1, ("no *.rr86 in the current folder",)),
        (("replay", "missing.rr86"), 1, ("'missing.rr86' does not exist",)),
        (("replay", "guest.elf"), 1, ("is not a trace",)),
        (("info", "guest.elf"), 1, ("is not a trace",)),
        (("events", "--kind", "nonsense"), 2, ("no such kind of event: nonsense", "slice")),
        (("symbols", "missing"), 1, ("'missing' does not exist",)),
        (("symbols", "guest.elf", "nope"), 1, ("no symbol matches",)),
    ],
)
def test_mistakes_are_one_line(
    core: FakeCore, kernel: Path, arguments: tuple[str, ...], status: int, words: tuple[str, ...]
) -> None:
    assert_one_line_error(rr86(*arguments), status, *words)
    assert not list(Path().glob("*.rr86"))
    assert Path("notes.txt").read_text() == "not to be lost"


def test_a_full_disk_is_one_line_and_keeps_the_trace(core: FakeCore, kernel: Path) -> None:
    core.guest.fails_at = 3
    assert_one_line_error(rr86("record", str(kernel)), 1, "No space left on device")
    assert "finished" in rr86("info").stdout
    assert "recording is not complete" in rr86("replay").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("record",),
        ("record", "k", "--no-such-option"),
        ("record", "k", "--limit-virtual-time", "soon"),
        ("record", "k", "--limit-trace-size", "0"),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    assert rr86(*arguments).exit_code == 2


def test_info_describes_the_recording(core: FakeCore, kernel: Path) -> None:
    rr86("record", str(kernel), "--smp", "4", "--append", "quiet")
    text = rr86("info").stdout
    for word in ("vcpus", "4", "quiet", "guest.elf", "poweroff at instruction 5"):
        assert word in text
    content = json.loads(rr86("info", "--json").stdout)
    assert content["spec"]["vcpus"] == 4
    assert content["stop"]["reason"] == "poweroff"


def test_events_come_as_lines_or_json(core: FakeCore, kernel: Path) -> None:
    rr86("record", str(kernel))
    assert rr86("events").stdout.split() == ["0", "0", "slice", "instructions=5", "stop=exit"]
    row = json.loads(rr86("events", "--json", "--limit", "1").stdout)
    assert (row["kind"], row["vcpu"], row["instructions"]) == ("slice", 0, 5)
    assert rr86("events", "--vcpu", "3").stdout == ""


def test_symbols_of_kernels_and_traces(core: FakeCore, kernel: Path) -> None:
    rr86("record", str(kernel))
    expected = "0000000000100000 T start\n"
    assert rr86("symbols", str(kernel)).stdout == expected
    assert rr86("symbols", "guest.elf-001.rr86", "st*").stdout == expected
    assert rr86("symbols", str(kernel), "0x100008").stdout == "start+0x8\n"


def test_a_signal_ends_a_recording_properly(
    core: FakeCore, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.guest.steps = [Step(0x100000 + n % 8) for n in range(100_000)]
    monkeypatch.setattr("rr86.session.execution._FIRST_CALL", 10)
    monkeypatch.setattr("rr86.session.execution._LONGEST_CALL", 10)
    send = Recorder.send

    def interrupted(self: Recorder, data: bytes) -> None:
        if self.icount > 50:
            signal.raise_signal(signal.SIGINT)
        send(self, data)

    monkeypatch.setattr(Recorder, "send", interrupted)
    result = rr86("record", str(kernel))
    assert result.exit_code == 128 + signal.SIGINT
    assert "interrupted at instruction" in result.stderr
    assert "finished" in rr86("info").stdout


def test_start_up_does_not_load_what_it_does_not_need() -> None:
    program = (
        "import sys, rr86.cli; "
        "print([m for m in ('rich', 'msgpack', 'capstone', 'zstandard') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_bug_in_the_core_is_no_traceback(
    core: FakeCore, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panic = type("PanicException", (BaseException,), {})

    def fails(*_: object, **__: object) -> None:
        # The core's own line about it goes to stderr before the exception arrives here.
        raise panic("index out of bounds")

    monkeypatch.setattr(Recorder, "run", fails)
    result = rr86("record", str(kernel))
    assert (result.exit_code, result.stderr) == (1, "")
    assert Path("guest.elf-001.rr86").exists()


def test_a_host_that_lacks_something_is_one_line(
    core: FakeCore, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise HostError("this host's processor lacks BMI2")

    monkeypatch.setattr("rr86.machine.board.power_on", refuse)
    assert_one_line_error(rr86("record", str(kernel)), 1, "lacks BMI2")
    assert not list(Path().glob("*.rr86"))


def test_usage_errors_are_one_line_too(tmp_path: Path) -> None:
    program = "from rr86.cli import main; main()"
    for arguments, word in (
        (["record"], "kernel"),
        (["record", "k", "--smp", "many"], "--smp"),
        (["record", "k", "--limit-virtual-time", "soon"], "examples: 10s"),
        (["frobnicate"], "frobnicate"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert done.stderr.startswith("rr86: error: ")
        assert word in done.stderr
        assert "--help" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_trace_from_another_makers_cpu_is_warned_about(
    core: FakeCore, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Host("AnotherMaker", 9)
    monkeypatch.setattr(sys.modules[Recorder.__module__], "this_host", lambda: other)
    rr86("record", str(kernel))
    assert "warning: recorded on AnotherMaker family 9" in rr86("replay").stderr
