from rr86.trace.events import Event
from rr86.translate.blocks import block_lives


def block(kind: str, icount: int, number: int, vcpu: int = 0) -> Event:
    fields: dict[str, int | bytes] = {
        "id": number,
        "pc": 0x1000 * number,
        "paddr": 0x100 * number,
        "len": 8,
        "digest": 5,
    }
    return Event(kind, icount, vcpu, fields)


def test_lives_are_put_together() -> None:
    events = [
        block("fetch", 1, 1),
        block("link", 2, 1),
        block("link", 3, 2, vcpu=1),
        Event("invalidate", 9, 1, {"id": 1, "paddr": 0x104, "len": 1}),
        block("fetch", 10, 3),
    ]
    lives = list(block_lives(events))
    assert [life.id for life in lives] == [1, 2, 3]
    first = lives[0]
    assert (first.fetched, first.linked, first.ended, first.ended_by) == (1, 2, 9, 1)
    assert first.alive_at(2)
    assert first.alive_at(8)
    assert not first.alive_at(9)
    assert not lives[2].alive_at(10)
    assert "invalidated at 9 by vCPU 1" in first.line()
    assert "<name>" in lives[1].line(lambda address: "name")


def test_a_flush_ends_every_life() -> None:
    lives = list(block_lives([block("link", 1, 1), block("link", 2, 2), Event("flush", 5, 0, {})]))
    assert [(life.ended, life.flushed) for life in lives] == [(5, True), (5, True)]


def test_an_invalidation_of_an_unknown_block_is_passed_over() -> None:
    assert list(block_lives([Event("invalidate", 1, 0, {"id": 7})])) == []
