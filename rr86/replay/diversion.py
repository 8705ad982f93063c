"""What if? Live runs that begin at a moment of a replay, and traces of them.

A diversion begins with the whole machine of that moment: registers, RAM, devices, blocks, and what
is under way. From there on a scheduler of its own decides. Its trace begins with that machine too,
so it replays without its parent, whose name and content id its header has, with the moment and
with what was changed there.

Diversions of one moment share its memory, and have copies of the pages that they write to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from rr86.cpu.guest_symbols import GuestSymbols
from rr86.errors import RecordingError, UsageError
from rr86.session.console import DebugSink
from rr86.session.live import LiveSession
from rr86.trace.metadata import DeviceEntry, Header, Origin, this_host
from rr86.trace.place import refuse_foreign
from rr86.version import __version__

if TYPE_CHECKING:
    from rr86._native import BranchPoint
    from rr86.machine.device import Device
    from rr86.machine.spec import BoardSpec
    from rr86.translate.protocols import Protocol

RECORDED = "recorded"
"""The schedule that is what the parent did, as far as that fits."""

# Bytes of a write that the header has. What was written is in the trace's first checkpoint.
_SHOWN = 64


@dataclass(frozen=True)
class Parent:
    """The trace that a diversion leaves."""

    path: Path
    spec: "BoardSpec"
    images: Mapping[str, bytes]
    # Image name to the name of the file that it came from.
    files: Mapping[str, str]
    devices: Sequence[DeviceEntry]
    # New devices in Python, for one machine.
    plugged: "Callable[[], list[Device]]"

    @property
    def content_id(self) -> str:
        """What its trace holds; see `rr86.Trace.content_id`."""
        from rr86._native import TraceReader

        return TraceReader(str(self.path)).content_id()


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is different in a diversion; None is as in its parent.

    `seed`, `schedule`, `quantum` and `window_bias` are those of its scheduler, which begins anew.
    The schedule "recorded" does what the parent did from there on, as far as that fits, and then
    takes turns. `protocol` is another block protocol: the cache of blocks is emptied. `input` is
    typed into the serial console at once. `writes` are pairs of a physical address and
    bytes, written before the first instruction as a device's DMA would.
    """

    seed: int | None = None
    schedule: str | None = None
    quantum: int | None = None
    window_bias: int | None = None
    protocol: "str | Protocol | None" = None
    input: bytes = b""
    writes: Sequence[tuple[int, bytes]] = ()

    def board(self, spec: "BoardSpec") -> "BoardSpec":
        """The board of the diversion.

        Raises `SpecError` or `UsageError` where it makes no sense.
        """
        from rr86.translate.protocols import board_settings

        values: dict[str, Any] = {
            name: value for name, value in self._settings().items() if value != RECORDED
        }
        if self.protocol is not None:
            values |= {"protocol_steps": "", **board_settings(self.protocol)}
        return replace(spec, **values)

    def _settings(self) -> dict[str, int | str]:
        names = ("seed", "schedule", "quantum", "window_bias")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def as_header(self, spec: "BoardSpec") -> dict[str, Any]:
        """What a header says of them; `spec` is the diversion's board."""
        content: dict[str, Any] = self._settings()
        if self.protocol is not None:
            content["protocol"] = spec.protocol
        if self.input:
            content["input"] = self.input
        if self.writes:
            content["writes"] = [(at, len(data), data[:_SHOWN]) for at, data in self.writes]
        return content


class ChangesGiven(TypedDict, total=False):
    """The fields of `Changes`, as arguments."""

    seed: int | None
    schedule: str | None
    quantum: int | None
    window_bias: int | None
    protocol: "str | Protocol | None"
    input: bytes
    writes: Sequence[tuple[int, bytes]]


class Diversion(LiveSession):
    """A live run from a moment of a replay. Independent of that and of any other one."""

    def __init__(
        self,
        parent: Parent,
        point: "BranchPoint",
        changes: Changes,
        *,
        console: Callable[[bytes], None] | None = None,
        debugcon: DebugSink | None = None,
    ) -> None:
        """Begin at `point` of a replay of `parent`, with these changes. `console` and `debugcon`
        get what the guest sends from there on.

        Raises `SpecError` or `UsageError` where a change makes no sense, `DeviceError` if the
        parent's devices in Python are missing, and `NativeError` where RAM is written that is not
        there.
        """
        from rr86._native import Recording
        from rr86.session.power import switch_on

        spec = changes.board(parent.spec)
        machine = Recording.branch(
            switch_on(parent.spec, parent.images, devices=parent.plugged()),
            point,
            seed=spec.seed,
            quantum=spec.quantum,
            schedule=spec.schedule,
            window_bias=spec.window_bias,
        )
        for paddr, data in changes.writes:
            if data:
                machine.change_memory(paddr, data)
        if spec.block_protocol != parent.spec.block_protocol:
            machine.change_protocol(spec.block_protocol.properties())
        if changes.schedule == RECORDED:
            machine.follow(point, str(parent.path))
        # Where a kernel puts itself may yet become another place than in the parent.
        symbols = GuestSymbols(parent.images["kernel"])
        super().__init__(
            machine, spec, symbols, began=point.icount, console=console, debugcon=debugcon
        )
        self.began = point.icount
        """The moment at which it left its parent."""
        self.origin = Origin(
            parent.path.name,
            parent.content_id,
            point.icount,
            point.vcpu,
            changes.as_header(spec),
        )
        self._parent = parent
        self.send(changes.input)

    def record(self, output: str | Path, checkpoints: int | None = None) -> None:
        """Keep a trace at `output` from here on; the diversion must not have run yet. `checkpoints`
        asks for further checkpoints after every so many instructions.

        Raises `RecordingError` if it has run, has a trace already, or `output` is not to be
        overwritten, `NativeError` for a block protocol without checkpoints, and `TraceError` if the
        trace cannot be written.
        """
        path = Path(output)
        if self.path is not None or self.stop is not None:
            raise RecordingError(
                "a diversion is recorded from its beginning, and this one has begun", path=path
            )
        if checkpoints is not None and checkpoints <= 0:
            raise UsageError(
                f"checkpoints need a distance of at least 1 instruction, not {checkpoints}"
            )
        refuse_foreign(path)
        if path.exists() and path.samefile(self._parent.path):
            raise RecordingError(f"the branch would overwrite its parent '{path}'", path=path)
        header = Header(
            version=__version__,
            spec=self.spec.to_dict(),
            images=self._parent.files,
            host=this_host(),
            devices=self._parent.devices,
            branch=self.origin,
        )
        images = list(self._parent.images.items())
        self.machine.record_to(str(path), header.pack(), images, checkpoints)
        self.path = path
