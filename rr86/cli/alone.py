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
    from rr86.replay.trace import Trace
    from rr86.session.stop import Stop


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
    trace: "Trace",
    path: Path | None,
    stores: bool,
    interruption: Interruption,
    quiet: bool = False,
    watched: bool = True,
) -> Path:
    """The trace's expansion, made if there is none that will do; which is then said, unless
    `quiet`. A line of progress is shown meanwhile, if `watched`."""
    from rr86.replay import expansion

    made = False
    progress = Progress("expanding", trace.summary()["last_icount"])

    def between_calls(moment: "Stop") -> bool:
        nonlocal made
        made = True
        progress.update(moment)
        return bool(interruption)

    started = time.monotonic()
    with progress.shown(watched):
        place = expansion.expand(trace, path, stores, between_calls)
    if made and not quiet:
        seconds = time.monotonic() - started
        say(f"made {place} ({size_text(place.stat().st_size)}) in {seconds:.1f} s")
    return place


def _speed(instructions: int, seconds: float) -> str:
    speed = instructions / max(seconds, 1e-9)
    return f"{instructions / 1e6:,.1f} M instructions, {speed / 1e6:,.1f} MIPS"


def replay_one(
    trace: "Trace",
    vcpu: int,
    path: Path | None,
    verify: bool,
    stats: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Replay one vCPU alone and say how that went."""
    from rr86.cli.as_json import of_counters, print_json
    from rr86.cli.show import show_statistics
    from rr86.replay.alone import AloneSession, check_vcpu

    check_vcpu(trace, vcpu)
    with interruptible() as interruption:
        place = expanded(trace, path, False, interruption, quiet or as_json, not quiet)
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
        seconds = time.monotonic() - started
        if as_json:
            row = {"vcpu": vcpu, "instructions": session.instructions, "seconds": seconds}
            content = {"trace": str(trace.path), "verified": verify, "vcpus": [row]}
            counters = of_counters(session.machine.stats(), session.machine.seconds())
            print_json(content | (counters if stats else {}))
            return
        if not quiet:
            equal = "; all of its digests are equal" if verify else ""
            say(f"vCPU {vcpu}, alone: {_speed(session.instructions, seconds)}{equal}")
        if stats:
            show_statistics(session.machine.stats(), session.machine.seconds())


def replay_all(
    trace: "Trace", path: Path | None, verify: bool, stats: bool, quiet: bool, as_json: bool
) -> None:
    """Replay all vCPUs, each alone, and say how that went."""
    from rr86.cli.as_json import print_json
    from rr86.replay.alone import replay_parallel

    with interruptible() as interruption:
        place = expanded(trace, path, False, interruption, quiet or as_json, not quiet)
        started = time.monotonic()
        with Steps().shown(not quiet) as step:

            def watch(instructions: int) -> bool:
                step(f"replaying in parallel: {_speed(instructions, time.monotonic() - started)}")
                return bool(interruption)

            done = replay_parallel(trace, verify=verify, path=place, watch=watch)
    if as_json:
        rows = [
            {"vcpu": each.vcpu, "instructions": each.instructions, "seconds": each.seconds}
            for each in done.vcpus
        ]
        content = {"trace": str(trace.path), "verified": verify, "vcpus": rows}
        print_json(content | {"jobs": done.jobs, "seconds": done.seconds})
        return
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
