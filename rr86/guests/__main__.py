"""The whole story on the embedded guest: a bug recorded, stopped at, and led back to its cause.

Every step is a command of rr86's, printed and run as it is. Run this as `python -m rr86.guests`, or
as `make demo`; it leaves its traces in `build/`.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rr86.guests import demo_image

FOLDER = Path("build")
_RUN = "from rr86.cli import main; main()"


@dataclass(frozen=True)
class Step:
    """A command, what to say before it, and the exit status with which it does what is said."""

    title: str
    text: str
    command: str
    status: int = 0


STORY = (
    Step(
        "Record",
        "Four vCPUs. vCPU 0 patches functions that the others call all the time, as Linux does\n"
        "it: INT3 over the first byte, then the tail, then the first byte; after each of them\n"
        "everybody serialises. The machine is made to keep its translated code in step with\n"
        "memory in the way that QEMU 7.2 did.",
        "record --smp 4 -m 64M --block-protocol qemu-7.2 -o build/int3.rr86 build/demo.elf",
    ),
    Step(
        "Stop at the INT3 that should not be there",
        "The guest has met thousands of honest INT3s. This one memory did not hold any more.",
        "replay --until int3 build/int3.rr86",
    ),
    Step(
        "Name the write that was missed",
        "Two more replays: one logs the writes to the code of stale blocks, one is the proof.",
        "bisect-invalidation build/int3.rr86",
    ),
    Step(
        "The same guest on a machine without the bug",
        "`precise`, the default, cannot miss a write.",
        "record --smp 4 -m 64M -o build/demo.rr86 build/demo.elf",
    ),
    Step(
        "Replay that",
        "From the trace alone, and every digest of the machine compared on the way.",
        "replay build/demo.rr86",
    ),
    Step(
        "Nothing to find in it",
        "Exit status 1: no stale block was executed.",
        "bisect-invalidation build/demo.rr86",
        1,
    ),
)


def _heading(number: int, step: Step) -> None:
    title = f"{number}. {step.title}"
    print(f"\n{title}\n{'-' * len(title)}\n{step.text}\n\n$ rr86 {step.command}\n", flush=True)


def main() -> int:
    """Run the story; the exit status is 0 if every step ended as it says."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "demo.elf").write_bytes(demo_image())
    started = time.monotonic()
    for number, step in enumerate(STORY, 1):
        _heading(number, step)
        done = subprocess.run([sys.executable, "-c", _RUN, *step.command.split()], check=False)
        if done.returncode != step.status:
            print(
                f"\nThis ended with status {done.returncode}, not {step.status}: "
                "that should never happen.",
                file=sys.stderr,
            )
            return 1
    print(f"\nAll that in {time.monotonic() - started:.1f} s. Look further with:\n")
    print("    .venv/bin/rr86 info build/int3.rr86")
    print("    .venv/bin/rr86 events build/int3.rr86 --kind stale")
    print("    .venv/bin/rr86 replay build/demo.rr86 --until irq=0x41")
    print("\nThe same on Debian's kernel: docs/the-int3-bug.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
