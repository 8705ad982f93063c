"""Makes profiles: a replay that stops at moments known beforehand, and looks at a stack each."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.analysis.profile import Profile, Sample, places
from rr86.analysis.stacks import Stacks
from rr86.errors import UsageError
from rr86.session.conditions import Before

if TYPE_CHECKING:
    from rr86.replay.recorded import RecordedRun
    from rr86.session.execution import Tick

INTERVAL = 1_000_000
"""Instructions for each sample, if nothing else is said."""


def profile(
    trace: "RecordedRun",
    first: int = 0,
    last: int | None = None,
    vcpu: int | None = None,
    interval: int = INTERVAL,
    verify: bool = True,
    programs: Iterable[Path] = (),
    tick: "Tick | None" = None,
) -> Profile:
    """The profile of a trace from moment `first` up to `last` (None: the trace's end).

    Samples are taken every `interval` instructions of the machine, or of `vcpu` if one is named.
    `programs` are files of programs that the guest runs, for the names of their functions; those in
    the initrd are known. `tick` watches the replay; a true answer of it ends the profile there.

    Raises `UsageError` for a vCPU that there is not, an interval of no instruction, or a stretch in
    which nothing was retired; `SymbolsError` or `OSError` for a file that is no program or cannot
    be read; and what `rr86.Trace.session` and `ReplaySession.run` raise.
    """
    if interval < 1:
        raise UsageError("an interval has one instruction at the least")
    if vcpu is not None and not 0 <= vcpu < trace.spec.vcpus:
        raise UsageError(f"there is no vCPU {vcpu}; the machine has {trace.spec.vcpus}")
    slices = list(_slices(trace, first, last, vcpu))
    instructions = sum(length for _, _, length in slices)
    if not instructions:
        raise UsageError("no instruction was retired in this stretch")
    end = max(start + length for start, _, length in slices)
    session = trace.session(verify=verify, at=first)
    for file in programs:
        session.add_symbols(file)
    stacks = Stacks(session.inspector)
    samples: list[Sample] = []
    for icount, where, weight in _moments(slices, places(instructions, interval)):
        # Interrupts that come before the instruction are delivered by then.
        stop = session.run(Before(icount), tick=tick)
        if stop.reason != "condition":
            # Interrupted, or the trace ends earlier than its slices say.
            end, instructions = icount, sum(sample.weight for sample in samples)
            break
        samples.append(Sample(icount, where, weight, stacks.look(where)))
    return Profile(
        trace.path.name, first, end, interval, vcpu, trace.spec.vcpus, instructions, samples
    )


def _slices(
    trace: "RecordedRun", first: int, last: int | None, vcpu: int | None
) -> Iterator[tuple[int, int, int]]:
    """(start, vCPU, length) of each slice, as far as it lies in the stretch."""
    # A slice's moment is its start, so one that reaches into the stretch may begin before it.
    for event in trace.events(("slice",), vcpu, last=last):
        if event.vcpu is None:
            continue
        start, end = event.icount, event.icount + int(event.fields["instructions"])
        start = max(start, first)
        if last is not None:
            end = min(end, last)
        if end > start:
            yield start, event.vcpu, end - start


def _moments(
    slices: Iterable[tuple[int, int, int]], wanted: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """(icount, vCPU, weight) of places that are counted along the slices."""
    rest = iter(slices)
    start = vcpu = length = 0
    before = 0
    for place, weight in wanted:
        while place >= before + length:
            before += length
            start, vcpu, length = next(rest)
        yield start + place - before, vcpu, weight
