"""A trace that can be run again: the file, the board that it was recorded on, and replays of it."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.errors import TraceContentError
from rr86.replay.diversion import Parent
from rr86.replay.session import ReplaySession
from rr86.session.conditions import Until
from rr86.session.stop import Stop
from rr86.trace.checkpoint import nearest
from rr86.trace.file import TraceFile
from rr86.trace.metadata import Footer

if TYPE_CHECKING:
    from rr86._native import Snapshot
    from rr86.machine.device import Device
    from rr86.machine.spec import BoardSpec
    from rr86.session.console import DebugSink
    from rr86.session.devices import Given


class RecordedRun(TraceFile):
    """A trace with its board, and with replays of the whole machine.

    `devices` are classes of devices in Python that it was recorded with, for all that replays it.
    """

    def __init__(self, path: str | Path, devices: "Given" = ()) -> None:
        super().__init__(path)
        self.devices = tuple(devices)

    @cached_property
    def spec(self) -> "BoardSpec":
        """The board that was recorded.

        Raises `TraceContentError` if it makes no sense.
        """
        from rr86.errors import SpecError
        from rr86.machine.spec import BoardSpec

        try:
            return BoardSpec.from_dict(self.header.spec)
        except (SpecError, TypeError) as error:
            raise TraceContentError(f"the trace's board makes no sense: {error}") from None

    def retired(self) -> list[int]:
        """Instructions that each vCPU retired.

        Raises `TraceError` where the file is damaged.
        """
        found = self._reader.retired()
        return [found.get(vcpu, 0) for vcpu in range(self.spec.vcpus)]

    def session(
        self,
        verify: bool = True,
        console: Callable[[bytes], None] | None = None,
        at: int | None = None,
        oracle: bool = False,
        snapshot: "Snapshot | None" = None,
        debugcon: "DebugSink | None" = None,
        devices: "Given | None" = None,
    ) -> ReplaySession:
        """A replay that stands where the trace begins, or at the last checkpoint at or before the
        moment `at`, or at a snapshot of another session of this trace (`ReplaySession.snapshot`).

        Any number may be open at once. `ReplaySession.began` says where one has begun. With
        `oracle`, the replay is slow, always begins at power-on, and checks on its way that the
        trace holds every cross-vCPU write: `ReplaySession.oracle_report` says what was found.
        `console` gets what the guest sends to its serial console, `debugcon` what it sends to its
        debug consoles (`rr86.session.console.DebugSink`). If the trace was recorded with devices
        in Python, their classes have to be given, here or to `open_trace`.

        Raises `DeviceError` if such a device is missing or is not what was recorded,
        `TraceError` if what it begins with is damaged, `TraceContentError` if the oracle is
        asked and the trace has no cross-vCPU writes, `GuestImageError` if the kernel cannot be
        booted, `HostError` if this host lacks what the guest's CPU model needs, and `SpecError` if
        `RR86_DISABLE` makes no sense.
        """
        plugged = self._plugged(devices)
        if oracle and not self.spec.cross_writes:
            raise TraceContentError("the trace was recorded without cross-vCPU writes")
        begin = None if at is None or oracle else nearest(self.checkpoints(), at)
        if self.begins is not None and begin is None:
            if oracle:
                raise TraceContentError(
                    "the oracle has to see a run from power-on, and this trace begins at "
                    f"instruction {self.begins:,}"
                )
            begin = self.checkpoints()[0]
        # Decoding the first events takes as long as all that comes before they are needed.
        events = self._reader.begin_events() if begin is None and snapshot is None else None
        images = self.all_images()
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
            snapshot=snapshot,
            events=events,
            debugcon=debugcon,
            names=self.names,
            devices=plugged,
            parent=self._parent(images, devices),
        )

    def _parent(self, images: "Mapping[str, bytes]", given: "Given | None") -> "Parent":
        """What diversions have to know of this trace."""
        return Parent(
            self.path,
            self.spec,
            images,
            self.header.images,
            self.header.devices,
            lambda: self._plugged(given),
        )

    def _plugged(self, given: "Given | None") -> "list[Device]":
        """The devices of a session; nothing is imported for a trace that has none."""
        given = self.devices if given is None else tuple(given)
        if not (given or self.header.devices):
            return []
        from rr86.session.devices import for_replay

        return for_replay(self.header.devices, given)

    def replay(
        self,
        until: Until = None,
        verify: bool = True,
        console: Callable[[bytes], None] | None = None,
    ) -> Stop:
        """Replay from power-on until a condition holds or the trace ends.

        Raises what `session` and `ReplaySession.run` raise.
        """
        return self.session(verify, console).run(until)
