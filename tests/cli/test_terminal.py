import os
import pty
import termios
from pathlib import Path

import pytest

from rr86.cli.terminal import Input, Keys, Output
from rr86.cli.values import newest_trace, parse_bytes, parse_count, parse_duration


def test_ctrl_a_x_leaves_and_other_keys_go_to_the_guest() -> None:
    keys = Keys()
    assert keys.feed(b"ls\r") == b"ls\r"
    assert keys.feed(b"\x01") == b""
    assert keys.feed(b"\x01a\x01a") == b"\x01a\x01"
    assert not keys.leave
    assert keys.feed(b"b\x01xignored") == b"b"
    assert keys.leave


def test_ctrl_a_h_asks_for_help() -> None:
    keys = Keys()
    assert keys.feed(b"\x01h") == b""
    assert keys.help


class StandIn:
    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd


def test_a_pipe_is_read_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr("sys.stdin", StandIn(reader))
    source = Input(enabled=True)
    assert source.poll() == b""
    os.write(writer, b"a\x01x")
    assert source.poll() == b"a\x01x"
    os.close(writer)
    assert source.open
    assert source.poll() == b""
    assert not source.open
    os.close(reader)


def test_no_input_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert not Input(enabled=False).open
    assert not Input(enabled=True).open


def test_the_terminal_is_raw_but_keeps_ctrl_c_and_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controller, terminal = pty.openpty()
    monkeypatch.setattr("sys.stdin", StandIn(terminal))
    monkeypatch.setattr("os.tcgetpgrp", lambda fd: os.getpgrp())
    before = termios.tcgetattr(terminal)
    source = Input(enabled=True)
    assert source.interactive

    def fail_while_raw() -> None:
        with source.raw():
            use_the_terminal()

    def use_the_terminal() -> None:
        flags = termios.tcgetattr(terminal)[3]
        assert not flags & (termios.ICANON | termios.ECHO)
        assert flags & termios.ISIG
        os.write(controller, b"x\r")
        assert source.poll(1.0) == b"x\r"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_while_raw()
    assert termios.tcgetattr(terminal) == before
    os.close(controller)
    os.close(terminal)


def test_output_remembers_that_its_reader_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        out = Output()
        out.write(b"this is not read")
        assert out.closed
        out.write(b"nor this")


@pytest.mark.parametrize(
    ("text", "value"),
    [("10s", 10**10), ("250ms", 250 * 10**6), ("1.5s", 15 * 10**8), ("2", 2 * 10**9)],
)
def test_durations(text: str, value: int) -> None:
    assert parse_duration(text) == value


def test_sizes_and_counts_have_their_own_units() -> None:
    assert parse_bytes("100M") == 100 << 20
    assert parse_count("1.5G") == 1_500_000_000
    assert parse_count("500_000") == 500_000


def test_the_newest_trace_is_the_one_changed_last(tmp_path: Path) -> None:
    assert newest_trace(tmp_path) is None
    for name, when in (("a.rr86", 30), ("b.rr86", 20), ("c.txt", 40)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))
    assert newest_trace(tmp_path) == tmp_path / "a.rr86"
