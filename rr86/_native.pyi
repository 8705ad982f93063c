"""The native core: machines, the sessions that run them, and trace files. See
docs/architecture.md.

A `Machine` is set up, and a session takes it over: `Recording`, `Replay`, `Diversion` or `Alone`.

What it raises are classes of `rr86.errors`: `TraceError`, `DivergenceError`, `HostError`,
`EngineError`, and `NativeError` for everything else.
"""

from collections.abc import Sequence
from typing import Self, TypeAlias, TypedDict, final, type_check_only

__all__ = [
    "VERSION",
    "Alone",
    "BranchPoint",
    "Diversion",
    "Events",
    "ExpansionReader",
    "Machine",
    "Recording",
    "Replay",
    "Snapshot",
    "TraceReader",
    "block_protocols",
]

VERSION: str

def block_protocols() -> list[tuple[str, BlockProtocol]]:
    """The block protocols that the core knows by name, "precise" first. Machines are made from the
    table in `rr86.translate.protocols`, which is held against this one."""

@type_check_only
class BlockProtocol(TypedDict):
    """What a block protocol does otherwise than "precise"; see `rr86_core::runtime::protocol`."""

    fetch_window: bool
    guard_first: bool
    store_waits: bool
    store_window: bool
    commit_first: bool
    unguard_window: bool
    second_page_untracked: bool
    dma_unchecked: bool
    helper_unchecked: bool
    virtual_keyed: bool
    chain_kept: bool
    same_block_ignored: bool
    walk_unchecked: bool

@type_check_only
class StopInfo(TypedDict):
    """Why `run` returned, and where."""

    # "condition", "limit" (max_instructions reached), "time-up" (a twentieth of a second has
    # passed; the next call goes on, maybe inside a slice), "poweroff", "reset", "debug-exit",
    # "triple-fault", "end" (end of the replayed trace), "deadlock" (all vCPUs wait for ever)
    reason: str
    # index into the `conditions` list for reason "condition", otherwise -1
    condition: int
    # all of them that the same event fulfils, as far as the core can tell: of writes and of text on
    # the console
    conditions: list[int]
    vcpu: int
    icount: int
    time_ns: int
    rip: int
    # exit status that the guest wrote, for "debug-exit"; otherwise 0
    code: int
    # more about it, for a person; mostly empty
    detail: str

@type_check_only
class BlockInfo(TypedDict):
    """A translation block."""

    # number of the block in the trace's events
    serial: int
    # rip of the first instruction; 16, 32 or 64 for the size of its code; all mode bits
    rip: int
    bits: int
    mode: int
    instructions: int
    # physical ranges (address, length) of the source, one for each page
    ranges: list[tuple[int, int]]
    # the bytes that it was made from, and what memory holds there now
    source: bytes
    memory: bytes
    stale: bool
    # the vCPU that made it, and the moments when its bytes were read and when it was linked
    vcpu: int
    fetched_at: int
    linked_at: int

@type_check_only
class LoggedWrite(TypedDict):
    """A write to logged bytes of RAM."""

    # None: a device
    vcpu: int | None
    # moment of the instruction, and moment at which the bytes changed
    checked: int
    committed: int
    rip: int | None
    linear: int | None
    paddr: int
    old: bytes
    new: bytes
    # "no-code": the page had no block; "checked": its blocks were looked through; "late": the
    # same, but the data came later; "unguarded": the page's guard was gone; "unchecked": the
    # protocol does not check such writes
    passage: str

@type_check_only
class OracleGap(TypedDict):
    """Accesses to bytes that another wrote, which no hand-off of the trace tells of."""

    # None: a device or a loader; `written` is the moment of the write that was met first
    writer: int | None
    written: int
    # the first access: "read", "write" or "fetch"
    agent: int | None
    access: str
    icount: int
    rip: int | None
    paddr: int
    # bit n: such bytes were met in line n of the page
    lines: int
    accesses: int

@type_check_only
class OracleVerdict(TypedDict):
    """What the oracle has found so far."""

    # accesses in all; those to bytes that another wrote last; those of them that the log lacks
    accesses: int
    foreign: int
    missing: int
    # hand-offs of the trace that the replay has reached
    hand_offs: int
    # physical address of a byte that somebody must have written, unseen; None as it should be
    unseen: int | None
    gaps: list[OracleGap]

