"""Who wrote these bytes last? Answered from an expansion's log of stores, or by a replay.

The log has the stores to the lines that one agent wrote and another then got ("shared lines"); for
all the stores of one agent to exactly the same bytes between two hand-offs of their page there is
one entry, with the moments of the first and of the last and the details of the last. So a question
about a moment between the two cannot be answered from the log, and neither can one about private
lines. Then the machine is replayed up to the moment, with every write to the bytes logged.

A write's moment is the number of instructions that were retired before it. "Before the moment M"
means writes with a smaller one: what the instructions 0 to M - 1 did, which is what memory shows
where a replay stops at `icount=M`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.errors import AddressError
from rr86.replay import expansion
from rr86.replay.places import is_ram
from rr86.session.execution import Tick

if TYPE_CHECKING:
    from rr86._native import ExpansionReader, LoggedWrite, Machine, Replay
    from rr86.cpu.guest_symbols import GuestSymbols
    from rr86.replay.recorded import RecordedRun
    from rr86.session.stop import Stop

LARGEST = 1 << 20
"""Most bytes in one question."""
_PAGE = 4096
_LINE = 64
_LOG, _REPLAY = "log", "replay"
_Entry = tuple[int, int, int, int, int, bytes, bytes]


@dataclass(frozen=True)
class Store:
    """A write as a whole: of a vCPU, or of a device (`vcpu` None); `old` and `new` from `paddr`."""

    vcpu: int | None
    moment: int
    rip: int | None
    paddr: int
    old: bytes
    new: bytes


@dataclass(frozen=True)
class WriteRecord:
    """The last write to `size` bytes at `paddr`; `store` None: they have not been written since
    power-on, or since the moment at which a branch began; then they were `after`.

    `source` tells where the answer is from: "log" or "replay".
    """

    paddr: int
    size: int
    store: Store | None
    symbol: str | None
    before: bytes
    after: bytes
    source: str

    @property
    def vcpu(self) -> int | None:
        """The vCPU that wrote; None for a device, and where there is no write."""
        return None if self.store is None else self.store.vcpu

    @property
    def moment(self) -> int | None:
        """Instructions retired before the write; None where there is no write."""
        return None if self.store is None else self.store.moment

    @property
    def rip(self) -> int | None:
        """The writing instruction; None for a device, where there is no write, and for
        what a vCPU writes when it delivers an interrupt."""
        return None if self.store is None else self.store.rip

    @property
    def by(self) -> str:
        """ "vcpu", "device" or "none"."""
        if self.store is None:
            return "none"
        return "device" if self.store.vcpu is None else "vcpu"

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON; bytes in hexadecimal."""
        store = self.store
        return {
            "paddr": self.paddr,
            "size": self.size,
            "by": self.by,
            "vcpu": self.vcpu,
            "icount": self.moment,
            "rip": self.rip,
            "symbol": self.symbol,
            "before": self.before.hex(),
            "after": self.after.hex(),
            "store": None
            if store is None
            else {"paddr": store.paddr, "old": store.old.hex(), "new": store.new.hex()},
            "source": self.source,
        }


@dataclass
class _Answers:
    """What is known of each byte from `paddr` on: its last store, and where that is known from."""

    paddr: int
    size: int
    stores: dict[int, Store]
    sources: dict[int, str]
    # Bytes of which the log does not know enough, with the moment from which on it does not.
    open: dict[int, int]


