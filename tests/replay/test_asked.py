"""Conditions by users (docs/conditions.md): asked where they want to be, in replays and in
recordings, without any effect on the run; and refused where they cannot be watched for."""

from collections.abc import Callable
from pathlib import Path

import pytest

import rr86
from rr86.errors import ConditionError
from rr86.session.conditions import Condition, End, Icount, Rip, Until
from rr86.session.stop import Stop
from rr86.session.view import GuestView
from tests.demo import record_demo
from tests.fake_core import FakeCore, Guest, Step
from tests.replay.test_sessions import at, kernel_with_kaslr


class Counted(Condition):
    """Asked at some places; holds at the n-th question, and keeps where it was asked."""

    def __init__(self, places: Until, n: int = 1 << 60) -> None:
        self._places, self.n = places, n
        self.asked: list[GuestView] = []

    def places(self) -> Until:
        return self._places

    def holds(self, stop: GuestView) -> bool:
        self.asked.append(stop)
        return len(self.asked) == self.n


def moments(condition: Counted) -> list[tuple[int, int]]:
    return [(each.icount, each.vcpu) for each in condition.asked]


def visits(trace: Path, condition: str, most: int) -> list[tuple[int, int]]:
    """Where plain stops are."""
    session = rr86.open_trace(trace).session()
    found = []
    for _ in range(most):
        stop = session.run(condition)
        if stop.over:
            break
        found.append((stop.icount, stop.vcpu))
    return found


@pytest.mark.parametrize("place", ["symbol=run_jobs", "irq=0x40", "console=vCPU", "symbol=site3"])
def test_a_condition_is_asked_exactly_where_its_place_would_stop(
    demo_trace: Path, place: str
) -> None:
    condition = Counted(place, 7)
    session = rr86.open_trace(demo_trace).session()
    stop = session.run(condition)
    expected = visits(demo_trace, place, 7)
    assert moments(condition) == expected
    if len(expected) == 7:
        assert stop.condition is condition
        assert (stop.icount, stop.vcpu) == expected[-1]
    else:
        assert stop.over


def test_a_write_is_asked_about_after_it(demo_trace: Path) -> None:
    session = rr86.open_trace(demo_trace).session()
    address = rr86.open_trace(demo_trace).symbols().linked.address("jobs")  # type: ignore[union-attr]
    condition = Counted(f"write={address:#x}:8")
    session.run(condition)
    assert moments(condition) == visits(demo_trace, f"write={address:#x}:8", 1 << 20)


def test_every_n_instructions_is_exactly_that(demo_trace: Path) -> None:
    condition = Counted(rr86.Every(100_003), 50)
    session = rr86.open_trace(demo_trace).session()
    stop = session.run(condition)
    assert [each.icount for each in condition.asked] == [100_003 * n for n in range(1, 51)]
    assert stop.condition is condition
    # From the middle of a stretch on, the next multiple is meant.
    session.run("icount=5005000")
    assert session.run(rr86.Every(1000)).icount == 5_006_000


def test_what_a_condition_sees_is_the_guest_at_that_moment(demo_trace: Path) -> None:
    trace = rr86.open_trace(demo_trace)
    seen: list[dict[str, int]] = []

    @rr86.asked_at("symbol=run_jobs")
    def look(stop: GuestView) -> bool:
        seen.append(stop.registers())
        assert stop.symbolize(stop.rip) == "run_jobs"
        assert stop.disassemble(count=1)[0].address == stop.rip
        assert stop.memory(stop.rip, 4) == stop.read_virtual(stop.rip, 4)
        return len(seen) == 3

    session = trace.session()
    stop = session.run(look)
    other = trace.session()
    for registers in seen:
        there = other.run("symbol=run_jobs")
        assert other.registers(there.vcpu) == registers
    assert (there.icount, there.vcpu) == (stop.icount, stop.vcpu)
    assert str(stop.condition) == "look"


