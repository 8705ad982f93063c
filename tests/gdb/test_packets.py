"""Framing: what is a packet, and what becomes of everything else that can be on the line."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rr86.gdb.packet import Decoder, Packet, Signal, checksum, escape, frame, unescape


def decoded(*pieces: bytes, largest: int = 1000) -> list[Packet | Signal]:
    decoder = Decoder(largest)
    return [item for piece in pieces for item in decoder.feed(piece)]


def test_a_packet_has_the_checksum_of_its_bytes() -> None:
    # The gdb manual's own example of a packet: $vMustReplyEmpty#3a.
    assert frame(b"vMustReplyEmpty") == b"$vMustReplyEmpty#3a"
    assert decoded(b"$vMustReplyEmpty#3a") == [Packet(b"vMustReplyEmpty")]


def test_both_cases_of_a_checksum_are_read() -> None:
    assert checksum(b"qfThreadInfo") == 0xBB
    assert decoded(b"$qfThreadInfo#Bb") == [Packet(b"qfThreadInfo")]


@given(st.binary(max_size=200))
def test_what_is_framed_is_read_back_and_looks_like_nothing_else(data: bytes) -> None:
    framed = frame(data)
    assert decoded(framed) == [Packet(data)]
    assert framed[1:-3].count(b"$") == framed[1:-3].count(b"#") == framed.count(b"*") == 0
    assert unescape(escape(data)) == data


@given(st.binary(max_size=60), st.lists(st.integers(0, 80), max_size=5))
def test_pieces_make_no_difference(noise: bytes, cuts: list[int]) -> None:
    line = b"+" + frame(b"g") + noise + frame(b"m0,4") + b"\x03-" + frame(noise)
    whole = decoded(line)
    edges = [0, *sorted(cuts), len(line)]
    pieces = [line[a:b] for a, b in itertools.pairwise(edges)]
    assert decoded(*pieces) == whole


def test_signals_stand_between_packets_and_are_data_inside() -> None:
    assert decoded(b"+-\x03") == [Signal.ACK, Signal.NACK, Signal.INTERRUPT]
    assert decoded(frame(b"+-\x03")) == [Packet(b"+-\x03")]


@pytest.mark.parametrize("line", [b"$g#68", b"$g#6", b"$g#zz", b"$g}#e4", b"$g#6$g#67"])
def test_a_broken_packet_costs_itself_alone(line: bytes) -> None:
    found = decoded(line, b"$?#3f")
    assert found[-1] == Packet(b"?")
    assert found.count(Packet(b"g")) == line.count(b"$g#67")


def test_a_packet_that_was_cut_off_is_forgotten() -> None:
    assert decoded(b"$m12345", b"$g#67") == [Packet(b"g")]


def test_a_packet_that_is_too_long_is_broken_and_not_kept() -> None:
    decoder = Decoder(largest=16)
    long = b"x" * 1_000_000
    assert list(decoder.feed(b"$" + long)) == []
    assert decoder._begun is not None
    assert len(decoder._begun) <= 16
    assert list(decoder.feed(b"#%02x" % checksum(long))) == [Signal.BROKEN]
    assert list(decoder.feed(frame(b"x" * 16))) == [Packet(b"x" * 16)]