@final
class Snapshot:
    """A whole machine between two slices of a replay, kept in memory."""

    @property
    def icount(self) -> int: ...
    def bytes_beside(self, other: Snapshot | None = None) -> int:
        """Bytes of memory that it takes, apart from the pages that it shares with another one."""

@type_check_only
class MachineView:
    """What can be looked at in any machine. Nothing here changes it."""

    def registers(self, vcpu: int) -> dict[str, int]:
        """rax…r15, rip, rflags, {es,cs,ss,ds,fs,gs,ldtr,tr}{"",_base,_limit,_attr}, gdtr_base,
        gdtr_limit, idtr_base, idtr_limit, cr0, cr2, cr3, cr4, cr8, efer, xcr0, dr0…dr3, dr6, dr7,
        cpl, lstar, kernel_gs_base, star, sysenter_eip, activity (0 active, 1 halted,
        2 wait-for-SIPI, 3 shutdown)."""
    def fpu_state(self, vcpu: int) -> bytes:
        """The vCPU's XSAVE area in the standard format (legacy region first)."""
    def read_physical(self, paddr: int, length: int) -> bytes: ...
    def read_virtual(self, vcpu: int, address: int, length: int) -> bytes:
        """Read linear memory as `vcpu` maps it now; stops short at the first unmapped page."""
    def translate(self, vcpu: int, address: int) -> int | None:
        """Physical address of a linear one, or None where it is not mapped."""
    def digests(self) -> dict[str, int]:
        """Digest of each component: "ram", "cpu0"…, "lapic0"…, "ioapic", …, "blocks"."""

@final
class Machine(MachineView):
    """A Q35 machine at power-on, to be loaded. A session takes it over, and after that it raises
    `NativeError` at every call, as all methods here do on failure."""

    def __new__(
        cls,
        *,
        memory: int,
        vcpus: int,
        cpuid: Sequence[tuple[int, int, int, int, int, int]],
        msrs: Sequence[tuple[int, int]] = ...,
        start_time: int = 1_700_000_000,
        fw_cfg: Sequence[tuple[int, bytes | memoryview]] = ...,
        fw_cfg_files: Sequence[tuple[str, bytes]] = ...,
        max_block: int = 64,
        block_capacity: int = 262_144,
        block_protocol: BlockProtocol | None = None,
        cross_writes: bool = True,
        semantics: int = 2,
    ) -> Self:
        """`cpuid` rows are (leaf, subleaf or -1 for "any", eax, ebx, ecx, edx); an exact subleaf
        goes before -1, and a leaf without a row reads as zeros. `msrs` are (index, value after
        reset) for every vCPU; an index that the core does not know otherwise is a read-only
        register.

        `block_protocol` None is "precise". `memory` in bytes; `start_time` is what the RTC shows at
        power-on, in Unix seconds (UTC).
        """
    def disable_shortcuts(self, names: Sequence[str]) -> None:
        """Switch shortcuts of translated code off, and all others on. No guest can tell.

        Raises ValueError at an unknown name. See docs/performance.md.
        """
    def load(self, paddr: int, data: bytes | memoryview) -> None:
        """Write an image into guest RAM (through the one write function). A view has to show one
        piece of a `bytes`, here as in `fw_cfg`."""
    def set_registers(self, vcpu: int, values: dict[str, int]) -> None:
        """Set registers by name; the names are those of `registers`."""
    def plug(self, device: object) -> None:
        """Add a device that is written in Python: an object of `rr86.machine.Device`, whose
        `_describe`, `_serve`, `_save` and `_load` are called. `NativeError` if its name or one of
        its addresses is taken."""
    def take_ram(self, touched: bytes) -> None:
        """Take RAM from the host ahead of the guest, which sees no difference, on a thread;
        `touched` is what `Recording.touched_ram` said of an earlier run."""
    def ask_oracle(self) -> None:
        """Before anything is loaded: have the oracle check the log of cross-vCPU writes of the
        trace that will be replayed. Slow."""
    def plant(self, rip: int, code: bytes) -> None:
        """Put host code in front of the copy of the guest instruction at `rip`: a trial of what
        becomes of code that fails."""

# (virtual time in ns, icount, vcpu, kind, fields by kind); see `Session.take_journal`
_JournalRow: TypeAlias = tuple[int, int, int, str, tuple[int | bytes, ...]]

