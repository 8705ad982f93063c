"""What a bisection of stale blocks finds: plain data, for reports and for JSON."""

from dataclasses import dataclass, field
from typing import Any

# How serious a stale execution is; see docs/block-protocols.md.
GRADES = {
    "A": "the vCPU was serialised between the write and this execution: no processor may do this",
    "B": "the block was executed again after a first execution that memory no longer held",
    "C": "transient: no serialising event of the vCPU since the write, so a processor may do this",
}


@dataclass(frozen=True)
class Write:
    """One write to a block's source bytes, as the core logged it."""

    # None: a device or the loader.
    vcpu: int | None
    # Moment of the instruction, and moment at which memory changed.
    checked: int
    committed: int
    rip: int | None
    linear: int | None
    paddr: int
    old: bytes
    new: bytes
    # "no-code", "checked", "late", "unguarded" or "unchecked".
    passage: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "vcpu": self.vcpu,
            "checked": self.checked,
            "committed": self.committed,
            "rip": self.rip,
            "linear": self.linear,
            "paddr": self.paddr,
            "old": self.old.hex(),
            "new": self.new.hex(),
            "passage": self.passage,
        }


@dataclass(frozen=True)
class Victim:
    """The block that was executed although memory held something else."""

    id: int
    # Linear address of the first instruction.
    pc: int
    bits: int
    # Physical ranges (address, length) of the source bytes.
    ranges: tuple[tuple[int, int], ...]
    source: bytes
    # vCPU that fetched and linked it.
    vcpu: int
    fetched: int
    linked: int
    born_stale: bool

    def paddr_of(self, offset: int) -> int:
        """Physical address of a source byte."""
        for start, length in self.ranges:
            if offset < length:
                return start + offset
            offset -= length
        raise IndexError(offset)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "id": self.id,
            "pc": self.pc,
            "bits": self.bits,
            "ranges": [list(each) for each in self.ranges],
            "source": self.source.hex(),
            "vcpu": self.vcpu,
            "fetched": self.fetched,
            "linked": self.linked,
            "born_stale": self.born_stale,
        }


@dataclass(frozen=True)
class Execution:
    """One execution of a stale block."""

    icount: int
    vcpu: int
    # What memory held instead of the source.
    memory: bytes
    # Linear address of the first instruction that memory does not hold.
    address: int
    # That instruction as executed, and as memory has it.
    executed: str
    held: str
    # The instruction executed is INT3.
    int3: bool
    grade: str
    # Moment at which the vCPU was last serialised before.
    serialised: int | None
    # Which execution of the stale block this is, from 1.
    number: int
    stack: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "icount": self.icount,
            "vcpu": self.vcpu,
            "memory": self.memory.hex(),
            "address": self.address,
            "executed": self.executed,
            "held": self.held,
            "int3": self.int3,
            "grade": self.grade,
            "serialised": self.serialised,
            "number": self.number,
            "stack": list(self.stack),
        }


@dataclass(frozen=True)
class Step:
    """One row of the timeline: a vCPU (None: a device) did something at a moment."""

    icount: int
    vcpu: int | None
    what: str
    # "fetch", "write", "guilty", "link", "switch", "serialised", "execution"
    kind: str


@dataclass(frozen=True)
class Proof:
    """What a replay did in which the block was made to see the write."""

    proved: bool
    # "refetched" or "invalidated"
    how: str
    # Moment of the change, and how far the run was followed.
    changed: int
    until: int
    what: str
    # Executions of other stale blocks on the way.
    others: int


@dataclass
class Finding:
    """The whole answer."""

    trace: str
    protocol: str
    victim: Victim
    execution: Execution
    first: Execution
    write: Write | None
    window: str = ""
    window_text: str = ""
    writer_symbol: str | None = None
    victim_symbol: str | None = None
    address_symbol: str | None = None
    writer_stack: tuple[str, ...] = ()
    proof: Proof | None = None
    timeline: list[Step] = field(default_factory=list)
    vcpus: int = 1
    # Stale blocks in the trace, and how many of them were executed.
    born: int = 0
    survived: int = 0
    executed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def proved(self) -> bool:
        """Whether the write is named and the proving replay went without the failure."""
        return self.write is not None and self.proof is not None and self.proof.proved

    @property
    def alias(self) -> bool:
        """Whether the write used another virtual address than the execution."""
        write = self.write
        if write is None or write.linear is None:
            return False
        shift = write.linear - self.victim.pc
        return shift != write.paddr - self.victim.ranges[0][0]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data."""
        proof = self.proof
        return {
            "trace": self.trace,
            "protocol": self.protocol,
            "victim": self.victim.as_dict(),
            "victim_symbol": self.victim_symbol,
            "execution": self.execution.as_dict(),
            "execution_symbol": self.address_symbol,
            "first_execution": self.first.as_dict(),
            "grade": self.execution.grade,
            "write": None if self.write is None else self.write.as_dict(),
            "writer_symbol": self.writer_symbol,
            "writer_stack": list(self.writer_stack),
            "alias": self.alias,
            "window": self.window,
            "window_text": self.window_text,
            "proof": None
            if proof is None
            else {
                "proved": proof.proved,
                "how": proof.how,
                "changed": proof.changed,
                "until": proof.until,
                "what": proof.what,
                "others": proof.others,
            },
            "timeline": [
                {"icount": s.icount, "vcpu": s.vcpu, "kind": s.kind, "what": s.what}
                for s in self.timeline
            ],
            "stale_blocks": {
                "born": self.born,
                "survived": self.survived,
                "executed": self.executed,
            },
            "seconds": self.seconds,
        }
