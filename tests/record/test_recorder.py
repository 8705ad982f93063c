import subprocess
import sys
from pathlib import Path

import pytest

import rr86
from rr86.errors import NativeError
from rr86.record.files import ReadAhead, next_free_name
from rr86.trace.metadata import Footer, Header, Host, this_host
from tests.fake_core import FakeCore, Step
from tests.images import elf


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "guest.elf"
    path.write_bytes(elf([("start", 0x100000, 64)]))
    return path


def test_a_recording_ends_with_its_guest(core: FakeCore, kernel: Path) -> None:
    heard: list[bytes] = []
    recording = rr86.record(kernel, smp=2, append="quiet", console=heard.append)
    assert recording.stop is not None
    assert recording.stop.reason == "poweroff"
    assert recording.path == Path("guest.elf-001.rr86")
    assert b"".join(heard) == b"hello\n"
    trace = rr86.open_trace(recording.path)
    assert trace.complete
    assert trace.spec.vcpus == 2
    assert trace.spec.command_line == "quiet"
    assert trace.image("kernel") == kernel.read_bytes()
    assert trace.footer is not None
    assert trace.footer.stop["icount"] == 5


def test_two_recordings_of_one_run_are_equal_and_get_names_of_their_own(
    core: FakeCore, kernel: Path
) -> None:
    first, second = rr86.record(kernel, seed=7), rr86.record(kernel, seed=7)
    assert second.path == Path("guest.elf-002.rr86")
    assert first.path.read_bytes() == second.path.read_bytes()


def test_names_follow_the_highest_number(tmp_path: Path) -> None:
    for name in ("vmlinuz-6.1-007.rr86", "vmlinuz-6.1-x.rr86", "other-100.rr86"):
        (tmp_path / name).touch()
    assert next_free_name("/boot/vmlinuz-6.1", tmp_path).name == "vmlinuz-6.1-008.rr86"


def test_a_caller_can_drive_and_type(core: FakeCore, kernel: Path) -> None:
    with rr86.start_recording(kernel) as recorder:
        assert recorder.run(max_instructions=2).reason == "limit"
        recorder.send(b"ls\n")
        assert recorder.inspector.symbolize(0x100004) == "start+0x4"
        assert recorder.run(until="icount=4").icount == 4
    assert core.guest.inputs == [b"ls\n"]
    assert rr86.open_trace(recorder.path).complete
    with pytest.raises(rr86.RecordingError, match="finished"):
        recorder.run()


@pytest.mark.parametrize(
    ("limits", "icount", "words"),
    [
        (rr86.Limits(instructions=3), 3, "3 instructions"),
        (rr86.Limits(time_ns=1), 1, "virtual time"),
        (rr86.Limits(trace_bytes=150), 2, "150 bytes"),
    ],
)
def test_limits_end_a_recording(
    core: FakeCore,
    kernel: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: rr86.Limits,
    icount: int,
    words: str,
) -> None:
    monkeypatch.setattr("rr86.session.execution._FIRST_CALL", 1)
    monkeypatch.setattr("rr86.session.execution._SHORTEST_CALL", 1)
    monkeypatch.setattr("rr86.session.execution._LONGEST_CALL", 1)
    stop = rr86.record(kernel, limits=limits).stop
    assert stop is not None
    assert (stop.reason, stop.icount) == ("limit", icount)
    assert words in stop.detail


def test_a_limit_that_is_reached_stays_reached(core: FakeCore, kernel: Path) -> None:
    limits = rr86.Limits(instructions=3)
    with rr86.start_recording(kernel) as recorder:
        assert recorder.run(limits=limits).icount == 3
        assert recorder.run(limits=limits).icount == 3
        assert recorder.run().icount == 5


def test_an_odd_limit_is_refused() -> None:
    with pytest.raises(rr86.UsageError, match="must be positive"):
        rr86.Limits(instructions=0)


