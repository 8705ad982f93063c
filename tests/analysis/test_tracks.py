"""How the spans of a vCPU come about, from hand-made events."""

from rr86.analysis.timeline import Kind, Span
from rr86.analysis.tracks import DEEPEST, Frame, Owner, Track

A, B = Owner(Kind.TASK, "a", 1, 0xA), Owner(Kind.TASK, "b", 2, 0xB)


def rows(spans: list[Span]) -> list[tuple[int, int, int, str]]:
    return [(span.start, span.end, span.depth, span.name) for span in spans]


def call(name: str = "read") -> Frame:
    return Frame(Kind.SYSTEM_CALL, name)


def fault(stack: int, user: bool = False) -> Frame:
    return Frame(Kind.EXCEPTION, "page fault", stack, user)


def interrupt(stack: int) -> Frame:
    return Frame(Kind.INTERRUPT, "vector 33", stack)


def test_what_happens_within_something_is_one_deeper() -> None:
    track = Track(0, A)
    track.begin(10, call())
    track.begin(20, fault(0x1000))
    track.begin(25, interrupt(0xF00))
    track.iret(28, 0xF00)
    # An error code lies below the frame.
    track.iret(30, 0x1008)
    track.to_user(40)
    assert rows(track.finish(50)) == [
        (0, 50, 0, "a"),
        (10, 40, 1, "read"),
        (20, 30, 2, "page fault"),
        (25, 28, 3, "vector 33"),
    ]


def test_an_iret_of_something_else_ends_nothing() -> None:
    # Linux serialises a processor by an IRET to itself.
    track = Track(0, A)
    track.begin(10, fault(0x1000))
    track.iret(15, 0xE00)
    track.iret(20, 0x1000)
    assert rows(track.finish(30))[1:] == [(10, 20, 1, "page fault")]


def test_a_frame_that_the_handler_has_copied_further_down_is_the_same_frame() -> None:
    # As the handler of INT3 does in Linux.
    track = Track(0, A)
    track.begin(10, Frame(Kind.SOFTWARE, "INT 3", 0x1000))
    track.iret(20, 0x1000 - 48)
    assert rows(track.finish(30))[1:] == [(10, 20, 1, "INT 3")]


def test_an_outer_iret_ends_what_is_within() -> None:
    track = Track(0, A)
    track.begin(10, fault(0x2000))
    track.begin(20, interrupt(0x1000))
    track.iret(30, 0x2008)
    assert rows(track.finish(40))[1:] == [(10, 30, 1, "page fault"), (20, 30, 2, "vector 33")]


def test_a_task_goes_on_where_it_was_switched_out() -> None:
    track = Track(0, A)
    track.begin(10, call("nanosleep"))
    track.switch(20, B)
    track.begin(25, call("write"))
    track.switch(30, A)
    track.to_user(40)
    assert rows(track.finish(50)) == [
        (0, 20, 0, "a"),
        (10, 20, 1, "nanosleep"),
        (20, 30, 0, "b"),
        (25, 30, 1, "write"),
        (30, 50, 0, "a"),
        (30, 40, 1, "nanosleep"),
    ]


def test_a_task_goes_on_where_it_was_on_another_vcpu() -> None:
    idle = Owner(Kind.IDLE, "idle")
    here = Track(0, A)
    there = Track(1, idle, waiting=here.waiting)
    here.begin(10, call("nanosleep"))
    here.switch(20, idle)
    there.switch(30, A)
    there.to_user(40)
    assert rows(here.finish(50)) == [(0, 20, 0, "a"), (10, 20, 1, "nanosleep"), (20, 50, 0, "idle")]
    assert rows(there.finish(50)) == [
        (0, 30, 0, "idle"),
        (30, 50, 0, "a"),
        (30, 40, 1, "nanosleep"),
    ]


def test_a_task_in_the_place_of_one_that_is_gone_begins_anew() -> None:
    track = Track(0, A)
    track.begin(10, call("exit_group"))
    track.switch(20, B)
    track.switch(30, Owner(Kind.TASK, "c", 3, A.key))
    assert rows(track.finish(40))[3:] == [(30, 40, 0, "c")]
    assert not track.waiting


def test_an_interrupt_is_over_when_its_task_is_switched_out() -> None:
    track = Track(0, A)
    track.begin(10, fault(0x2000))
    track.begin(15, interrupt(0x1000))
    track.switch(20, B)
    track.switch(30, A)
    # Its IRET comes now, and is that of nothing.
    track.iret(35, 0x1000)
    track.iret(40, 0x2000)
    assert rows(track.finish(50))[3:] == [
        (20, 30, 0, "b"),
        (30, 50, 0, "a"),
        (30, 40, 1, "page fault"),
    ]


def test_a_new_name_cuts_what_is_under_way() -> None:
    track = Track(0, A)
    track.begin(10, call("execve"))
    track.rename(20, Owner(Kind.TASK, "c", 1, 0xA))
    track.to_user(30)
    assert rows(track.finish(40)) == [
        (0, 20, 0, "a"),
        (10, 20, 1, "execve"),
        (20, 40, 0, "c"),
        (20, 30, 1, "execve"),
    ]


def test_a_handler_that_was_left_for_good_ends_where_another_has_its_place() -> None:
    track = Track(0, A)
    for time in range(0, 100, 10):
        track.begin(time, fault(0x1000))
    assert rows(track.finish(100))[1] == (0, 10, 1, "page fault")
    assert all(span.depth <= 1 for span in track.spans)


def test_handlers_nest_up_to_a_limit() -> None:
    track = Track(0, A)
    for number in range(DEEPEST + 5):
        track.begin(number, fault(0x10000 - 0x100 * number))
    assert track.ignored == 5
    assert max(span.depth for span in track.finish(100)) == DEEPEST
