"""Timelines as one HTML file, which any browser opens from disk: no network, no other file.

The page is in `viewer/`; the timeline is put into it as JSON. Numbers that only grow are stored as
the steps between them, texts once each in `names`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rr86.analysis.html import Texts, fill
from rr86.analysis.timeline import Kind, MarkKind, Timeline

_STYLES = ("colours.css", "style.css")
_SCRIPTS = ("model.js", "draw.js", "app.js")
KINDS = tuple(Kind)
MARK_KINDS = tuple(MarkKind)
ABSENT = -1


def write(timeline: Timeline, path: str | Path) -> None:
    """Write a timeline to an HTML file. Raises `OSError` where it cannot be written."""
    Path(path).write_text(page(timeline), encoding="utf-8")


def page(timeline: Timeline) -> str:
    """The HTML file's text."""
    return fill("page.html", timeline.title, embed(timeline), _STYLES, _SCRIPTS)


def embed(timeline: Timeline) -> dict[str, Any]:
    """The timeline as the page's scripts take it. Times count from the timeline's begin."""
    texts = Texts()
    spans = [_spans(timeline, vcpu, texts) for vcpu in range(timeline.vcpus)]
    begin = timeline.begin
    arrows, ipis, marks = timeline.arrows, timeline.ipis, timeline.marks
    return {
        "title_": timeline.title,
        "vcpus": timeline.vcpus,
        "begin": begin,
        "end": timeline.end,
        "skippedBefore": timeline.skipped_before,
        "handOffs": timeline.hand_offs,
        "kinds": [str(kind) for kind in KINDS],
        "markKinds": [str(kind) for kind in MARK_KINDS],
        "spans": spans,
        "slices": [_flat(each, begin) for each in timeline.slices],
        "arrows": {
            "time": _steps((each.time for each in arrows), begin),
            "source": [_agent(each.source) for each in arrows],
            "to": [_agent(each.to) for each in arrows],
            "page": [each.page for each in arrows],
            "write": [int(each.for_writing) for each in arrows],
            "name": [texts.number(each.name) for each in arrows],
        },
        "ipis": {
            "time": _steps((each.time for each in ipis), begin),
            "source": [each.source for each in ipis],
            "to": [each.to for each in ipis],
            "name": [texts.number(each.name) for each in ipis],
            "taken": [ABSENT if each.taken is None else each.taken - each.time for each in ipis],
        },
        "marks": {
            "time": _steps((each.time for each in marks), begin),
            "vcpu": [_agent(each.vcpu) for each in marks],
            "kind": [MARK_KINDS.index(each.kind) for each in marks],
            "text": [texts.number(each.text) for each in marks],
        },
        "skips": [[each.start, each.end, each.icount] for each in timeline.skips],
        "leftOut": list(timeline.left_out),
        "facts": dict(timeline.facts),
        "names": texts.list,
    }


def _spans(timeline: Timeline, vcpu: int, texts: Texts) -> dict[str, list[int]]:
    spans = timeline.of_vcpu(vcpu)
    return {
        "start": _steps((span.start for span in spans), timeline.begin),
        "length": [span.end - span.start for span in spans],
        "depth": [span.depth for span in spans],
        "kind": [KINDS.index(span.kind) for span in spans],
        "name": [texts.number(span.name) for span in spans],
        "pid": [ABSENT if span.pid is None else span.pid for span in spans],
        "detail": [texts.number(span.detail) for span in spans],
    }


def _agent(vcpu: int | None) -> int:
    return ABSENT if vcpu is None else vcpu


def _steps(times: Iterable[int], before: int) -> list[int]:
    steps = []
    for time in times:
        steps.append(time - before)
        before = time
    return steps


def _flat(pieces: Sequence[tuple[int, int]], begin: int) -> list[int]:
    return _steps((edge for piece in pieces for edge in piece), begin)
