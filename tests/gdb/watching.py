"""`watch` and `reverse-continue` against `who-wrote`: two ways to the last writer of a byte.

    python -m tests.gdb.watching TRACE --addresses 100 --seed 1

The first is the debugger's: a watchpoint in the core, and a search backwards. The second replays
with a log of all writes, or has one that was written long before. They share no code.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import rr86
from rr86.replay import WriteHistory
from tests.gdb.client import Client, serving

RIP = 16
NOWHERE = Path("/nonexistent/expansion")


def places(trace: rr86.Trace, history: WriteHistory, seed: int) -> Iterator[tuple[int, int]]:
    """Moments and physical addresses: mostly of lines that several vCPUs touched, and some beside
    them. Of four bytes, three are such that a vCPU has written them, as far as a log tells."""
    draw = random.Random(seed)
    lines = [
        page * 4096 + line * 64
        for page, mask in sorted(trace.shared_lines().items())
        for line in range(64)
        if mask >> line & 1
    ]
    last = trace.summary()["last_icount"]
    for number in itertools.count():
        while True:
            address = draw.choice(lines) + draw.randrange(64)
            if draw.random() < 0.2:
                address = (address & -4096) + draw.randrange(4096)
            moment = draw.randrange(last // 4, last + 1)
            known = history.ask_log(address, moment) if history.has_log else None
            if number % 4 == 0 or known is None or known.vcpu is not None:
                break
        yield moment, address


def by_watching(client: Client, moment: int, address: int) -> tuple[int, int] | None:
    """Moment and vCPU of the last write before a moment, as gdb finds it; None if there is none."""
    client.monitor(f"goto {moment}")
    client.ok("Qqemu.PhyMemMode:1")
    client.ok(f"Z2,{address:x},1")
    stop = client.stop("bc")
    client.ok(f"z2,{address:x},1")
    client.ok("Qqemu.PhyMemMode:0")
    if stop.because("replaylog"):
        return None
    assert int(stop.rows["watch"], 16) == address
    return client.moment(), stop.thread - 1


def compare(trace: rr86.Trace, log: WriteHistory, seed: int, count: int) -> tuple[int, int]:
    """Ask both for so many bytes, of which `log` helps to choose. How many were written by vCPUs,
    and how many by no one."""
    written = untouched = 0
    history = WriteHistory(trace, NOWHERE)
    # Iterations of a repeated instruction have moments of their own since version 2.
    old = trace.spec.semantics < 2
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(trace, Path(folder)) as served,
        served.session() as client,
    ):
        for moment, address in itertools.islice(places(trace, log, seed), count):
            found = by_watching(client, moment, address)
            record = history.who_wrote(address, 1, moment)[0]
            if record.vcpu is None:
                assert found is None, (moment, hex(address), found, record)
                untouched += 1
            else:
                expected = record.moment, record.vcpu
                repeats = (b"\xf2", b"\xf3")
                if old and record.rip is not None and client.memory(record.rip, 1) in repeats:
                    # All iterations that run at a stretch have the moment of the first.
                    assert found is not None
                    assert client.register(RIP) == record.rip
                    expected = max(found[0], record.moment or 0), record.vcpu
                assert found == expected, (moment, hex(address), found, record)
                written += 1
    return written, untouched


def main() -> int:
    """For traces that a test is too short for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--addresses", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    trace = rr86.open_trace(options.trace)
    written, untouched = compare(trace, WriteHistory(trace), options.seed, options.addresses)
    print(f"{written} bytes written by vCPUs, {untouched} by none: both ways agree on all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
