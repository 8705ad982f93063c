"""`watch` and `reverse-continue` against `who-wrote`: two ways to the last writer of a byte.

    python -m tests.gdb.watching TRACE --addresses 100 --seed 1

The first is the debugger's: a watchpoint in the core, and a search backwards. The second replays with
a log of all writes, or has one that was written long before. They share no code.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import rr86
from rr86.replay import WriteHistory
from tests.gdb.client import Client, serving


def places(trace: rr86.Trace, seed: int, count: int) -> list[tuple[int, int]]:
    """Moments and physical addresses: mostly of lines that several vCPUs touched, and some beside
    them."""
    draw = random.Random(seed)
    lines = [
        page * 4096 + line * 64
        for page, mask in sorted(trace.shared_lines().items())
        for line in range(64)
        if mask >> line & 1
    ]
    last = trace.summary()["last_icount"]
    found = []
    for _ in range(count):
        address = draw.choice(lines) + draw.randrange(64)
        if draw.random() < 0.2:
            address = (address & -4096) + draw.randrange(4096)
        found.append((draw.randrange(last // 4, last + 1), address))
    return found


def by_watching(client: Client, moment: int, address: int) -> tuple[int, int] | None:
    """Moment and vCPU of the last write before a moment, as gdb finds it; None if there is none."""
    client.monitor(f"goto {moment}")
    client.ok("Qqemu.PhyMemMode:1")
    client.ok(f"Z2,{address:x},1")
    stop = client.stop("bc")
    client.ok(f"z2,{address:x},1")
    if stop.because("replaylog"):
        return None
    assert int(stop.rows["watch"], 16) == address
    return client.moment(), stop.thread - 1


def compare(trace: rr86.Trace, history: WriteHistory, seed: int, count: int) -> tuple[int, int]:
    """Ask both for so many bytes. How many were written by vCPUs, and how many by no one."""
    written = untouched = 0
    with tempfile.TemporaryDirectory() as folder, serving(trace, Path(folder)) as served:
        with served.session() as client:
            for moment, address in places(trace, seed, count):
                found = by_watching(client, moment, address)
                record = history.who_wrote(address, 1, moment)[0]
                if record.vcpu is None:
                    assert found is None, (moment, hex(address), found, record)
                    untouched += 1
                else:
                    assert found == (record.moment, record.vcpu), (moment, hex(address), record)
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
