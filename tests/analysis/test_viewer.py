"""The page in a browser: it draws the timeline, and keys, wheel, pointer and search work."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rr86.analysis import profile_html
from rr86.analysis.collector import collect
from rr86.analysis.sampler import profile
from rr86.analysis.timeline import Kind, MarkKind, Timeline
from rr86.analysis.timeline_html import write
from tests.analysis.browser import Page, browser, find
from tests.analysis.conftest import Record

PROGRAM = find()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, smp_timeline: Timeline, stale_timeline: Timeline
) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write(smp_timeline, folder / "smp.html")
    write(stale_timeline, folder / "stale.html")
    return folder


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(window: Page, pages: Path) -> Iterator[Page]:
    """The page of the smp guest, as it is when it has been opened."""
    window.open(pages / "smp.html")
    yield window
    assert window.errors == []


def view(page: Page) -> tuple[float, float]:
    start, end = page.value("[rr86.state.from, rr86.state.to]")
    return start, end


def place(page: Page, vcpu: int, depth: int, time: float) -> tuple[float, float]:
    """Where a time on a lane is in the window."""
    x, y = page.value(
        "(() => { const row = rr86.lanes.layout.rows.find((each) => each.what === 'spans' &&"
        f" each.vcpu === {vcpu} && each.depth === {depth});"
        " const box = document.getElementById('main').getBoundingClientRect();"
        f" return [box.left + rr86.lanes.x({time}), box.top + row.y + row.height / 2]; }})()"
    )
    return x, y


def test_it_loads_from_disk_and_asks_for_nothing_else(page: Page, pages: Path) -> None:
    assert page.requests == [(pages / "smp.html").as_uri()]
    assert page.value("document.title") == "smp.rr86"
    assert "vCPUs: 4" in page.value("document.getElementById('facts').textContent")


def test_its_scripts_see_the_spans(page: Page, smp_timeline: Timeline) -> None:
    for vcpu in range(4):
        rows = page.value(
            f"rr86.MODEL.lanes[{vcpu}].map((lane) => Array.from(lane.start, (start, i) =>"
            " [start, lane.end[i], rr86.MODEL.title(lane, i)]))"
        )
        for depth, lane in enumerate(rows):
            spans = smp_timeline.of_vcpu(vcpu, depth)
            assert lane == [[s.start, s.end, s.title] for s in spans]


def test_its_scripts_count_as_the_model_does(
    window: Page, tmp_path: Path, record: Record, smp_timeline: Timeline, pages: Path
) -> None:
    jumps = collect(record("timers").trace(), 50_000_000)
    write(jumps, tmp_path / "jumps.html")
    drawn = random.Random(4)
    for timeline, path in ((smp_timeline, pages / "smp.html"), (jumps, tmp_path / "jumps.html")):
        window.open(path)
        times = [drawn.randrange(timeline.begin, timeline.end) for _ in range(200)]
        times += [edge for skip in timeline.skips for edge in (skip.start, skip.end - 1, skip.end)]
        at = [time - timeline.begin for time in times]
        assert window.value(f"{at}.map((time) => rr86.MODEL.icountAt(time))") == [
            timeline.icount_at(time) for time in times
        ]
        for vcpu in range(timeline.vcpus):
            assert window.value(f"{at}.map((time) => rr86.MODEL.ranUpTo({vcpu}, time))") == [
                timeline.ran(vcpu, timeline.begin, time) for time in times
            ]
    assert window.errors == []


def test_what_is_drawn_has_the_colour_of_its_kind(page: Page, smp_timeline: Timeline) -> None:
    def colour(x: float, y: float) -> str:
        found: str = page.value(
            "(() => { const main = document.getElementById('main');"
            " const box = main.getBoundingClientRect();"
            " const data = main.getContext('2d')"
            f".getImageData({x} - box.left, {y} - box.top, 1, 1).data;"
            " const hex = (n) => n.toString(16).padStart(2, '0');"
            " return '#' + Array.from(data.slice(0, 3), hex).join(''); })()"
        )
        return found

    def wanted(kind: Kind) -> str:
        name = str(kind).replace(" ", "-")
        found: str = page.value(
            f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
        )
        return found

    page.value(f"rr86.show(0, {smp_timeline.end})")
    page.drawn()
    assert colour(*place(page, 0, 0, smp_timeline.end * 0.7)) == wanted(Kind.GUEST)
    nmi = next(s for s in smp_timeline.spans if s.kind is Kind.NMI)
    page.value(f"rr86.show({nmi.start - 2000}, {nmi.end + 2000})")
    page.drawn()
    x, y = place(page, nmi.vcpu, 1, (nmi.start + nmi.end) / 2)
    assert colour(x, y + 5) == wanted(Kind.NMI)


def test_keys_zoom_and_go_sideways(page: Page) -> None:
    whole = view(page)
    page.key("w")
    start, end = view(page)
    assert end - start == pytest.approx(0.7 * (whole[1] - whole[0]))
    page.key("d")
    moved = view(page)
    assert moved[0] - start == pytest.approx(0.15 * (end - start))
    page.key("a")
    assert view(page) == pytest.approx((start, end))
    page.key("s")
    assert view(page) == whole
    for _ in range(60):
        page.key("w")
    start, end = view(page)
    assert end - start == 20
    page.key("0")
    assert view(page) == whole
    page.key("Backspace")
    assert view(page) == (start, end)


def test_the_wheel_zooms_at_the_pointer(page: Page) -> None:
    x, y = place(page, 2, 0, 1_000_000)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-400)
    page.drawn()
    start, end = view(page)
    assert 0 < start < 1_000_000 < end
    assert place(page, 2, 0, 1_000_000)[0] == pytest.approx(x, abs=1)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=300, modifiers=8)
    page.drawn()
    moved = view(page)
    assert moved[0] > start
    assert moved[1] - moved[0] == pytest.approx(end - start)


def test_dragging_moves_what_is_under_the_pointer(page: Page) -> None:
    page.value("rr86.show(1_000_000, 1_500_000)")
    page.drawn()
    x, y = place(page, 1, 0, 1_200_000)
    page.mouse("mousePressed", x, y, button="left", clickCount=1)
    page.mouse("mouseMoved", x + 100, y, button="left", buttons=1)
    page.mouse("mouseMoved", x + 200, y, button="left", buttons=1)
    page.mouse("mouseReleased", x + 200, y, button="left", clickCount=1)
    page.drawn()
    assert place(page, 1, 0, 1_200_000)[0] == pytest.approx(x + 200, abs=1)


def test_dragging_with_shift_shows_that_stretch(page: Page) -> None:
    x1, y = place(page, 1, 0, 500_000)
    x2, _ = place(page, 1, 0, 1_500_000)
    page.mouse("mousePressed", x1, y, button="left", clickCount=1, modifiers=8)
    page.mouse("mouseMoved", x2, y, button="left", buttons=1, modifiers=8)
    page.mouse("mouseReleased", x2, y, button="left", clickCount=1, modifiers=8)
    page.drawn()
    assert view(page) == pytest.approx((500_000, 1_500_000), abs=5000)


def test_a_click_tells_what_is_there_and_how_to_go_there(
    page: Page, smp_timeline: Timeline
) -> None:
    span = next(s for s in smp_timeline.of_vcpu(2, 1) if s.name == "vector 65")
    page.value(f"rr86.show({span.start - 3000}, {span.end + 3000})")
    page.drawn()
    page.click(*place(page, 2, 1, (span.start + span.end) / 2))
    text = page.value("document.getElementById('details').textContent")
    assert "vector 65" in text
    assert "interrupt" in text
    assert f"rr86 replay --until icount={smp_timeline.icount_at(span.start)} smp.rr86" in text


def test_search_finds_all_and_goes_through_them(page: Page, smp_timeline: Timeline) -> None:
    expected = sorted(
        [s.start for s in smp_timeline.spans if s.name == "NMI"]
        + [ipi.time for ipi in smp_timeline.ipis if ipi.name == "NMI"]
        + [mark.time for mark in smp_timeline.marks if "NMI" in mark.text]
    )
    page.key("/")
    for letter in "nmi":
        page.key(letter)
    page.key("Enter")
    found = page.value("document.getElementById('found').textContent")
    assert found == f"1 of {len(expected)}"
    chosen = [page.value("rr86.state.chosen.start")]
    for _ in range(len(expected) - 1):
        page.key("Enter")
        chosen.append(page.value("rr86.state.chosen.start"))
        start, end = view(page)
        assert start <= chosen[-1] <= end
    assert chosen == expected
    page.key("Enter", shift=True)
    assert page.value("rr86.state.chosen.start") == expected[-2]
    page.key("Escape")
    assert page.value("document.getElementById('found').textContent") == ""


def test_search_finds_console_lines(page: Page, smp_timeline: Timeline) -> None:
    line = next(m for m in smp_timeline.marks if m.kind is MarkKind.CONSOLE and "woken" in m.text)
    page.value("document.getElementById('query').value = 'woken FROM'; rr86.find(); rr86.go(1)")
    page.drawn()
    assert page.value("rr86.state.chosen.title") == line.text
    assert page.value("rr86.state.chosen.start") == line.time


def test_a_stale_execution_is_found_and_shown(
    window: Page, pages: Path, stale_timeline: Timeline
) -> None:
    window.open(pages / "stale.html")
    mark = next(m for m in stale_timeline.marks if m.kind is MarkKind.STALE_INT3)
    window.value("document.getElementById('query').value = 'stale int3'; rr86.find(); rr86.go(1)")
    window.drawn()
    assert window.value("rr86.state.chosen.start") == mark.time
    assert mark.text in window.value("document.getElementById('details').textContent")
    assert window.errors == []


def test_the_address_says_what_is_shown(window: Page, pages: Path) -> None:
    window.open(pages / "smp.html", "#from=1000000&to=1200000&q=vector%2066")
    assert view(window) == (1_000_000, 1_200_000)
    assert re.match(r"\d+ found", window.value("document.getElementById('found').textContent"))
    window.value("rr86.show(300_000, 400_000)")
    window.value("new Promise((done) => setTimeout(done, 400))")
    assert window.value("location.hash") == "#from=300000&to=400000&q=vector%2066"


def test_a_flame_graph_shows_shares_and_goes_into_frames(
    window: Page, tmp_path: Path, record: Record
) -> None:
    found = profile(record("hot").trace(), interval=2000)
    profile_html.write(found, tmp_path / "hot.html")
    window.open(tmp_path / "hot.html")
    rows = {row.name: row for row in found.functions()}
    for name in ("hot_loop", "often", "guest_main"):
        window.value(f"rr86.find('{name}')")
        share = f"{100 * rows[name].total / found.instructions:.1f} %"
        assert (
            window.value("document.getElementById('found').textContent") == f"{share} in 1 frames"
        )
    x, y = window.value(
        "(() => { const node = rr86.NODES.find((each) => each.name === 'warm_loop');"
        " const box = document.getElementById('main').getBoundingClientRect();"
        " const at = rr86.spot(node);"
        " return [box.left + at.x + at.width / 2, box.top + at.y + 8]; })()"
    )
    window.click(x, y)
    assert window.value("rr86.state.zoomed.name") == "warm_loop"
    assert f"{rows['warm_loop'].total:,} instructions" in window.value(
        "document.getElementById('status').textContent"
    )
    window.key("Backspace")
    assert window.value("rr86.state.zoomed.name") == "seldom"
    window.key("0")
    assert window.value("rr86.state.zoomed.name") == "all vCPUs"
    assert window.errors == []


def test_help_opens_and_closes_by_key(page: Page) -> None:
    page.key("?")
    assert page.value("document.getElementById('keys').open")
    before = view(page)
    page.key("w")
    assert view(page) == before
    page.key("Escape")
    assert not page.value("document.getElementById('keys').open")
