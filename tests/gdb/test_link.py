"""A connection while the machine runs: interrupts, a debugger that dies, one that talks on."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from rr86.gdb.link import Link
from rr86.gdb.packet import frame

Pair = tuple[Link, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Link(ours), theirs


def test_nothing_said_is_no_interrupt(pair: Pair) -> None:
    assert not pair[0].interrupted()


def test_an_interrupt_is_told_of_once(pair: Pair) -> None:
    link, debugger = pair
    debugger.sendall(b"\x03")
    assert link.interrupted()
    assert not link.interrupted()


def test_a_run_ends_where_the_debugger_has_gone(pair: Pair) -> None:
    link, debugger = pair
    debugger.close()
    assert link.interrupted()
    assert link.receive() is None


def test_packets_that_come_early_are_answered_later(pair: Pair) -> None:
    link, debugger = pair
    debugger.sendall(frame(b"g") + b"\x03" + frame(b"?"))
    assert link.interrupted()
    assert [link.receive(), link.receive()] == [b"g", b"?"]


def test_a_debugger_that_talks_on_and_on_ends_the_run(pair: Pair) -> None:
    link, debugger = pair
    debugger.sendall(frame(b"g") * 100)
    assert link.interrupted()


def test_doubts_about_answers_before_do_not_repeat_the_next_one(pair: Pair) -> None:
    link, debugger = pair
    link.send(b"first")
    debugger.sendall(b"+--")
    assert not link.interrupted()
    link.send(b"second")
    debugger.sendall(frame(b"g"))
    assert link.receive() == b"g"
    assert debugger.recv(1000) == frame(b"first") + frame(b"second") + b"+"


def test_an_answer_that_is_not_taken_ends_the_connection(pair: Pair) -> None:
    link, debugger = pair
    debugger.close()
    with pytest.raises(ConnectionError):
        link.send(b"x" * 100_000)
