"""`rr86 replay --vcpu` and `--parallel`: vCPUs replayed without each other."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.cli.progress import Progress, Steps, size_text
from rr86.cli.status import Exit, say
from rr86.cli.terminal import Interruption

if TYPE_CHECKING:
    from rr86.replay.stop import Stop
    from rr86.replay.trace import Trace


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """An `Interruption` that ends the command with its signal's status."""
    interruption = Interruption()
    try:
        with interruption.watching():
            yield interruption
    except KeyboardInterrupt:
        raise Exit(128 + (interruption.signal or 2)) from None


def expanded(
    trace: "Trace", path: Path | None, stores: bool, interruption: Interruption, quiet: bool = False
) -> Path:
    """The trace's expansion, made with a line of progress if there is none that will do."""
    from rr86.replay import expansion

    made = False
    progress = Progress("expanding")

    def between_slices(moment: "Stop") -> bool:
        nonlocal made
        made = True
        progress.update(moment)
        return bool(interruption)

    started = time.monotonic()
    with progress.shown(not quiet):
        place = expansion.expand(trace, path, stores, between_slices)
    if made and not quiet:
        seconds = time.monotonic() - started
        say(f"made {place} ({size_text(place.stat().st_size)}) in {seconds:.1f} s")
    return place


def _speed(instructions: int, seconds: float) -> str:
    speed = instructions / max(seconds, 1e-9)
    return f"{instructions / 1e6:,.1f} M instructions, {speed / 1e6:,.1f} MIPS"


def replay_one(
    trace: "Trace", vcpu: int, path: Path | None, verify: bool, stats: bool, quiet: bool
) -> None:
    """Replay one vCPU alone and say how that went."""
    from rr86.cli.show import show_statistics
    from rr86.replay.alone import AloneSession, check_vcpu

    check_vcpu(trace, vcpu)
    with interruptible() as interruption:
        place = expanded(trace, path, False, interruption, quiet)
        session = AloneSession(trace, vcpu, place, verify)
        started = time.monotonic()
        with Steps().shown(not quiet) as step:

            def between(_: "Stop") -> bool:
                speed = _speed(session.instructions, time.monotonic() - started)
                step(f"replaying vCPU {vcpu} alone: {speed}")
                return bool(interruption)

            stop = session.run(tick=between)
        if stop.reason == "interrupted":
            raise KeyboardInterrupt
        if not quiet:
            speed = _speed(session.instructions, time.monotonic() - started)
            equal = "; all of its digests are equal" if verify else ""
            say(f"vCPU {vcpu}, alone: {speed}{equal}")
        if stats:
            show_statistics(session.machine.stats(), session.machine.seconds())


def replay_all(trace: "Trace", path: Path | None, verify: bool, stats: bool, quiet: bool) -> None:
    """Replay all vCPUs, each alone, and say how that went."""
    from rr86.replay.alone import replay_parallel

    with interruptible() as interruption:
        place = expanded(trace, path, False, interruption, quiet)
        started = time.monotonic()
        with Steps().shown(not quiet) as step:

            def watch(instructions: int) -> bool:
                step(f"replaying in parallel: {_speed(instructions, time.monotonic() - started)}")
                return bool(interruption)

            done = replay_parallel(trace, verify=verify, path=place, watch=watch)
    if not quiet:
        count = f"{len(done.vcpus)} vCPU{'s' * (len(done.vcpus) != 1)}"
        equal = "; all of their digests are equal" if verify else ""
        say(
            f"{count}, each alone, {done.jobs} at a time: "
            f"{_speed(done.instructions, done.seconds)}{equal}"
        )
    if stats:
        for each in done.vcpus:
            say(f"vCPU {each.vcpu}: {_speed(each.instructions, each.seconds)}")
