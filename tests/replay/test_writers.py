"""Who wrote it: answers from the log of stores and from replays, against a log of all writes."""

import itertools
import random
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import rr86
from rr86.errors import AddressError, SymbolsError
from rr86.replay import WriteHistory, WriteRecord, expansion
from rr86.replay.places import locate, parse_place
from rr86.replay.trace import open_trace
from tests.guests.build import load_manifest
from tests.guests.machines import record_guest

MANIFEST = load_manifest()
PAGE = 4096
PAIRS = 200
# (vCPU, moment, rip, byte before, byte after)
Write = tuple[int | None, int, int | None, int, int]


@dataclass
class Truth:
    """A trace and every write to every byte of some of its pages, from one replay."""

    trace: rr86.Trace
    last: int
    writes: dict[int, list[Write]]
    initial: dict[int, int]

    def before(self, paddr: int, moment: int) -> Write | None:
        rows = self.writes.get(paddr, [])
        index = bisect_left(rows, moment, key=lambda row: row[1])
        return rows[index - 1] if index else None


def truth_of(trace: rr86.Trace, pages: list[int]) -> Truth:
    session = trace.session()
    initial = {
        page * PAGE + n: byte
        for page in pages
        for n, byte in enumerate(session.memory(page * PAGE, PAGE))
    }
    session.machine.log_writes([(page * PAGE, PAGE) for page in pages])
    writes: dict[int, list[Write]] = {}
    stop = None
    while stop is None or not stop.over:
        stop = session.run(max_instructions=200_000)
        for w in session.machine.logged_writes():
            for n, (old, new) in enumerate(zip(w["old"], w["new"], strict=True)):
                row = (w["vcpu"], w["committed"], w["rip"] or None, old, new)
                writes.setdefault(w["paddr"] + n, []).append(row)
    return Truth(trace, stop.icount, writes, initial)