class WriteHistory:
    """A trace that is asked who wrote what; keeps at hand what several questions need."""

    def __init__(self, trace: "RecordedRun", path: str | Path | None = None) -> None:
        self.trace = trace
        self._path = None if path is None else Path(path)

    def expand(self, tick: Tick | None = None) -> Path:
        """Make the log of stores unless it is there, which takes a replay that watches every store
        to shared lines."""
        place = expansion.expand(self.trace, self._path, stores=True, tick=tick)
        self.__dict__.pop("_log", None)
        return place

    @cached_property
    def _log(self) -> "ExpansionReader | None":
        if expansion.why_not(self.trace.spec) is not None:
            return None
        return expansion.find(self.trace, self._path, stores=True)

    @property
    def has_log(self) -> bool:
        """Whether there is a log of stores to answer from."""
        return self._log is not None

    @cached_property
    def _lines(self) -> dict[int, int]:
        return self.trace.shared_lines()

    @cached_property
    def _symbols(self) -> "GuestSymbols":
        return self.trace.symbols()

    @cached_property
    def _at_beginning(self) -> "Machine | Replay":
        """The machine where the trace begins."""
        from rr86.session.power import switch_on

        if self.trace.begins is not None:
            return self.trace.session().machine
        return switch_on(self.trace.spec, self.trace.all_images())

    def is_shared(self, paddr: int) -> bool:
        """Whether the log has all stores to this byte."""
        return bool(self._lines.get(paddr // _PAGE, 0) >> (paddr % _PAGE // _LINE) & 1)

    def who_wrote(
        self, paddr: int, size: int = 1, at: int | None = None, tick: Tick | None = None
    ) -> list[WriteRecord]:
        """The last writes to these bytes before the moment `at`, or up to the trace's end, in the
        order of addresses. `tick` watches a replay if there has to be one."""
        answers, moment = self._asked(paddr, size, at)
        if answers.open:
            self._from_replay(answers, moment, tick)
        return self._records(answers)

    def ask_log(self, paddr: int, at: int | None = None) -> WriteRecord | None:
        """The last write to a byte as `who_wrote` tells it, or None if that takes a replay."""
        answers, _ = self._asked(paddr, 1, at)
        return None if answers.open else self._records(answers)[0]

    def _asked(self, paddr: int, size: int, at: int | None) -> tuple[_Answers, int]:
        """What the log knows, and the moment in question."""
        if not 1 <= size <= LARGEST:
            raise AddressError(f"{size:,} bytes cannot be asked for at once, only 1 to {LARGEST:,}")
        self._check_ram(paddr, size)
        moment = self.trace.summary()["last_icount"] + 1 if at is None else at
        answers = _Answers(paddr, size, {}, {}, {})
        self._from_log(answers, moment)
        return answers, moment

    def _check_ram(self, paddr: int, size: int) -> None:
        if not is_ram(self.trace, paddr, size):
            raise AddressError(f"{paddr:#x} to {paddr + size - 1:#x} is not all RAM", address=paddr)

    def _from_log(self, answers: _Answers, moment: int) -> None:
        """Answer what the log knows, and leave the rest open."""
        places = range(answers.paddr, answers.paddr + answers.size)
        log = self._log
        if log is None:
            answers.open = dict.fromkeys(places, 0)
            return
        known = {place for place in places if self.is_shared(place)}
        answers.open = {place: 0 for place in places if place not in known}
        if not known:
            return
        found: list[_Entry] = log.stores(answers.paddr, answers.size)
        last: dict[int, _Entry] = {}
        between: set[int] = set()
        twice: set[int] = set()
        for entry in found:
            first, final = entry[2], entry[3]
            if first >= moment:
                continue
            for place in _overlap(entry, answers):
                if final >= moment:
                    # One of the run's earlier stores may be it, of which the log does not tell.
                    between.add(place)
                    continue
                known_last = last.get(place)
                if known_last is not None and known_last[3] == final:
                    # The same byte twice at one moment: the log does not tell in which order.
                    twice.add(place)
                else:
                    twice.discard(place)
                last[place] = entry
        self._settle(answers, known, last, between | twice)

    def _settle(
        self,
        answers: _Answers,
        known: set[int],
        last: dict[int, _Entry],
        unsure: set[int],
    ) -> None:
        for place in known:
            entry = last.get(place)
            if place in unsure:
                answers.open[place] = 0 if entry is None else entry[3]
                continue
            answers.sources[place] = _LOG
            if entry is not None:
                answers.stores[place] = _store(entry)

    def _from_replay(self, answers: _Answers, moment: int, tick: Tick | None) -> None:
        """Replay up to the moment with the open bytes' writes logged: from the last beginning
        before it, and from earlier ones as long as some byte's write was not seen."""
        missing = dict(answers.open)
        for place in missing:
            answers.sources[place] = _REPLAY
        end, exact = moment, True
        for start in reversed([each for each in _beginnings(self.trace) if each < moment]):
            seen = _logged(self.trace, start, end, exact, missing, tick)
            answers.stores.update(seen)
            missing = {
                place: since
                for place, since in missing.items()
                if place not in seen and since < start
            }
            if not missing:
                break
            # What happened at the very moment of a checkpoint may be on either side of it.
            end, exact = start + 1, False

    def _records(self, answers: _Answers) -> list[WriteRecord]:
        """Neighbouring bytes of one write in one record."""
        records: list[WriteRecord] = []
        for place in range(answers.paddr, answers.paddr + answers.size):
            store, source = answers.stores.get(place), answers.sources[place]
            if store is None:
                before, after = b"", self._at_beginning.read_physical(place, 1)
            else:
                before = store.old[place - store.paddr :][:1]
                after = store.new[place - store.paddr :][:1]
            if records and records[-1].store == store:
                record = records[-1]
                records[-1] = replace(
                    record,
                    size=record.size + 1,
                    before=record.before + before,
                    after=record.after + after,
                    source=_REPLAY if _REPLAY in (source, record.source) else _LOG,
                )
                continue
            rip = None if store is None else store.rip
            symbol = None if rip is None else self._symbols.lookup(rip)
            records.append(WriteRecord(place, 1, store, symbol, before, after, source))
        return records


def _overlap(entry: _Entry, answers: _Answers) -> range:
    start, length = entry[1], len(entry[6])
    return range(max(start, answers.paddr), min(start + length, answers.paddr + answers.size))


def _store(entry: _Entry) -> Store:
    agent, paddr, _, last, rip, old, new = entry
    return Store(None if agent < 0 else agent, last, rip or None, paddr, old, new)


def _logged_store(write: "LoggedWrite") -> Store:
    return Store(
        write["vcpu"],
        write["committed"],
        write["rip"] or None,
        write["paddr"],
        write["old"],
        write["new"],
    )


def _beginnings(trace: "RecordedRun") -> list[int]:
    """Moments at which a replay can begin, in order."""
    checkpoints = sorted(each.icount for each in trace.checkpoints())
    return checkpoints if trace.begins is not None else [0, *checkpoints]


def _logged(
    trace: "RecordedRun",
    start: int,
    end: int,
    exact: bool,
    places: Iterable[int],
    tick: Tick | None,
) -> dict[int, Store]:
    """The last store to each of these bytes in a replay from `start` to `end`; if `exact`, only
    those before `end`."""
    wanted = set(places)
    session = trace.session(at=start)
    session.machine.log_writes(_ranges(wanted))
    found: dict[int, Store] = {}

    def drain() -> None:
        for write in session.machine.logged_writes():
            if exact and write["committed"] >= end:
                continue
            store = _logged_store(write)
            for place in range(store.paddr, store.paddr + len(store.new)):
                if place in wanted:
                    found[place] = store

    def between(stop: "Stop") -> bool:
        drain()
        return tick is not None and bool(tick(stop))

    stop = session.run(f"icount={end}", tick=between)
    if stop.reason == "interrupted":
        raise KeyboardInterrupt
    drain()
    return found


def _ranges(places: Iterable[int]) -> list[tuple[int, int]]:
    """Bytes as (address, length)."""
    out: list[tuple[int, int]] = []
    for place in sorted(places):
        if out and sum(out[-1]) == place:
            out[-1] = (out[-1][0], out[-1][1] + 1)
        else:
            out.append((place, 1))
    return out


def who_wrote(
    trace: "RecordedRun",
    paddr: int,
    size: int = 1,
    at: int | None = None,
    path: str | Path | None = None,
    tick: Tick | None = None,
) -> list[WriteRecord]:
    """The last writes to bytes of physical memory; see `WriteHistory`, which serves for many."""
    return WriteHistory(trace, path).who_wrote(paddr, size, at, tick)
