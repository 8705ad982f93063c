"""A debugger of our own: it speaks the remote protocol and checks every byte of it, and shares no
code with the server."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import rr86
from rr86.gdb.debuggee import Debuggee
from rr86.gdb.server import Address, listening, serve
from rr86.replay.travel import TimeTravel


class Lost(Exception):
    """The server has ended the connection."""


class Client:
    """One connection. Answers are checked as they come in: framing, checksum, acknowledgements."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.settimeout(60)
        self.acknowledges = True
        self._buffer = b""

    # -- the line --

    def _byte(self) -> int:
        if not self._buffer:
            try:
                self._buffer = self.socket.recv(65536)
            except ConnectionError:
                self._buffer = b""
            if not self._buffer:
                raise Lost
        byte, self._buffer = self._buffer[0], self._buffer[1:]
        return byte

    def read(self) -> bytes:
        """The next packet, which has to begin right here."""
        assert self._byte() == ord("$")
        body = bytearray()
        while (byte := self._byte()) != ord("#"):
            assert byte != ord("$")
            body.append(byte)
        digits = bytes((self._byte(), self._byte()))
        assert re.fullmatch(rb"[0-9a-f]{2}", digits)
        assert int(digits, 16) == sum(body) % 256
        if self.acknowledges:
            self.socket.sendall(b"+")
        assert ord("*") not in body, "runs have to be escaped or announced"
        return re.sub(rb"}(.)", lambda m: bytes((m[1][0] ^ 0x20,)), bytes(body), flags=re.DOTALL)

    def write(self, data: bytes) -> None:
        """Send a packet, and see it acknowledged."""
        escaped = re.sub(rb"[}$#*]", lambda m: b"}" + bytes((m[0][0] ^ 0x20,)), data)
        self.socket.sendall(b"$%s#%02x" % (escaped, sum(escaped) % 256))
        if self.acknowledges:
            assert self._byte() == ord("+")

    def ask(self, data: bytes | str) -> bytes:
        """A packet and its answer."""
        self.write(data.encode() if isinstance(data, str) else data)
        return self.read()

    # -- what a debugger says --

    def hello(self) -> set[str]:
        """As gdb begins; the features that the server offers."""
        offered = self.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+")
        assert self.ask("QStartNoAckMode") == b"OK"
        self.acknowledges = False
        return set(offered.decode().split(";"))

    def ok(self, data: str) -> None:
        answer = self.ask(data)
        assert answer == b"OK", (data, answer)

    def document(self, kind: str, annex: str = "", piece: int = 0x100) -> ElementTree.Element:
        """A document, fetched in small pieces."""
        text, more = b"", True
        while more:
            answer = self.ask(f"qXfer:{kind}:read:{annex}:{len(text):x},{piece:x}")
            assert answer[:1] in (b"m", b"l")
            assert len(answer) <= piece + 1
            text += answer[1:]
            more = answer[:1] == b"m"
        return ElementTree.fromstring(re.sub(rb"<!DOCTYPE[^>]*>", b"", text))

    def stop(self, data: str) -> Stop:
        """A packet that lets the machine run, and where it stopped."""
        self.write(data.encode())
        return self.stopped()

    def stopped(self) -> Stop:
        said = ""
        while (answer := self.read())[:1] == b"O":
            said += bytes.fromhex(answer[1:].decode()).decode()
        return Stop(answer, said)

    def monitor(self, line: str) -> str:
        """What a monitor verb prints."""
        self.write(b"qRcmd," + line.encode().hex().encode())
        said = ""
        while (answer := self.read()) != b"OK":
            assert answer[:1] == b"O", answer
            said += bytes.fromhex(answer[1:].decode()).decode()
        return said

    def register(self, number: int) -> int:
        answer = self.ask(f"p{number:x}")
        assert re.fullmatch(rb"([0-9a-f]{2})+", answer), answer
        return int.from_bytes(bytes.fromhex(answer.decode()), "little")

    def memory(self, address: int, length: int) -> bytes:
        answer = self.ask(f"m{address:x},{length:x}")
        assert not answer.startswith(b"E"), answer
        return bytes.fromhex(answer.decode())

    def moment(self) -> int:
        """Where the machine stands."""
        match = re.match(r"instruction ([0-9,]+) of", self.monitor("moment"))
        assert match is not None
        return int(match[1].replace(",", ""))


class Stop:
    """A stop reply, taken apart."""

    def __init__(self, answer: bytes, said: str = "") -> None:
        match = re.fullmatch(r"T([0-9a-f]{2})((?:[^:;]+:[^:;]*;)*)", answer.decode())
        assert match is not None, answer
        self.signal = int(match[1], 16)
        self.rows = dict(row.split(":") for row in match[2].split(";") if row)
        self.thread = int(self.rows["thread"], 16)
        self.rip = int.from_bytes(bytes.fromhex(self.rows["10"]), "little")
        self.said = said

    def because(self, name: str) -> bool:
        return name in self.rows


class Served:
    """A server in a thread of this process, for as many clients as there are."""

    def __init__(self, debuggee: Debuggee, path: Path) -> None:
        self.debuggee = debuggee
        self.path = path
        self.said: list[str] = []
        self.broken: list[BaseException] = []

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A connection, closed at the end."""
        with socket.socket(socket.AF_UNIX) as connected:
            connected.connect(str(self.path))
            yield Client(connected)

    @contextlib.contextmanager
    def session(self) -> Iterator[Client]:
        """A connection that has been greeted as gdb does."""
        with self.client() as client:
            client.hello()
            yield client


@contextlib.contextmanager
def serving(trace: rr86.Trace, folder: Path, at: int = 0) -> Iterator[Served]:
    """Serve a trace, and see at the end that the server has never failed."""
    travel = TimeTravel(trace)
    if at:
        travel.goto(at)
    path = folder / "gdb"
    wanted = threading.Event()
    wanted.set()
    with listening(Address(path=str(path))) as (listener, _):
        listener.settimeout(0.05)
        served = Served(Debuggee(trace, travel), path)

        def run() -> None:
            try:
                serve(listener, served.debuggee, served.said.append, wanted=wanted.is_set)
            except BaseException as error:
                served.broken.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield served
        finally:
            wanted.clear()
            thread.join(60)
        assert not thread.is_alive()
        assert served.broken == []