def pages_of(trace: rr86.Trace) -> list[int]:
    """Pages that the guest uses, private and shared: those of hand-offs and of code."""
    events = trace.events(["hand-off"])
    shared = {e.fields["page"] for e in events}
    code = {int(e.fields["paddr"]) // PAGE for e in trace.events(["link"])}
    near = {page + 1 for page in code} | {page - 1 for page in code}
    return sorted({int(page) for page in shared} | code | near | {0x7, 0x9})


def recorded(folder: Path, name: str, append: str | None = None, **options: object) -> rr86.Trace:
    guest = MANIFEST[name]
    return record_guest(guest, folder / f"{name}.rr86", append=append, seed=11, **options).trace()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def smp(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """The guest of many IPIs and locks, with the log of its stores."""
    trace = recorded(tmp_path_factory.mktemp("writers"), "smp")
    truth = truth_of(trace, pages_of(trace))
    expansion.expand(trace, stores=True)
    return truth


def assert_true(truth: Truth, record: WriteRecord, moment: int) -> None:
    for n in range(record.size):
        expected = truth.before(record.paddr + n, moment)
        if expected is None:
            assert record.store is None
            assert record.after[n] == truth.initial[record.paddr + n]
            continue
        assert record.store is not None
        found = (record.vcpu, record.moment, record.rip, record.before[n], record.after[n])
        assert found == expected, (hex(record.paddr + n), moment)


def test_random_questions_are_answered_as_a_watched_replay_answers(smp: Truth) -> None:
    draw = random.Random(5)
    history = WriteHistory(smp.trace)
    written = sorted(smp.writes)
    shared = [paddr for paddr in written if history.is_shared(paddr)]
    private = [paddr for paddr in written if not history.is_shared(paddr)]
    never = sorted(set(smp.initial) - set(written))
    sources: Counter[tuple[str, str]] = Counter()
    for n in range(PAIRS):
        kind = ("shared", "shared", "shared", "private", "never")[n % 5]
        paddr = draw.choice({"shared": shared, "private": private, "never": never}[kind])
        moment = draw.randrange(smp.last + 1)
        (record,) = history.who_wrote(paddr, 1, moment)
        assert_true(smp, record, moment)
        sources[kind, record.source] += 1
    print(dict(sources))
    # Nothing but the moments inside a run of stores needs a replay.
    assert sources["shared", "log"] > 10 * sources["shared", "replay"]
    assert sources["private", "log"] == 0


def test_the_moments_around_each_store_are_told_apart(smp: Truth) -> None:
    """Right before and right after a store, where being off by one shows."""
    history = WriteHistory(smp.trace)
    draw = random.Random(6)
    shared = [paddr for paddr in sorted(smp.writes) if history.is_shared(paddr)]
    logged = 0
    for paddr in draw.sample(shared, 60):
        moment = draw.choice(smp.writes[paddr])[1]
        for at in (moment, moment + 1):
            (record,) = history.who_wrote(paddr, 1, at)
            assert_true(smp, record, at)
            logged += record.source == "log"
    assert logged > 60


def test_ranges_are_answered_in_parts_by_writer(smp: Truth) -> None:
    history = WriteHistory(smp.trace)
    draw = random.Random(7)
    shared = [paddr for paddr in sorted(smp.writes) if history.is_shared(paddr)]
    several = 0
    for _ in range(20):
        start = draw.choice(shared) & -64
        moment = draw.randrange(smp.last // 2, smp.last)
        records = history.who_wrote(start, 64, moment)
        assert [r.paddr for r in records] == [
            start + sum(r.size for r in records[:n]) for n in range(len(records))
        ]
        assert sum(r.size for r in records) == 64
        assert all(len(r.after) == r.size for r in records)
        assert all(a.store != b.store for a, b in itertools.pairwise(records))
        for record in records:
            assert_true(smp, record, moment)
        several += len(records) > 1
    assert several > 5


def test_without_a_moment_the_end_is_meant(smp: Truth) -> None:
    history = WriteHistory(smp.trace)
    paddr = max(smp.writes, key=lambda each: smp.writes[each][-1][1])
    (record,) = history.who_wrote(paddr)
    assert_true(smp, record, smp.last + 1)
    assert record.after == smp_end_memory(smp, paddr)


def smp_end_memory(truth: Truth, paddr: int) -> bytes:
    session = truth.trace.session()
    session.run()
    return session.memory(paddr, 1)


def test_before_the_first_instruction_nothing_is_written(smp: Truth) -> None:
    for paddr in (min(smp.writes), max(smp.writes)):
        (record,) = WriteHistory(smp.trace).who_wrote(paddr, 1, 0)
        assert (record.by, record.vcpu, record.moment, record.rip) == ("none", None, None, None)
        assert record.after[0] == smp.initial[paddr]


def test_without_a_log_every_answer_comes_from_a_replay(smp: Truth, tmp_path: Path) -> None:
    path = tmp_path / "bare.rr86"
    path.write_bytes(smp.trace.path.read_bytes())
    history = WriteHistory(open_trace(path))
    assert not history.has_log
    draw = random.Random(8)
    for paddr in draw.sample(sorted(smp.writes), 10):
        moment = draw.randrange(smp.last + 1)
        (record,) = history.who_wrote(paddr, 1, moment)
        assert record.source == "replay"
        assert_true(smp, record, moment)
    history.expand()
    assert history.has_log


def test_a_replay_goes_back_from_checkpoint_to_checkpoint(tmp_path: Path) -> None:
    trace = recorded(tmp_path, "smp", checkpoints=200_000)
    assert len(trace.checkpoints()) > 5
    truth = truth_of(trace, pages_of(trace))
    history = WriteHistory(trace)
    moments = [each.icount for each in trace.checkpoints()]
    draw = random.Random(10)
    long_ago = 0
    for paddr in draw.sample(sorted(truth.writes), 12):
        for moment in (draw.randrange(truth.last + 1), draw.choice(moments), truth.last):
            (record,) = history.who_wrote(paddr, 1, moment)
            assert_true(truth, record, moment)
            long_ago += record.moment is not None and moment - record.moment > 400_000
    assert long_ago > 5
    # Writes at the very moment of a checkpoint belong to one of its sides only.
    for moment in moments:
        for paddr in [p for p, rows in truth.writes.items() if any(r[1] == moment for r in rows)][
            :2
        ]:
            for at in (moment, moment + 1):
                (record,) = history.who_wrote(paddr, 1, at)
                assert_true(truth, record, at)


@pytest.mark.parametrize(
    ("name", "append", "options"),
    [
        ("textpoke", "rounds=20", {}),
        ("xmod-shared", "variant=shared rounds=50", {}),
        ("smp", "", {"schedule": "random", "quantum": 500}),
        # Data that comes later than its store, and a recording without hand-offs.
        ("textpoke", "rounds=20", {"protocol": "qemu-7.2", "window_bias": 32768}),
        ("xmod", "variant=alone rounds=50", {"cross_writes": False}),
    ],
)
def test_other_guests_are_answered_truly(
    tmp_path: Path, name: str, append: str, options: dict[str, object]
) -> None:
    trace = recorded(tmp_path, name, append, **options)
    truth = truth_of(trace, pages_of(trace))
    history = WriteHistory(trace)
    possible = expansion.why_not(trace.spec) is None
    if possible:
        history.expand()
    draw = random.Random(9)
    written = sorted(truth.writes)
    shared = [paddr for paddr in written if history.is_shared(paddr)] if possible else []
    for n in range(40):
        paddr = draw.choice(shared if shared and n % 4 else written)
        moment = draw.randrange(truth.last + 1)
        (record,) = history.who_wrote(paddr, 1, moment)
        assert_true(truth, record, moment)


def test_addresses_outside_of_ram_are_refused(smp: Truth) -> None:
    for paddr, size in ((64 << 20, 1), ((64 << 20) - 4, 8), (1 << 40, 1), (0, 0), (-1, 2)):
        with pytest.raises(AddressError):
            WriteHistory(smp.trace).who_wrote(paddr, size)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0x1000", (0x1000, None, 0, None)),
        ("4096:8", (4096, None, 0, 8)),
        ("jiffies", (None, "jiffies", 0, None)),
        ("init_task+0x20:4", (None, "init_task", 0x20, 4)),
    ],
)
def test_places_are_understood(
    text: str, expected: tuple[int | None, str | None, int, int | None]
) -> None:
    place = parse_place(text)
    assert (place.address, place.symbol, place.offset, place.size) == expected


@pytest.mark.parametrize("text", ["", "0x", "12z", "a b", "x:0", "-4", "0x10000000000000000", "a+"])
def test_places_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_place(text)


def test_a_symbol_is_where_the_guest_has_it(smp: Truth) -> None:
    table = smp.trace.symbols().table
    assert table is not None
    name = next(s.name for _, s in table.search() if not s.is_text and s.size in (4, 8))
    ((paddr, size),) = locate(smp.trace, parse_place(name)).ranges
    session = smp.trace.session()
    session.run()
    assert session.memory(paddr, size) == session.read_virtual(table.address(name), size)
    assert locate(smp.trace, parse_place(f"{name}+1")).ranges == ((paddr + 1, size - 1),)
    assert locate(smp.trace, parse_place(f"{name}+1:2")).ranges == ((paddr + 1, 2),)


def test_a_linear_range_is_translated_page_by_page(smp: Truth) -> None:
    page = next(page for page in sorted(smp.writes)) & -PAGE
    place = parse_place(f"{page + PAGE - 4:#x}:8")
    for at in (smp.last // 2, None):
        located = locate(smp.trace, place, virtual=True, vcpu=1, at=at)
        assert sum(size for _, size in located.ranges) == 8


def test_names_that_there_are_not_fail_before_anything_runs(smp: Truth) -> None:
    def never(_: rr86.Stop) -> bool:
        raise AssertionError

    with pytest.raises(SymbolsError, match="no symbol 'nosuch'"):
        locate(smp.trace, parse_place("nosuch"), tick=never)