def test_a_recording_is_the_same_with_questions_and_without(tmp_path: Path) -> None:
    plain = record_demo(tmp_path, "plain")
    table = rr86.open_trace(plain.path).symbols().table
    assert table is not None
    code = Rip(table.address("run_jobs"))
    never = [Counted(rr86.Every(50_000)), Counted("irq=0x40"), Counted(code)]
    asked = record_demo(tmp_path, "asked", until=never)
    assert asked.path.read_bytes() == plain.path.read_bytes()
    assert all(each.asked for each in never)
    # With symbols, the footer says where the kernel was found to be.
    named = record_demo(tmp_path, "named", until=Counted("symbol=run_jobs"))
    traces = [rr86.open_trace(each.path) for each in (named, plain)]
    assert list(traces[0].events()) == list(traces[1].events())


def test_a_recording_stops_where_its_replay_does(tmp_path: Path) -> None:
    def condition() -> Counted:
        return Counted(["symbol=run_jobs", rr86.Every(70_000)], 40)

    recorded = condition()
    recording = record_demo(tmp_path, until=[recorded])
    replayed = condition()
    stop = rr86.open_trace(recording.path).session().run(replayed)
    assert recording.stop is not None
    assert recording.stop.condition is recorded
    assert (stop.icount, stop.vcpu) == (recording.stop.icount, recording.stop.vcpu)
    assert moments(recorded) == moments(replayed)
    footer = rr86.open_trace(recording.path).footer
    assert footer is not None
    assert footer.stop["condition"] == "condition"


@pytest.mark.parametrize(
    "plain", ["symbol=run_jobs", lambda stop: Icount(stop.icount), lambda stop: Rip(stop.rip)]
)
def test_a_no_does_not_hide_another_condition_at_the_same_place(
    demo_trace: Path, plain: str | Callable[[Stop], Condition]
) -> None:
    trace = rr86.open_trace(demo_trace)
    first = trace.session().run("symbol=run_jobs")
    other = plain if isinstance(plain, str) else plain(first)
    for no in (Counted("symbol=run_jobs"), Counted(Icount(first.icount))):
        stop = trace.session().run([no, other])
        assert (stop.icount, stop.vcpu) == (first.icount, first.vcpu)
        assert stop.condition is not no
        assert stop.reason == "condition"


def test_all_that_are_asked_at_one_place_are_asked_until_one_holds(demo_trace: Path) -> None:
    one, two, three = (Counted("symbol=run_jobs", n) for n in (5, 3, 4))
    stop = rr86.open_trace(demo_trace).session().run([one, two, three])
    assert stop.condition is two
    assert [len(each.asked) for each in (one, two, three)] == [3, 3, 2]


def test_a_no_at_an_int3_leaves_the_stop_at_int3s(tmp_path: Path) -> None:
    recording = record_demo(tmp_path, protocol="qemu-7.2", seed=3)
    trace = rr86.open_trace(recording.path)
    first = trace.session().run("any-int3")
    assert first.reason == "condition"
    no = Counted(Rip(first.rip))
    stop = trace.session().run([no, "any-int3"])
    assert (stop.icount, str(stop.condition)) == (first.icount, "any-int3")
    asked = Counted("any-int3", 1)
    stop = trace.session().run([no, asked])
    assert (stop.icount, stop.condition) == (first.icount, asked)


def test_a_class_derived_from_a_known_condition_is_asked_where_that_stops(
    demo_trace: Path,
) -> None:
    class OnVcpu2(Rip):
        def holds(self, stop: GuestView) -> bool:
            return stop.vcpu == 2

    trace = rr86.open_trace(demo_trace)
    table = trace.symbols().table
    assert table is not None
    stop = trace.session().run(OnVcpu2(table.address("run_jobs")))
    expected = next(each for each in visits(demo_trace, "symbol=run_jobs", 100) if each[1] == 2)
    assert (stop.icount, stop.vcpu) == expected


def test_places_wait_for_a_kernel_that_has_not_placed_itself(
    core: FakeCore, tmp_path: Path
) -> None:
    kernel = tmp_path / "guest.elf"
    kernel.write_bytes(kernel_with_kaslr())
    core.guest = Guest([Step(0x1000), Step(at(2)), *(Step(at(n)) for n in (5, 7, 5, 7, 5, 7))])
    condition = Counted("symbol=function_7", 2)
    recording = rr86.record(kernel, until=condition, output=tmp_path / "t.rr86")
    assert recording.stop is not None
    assert recording.stop.condition is condition
    assert [each.rip for each in condition.asked] == [at(7), at(7)]
    assert recording.stop.icount == 5