@type_check_only
class Session(MachineView):
    """What all sessions have: each owns its machine.

    Nothing here reads the host's clock. All methods raise `NativeError` on failure.
    """

    def set_call_limit(self, steps: int) -> None:
        """For tests: have `run` come back after so many steps, each a block at the least, instead
        of a twentieth of a second."""
    def current_block(self, vcpu: int) -> BlockInfo | None:
        """The block that a vCPU is in, or would enter next if it exists."""
    def block(self, serial: int) -> BlockInfo | None:
        """The block with this number, while it exists or can still be reached."""
    def serialised_at(self, vcpu: int) -> int | None:
        """Moment of the last interrupt or serialising instruction of a vCPU."""
    def log_writes(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Log all writes to these physical ranges (address, length) from now on, without any
        effect on the run; an empty list ends it."""
    def logged_writes(self) -> list[LoggedWrite]:
        """The writes since the last call, in the order of their commits."""
    def keep_journal(self, probes: Sequence[tuple[int, Sequence[tuple[str, int, int]]]]) -> None:
        """Note what vCPUs do from now on, without any effect on the run. A probe is an address and
        what to note before the instruction there: (register, offset, length), which is so many
        bytes of memory at register + offset, or with length 0 that sum itself."""
    def take_journal(self) -> tuple[list[_JournalRow], int]:
        """What was noted since the last call, in order, and how many entries did not fit. Take it
        after each call of `run`. The fields by kind:

        "exception", "interrupt", "nmi", "software" (INT n and the like): vector, whether
        it is the one of the vCPU's own timer, whether code of privilege level 3 was interrupted,
        where it returns to, the handler's address, the stack pointer there, rax, cr2;
        "return" (IRET): whether to privilege level 3, where to, where its frame was;
        "system-call" (SYSCALL, SYSENTER): rax, the handler's address; "system-return" (SYSRET,
        SYSEXIT): where to;
        "ipi": delivery mode as in the ICR, vector, a bit for each vCPU that was meant;
        "output": a byte sent to the serial console;
        "probe": the number of the probe, and the bytes that it noted, eight for a register; zeros
        where memory is not mapped."""
    def seconds(self) -> dict[str, float]:
        """Where the host's time went, on the thread that runs the guest: "whole", and of that
        "translating", "digests", "checkpoints", "trace" (waiting for the thread that writes or
        reads it) and "guest" (the rest)."""
    def stats(self) -> dict[str, int]:
        """Counters: instructions, slices, blocks_translated, tlb_misses, …"""

@type_check_only
class WholeMachine(Session):
    """A session of all vCPUs and devices."""

    def run(
        self,
        max_instructions: int,
        conditions: Sequence[tuple[str, int, int]] = ...,
        console_patterns: Sequence[bytes] = ...,
        by_lines: bool = False,
        filters: Sequence[tuple[int, Sequence[bytes]]] = ...,
    ) -> StopInfo:
        """Run until a condition holds, the machine stops, or about `max_instructions` have retired;
        with `by_lines` also after the slice in which the guest has completed a line of output on
        COM1 or a debug console (a "limit" stop, too).

        Runs with the GIL released. A "limit" stop may overshoot by one slice and never changes the
        course of the run. Conditions are (kind, a, b):
        ("rip", address, 0): before the instruction at this address executes, on any vCPU;
        ("rip-where", address, index): the same on the vCPU of `filters[index]` alone (-1: on any),
        if one of the agent expressions there holds, or there is none;
        ("int3", 0, 0): before an INT3 (CC) or INT 3 (CD 03) executes, or the handler of an
        interrupt with vector 3; ("stale", 0, 0): before a block executes whose source bytes
        memory no longer holds; ("stale-int3", 0, 0): before an INT3 or INT 3 executes that memory
        does not hold; ("icount", n, 0): before the n-th instruction
        (counted from 0, all vCPUs); ("before", n, 0): the same when everything is done that comes
        between two instructions; ("read", paddr, length): after an instruction read there, page
        walks and fetches aside; ("write", paddr, length): after an instruction wrote there;
        ("irq", vector, 0): before the first instruction of this vector's handler;
        ("console", index, 0): after the OUT that sent the last byte of
        `console_patterns[index]` to COM1 (matched over all bytes sent since the last match).
        Calling `run` again continues from the stop without stopping at the same moment again.

        Raises `TraceError` when a trace cannot be written or read, `DivergenceError` when a replay
        leaves the recorded path, `EngineError` when translated code fails on the host.
        """
    def branch_point(self) -> BranchPoint:
        """Keep the machine as it is now, for branches to begin at. Changes nothing here. Raises
        `NativeError` where the machine has ended, or has state that checkpoints do not hold."""
    def console_output(self) -> bytes:
        """Bytes that the guest sent to COM1 since the last call."""
    def debugcon_output(self) -> tuple[bytes, int]:
        """Bytes that the guest sent to the debug consoles (ports 0xe9 and 0x402) since the last
        call, and how many of them came before any byte was sent to COM1."""

@final
class BranchPoint:
    """A whole machine at a moment of a session, maybe inside a slice. Machines that begin there
    share its memory until they write to it."""

    @property
    def icount(self) -> int: ...
    @property
    def vcpu(self) -> int:
        """The vCPU of the slice under way, or of the last one."""

@final
class Recording(WholeMachine):
    """A machine whose scheduler decides; `record_to` has a trace keep what it decides. Without that
    the machine just runs."""

    def __new__(
        cls,
        machine: Machine,
        *,
        seed: int = 0,
        quantum: int = 100_000,
        schedule: str = "uniform",
        window_bias: int = 8192,
    ) -> Self:
        """Take a machine over. The scheduler draws slices of about `quantum` instructions from
        `seed`; vCPUs are switched in a window of the block protocol with a probability of
        `window_bias` in 65,536."""
    @staticmethod
    def branch(
        machine: Machine,
        point: BranchPoint,
        *,
        seed: int = 0,
        quantum: int = 100_000,
        schedule: str = "uniform",
        window_bias: int = 8192,
    ) -> Recording:
        """Take a machine over that has the configuration of the one at `point`, and begin there. A
        trace of it begins with a checkpoint of that moment."""
    def change_memory(self, paddr: int, data: bytes) -> None:
        """Write to RAM before the first instruction of a branch, and before its trace is begun, as
        a device's DMA would."""
    def change_protocol(self, protocol: BlockProtocol) -> None:
        """Have a branch follow another block protocol, with an empty cache of blocks; before its
        trace is begun."""
    def follow(self, point: BranchPoint, trace: str) -> None:
        """Have a branch do what `trace` did from `point` on, as far as that fits; then its
        scheduler decides. Before its trace is begun."""
    def record_to(
        self,
        path: str,
        header: bytes,
        images: Sequence[tuple[str, bytes]],
        checkpoints: int | None = None,
    ) -> None:
        """Start a trace at `path`: msgpack `header`, images by content hash, then events; with a
        checkpoint at the first slice boundary after every `checkpoints` instructions."""
    def finish(self, footer: bytes) -> None:
        """Close the trace properly; `footer` is msgpack metadata known only at the end."""
    def without_side_file(self) -> str | None:
        """Why the trace has no side file: a recorder that is killed then loses what is not in a
        whole chunk yet. None if it has one, or needs none."""
    def trace_bytes(self) -> int:
        """Bytes written to the trace so far; 0 without one."""
    def console_input(self, data: bytes) -> None:
        """Give bytes to COM1's receiver at the next slice boundary; recorded."""
    def detect_stale(self, on: bool) -> None:
        """Whether to look for stale blocks, which is the default. Without, a recording runs the
        same and costs what it would cost if there were no stale events; it cannot be verified."""
    def touched_ram(self) -> bytes:
        """A bit for each 2 MiB of RAM, lowest first: whether the guest has touched them."""