def test_an_interrupt_does_not_lose_the_trace(core: FakeCore, kernel: Path) -> None:
    core.guest.steps = [Step(0x100000 + n, out=b"x") for n in range(9)]

    def impatient(data: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rr86.record(kernel, output="kept.rr86", console=impatient)
    assert rr86.open_trace("kept.rr86").complete


def test_a_full_disk_is_what_the_caller_hears_about(core: FakeCore, kernel: Path) -> None:
    core.guest.fails_at = 3
    with pytest.raises(NativeError, match="No space left"):
        rr86.record(kernel, output="short.rr86")
    assert not rr86.open_trace("short.rr86").complete


def test_files_that_cannot_be_used_are_named(core: FakeCore, kernel: Path, tmp_path: Path) -> None:
    with pytest.raises(rr86.GuestImageError, match="kernel 'nowhere' does not exist"):
        rr86.record("nowhere")
    with pytest.raises(rr86.GuestImageError, match="is a directory"):
        rr86.record(tmp_path)
    with pytest.raises(rr86.GuestImageError, match="initrd 'missing' does not exist"):
        rr86.record(kernel, initrd="missing")
    (tmp_path / "empty").touch()
    with pytest.raises(rr86.GuestImageError, match="is empty"):
        rr86.record("empty")
    with pytest.raises(
        rr86.GuestImageError, match="kernel '/dev/zero' cannot be read: it is a dev"
    ):
        rr86.record("/dev/zero")
    read = ReadAhead(["/dev/zero"])
    read.wait()
    with pytest.raises(rr86.GuestImageError, match="it is a device"):
        read(Path("/dev/zero"), "kernel")
    with pytest.raises(rr86.RecordingError, match=r"no-folder.* No such file"):
        rr86.record(kernel, output="no-folder/x.rr86")
    with pytest.raises(rr86.RecordingError, match="its own input"):
        rr86.record(kernel, output=kernel)
    assert not list(tmp_path.glob("*.rr86"))


def test_only_traces_and_empty_files_are_overwritten(
    core: FakeCore, kernel: Path, tmp_path: Path
) -> None:
    for name, content in (("empty", b""), ("trace", b"\x89RR86\r\n\x1a..."), ("cut", b"\x89RR")):
        (tmp_path / name).write_bytes(content)
        assert rr86.record(kernel, output=name).path == Path(name)
    for content in (b"text", b"\x7fELF", b"\x89PNG\r\n\x1a\n..."):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(rr86.RecordingError, match="'other' is not a trace, and is left as it"):
            rr86.record(kernel, output="other")
        assert (tmp_path / "other").read_bytes() == content


def test_a_machine_that_cannot_be_built_leaves_no_empty_trace(
    core: FakeCore, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise NativeError("this host has no BMI2")

    monkeypatch.setattr("rr86.machine.board.power_on", refuse)
    with pytest.raises(NativeError, match="BMI2"):
        rr86.record(kernel)
    assert not list(tmp_path.glob("*.rr86"))


def test_boards_that_make_no_sense_are_refused(core: FakeCore, kernel: Path) -> None:
    for options in ({"smp": 0}, {"smp": 300}, {"memory": "1M"}, {"memory": "lots"}):
        with pytest.raises(rr86.SpecError):
            rr86.record(kernel, **options)


def test_header_and_footer_survive_packing() -> None:
    header = Header("0.1.0", {"vcpus": 4}, {"kernel": "bzImage"}, Host("GenuineIntel", 6))
    assert Header.unpack(header.pack()) == header
    footer = Footer(0x1200000, 0xFFFFFFFF82E00080, {"reason": "poweroff"}, {"slices": 3})
    assert Footer.unpack(footer.pack()) == footer


def test_the_host_is_described_by_maker_and_family(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n\nprocessor\t: 1\n"
    )
    assert this_host(info) == Host("AuthenticAMD", 25)
    assert this_host(tmp_path / "missing") == Host("unknown", 0)


def test_the_package_and_the_function_of_the_same_name_get_along() -> None:
    program = "import rr86; from rr86.record.recorder import start; assert callable(rr86.record)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_files_read_ahead_are_those_that_are_read(tmp_path: Path) -> None:
    kernel, other, empty = (tmp_path / name for name in ("kernel", "other", "empty"))
    kernel.write_bytes(b"one")
    other.write_bytes(b"two")
    empty.write_bytes(b"")
    read = ReadAhead([kernel, empty, tmp_path / "missing"])
    read.wait()
    kernel.unlink()
    assert read(kernel, "kernel") == b"one"
    assert read(other, "module0") == b"two"
    with pytest.raises(rr86.GuestImageError, match=r"initrd '.*' is empty"):
        read(empty, "initrd")
    with pytest.raises(rr86.GuestImageError, match=r"initrd '.*missing' does not exist"):
        read(tmp_path / "missing", "initrd")