def test_the_user_can_end_a_run_that_only_asks(demo_trace: Path) -> None:
    told: list[Stop] = []

    def tick(moment: Stop) -> bool:
        told.append(moment)
        return True

    stop = rr86.open_trace(demo_trace).session().run(Counted(rr86.Every(10)), tick=tick)
    assert stop.reason == "interrupted"
    assert len(told) == 1


def test_an_error_in_a_condition_ends_the_run_and_finishes_the_recording(tmp_path: Path) -> None:
    @rr86.asked_at("symbol=run_jobs")
    def wrong(stop: GuestView) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        record_demo(tmp_path, until=[wrong])
    trace = rr86.open_trace(tmp_path / "demo.rr86")
    assert trace.complete
    assert trace.session().run("symbol=run_jobs").reason == "condition"


class _Nowhere(Condition):
    def holds(self, stop: GuestView) -> bool:
        return True


def _plain(stop: GuestView) -> bool:
    return True


@pytest.mark.parametrize(
    ("until", "why"),
    [
        (Condition(), "does not say where it wants to be asked"),
        (_Nowhere(), "_Nowhere.*does not say where it wants to be asked"),
        (_plain, r"say where it is to be asked, with rr86.asked_at\('symbol=…'\)\(_plain\)"),
        ([_plain], r"asked_at"),
        (Counted([]), "names no place"),
        (Counted(End()), "cannot be asked at 'end'"),
        (Counted(Counted("int3")), "cannot be asked at"),
        (Counted("int4"), "unknown condition 'int4'"),
        (Counted("symbol=rnu_jobs"), "no symbol 'rnu_jobs'; near names: run_jobs"),
        ([5], "5 is no condition"),
        (5, "5 is no condition"),
    ],
)
def test_what_cannot_be_watched_for_is_refused_before_anything_runs(
    demo_trace: Path, tmp_path: Path, until: Until, why: str
) -> None:
    session = rr86.open_trace(demo_trace).session()
    with pytest.raises((ConditionError, rr86.SymbolsError), match=why):
        session.run(until)
    assert session.icount == 0
    with pytest.raises((ConditionError, rr86.SymbolsError), match=why):
        record_demo(tmp_path, until=until)
    assert not (tmp_path / "demo.rr86").exists()


def test_a_question_needs_a_place_and_every_a_number() -> None:
    with pytest.raises(ConditionError, match="needs a place"):
        rr86.asked_at()
    with pytest.raises(ConditionError, match="unknown condition"):
        rr86.asked_at("nowhere")
    with pytest.raises(ConditionError, match="every 0 instructions"):
        rr86.Every(0)


def test_writes_to_bytes_that_several_conditions_watch_ask_all_of_them(demo_trace: Path) -> None:
    """The stack of a job's caller: words side by side, written by single stores."""
    trace = rr86.open_trace(demo_trace)
    session = trace.session()
    stack = session.registers(session.run("symbol=run_jobs").vcpu)["rsp"]
    places = [f"write={stack - 8:#x}:8", f"write={stack - 12:#x}:8", f"write={stack - 24:#x}:8"]
    alone = []
    for place in places:
        condition = Counted(place)
        trace.session().run(condition, max_instructions=3_000_000)
        alone.append([each for each in moments(condition) if each[0] < 2_900_000])
    assert all(alone)
    together = [Counted(place) for place in places]
    trace.session().run(together, max_instructions=3_000_000)
    assert [[each for each in moments(c) if each[0] < 2_900_000] for c in together] == alone


def test_questions_at_every_so_many_instructions_do_not_cut_console_text(
    demo_trace: Path,
) -> None:
    trace = rr86.open_trace(demo_trace)
    plain = trace.session().run("console=vCPUs running")
    session = trace.session()
    session.run(f"icount={plain.icount - 100_000}")
    stop = session.run([Counted(rr86.Every(29)), "console=vCPUs running"])
    assert (stop.icount, stop.condition) == (plain.icount, plain.condition)
