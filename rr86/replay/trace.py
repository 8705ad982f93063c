"""A trace file as an object: what was recorded, its events, and ways to replay it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.cpu.symbols import GuestSymbols
from rr86.errors import TraceContentError
from rr86.record.metadata import Footer, Header
from rr86.replay.checkpoints import Checkpoint, nearest
from rr86.replay.conditions import Condition
from rr86.replay.session import ReplaySession
from rr86.replay.stop import Stop
from rr86.replay.vocabulary import EVENT_KINDS, NO_VCPU, STALE_ENTRY, STALE_INT3

# What only some questions need is imported when they are asked: most traces are just replayed.
if TYPE_CHECKING:
    from rr86._native import Moment
    from rr86.cpu.physical import PhysicalNames
    from rr86.machine.device import Device, Given
    from rr86.machine.spec import BoardSpec
    from rr86.replay.alone import AloneSession, ParallelReplay
    from rr86.replay.execution import DebugSink, Tick
    from rr86.replay.sharing import CrossWrite, Sharing
    from rr86.replay.survey import StaleBlocks
    from rr86.replay.writers import WriteRecord


_LAST = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its kind, its moment (`vcpu` None: the machine as a whole), and its fields."""

    kind: str
    icount: int
    vcpu: int | None
    fields: Mapping[str, int | bytes]


@dataclass(frozen=True)
class ImageInfo:
    """An image stored in a trace: its role, the file it came from, length and content hash."""

    name: str
    file: str
    length: int
    digest: str


@dataclass(frozen=True, slots=True)
class SideFile:
    """The side file of a trace that was cut off: where it is, how many events the trace goes on
    with from it, and why it, or the rest of it, was left out, if it was."""

    path: Path
    events: int
    left_out: str | None


