"""The HTML page: what it holds is the timeline, and it needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rr86.analysis import profile_html
from rr86.analysis.collector import collect
from rr86.analysis.profile import Profile, Sample
from rr86.analysis.sampler import profile
from rr86.analysis.timeline import Mark, MarkKind, Timeline
from rr86.analysis.timeline_html import page, write
from tests.analysis.conftest import Record
from tests.analysis.embedded import data_of, decoded
from tests.guests.machines import Recorded


def test_the_page_holds_the_timeline(
    smp_timeline: Timeline, stale_timeline: Timeline, record: Record
) -> None:
    for timeline in (smp_timeline, stale_timeline, collect(record("timers").trace(), 50_000_000)):
        assert decoded(data_of(page(timeline))) == timeline


def test_a_written_file_is_the_page(smp_timeline: Timeline, tmp_path: Path) -> None:
    write(smp_timeline, tmp_path / "smp.html")
    assert (tmp_path / "smp.html").read_text(encoding="utf-8") == page(smp_timeline)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[tuple[str, str, str | None]] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.links += [
            (tag, name, value) for name, value in attrs if name in ("src", "href", "action", "data")
        ]


def test_the_pages_ask_for_nothing_from_elsewhere(smp_timeline: Timeline, smp: Recorded) -> None:
    for text in (page(smp_timeline), profile_html.page(profile(smp.trace(), interval=50_000))):
        assert_alone(text)


def assert_alone(text: str) -> None:
    tags = _Tags()
    tags.feed(text)
    assert tags.links == []
    assert tags.scripts == 2
    for pattern in (
        r"https?://",
        r"@import",
        r"url\(",
        r"\bfetch\(",
        r"XMLHttpRequest",
        r"\bimport\b\s*[({]",
    ):
        assert not re.search(pattern, text), pattern


def test_no_text_of_the_guest_gets_out_of_its_place(smp_timeline: Timeline) -> None:
    evil = '</script><script>alert(1)</script><!-- {{script}} \u2028 "\\'
    marks = [Mark(5, 0, MarkKind.CONSOLE, evil)]
    timeline = replace(smp_timeline, title="<b>&{{data}}.rr86", marks=marks)
    text = page(timeline)
    tags = _Tags()
    tags.feed(text)
    assert tags.scripts == 2
    assert "<b>&{{" not in text.partition('<script id="data"')[0]
    assert "<title>&lt;b&gt;&amp;{{data}}.rr86</title>" in text
    assert decoded(data_of(text)) == timeline


def test_a_flame_graph_holds_the_profile(smp: Recorded) -> None:
    found = profile(smp.trace(), interval=10_000)
    data = data_of(profile_html.page(found))
    counts: dict[tuple[str, ...], int] = {}

    def walk(node: list[Any], above: tuple[str, ...]) -> None:
        number, total, callees = node
        stack = (*above, data["names"][number])
        own = total - sum(each[1] for each in callees)
        if own:
            counts[stack[1:]] = own
        for each in callees:
            walk(each, stack)

    walk(data["root"], ())
    assert counts == found.stacks()
    assert data["root"][1] == found.instructions


def test_a_flame_graph_joins_what_stacks_have_in_common() -> None:
    samples = [
        Sample(1, 0, 10, ("task", "main", "read")),
        Sample(2, 0, 5, ("task", "main", "write")),
        Sample(3, 0, 1, ("task", "main")),
        Sample(4, 0, 2, ("other", "main")),
    ]
    root = profile_html.tree(Profile("made", 0, 18, 10, None, 1, 18, samples))
    assert root.total == 18
    assert {name: node.total for name, node in root.callees.items()} == {"task": 16, "other": 2}
    main = root.callees["task"].callees["main"]
    assert main.total == 16
    assert {name: node.total for name, node in main.callees.items()} == {"read": 10, "write": 5}