@final
class Replay(WholeMachine):
    """A machine that takes decisions and inputs from a trace. It has the configuration of the
    recorded one, and what it does is compared if `verify`."""

    def __new__(
        cls, machine: Machine, path: str, verify: bool = True, checkpoint: int | None = None
    ) -> Self:
        """Take a machine over, for the trace at `path`, from power-on or from one of the trace's
        checkpoints."""
    @staticmethod
    def of_events(machine: Machine, events: Events, verify: bool) -> Replay:
        """A replay from power-on, of events that are being decoded already."""
    @staticmethod
    def from_snapshot(machine: Machine, snapshot: Snapshot, verify: bool) -> Replay:
        """A replay that begins at a snapshot of another replay."""
    def snapshot(self, trace: str) -> Snapshot:
        """Keep the machine, for other sessions of `trace` to begin at. It has to stand between two
        slices."""
    def stands_before(self, icount: int) -> bool:
        """Whether a condition "before" was met at this moment, and nothing has run since."""
    def run_over(
        self,
        max_instructions: int,
        before: int,
        conditions: Sequence[tuple[str, int, int]],
        console_patterns: Sequence[bytes] = ...,
        filters: Sequence[tuple[int, Sequence[bytes]]] = ...,
    ) -> tuple[StopInfo, StopInfo | None]:
        """Run up to the moment `before`, or for about so many instructions, without stopping, and
        tell the last moment on the way at which a condition held, if there was one in this call.
        Where the first answer says "time-up", there is more to run; "condition" is the moment."""
    def path(
        self, ranges: Sequence[tuple[int, int]], whole: bool
    ) -> tuple[list[tuple[int, int, int, bytes]], bool]:
        """Run on, and list every instruction in these ascending ranges of moments: moment, linear
        address, bits of the code there, and the bytes that are executed, maybe with some behind
        them. The session then stands before the first instruction behind them. Unless the `whole`
        path is wanted, iterations of REP MOVS and REP STOS are left out, and it is said whether
        something else was left out with them."""
    def rewind(self, snapshot: Snapshot, heard: bytes | None = None, ahead: bool = False) -> None:
        """Go to a snapshot of this replay or of another one of its trace, back or forward. What the
        replay sent to its consoles and was not taken is forgotten; conditions on console output go
        on from `heard`, the last bytes before the snapshot. With `ahead`, blocks are translated
        before they are needed, on another thread. After an error the session cannot be used."""
    def divert(self) -> Diversion:
        """Leave the recording here: nothing is compared any more, and its slices and inputs are
        suggestions. The diversion takes the machine over. Give its `run` a limit: such a run need
        not end."""
    def divert_with(
        self,
        *,
        seed: int = 0,
        quantum: int = 100_000,
        schedule: str = "uniform",
        window_bias: int = 8192,
    ) -> Diversion:
        """Leave the recording at the end of the slice that is under way, and go on with a scheduler
        as `Recording` has."""
    def make_checkpoints(self, source: str, path: str, every: int) -> None:
        """While replaying `source` from power-on, write a copy of it to `path`, with a checkpoint
        at the first digests after every so many instructions."""
    def finish_checkpoints(self) -> None:
        """Complete the copy that `make_checkpoints` began, whether or not the replay has come to
        its end."""
    def expand_to(self, trace: str, path: str, stores: bool = False) -> None:
        """Have the replay that is about to begin make an expansion of its trace."""
    def finish_expansion(self) -> None:
        """Close the expansion at the end of the replay."""
    def compared_digests(self) -> tuple[int, int]:
        """How many digests this replay has compared and found equal, and at how many moments."""
    def oracle_verdict(self) -> OracleVerdict | None:
        """What the oracle has found, if it was asked."""

