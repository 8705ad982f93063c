"""Broken packets, drawn from a seed, for a server that has to survive them.

    python -m tests.gdb.fuzz --packets 100000 --seed 1

Each connection brings a few dozen packets: real ones, and real ones with bits flipped, bytes lost
or repeated, wrong checksums, cut off, far too long, or plain noise, some with interrupts.
Whatever comes back has to be packets with right checksums, the server has to serve the next
connection, and the machine has to be the recorded one to the last digest when all is over.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import rr86
from rr86.gdb.commands import PACKETS
from tests.gdb.client import Served, serving

PER_CONNECTION = 50
TRACE = Path(__file__).parents[2] / "traces/stale-int3.rr86"
_HEX = b"0123456789abcdef"
_VERBS = [
    *(b"moment", b"goto 100", b"goto +5", b"goto -7", b"goto end", b"goto", b"until icount=9"),
    *(b"back-until rip=102440", b"watch 0x12e010:4 if value == 2", b"watch", b"unwatch", b"help"),
    *(b"events 3", b"console", b"checkpoints", b"watch 1 if " + b"(" * 50, b"\xff\xfe", b"until x"),
]


class Generator:
    """Packets as they should not be."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def number(self) -> bytes:
        """A number as it may stand in a packet."""
        draw = self.random
        return draw.choice(
            [
                b"%x" % draw.randrange(16),
                b"%x" % draw.choice([0x101000, 0x102440, 0x12E010, 0xFFF, 0x7FFF_FFFF_F000]),
                b"%x" % draw.getrandbits(draw.choice([8, 16, 32, 64, 65, 200])),
                *(b"", b"-1", b"x", b"ffffffffffffffff", b"p1.2", b"0" * 40),
            ]
        )

    def plain(self) -> bytes:
        """Something like a packet that means something."""
        draw = self.random
        name = draw.choice(PACKETS).encode()
        if name in (b"k", b"D") and draw.random() < 0.9:
            # A farewell makes the rest of a connection go unread.
            name = b"m"
        if name == b"qRcmd,":
            return name + draw.choice(_VERBS).hex().encode()
        separators = [b",", b":", b";", b"=", b".", b";X3,", b";s:", b";c", b"read:", b"target.xml"]
        parts = [name]
        for _ in range(draw.randrange(5)):
            parts += [self.number(), draw.choice(separators)]
        return b"".join(parts[: draw.randrange(1, len(parts) + 1)])

    def mutated(self, data: bytes) -> bytes:
        """Data with some bytes changed, lost, repeated or added."""
        draw, out = self.random, bytearray(data)
        for _ in range(draw.randrange(1, 5)):
            at = draw.randrange(len(out) + 1)
            match draw.randrange(5):
                case 0 if at < len(out):
                    out[at] ^= 1 << draw.randrange(8)
                case 1 if at < len(out):
                    del out[at]
                case 2:
                    out[at:at] = out[at : at + draw.randrange(1, 9)]
                case 3:
                    out.insert(at, draw.choice(b"$#}*\x03+-,:;\0\xff"))
                case _:
                    out[at:at] = draw.randbytes(draw.randrange(4))
        return bytes(out)

    def packet(self) -> bytes:
        """What goes over the line for one packet."""
        draw = self.random
        data = self.plain() if draw.random() < 0.9 else draw.randbytes(draw.randrange(60))
        if draw.random() < 0.5:
            data = self.mutated(data)
        framed = b"$" + data + b"#%02x" % (sum(data) & 0xFF)
        match draw.randrange(16):
            case 0:
                return self.mutated(framed)
            case 1:
                return framed[: draw.randrange(len(framed))]
            case 2:
                return framed[:-2] + bytes(draw.choices(_HEX, k=2))
            case 3:
                return framed + b"\x03"
            case 4:
                return draw.choice([b"+", b"-", b"--", b"\x03", b"$", b"#", b"}"]) + framed
            case 5 if draw.random() < 0.02:
                return b"$" + b"%c" % draw.choice(_HEX) * draw.randrange(200_000) + b"#00"
            case _:
                return framed


def exchange(path: Path, line: bytes) -> bytes:
    """Send all of it, say goodbye, and take everything that comes back."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(120)
        connected.connect(str(path))

        def send() -> None:
            try:
                connected.sendall(line)
                connected.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # The server has had enough.

        sender = threading.Thread(target=send)
        sender.start()
        back = bytearray()
        try:
            while piece := connected.recv(1 << 16):
                back += piece
        except ConnectionError:
            pass
        sender.join()
    return bytes(back)


def check_answers(back: bytes) -> Counter[str]:
    """See that all of it is packets and acknowledgements; count the packets by their kind.

    The last one may be cut off: the server stops where the debugger has gone.
    """
    found: Counter[str] = Counter()
    at = 0
    while at < len(back):
        if back[at : at + 1] in (b"+", b"-"):
            at += 1
            continue
        match = re.compile(rb"\$([^$#]*)#([0-9a-f]{2})").match(back, at)
        if match is None:
            assert back[at : at + 1] == b"$", back[at : at + 40]
            assert b"#" not in back[at:-2], back[at : at + 40]
            break
        assert sum(match[1]) & 0xFF == int(match[2], 16)
        kind = "empty" if not match[1] else "error" if match[1][:1] == b"E" else "answer"
        found[kind] += 1
        at = match.end()
    return found


def attack(served: Served, packets: int, seed: int, tell: Callable[[str], None]) -> Counter[str]:
    """Send so many packets, and look after the server in between."""
    generator, found = Generator(seed), Counter[str]()
    for done in range(0, packets, PER_CONNECTION):
        line = b"".join(generator.packet() for _ in range(min(PER_CONNECTION, packets - done)))
        found += check_answers(exchange(served.path, line))
        assert served.broken == []
        if done % 5000 == 0:
            with served.session() as client:
                assert client.ask("qAttached") == b"1"
            tell(f"{done:,} packets: {dict(found)}")
    return found


def run(packets: int, seed: int, tell: Callable[[str], None] = lambda _: None) -> Counter[str]:
    """The whole trial, on a recording that has to come out unharmed."""
    trace = rr86.open_trace(TRACE)
    whole = trace.session()
    whole.run()
    with tempfile.TemporaryDirectory() as folder, serving(trace, Path(folder)) as served:
        found = attack(served, packets, seed, tell)
        with served.session() as client:
            client.monitor("goto begin")
            assert client.stop("vCont;c").rows["replaylog"] == "end"
        assert served.debuggee.travel.session.machine.digests() == whole.machine.digests()
    return found


def main() -> int:
    """The soak command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    found = run(options.packets, options.seed, print)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{options.packets:,} packets, seed {options.seed}: {dict(found)}, "
        f"{time.monotonic() - started:.0f} s, at most {memory} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
