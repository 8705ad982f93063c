"""`record` on a terminal: run in a process of its own, on a pseudo-terminal."""

import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
import pytest
from pathlib import Path
import tests.fake_core as fake
from tests.images import elf

Path("guest.elf").write_bytes(elf([("start", 0x100000, 64)]))
steps = [fake.Step(0x100000, out=b"login: ")] + [fake.Step(0x100001)] * 10**6
core = fake.FakeCore(fake.Guest(steps))
patch = pytest.MonkeyPatch()
fake.install(core, patch)
typed = core.guest.inputs
send = fake.Machine.console_input
def echo(self, data):
    send(self, data)
    sys.stdout.write("<" + data.hex() + ">")
    sys.stdout.flush()
fake.Machine.console_input = echo
run = fake.Machine.run
def slow(self, *arguments, **named):
    time.sleep(0.01)
    return run(self, *arguments, **named)
fake.Machine.run = slow
patch.setattr("rr86.session.execution._FIRST_CALL", 100)
patch.setattr("rr86.session.execution._SHORTEST_CALL", 100)
patch.setattr("rr86.session.execution._LONGEST_CALL", 100)
from rr86.cli import main
sys.argv = ["rr86", "record", "guest.elf"]
main()
"""


class Session:
    def __init__(self, folder: Path) -> None:
        root = str(Path(__file__).parents[2])
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ["PYTHONPATH"] = root
            os.execv(sys.executable, [sys.executable, "-c", PROGRAM])
        self.text = ""

    def expect(self, words: str) -> None:
        end = time.monotonic() + 30
        while words not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.fd, 4096).decode()
                except OSError:
                    break
        assert words in self.text, self.text

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


def test_keys_reach_the_guest_and_ctrl_a_x_leaves(session: Session, tmp_path: Path) -> None:
    session.expect("login: ")
    session.type(b"ls\r")
    session.expect("<6c730d>")
    session.type(b"\x01x")
    session.expect("in guest.elf-001.rr86")
    assert session.status() == 0
    assert (tmp_path / "guest.elf-001.rr86").exists()


def test_ctrl_c_ends_the_recording_properly(session: Session) -> None:
    session.expect("login: ")
    session.type(b"\x03")
    session.expect("interrupted at instruction")
    session.expect("in guest.elf-001.rr86")
    assert session.status() == 130
