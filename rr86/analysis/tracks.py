"""The spans of one vCPU, out of what the journal tells of it.

A vCPU has an owner, the task that it runs, and a stack of what it is doing for it: a system call, a
page fault in that, an interrupt in that. A task that is switched out keeps its stack until it is
switched in again. Only interrupts are over by then: their handlers cannot wait, and what is left
is the way back from them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rr86.analysis.timeline import Kind, Span

# Handlers that never return (a guest that faults for ever) would nest without end.
DEEPEST = 12
# Where an IRET takes its frame from, seen from where the processor put it: above an error code, or
# below if the handler has made a copy, as Linux's do for INT3 and NMI. What is further down belongs
# to something that the handler does.
_ERROR_CODE = 8
_LOWEST = -128
_INTERRUPTS = frozenset({Kind.INTERRUPT, Kind.TIMER, Kind.NMI})


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose time it is. `key` tells owners apart that have the same name."""

    kind: Kind
    name: str
    pid: int | None = None
    key: int = 0


@dataclass(slots=True)
class Frame:
    """Something under way. `stack` is where the processor put the frame that its IRET will take;
    None for what ends otherwise. `user` says that it returns to privilege level 3."""

    kind: Kind
    name: str
    stack: int | None = None
    user: bool = False
    detail: str = ""
    began: int = 0


@dataclass
class Track:
    """What a vCPU did up to now, and is doing."""

    vcpu: int
    owner: Owner
    began: int = 0
    """Since when the owner has it."""
    spans: list[Span] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    waiting: dict[int, tuple[int | None, list[Frame]]] = field(default_factory=dict)
    """What tasks were doing that are switched out, with their pids, by their keys. All vCPUs share
    it, since a task may go on elsewhere."""
    ignored: int = 0
    """Frames that were nested too deeply."""

    def begin(self, time: int, frame: Frame) -> None:
        """Something begins, within what is under way."""
        if frame.stack is not None and not frame.user:
            # Two frames cannot be in one place: the other's handler was left without IRET.
            self._end_from(time, self._place_of(lambda each: each.stack == frame.stack))
        if len(self.frames) >= DEEPEST:
            self.ignored += 1
            return
        frame.began = time
        self.frames.append(frame)

    def end(self, time: int, kind: Kind) -> None:
        """The innermost thing is over, if it is of this kind."""
        if self.frames and self.frames[-1].kind is kind:
            self._end_from(time, len(self.frames) - 1)

    def to_user(self, time: int) -> None:
        """The vCPU goes on at privilege level 3: all that the kernel did is over."""
        self._end_from(time, 0)

    def iret(self, time: int, stack: int) -> None:
        """IRET, of a frame at this address, to where the kernel was before."""
        place = self._place_of(
            lambda each: each.stack is not None and _LOWEST <= stack - each.stack <= _ERROR_CODE
        )
        self._end_from(time, place)

    def switch(self, time: int, owner: Owner) -> None:
        """Another owner has the vCPU from now on, and goes on where it was."""
        kept = [frame for frame in self.frames if frame.kind not in _INTERRUPTS]
        self._end_from(time, 0)
        if kept and self.owner.key:
            self.waiting[self.owner.key] = self.owner.pid, kept
        self._close(time)
        self.owner, self.began = owner, time
        pid, frames = self.waiting.pop(owner.key, (None, []))
        # A task may be in the place of one that is gone, and never came back from its last call.
        self.frames = frames if pid == owner.pid else []
        for frame in self.frames:
            frame.began = time

    def rename(self, time: int, owner: Owner) -> None:
        """The owner has another name from now on. What it does goes on."""
        frames = self.frames
        for depth in reversed(range(len(frames))):
            self._add(frames[depth], depth, time)
            frames[depth].began = time
        self._close(time)
        self.owner, self.began = owner, time

    def finish(self, time: int) -> list[Span]:
        """All spans, in the order of start and depth. The timeline ends."""
        self._end_from(time, 0)
        self._close(time)
        return sorted(self.spans, key=lambda span: (span.start, span.depth))

    def _place_of(self, wanted: Callable[[Frame], bool]) -> int:
        places = (n for n in reversed(range(len(self.frames))) if wanted(self.frames[n]))
        return next(places, len(self.frames))

    def _end_from(self, time: int, place: int) -> None:
        while len(self.frames) > place:
            frame = self.frames.pop()
            self._add(frame, len(self.frames), time)

    def _add(self, frame: Frame, depth: int, time: int) -> None:
        if time > frame.began:
            self.spans.append(
                Span(
                    self.vcpu,
                    frame.began,
                    time,
                    depth + 1,
                    frame.kind,
                    frame.name,
                    detail=frame.detail,
                )
            )

    def _close(self, time: int) -> None:
        owner = self.owner
        if time > self.began:
            self.spans.append(
                Span(self.vcpu, self.began, time, 0, owner.kind, owner.name, owner.pid)
            )


class Longest:
    """Spans, of which the shortest are left out where there are too many. Those of depth 0 stay."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._owners: list[Span] = []
        self._inner: list[Span] = []
        self.shortest = 0
        self.left_out = 0

    def take(self, track: Track) -> None:
        """Takes the spans that a vCPU has completed."""
        for span in track.spans:
            if not span.depth:
                self._owners.append(span)
            elif span.end - span.start >= self.shortest:
                self._inner.append(span)
            else:
                self.left_out += 1
        track.spans.clear()
        while len(self._inner) > self._most:
            self.shortest = max(64, self.shortest * 2)
            kept = [span for span in self._inner if span.end - span.start >= self.shortest]
            self.left_out += len(self._inner) - len(kept)
            self._inner = kept

    def all(self) -> Iterator[Span]:
        """All that are there."""
        yield from self._owners
        yield from self._inner
