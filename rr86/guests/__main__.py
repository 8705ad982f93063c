"""Records the demo guest on four vCPUs, replays the recording, and says what happened.

Run it as `python -m rr86.guests`, or as `make demo`.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.guests import demo_folder

if TYPE_CHECKING:
    from rr86.replay.stop import Stop

VCPUS = 4
TRACE = Path("build/demo.rr86")


def _show(console: bytes) -> None:
    for line in console.decode("utf-8", "replace").strip().splitlines():
        print(f"    {line.rstrip()}")


def _moment(stop: "Stop | None") -> str:
    if stop is None:
        return "the guest never ran"
    return f"{stop.reason} after {stop.icount:,} instructions, {stop.time_ns / 1e6:.3f} ms for it"


def main() -> int:
    """Record, replay, compare; the exit status says whether they agree."""
    from rr86.record.recorder import record
    from rr86.replay.trace import open_trace
    from rr86.replay.vocabulary import EVENT_KINDS

    TRACE.parent.mkdir(exist_ok=True)
    console = bytearray()
    print(f"Recording a small guest on {VCPUS} vCPUs. It says on its serial port:\n", flush=True)
    started = time.monotonic()
    recording = record(
        demo_folder() / "demo.elf",
        smp=VCPUS,
        memory="64M",
        output=TRACE,
        console=console.extend,
    )
    seconds = time.monotonic() - started
    _show(bytes(console))
    print(f"\n  {_moment(recording.stop)}")
    print(f"  {seconds:.2f} s, {recording.trace_bytes:,} bytes in {TRACE}\n")

    print("Replaying it from the trace alone, every digest checked:\n", flush=True)
    started = time.monotonic()
    trace = open_trace(TRACE)
    session = trace.session()
    stop = session.run()
    seconds = time.monotonic() - started
    counts = trace.summary()
    kinds = [(kind, counts.get(f"{kind}_events", 0)) for kind in EVENT_KINDS]
    equal = session.console == bytes(console)
    print(f"  {_moment(stop)}")
    print(f"  {seconds:.2f} s; console output {'equal' if equal else 'DIFFERENT'}")
    print("  events: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds if count) + "\n")
    if not equal or recording.stop is None or stop.icount != recording.stop.icount:
        print("The replay differs from the recording. That should never happen.", file=sys.stderr)
        return 1
    print("The replay ran the same instructions in the same order. Look further with:\n")
    print(f"    .venv/bin/rr86 info {TRACE}")
    print(f"    .venv/bin/rr86 events {TRACE} --kind invalidate --limit 5")
    print(f"    .venv/bin/rr86 replay {TRACE} --until irq=0x41")
    return 0


if __name__ == "__main__":
    sys.exit(main())