@final
class Diversion(WholeMachine):
    """A machine that has left a recording: nothing is compared or written down. `Replay.divert` and
    `Replay.divert_with` make it, or a snapshot."""

    @staticmethod
    def from_snapshot(
        machine: Machine,
        snapshot: Snapshot,
        *,
        seed: int = 0,
        quantum: int = 100_000,
        schedule: str = "uniform",
        window_bias: int = 8192,
    ) -> Diversion:
        """Take a machine over, and go on from the snapshot with a scheduler as `Recording` has."""
    def console_input(self, data: bytes) -> None:
        """Give bytes to COM1's receiver at the next slice boundary."""
    def invalidate_block(self, serial: int) -> bool:
        """Remove a block as if a write to its source had been noticed."""
    def refetch_block(self, serial: int, vcpu: int, fetched: int) -> None:
        """Have the bytes that `vcpu` fetched at the moment `fetched`, for a block that is not
        linked yet, be fetched anew."""

@final
class Alone(Session):
    """One vCPU of a trace without the others, with its inputs from an expansion. There are no
    devices: RAM is as this vCPU has seen it."""

    def __new__(
        cls, machine: Machine, path: str, expansion: str, vcpu: int, verify: bool = True
    ) -> Self:
        """Take a machine over, for the trace at `path`."""
    def run(self, max_instructions: int) -> StopInfo:
        """Run to the end of the trace, or until the vCPU has retired about `max_instructions` more.
        Runs with the GIL released. Raises as `Replay.run`."""
    @property
    def instructions(self) -> int:
        """Instructions that the vCPU has retired."""

# (address, hand-offs, writers, readers); agents are vCPU numbers, 255 for a device
_SharedLineRow: TypeAlias = tuple[int, int, list[int], list[int]]
# (address, hand-offs, those for writing, writers, readers, lines)
_SharedPageRow: TypeAlias = tuple[int, int, int, list[int], list[int], list[_SharedLineRow]]

