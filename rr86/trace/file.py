"""A trace file as an object: header and footer, images, events, checkpoints, and what they add up
to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.cpu.guest_symbols import GuestSymbols
from rr86.errors import TraceContentError, TraceError, UsageError
from rr86.trace.checkpoint import Checkpoint
from rr86.trace.events import Event
from rr86.trace.metadata import Footer, Header
from rr86.trace.vocabulary import EVENT_KINDS, NO_VCPU, STALE_ENTRY, STALE_INT3

# What only some questions need is imported when they are asked: most traces are just replayed.
if TYPE_CHECKING:
    from rr86.cpu.physical import PhysicalNames
    from rr86.trace.sharing import CrossWrite, Sharing
    from rr86.trace.slices import SliceSource
    from rr86.trace.survey import StaleBlocks


_LAST = (1 << 64) - 1


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


class TraceFile:
    """A trace file. Opening reads its header; everything else is read when asked for.

    It tells what was recorded and needs no machine; `rr86.Trace` is one that can be replayed too.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file at `path`.

        Raises `TraceError` if there is none, or it is of another version, and `TraceContentError`
        if its header makes no sense.
        """
        from rr86._native import TraceReader

        self.path = Path(path)
        try:
            with self.path.open("rb"):
                pass
        except FileNotFoundError:
            raise TraceError(f"trace '{path}' does not exist", path=self.path) from None
        except OSError as error:
            raise TraceError(
                f"trace '{path}' cannot be read: {error.strerror}", path=self.path
            ) from None
        self._reader = TraceReader(str(self.path))
        self.header = Header.unpack(self._reader.header())

    @cached_property
    def footer(self) -> Footer | None:
        """What was noted at the end; None if the recording was not finished properly.

        Raises `TraceContentError` if it makes no sense.
        """
        raw = self._reader.footer()
        return None if raw is None else Footer.unpack(raw)

    @property
    def complete(self) -> bool:
        """Whether the recording was closed properly."""
        return self._reader.complete()

    @cached_property
    def begins(self) -> int | None:
        """The moment at which the trace begins with the whole machine, as that of a branch does;
        None: at power-on.

        Raises `TraceError` if that part of the trace is not whole.
        """
        return self._reader.beginning()

    @cached_property
    def content_id(self) -> str:
        """Identifies what was recorded: equal recordings have equal ones, and checkpoints that were
        added change nothing. It does not say that the file is intact.

        Raises `TraceError` if the trace begins at a checkpoint that is not whole.
        """
        return self._reader.content_id()

    @property
    def damage(self) -> str | None:
        """What stops an incomplete or damaged trace from being read further, if anything does."""
        return self._reader.damage()

    @property
    def side_file(self) -> SideFile | None:
        """What was found beside a trace that was cut off: its recorder kept there what was not yet
        in a whole chunk. Events and replays include what could be taken from it.

        Raises `TraceError` where the file is damaged.
        """
        found = self._reader.side_file()
        return None if found is None else SideFile(Path(found[0]), *found[1:])

    @cached_property
    def stale_int3s(self) -> int:
        """How many INT3s were executed that memory did not hold; at least so many, if the
        recording was not finished properly.

        Raises `TraceError` where the file is damaged.
        """
        counted = self.footer.statistics.get("stale_int3s", 0) if self.footer is not None else 0
        if counted or not self.summary().get("stale_events"):
            return counted
        # The footer counts up to the moment at which the recording was stopped, which may be right
        # before the stale execution: the slice under way runs to its end after that.
        return sum(event.fields["what"] == STALE_INT3 for event in self.events(("stale",)))

    def summary(self) -> dict[str, int]:
        """Sizes, number of chunks and of events by kind, last moment.

        Raises `TraceError` where the file is damaged.
        """
        return self._reader.summary()

    def images(self) -> list[ImageInfo]:
        """The images stored in the trace.

        Raises `TraceError` where the file is damaged.
        """
        return [
            ImageInfo(name, self.header.images.get(name, name), length, digest)
            for name, length, digest in self._reader.images()
        ]

    def image(self, name: str) -> bytes:
        """The bytes of an image, by role ("kernel", "initrd", "module0"…).

        Raises `TraceError` if there is none of that name, or it is damaged.
        """
        return self._reader.image(name)

    def all_images(self) -> dict[str, bytes]:
        """All images by role, with what a machine needs at least: a kernel.

        Raises `TraceError` if one is damaged, and `TraceContentError` if there is no kernel.
        """
        return dict(self._images)

    @cached_property
    def _images(self) -> dict[str, bytes]:
        # Sessions of one trace often follow one another.
        images = {name: self.image(name) for name, _, _ in self._reader.images()}
        if "kernel" not in images:
            raise TraceContentError("the trace holds no kernel image")
        return images

    def shared_lines(self) -> dict[int, int]:
        """The 64-byte lines that one agent wrote and another then got: a bit for each line of a
        page, by the page's number (physical address / 4096).

        Raises `TraceError` where the file is damaged.
        """
        return self._reader.shared_lines()

    @property
    def stale_executions(self) -> int:
        """How many blocks were executed that memory did not hold.

        Raises `TraceError` where the file is damaged.
        """
        if not self.summary().get("stale_events"):
            return 0
        return sum(event.fields["what"] == STALE_ENTRY for event in self.events(("stale",)))

    def symbols(self) -> GuestSymbols:
        """The kernel's symbols, placed where the recording found them.

        Raises `TraceError` if the kernel image is damaged; what is wrong with the symbols
        themselves is raised when they are asked for.
        """
        return self._symbols_in(self.image("kernel"))

    def _symbols_in(self, kernel: bytes) -> GuestSymbols:
        footer = self.footer or Footer()
        return GuestSymbols(kernel, footer.kaslr_offset, footer.lstar)

    def names(self) -> "PhysicalNames":
        """Names for physical addresses of the kernel, if the recording noted where that was.

        Raises `TraceError` if the kernel image is damaged.
        """
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

        Raises `TraceError` where the file is damaged.
        """
        from rr86.trace.sharing import cross_writes

        yield from cross_writes(self._reader.hand_offs, first, last, vcpu, ranges)

    def sharing(self, first: int = 0, last: int = _LAST, top: int = 20) -> "Sharing":
        """Which pages and 64-byte lines changed hands most from moment `first` to `last`.

        Raises `TraceError` where the file is damaged.
        """
        from rr86.trace.sharing import Sharing

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

        Raises `UsageError` for a kind that does not exist, and `TraceError` at a damaged chunk,
        after the events before it.
        """
        wanted = None if kinds is None else frozenset(kinds)
        if wanted is not None and not wanted <= frozenset(EVENT_KINDS):
            unknown = ", ".join(sorted(wanted - frozenset(EVENT_KINDS)))
            raise UsageError(
                f"no such kind of event: {unknown} (there are: {', '.join(EVENT_KINDS)})"
            )
        only = None if wanted is None else sorted(wanted)
        bounds = (max(0, first or 0), _LAST if last is None else min(last, _LAST))
        for chunk in range(self._reader.chunk_count() if bounds[0] <= bounds[1] else 0):
            for kind, icount, where, fields in self._reader.events(chunk, only, *bounds):
                if vcpu is None or where == vcpu:
                    yield Event(kind, icount, None if where == NO_VCPU else where, fields)

    def stale_blocks(self) -> "StaleBlocks":
        """The blocks that memory did not hold any more, as the recording noticed them.

        Raises `TraceError` where the file is damaged.
        """
        from rr86.trace.survey import Candidate, StaleBlocks

        born, survived, executed = self._reader.stale_blocks()
        return StaleBlocks(born, survived, [Candidate(*row) for row in executed])

    @property
    def slice_source(self) -> "SliceSource":
        """What `rr86.trace.slices.Slices` reads."""
        return self._reader

    def checkpoints(self) -> list[Checkpoint]:
        """The moments from which a replay can begin, besides power-on.

        Raises `TraceError` where the file is damaged.
        """
        return [
            Checkpoint(number, icount, stored, pages)
            for number, (icount, stored, pages) in enumerate(self._reader.checkpoints())
        ]
