"""`rr86 gdb` and `rr86 replay --gdb` as commands: arguments, addresses, errors, how they end."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rr86.cli.arguments import prepared
from rr86.errors import UsageError
from rr86.gdb.server import Address, ServerError, listening, parse_address
from tests.gdb.client import Client
from tests.gdb.conftest import TRACES
from tests.gdb.scripts import COMMAND, environment

TRACE = str(TRACES / "stale-int3.rr86")


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("replay --gdb t.rr86", "replay --gdb= t.rr86"),
        ("replay t.rr86 --gdb", "replay t.rr86 --gdb="),
        ("replay --gdb 1234 t.rr86", "replay --gdb 1234 t.rr86"),
        ("replay --gdb :1234 t.rr86", "replay --gdb :1234 t.rr86"),
        ("replay --gdb [::1]:99", "replay --gdb [::1]:99"),
        ("replay --gdb unix:/tmp/s t.rr86", "replay --gdb unix:/tmp/s t.rr86"),
        ("replay --gdb=host:1 t.rr86", "replay --gdb=host:1 t.rr86"),
        ("replay --gdb --from 5", "replay --gdb= --from 5"),
        ("gdb t.rr86 -- -x a", "gdb t.rr86 --gdb-argument=-x --gdb-argument=a"),
        ("gdb -- --", "gdb --gdb-argument=--"),
        ("record -- --gdb", "record -- --gdb"),
    ],
)
def test_arguments_are_put_into_words_that_typer_understands(given: str, seen: str) -> None:
    assert prepared(given.split()) == seen.split()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:1234", Address("localhost", 1234)),
        ("1234", Address("localhost", 1234)),
        (":1234", Address("localhost", 1234)),
        ("0.0.0.0:1", Address("0.0.0.0", 1)),
        ("[::1]:5", Address("::1", 5)),
        ("unix:/a b/c", Address(path="/a b/c")),
    ],
)
def test_addresses_are_a_port_a_host_and_a_port_or_a_path(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "unix:", "host", "host:", "host:70000", "a:b:1", "::1:5"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_no_other_interface_than_the_named_one_is_listened_to() -> None:
    with listening(Address("localhost", 0)) as (listener, found):
        assert listener.getsockname()[0] in ("127.0.0.1", "::1")
        assert found.port > 0


def test_a_socket_that_a_server_has_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(Address(path=str(path))):
        assert stat.S_ISSOCK(path.stat().st_mode)
        # One that is in use is not, and neither is a file.
        with pytest.raises(ServerError), listening(Address(path=str(path))):
            pass
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ServerError), listening(Address(path=str(path))):
        pass
    assert path.read_text() == "mine"


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["replay", TRACE, "--gdb", "host:70000"], 2, "is no address"),
        (["replay", TRACE, "--gdb", "--until", "int3"], 2, "--gdb goes with"),
        (["replay", TRACE, "--gdb", "192.0.2.1:1234"], 1, "cannot listen at 192.0.2.1:1234"),
        (["gdb", TRACE, "--at", "99G"], 2, "the trace ends at instruction"),
        (["gdb", TRACE, "--at", "somewhere"], 2, "not a moment"),
        (["gdb", TRACE, "--vmlinux", "/nonexistent/vmlinux"], 2, "is not a file"),
        (["gdb", "/nonexistent.rr86"], 1, "does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], status: int, message: str, tmp_path: Path
) -> None:
    done = run(*arguments, home=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_gdb_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "gdb", TRACE],
        env={**environment(tmp_path), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "apt-get install gdb" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_serves_until_it_is_ended_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    process = subprocess.Popen(
        [*COMMAND, "replay", TRACE, "--gdb", f"unix:{path}", "--from", "5M"],
        env={**environment(tmp_path), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert f"target remote {path}" in line
    assert "file " in line
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as connected:
            connected.connect(str(path))
            client = Client(connected)
            client.hello()
            assert client.moment() == 5_000_000
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    process.stderr.close()
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_told_without_the_debuggers_room() -> None:
    program = "import sys; from rr86.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"], capture_output=True, text=True
    )
    assert "rr86.cli.app" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("rr86.gdb")]