@type_check_only
class SharingRows(TypedDict):
    """Memory that changed hands."""

    hand_offs: int
    page_count: int
    line_count: int
    pages: list[_SharedPageRow]
    lines: list[_SharedLineRow]

@final
class ExpansionReader:
    """What a full replay noted beside a trace, for replays of one vCPU and for `who-wrote`."""

    @staticmethod
    def open(trace: str, path: str) -> ExpansionReader | None:
        """The expansion of a trace; None if the file is absent, unfinished, or not this trace's."""
    def has_stores(self) -> bool: ...
    def stores(self, paddr: int, length: int) -> list[tuple[int, int, int, int, int, bytes, bytes]]:
        """Stores to shared lines that touch the range, by the moment of the last of each run:
        (vcpu or -1, paddr, first, last, rip, old, new). A run is all stores of one agent to
        exactly these bytes between two hand-offs of the page; old, new and rip are the last's."""

@final
class Events:
    """The events of a trace on their way to one replay; `TraceReader.begin_events` makes it."""

@final
class TraceReader:
    """A trace file, read chunk by chunk. Raises `TraceError`, naming the chunk, on damage."""

    def __new__(cls, path: str) -> Self: ...
    def header(self) -> bytes:
        """The msgpack header as written."""
    def footer(self) -> bytes | None:
        """The msgpack footer, or None when the recording was not finished properly."""
    def images(self) -> list[tuple[str, int, str]]:
        """(name, length in bytes, content hash) of each image."""
    def image(self, name: str) -> bytes: ...
    def begin_events(self) -> Events:
        """Begin to decode the events, for a replay of them from power-on."""
    def beginning(self) -> int | None:
        """The moment of the checkpoint at which the trace begins; None: it begins at power-on.
        Raises `TraceError` if that checkpoint is not whole."""
    def content_id(self) -> str:
        """Identifies what was recorded, in hexadecimal; added checkpoints do not count."""
    def complete(self) -> bool:
        """Whether the recording was closed properly."""
    def summary(self) -> dict[str, int]:
        """file_bytes, image_bytes and event_bytes as stored, event_raw_bytes, chunks, events,
        last_icount; for each kind that occurs KIND_events and KIND_bytes."""
    def damage(self) -> str | None:
        """What was found where an unfinished or damaged file stops making sense, or None."""
    def side_file(self) -> tuple[str, int, str | None] | None:
        """The side file beside a trace that was cut off: its path, how many events were taken from
        it, and why it or the rest of it was left out, if it was."""
    def shared_lines(self) -> dict[int, int]:
        """The lines that one agent wrote and another then got: a bit for each of the 64 lines of a
        page, by the page's number."""
    def retired(self) -> dict[int, int]:
        """Instructions that each vCPU retired, of those that ran."""
    def stale_blocks(
        self,
    ) -> tuple[int, int, list[tuple[int, int, int, int, int, int, int, int, bool, int, int]]]:
        """How many blocks were born stale, how many survived a write, and of those executed stale,
        in the order of their first such execution: (id, pc, paddr, length, vcpu, fetched, linked,
        start of the slice in which it was fetched, born stale, executed, executed by)."""
    def checkpoints(self) -> list[tuple[int, int, int]]:
        """(icount, bytes in the file, pages of RAM that changed since the one before) of each
        checkpoint."""
    def chunk_count(self) -> int: ...
    def sharing(self, first: int, last: int, top: int) -> SharingRows:
        """What the hand-offs at `first` to `last` add up to, with the `top` pages and lines."""
    def hand_offs(
        self, first: int, last: int, pages: set[int] | None = None
    ) -> list[tuple[int, int, int, int, bool, int]]:
        """(icount, physical page number, from, to, for writing, lines) of the hand-offs at `first`
        to `last`, of these pages if any are named. Chunks without any are not read."""
    def chunk_moments(self, chunk: int) -> tuple[int, int]:
        """The lowest and the highest moment of a chunk's events."""
    def slices(self, chunk: int) -> list[tuple[int, int, int]]:
        """(icount, vcpu, instructions) of every slice of a chunk, in order."""
    def events(
        self, chunk: int, kinds: list[str] | None = None, first: int = 0, last: int = ...
    ) -> list[tuple[str, int, int, dict[str, int | bytes]]]:
        """(kind, icount, vcpu, fields) of every event of a chunk at `first` to `last`, in order."""
