"""Cross-vCPU writes and shared memory, told from a trace alone."""

from collections import Counter
from pathlib import Path

import pytest

import rr86
from rr86.trace.sharing import CrossWrite, SharedLine, SharedPage, lines_of
from rr86.trace.vocabulary import NO_VCPU


@pytest.fixture(scope="module")
def trace(demo_trace: Path) -> rr86.Trace:
    return rr86.open_trace(demo_trace)


@pytest.fixture(scope="module")
def told(trace: rr86.Trace) -> list[CrossWrite]:
    """What the general way of reading events gives."""

    def agent(number: int | bytes) -> int | None:
        assert isinstance(number, int)
        return None if number == NO_VCPU else number

    rows = []
    for event in trace.events(["hand-off"]):
        fields = event.fields
        page, lines = fields["page"], fields["lines"]
        assert isinstance(page, int)
        assert isinstance(lines, int)
        row = CrossWrite(
            event.icount,
            agent(fields["from"]),
            event.vcpu,
            fields["write"] == 1,
            page << 12,
            lines,
        )
        if row.writer != row.reader:
            rows.append(row)
    return rows


def test_cross_writes_are_the_hand_offs_between_different_agents(
    trace: rr86.Trace, told: list[CrossWrite]
) -> None:
    assert list(trace.cross_writes()) == told
    assert len(told) > 100


def test_moments_and_vcpus_choose(trace: rr86.Trace, told: list[CrossWrite]) -> None:
    middle = told[len(told) // 2].icount
    assert list(trace.cross_writes(first=middle)) == [r for r in told if r.icount >= middle]
    assert list(trace.cross_writes(last=middle)) == [r for r in told if r.icount <= middle]
    for vcpu in range(4):
        mine = [r for r in told if vcpu in (r.writer, r.reader)]
        assert list(trace.cross_writes(vcpu=vcpu)) == mine


def test_ranges_choose_pages_and_lines(trace: rr86.Trace, told: list[CrossWrite]) -> None:
    page, _ = Counter(row.page for row in told).most_common(1)[0]
    here = [row for row in told if row.page == page]
    assert list(trace.cross_writes(ranges=[(page, 4096)])) == here
    line = here[-1].addresses[0] if here[-1].lines else page
    some = list(trace.cross_writes(ranges=[(line + 8, 4)]))
    assert some == [row for row in here if line in row.addresses]
    assert list(trace.cross_writes(ranges=[])) == []


def test_sharing_adds_the_cross_writes_up(trace: rr86.Trace, told: list[CrossWrite]) -> None:
    sharing = trace.sharing(top=1 << 20)
    assert sharing.hand_offs == len(told)
    pages = Counter(row.page for row in told)
    lines = Counter(address for row in told for address in row.addresses)
    assert {page.address: page.hand_offs for page in sharing.pages} == pages
    assert {line.address: line.hand_offs for line in sharing.lines} == lines
    assert (sharing.page_count, sharing.line_count) == (len(pages), len(lines))
    for page in sharing.pages:
        rows = [row for row in told if row.page == page.address]
        assert set(page.writers) == {row.writer for row in rows if row.lines}
        assert set(page.readers) == {row.reader for row in rows}
        assert page.for_writing == sum(row.for_writing for row in rows)
        for line in page.lines:
            mine = [row for row in rows if line.address in row.addresses]
            assert set(line.writers) == {row.writer for row in mine}
            assert set(line.readers) == {row.reader for row in mine}


def test_the_hottest_come_first_and_no_more_than_asked_for(trace: rr86.Trace) -> None:
    every, some = trace.sharing(top=1 << 20), trace.sharing(top=3)
    assert some.pages == every.pages[:3]
    assert some.lines == every.lines[:3]
    assert (some.page_count, some.line_count) == (every.page_count, every.line_count)
    for listed in (every.pages, every.lines):
        order = [(-each.hand_offs, each.address) for each in listed]
        assert order == sorted(order)


def test_sharing_of_a_part_counts_that_part(trace: rr86.Trace, told: list[CrossWrite]) -> None:
    first, last = told[10].icount, told[60].icount
    part = [row for row in told if first <= row.icount <= last]
    assert trace.sharing(first, last).hand_offs == len(part)


def test_false_sharing_is_several_writers_on_lines_of_their_own() -> None:
    one, two = SharedLine(0x1000, 5, (0,), (1,)), SharedLine(0x1040, 5, (1,), (0,))
    both = SharedLine(0x1080, 5, (0, 1), (0, 1))
    loaded = SharedLine(0x1080, 5, (0, None), (1,))

    def page(*lines: SharedLine) -> SharedPage:
        writers = {writer for line in lines for writer in line.writers}
        return SharedPage(0x1000, 9, 9, tuple(writers), (0, 1), lines)

    assert page(one, two).falsely_shared
    assert page(one, two, loaded).falsely_shared
    assert not page(one, two, both).falsely_shared
    assert not page(one, loaded).falsely_shared
    assert page(one, both).contended == (both,)


def test_a_range_may_cross_pages() -> None:
    assert lines_of(0x1FC0, 65) == {1: 1 << 63, 2: 1}
    assert lines_of(0x1040, 0) == {1: 2}


def test_the_demo_guest_s_variables_have_names(trace: rr86.Trace) -> None:
    names = trace.names()
    found = {names.lookup(line.address) for line in trace.sharing(top=50).lines}
    assert any(found)
