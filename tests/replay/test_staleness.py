"""How stale executions are judged, without a machine."""

from rr86.replay.finding import Victim, Write
from rr86.replay.staleness import first_difference, grade, guilty_write, window
from rr86.translate.protocols import NAMED, Protocol


def victim(source: bytes = b"\x31\xc0\xcc", born: bool = True) -> Victim:
    return Victim(7, 0x4000, 64, ((0x1000, len(source)),), source, 1, 100, 200, born)


def write(
    at: int, new: bytes, paddr: int = 0x1002, passage: str = "checked", lead: int = 0
) -> Write:
    return Write(0, at - lead, at, 0x5000, 0x9002, paddr, b"?" * len(new), new, passage)


def test_the_last_write_that_made_a_difference_is_guilty() -> None:
    first, second = write(110, b"\x0f"), write(120, b"\x90")
    assert guilty_write(victim(), [first, second]) == first


def test_a_value_that_was_put_back_acquits_the_write_before() -> None:
    writes = [write(110, b"\x0f"), write(120, b"\xcc"), write(130, b"\x90")]
    assert guilty_write(victim(), writes) == writes[2]
    assert guilty_write(victim(), writes[:2]) is None


def test_equal_values_and_earlier_or_other_writes_are_innocent() -> None:
    writes = [write(90, b"\x0f"), write(110, b"\xcc"), write(111, b"\x00", paddr=0x1003)]
    assert guilty_write(victim(), writes) is None


def test_a_write_that_overlaps_the_block_s_start_counts() -> None:
    only = write(110, b"\xff\xff\x00", paddr=0xFFE)
    assert guilty_write(victim(), [only]) == only


def test_a_block_in_two_pages_is_followed_in_both() -> None:
    crossing = Victim(
        7, 0x4FFE, 64, ((0x1FFE, 2), (0x8000, 3)), b"\xe9\1\2\3\4", 0, 100, 200, False
    )
    second = write(150, b"\x09", paddr=0x8002)
    assert guilty_write(crossing, [second]) == second
    assert crossing.paddr_of(1) == 0x1FFF
    assert crossing.paddr_of(4) == 0x8002


def test_grades_tell_what_hardware_may_do() -> None:
    guilty = write(150, b"\x0f")
    assert grade(151, guilty, 1) == "A"
    assert grade(150, guilty, 1) == "C"
    assert grade(None, guilty, 2) == "B"
    assert grade(151, None, 1) == "C"


def test_windows_are_told_apart() -> None:
    def gap(name: str, victim: Victim, write: Write) -> str:
        return window(NAMED[name], victim, write)[0]

    assert gap("qemu-7.2", victim(), write(150, b"\x0f")) == "W1"
    assert gap("qemu-10", victim(), write(150, b"\x0f", passage="no-code")) == "W1'"
    late = write(250, b"\x0f", passage="late", lead=160)
    assert gap("qemu-7.2", victim(born=False), late) == "W2"
    assert gap("qemu-7.2", victim(born=False), write(250, b"\1", passage="unguarded")) == "W3"
    assert gap("dma-unchecked", victim(born=False), write(250, b"\1")) == "dma-unchecked"


def test_gaps_of_a_users_protocol_have_names_too() -> None:
    first = Protocol("mine", store="commit | check unguard")
    assert window(first, victim(born=False), write(250, b"\1"))[0] == "W2'"
    none = Protocol("mine", unchecked=["walk"])
    assert window(none, victim(born=False), write(250, b"\1")) == ("mine", none.text)


def test_the_first_difference_is_an_offset() -> None:
    assert first_difference(b"abc", b"abd") == 2
