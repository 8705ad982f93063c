"""The lives of translation blocks, put together from a trace's events.

A block is fetched (its source bytes are read), linked (it can be executed from then on) and, if
its bytes are overwritten, invalidated; a flush ends all of them at once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from rr86.cpu.disassembly import Symbolize

KINDS = ("fetch", "link", "invalidate", "flush")


class BlockEvent(Protocol):
    """What is looked at of an event: `rr86.Event` is one."""

    @property
    def kind(self) -> str:
        """One of `KINDS`, or something else."""

    @property
    def icount(self) -> int:
        """Its moment."""

    @property
    def vcpu(self) -> int | None:
        """The vCPU that it is of."""

    @property
    def fields(self) -> Mapping[str, int | bytes]:
        """What it says, by name."""


@dataclass
class BlockLife:
    """One block: what it was made from, and the moments (instruction counts) of its life."""

    id: int
    vcpu: int
    # Linear address of the first instruction, and where its bytes are in physical memory.
    pc: int
    paddr: int
    length: int
    digest: int
    fetched: int | None = None
    linked: int | None = None
    ended: int | None = None
    # The vCPU whose write ended it; None for a flush, a device, or a block that lives on.
    ended_by: int | None = None
    flushed: bool = False

    def alive_at(self, icount: int) -> bool:
        """Whether the block could be executed at this moment."""
        return (
            self.linked is not None
            and self.linked <= icount
            and (self.ended is None or icount < self.ended)
        )

    def line(self, symbolize: Symbolize | None = None) -> str:
        """One line for a listing."""
        name = symbolize(self.pc) if symbolize is not None else None
        if self.ended is None:
            end = "lives on"
        elif self.flushed:
            end = f"flushed at {self.ended}"
        else:
            by = "a device" if self.ended_by is None else f"vCPU {self.ended_by}"
            end = f"invalidated at {self.ended} by {by}"
        start = self.linked if self.linked is not None else self.fetched
        return (
            f"block {self.id}: {self.pc:#x}{f' <{name}>' if name else ''} "
            f"({self.length} bytes at {self.paddr:#x}) of vCPU {self.vcpu}, "
            f"{'linked' if self.linked is not None else 'fetched'} at {start}, {end}"
        )


def _number(event: BlockEvent, name: str) -> int:
    value = event.fields.get(name, 0)
    return value if isinstance(value, int) else 0


def block_lives(events: Iterable[BlockEvent]) -> Iterator[BlockLife]:
    """Every block's life, each as soon as it has ended, then those that live on."""
    living: dict[int, BlockLife] = {}
    for event in events:
        if event.kind in ("fetch", "link"):
            number = _number(event, "id")
            life = living.get(number)
            if life is None:
                life = BlockLife(
                    id=number,
                    vcpu=event.vcpu or 0,
                    pc=_number(event, "pc"),
                    paddr=_number(event, "paddr"),
                    length=_number(event, "len"),
                    digest=_number(event, "digest"),
                )
                living[number] = life
            if event.kind == "fetch":
                life.fetched = event.icount
            else:
                life.linked = event.icount
        elif event.kind == "invalidate":
            ended = living.pop(_number(event, "id"), None)
            if ended is not None:
                ended.ended, ended.ended_by = event.icount, event.vcpu
                yield ended
        elif event.kind == "flush":
            for life in living.values():
                life.ended, life.flushed = event.icount, True
                yield life
            living = {}
    yield from living.values()