class Trace:
    """A trace file. Opening reads its header; everything else is read when asked for."""

    def __init__(self, path: str | Path, devices: "Given" = ()) -> None:
        from rr86._native import TraceReader

        self.path = Path(path)
        self.devices = tuple(devices)
        """Classes of the devices that were recorded with, for all that replays this trace."""
        try:
            with self.path.open("rb"):
                pass
        except FileNotFoundError:
            raise TraceContentError(f"trace '{path}' does not exist") from None
        except OSError as error:
            raise TraceContentError(f"trace '{path}' cannot be read: {error.strerror}") from None
        self._reader = TraceReader(str(self.path))
        self.header = Header.unpack(self._reader.header())

    @cached_property
    def footer(self) -> Footer | None:
        """What was noted at the end; None if the recording was not finished properly."""
        raw = self._reader.footer()
        return None if raw is None else Footer.unpack(raw)

    @cached_property
    def spec(self) -> "BoardSpec":
        """The board that was recorded."""
        from rr86.machine.spec import BoardSpec, SpecError

        try:
            return BoardSpec.from_dict(self.header.spec)
        except (SpecError, TypeError) as error:
            raise TraceContentError(f"the trace's board makes no sense: {error}") from None

    @property
    def complete(self) -> bool:
        """Whether the recording was closed properly."""
        return self._reader.complete()

    @property
    def damage(self) -> str | None:
        """What stops an incomplete or damaged trace from being read further, if anything does."""
        return self._reader.damage()

    @property
    def side_file(self) -> SideFile | None:
        """What was found beside a trace that was cut off: its recorder kept there what was not yet
        in a whole chunk. Events and replays include what could be taken from it."""
        found = self._reader.side_file()
        return None if found is None else SideFile(Path(found[0]), *found[1:])

    @cached_property
    def stale_int3s(self) -> int:
        """How many INT3s were executed that memory did not hold; at least so many, if the
        recording was not finished properly."""
        counted = self.footer.statistics.get("stale_int3s", 0) if self.footer is not None else 0
        if counted or not self.summary().get("stale_events"):
            return counted
        # The footer counts up to the moment at which the recording was stopped, which may be right
        # before the stale execution: the slice under way runs to its end after that.
        return sum(event.fields["what"] == STALE_INT3 for event in self.events(("stale",)))

    def summary(self) -> dict[str, int]:
        """Sizes, number of chunks and of events by kind, last moment."""
        return self._reader.summary()

    def images(self) -> list[ImageInfo]:
        """The images stored in the trace."""
        return [
            ImageInfo(name, self.header.images.get(name, name), length, digest)
            for name, length, digest in self._reader.images()
        ]

    def image(self, name: str) -> bytes:
        """The bytes of an image, by role ("kernel", "initrd", "module0"…)."""
        return self._reader.image(name)

    def all_images(self) -> dict[str, bytes]:
        """All images by role, with what a machine needs at least: a kernel."""
        images = {name: self.image(name) for name, _, _ in self._reader.images()}
        if "kernel" not in images:
            raise TraceContentError("the trace holds no kernel image")
        return images

    def retired(self) -> list[int]:
        """Instructions that each vCPU retired."""
        found = self._reader.retired()
        return [found.get(vcpu, 0) for vcpu in range(self.spec.vcpus)]

    def shared_lines(self) -> dict[int, int]:
        """The 64-byte lines that one agent wrote and another then got: a bit for each line of a
        page, by the page's number (physical address / 4096)."""
        return self._reader.shared_lines()

    @property
    def stale_executions(self) -> int:
        """How many blocks were executed that memory did not hold."""
        if not self.summary().get("stale_events"):
            return 0
        return sum(event.fields["what"] == STALE_ENTRY for event in self.events(("stale",)))

    def symbols(self) -> GuestSymbols:
        """The kernel's symbols, placed where the recording found them."""
        return self._symbols_in(self.image("kernel"))

    def _symbols_in(self, kernel: bytes) -> GuestSymbols:
        footer = self.footer or Footer()
        return GuestSymbols(kernel, footer.kaslr_offset, footer.lstar)

    def names(self) -> "PhysicalNames":
        """Names for physical addresses of the kernel, if the recording noted where that was."""
        from rr86.cpu.physical import Mapped, PhysicalNames

        footer = self.footer or Footer()
        places = [
            None if each is None else Mapped(*each) for each in (footer.image, *footer.per_cpu)
        ]
        table = self.symbols().table
        if table is not None and table.relocatable and places[0] is None:
            table = None
        return PhysicalNames(table, places[0], places[1:])

    def cross_writes(
        self,
        first: int = 0,
        last: int = _LAST,
        vcpu: int | None = None,
        ranges: Iterable[tuple[int, int]] | None = None,
    ) -> "Iterator[CrossWrite]":
        """Writes that another than the writer could see, in the order of the run; see `CrossWrite`.

        Limited to moments from `first` to `last`, to those that `vcpu` made or saw, and to physical
        `ranges` (address, length). Only what is needed of the trace is read.
        """
        from rr86.replay.sharing import cross_writes

        yield from cross_writes(self._reader.hand_offs, first, last, vcpu, ranges)

    def sharing(self, first: int = 0, last: int = _LAST, top: int = 20) -> "Sharing":
        """Which pages and 64-byte lines changed hands most from moment `first` to `last`."""
        from rr86.replay.sharing import Sharing

        return Sharing.from_native(self._reader.sharing(first, last, top))

    def events(
        self,
        kinds: Iterable[str] | None = None,
        vcpu: int | None = None,
        first: int | None = None,
        last: int | None = None,
    ) -> Iterator[Event]:
        """Events in the order of the run; `first` and `last` bound the instruction count.

        A slice's moment is its start, but it follows the events inside it.
        """
        wanted = None if kinds is None else frozenset(kinds)
        if wanted is not None and not wanted <= frozenset(EVENT_KINDS):
            unknown = ", ".join(sorted(wanted - frozenset(EVENT_KINDS)))
            raise TraceContentError(
                f"no such kind of event: {unknown} (there are: {', '.join(EVENT_KINDS)})"
            )
        only = None if wanted is None else sorted(wanted)
        bounds = (max(0, first or 0), _LAST if last is None else min(last, _LAST))
        for chunk in range(self._reader.chunk_count() if bounds[0] <= bounds[1] else 0):
            for kind, icount, where, fields in self._reader.events(chunk, only, *bounds):
                if vcpu is None or where == vcpu:
                    yield Event(kind, icount, None if where == NO_VCPU else where, fields)

    def stale_blocks(self) -> "StaleBlocks":
        """The blocks that memory did not hold any more, as the recording noticed them."""
        from rr86.replay.survey import Candidate, StaleBlocks

        born, survived, executed = self._reader.stale_blocks()
        return StaleBlocks(born, survived, [Candidate(*row) for row in executed])

    def checkpoints(self) -> list[Checkpoint]:
        """The moments from which a replay can begin, besides power-on."""
        return [
            Checkpoint(number, icount, stored, pages)
            for number, (icount, stored, pages) in enumerate(self._reader.checkpoints())
        ]

    def session(
        self,
        verify: bool = True,
        console: Callable[[bytes], None] | None = None,
        at: int | None = None,
        oracle: bool = False,
        moment: "Moment | None" = None,
        debugcon: "DebugSink | None" = None,
        devices: "Given | None" = None,
    ) -> ReplaySession:
        """A replay that stands at power-on, or at the last checkpoint at or before the moment `at`,
        or at a moment that another session of this trace has kept (`ReplaySession.keep`).

        Any number may be open at once. `ReplaySession.began` says where one has begun. With
        `oracle`, the replay is slow, always begins at power-on, and checks on its way that the
        trace holds every cross-vCPU write: `ReplaySession.oracle_report` says what was found.
        `console` gets what the guest sends to its serial console, `debugcon` what it sends to its
        debug consoles (`rr86.replay.execution.DebugSink`). If the trace was recorded with devices
        in Python, their classes have to be given, here or to `open_trace`; `DeviceError` says
        which is missing.
        """
        plugged = self._devices(devices)
        if oracle and not self.spec.cross_writes:
            raise TraceContentError("the trace was recorded without cross-vCPU writes")
        begin = None if at is None or oracle else nearest(self.checkpoints(), at)
        # Decoding the first events takes as long as all that comes before they are needed.
        events = self._reader.begin_events() if begin is None and moment is None else None
        images = self._replayed_images
        return ReplaySession(
            self.spec,
            images,
            self.path,
            self._symbols_in(images["kernel"]),
            verify,
            console,
            checkpoint=begin,
            stale_int3=self.stale_int3s > 0,
            oracle=oracle,
            touched=(self.footer or Footer()).touched,
            moment=moment,
            events=events,
            debugcon=debugcon,
            names=self.names,
            devices=plugged,
        )

    def _devices(self, given: "Given | None") -> "list[Device]":
        """The devices of a session; nothing is imported for a trace that has none."""
        given = self.devices if given is None else tuple(given)
        if not (given or self.header.devices):
            return []
        from rr86.machine.device import for_replay

        return for_replay(self.header.devices, given)

    @cached_property
    def _replayed_images(self) -> dict[str, bytes]:
        # Sessions of one trace often follow one another.
        return self.all_images()

    def replay(
        self,
        until: str | Condition | Iterable[str | Condition] | None = None,
        verify: bool = True,
        console: Callable[[bytes], None] | None = None,
    ) -> Stop:
        """Replay from power-on until a condition holds or the trace ends."""
        return self.session(verify, console).run(until)

    def alone(
        self,
        vcpu: int,
        verify: bool = True,
        expansion: str | Path | None = None,
        tick: "Tick | None" = None,
    ) -> "AloneSession":
        """A replay of one vCPU without the others, at power-on. Needs the trace's expansion, which
        is made beside it (or at `expansion`) if there is none; `tick` watches that."""
        from rr86.replay.alone import alone

        return alone(self, vcpu, verify, None if expansion is None else Path(expansion), tick)

    def replay_parallel(
        self,
        jobs: int | None = None,
        verify: bool = True,
        expansion: str | Path | None = None,
    ) -> "ParallelReplay":
        """Replay every vCPU alone, several at a time; see `rr86.replay.alone.replay_parallel`."""
        from rr86.replay.alone import replay_parallel

        return replay_parallel(self, jobs, verify, None if expansion is None else Path(expansion))

    def who_wrote(
        self,
        paddr: int,
        size: int = 1,
        at: int | None = None,
        expansion: str | Path | None = None,
    ) -> "list[WriteRecord]":
        """The last writes to bytes of physical memory before a moment (None: the trace's end). For
        many questions, `rr86.replay.WriteHistory` keeps what they share."""
        from rr86.replay.writers import who_wrote

        return who_wrote(self, paddr, size, at, expansion)


def open_trace(path: str | Path, devices: "Given" = ()) -> Trace:
    """Open a trace file. `devices` are classes of devices in Python that it was recorded with, if
    it was; rr86 imports none by itself."""
    return Trace(path, devices)
