"""Timelines out of what a page holds, as its scripts read it."""

import json
import re
from itertools import accumulate
from typing import Any

from rr86.analysis.timeline import Arrow, Ipi, Kind, Mark, MarkKind, Skip, Span, Timeline


def data_of(page: str) -> dict[str, Any]:
    """The data that a page holds."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def decoded(data: dict[str, Any]) -> Timeline:
    """The timeline that such data stand for."""
    names, begin = data["names"], data["begin"]

    def times(steps: list[int]) -> list[int]:
        return [begin + at for at in accumulate(steps)]

    def agent(number: int) -> int | None:
        return None if number < 0 else number

    spans = [
        Span(
            vcpu,
            start,
            start + length,
            depth,
            Kind(data["kinds"][kind]),
            names[name],
            agent(pid),
            names[detail],
        )
        for vcpu, rows in enumerate(data["spans"])
        for start, length, depth, kind, name, pid, detail in zip(
            times(rows["start"]),
            *(rows[key] for key in ("length", "depth", "kind", "name", "pid", "detail")),
            strict=True,
        )
    ]
    slices = []
    for flat in data["slices"]:
        edges = times(flat)
        slices.append(list(zip(edges[::2], edges[1::2], strict=True)))
    arrows = [
        Arrow(time, agent(source), agent(to), page, bool(write), names[name])
        for time, source, to, page, write, name in zip(
            times(data["arrows"]["time"]),
            *(data["arrows"][key] for key in ("source", "to", "page", "write", "name")),
            strict=True,
        )
    ]
    ipis = [
        Ipi(time, source, to, names[name], None if taken < 0 else time + taken)
        for time, source, to, name, taken in zip(
            times(data["ipis"]["time"]),
            *(data["ipis"][key] for key in ("source", "to", "name", "taken")),
            strict=True,
        )
    ]
    marks = [
        Mark(time, agent(vcpu), MarkKind(data["markKinds"][kind]), names[text])
        for time, vcpu, kind, text in zip(
            times(data["marks"]["time"]),
            *(data["marks"][key] for key in ("vcpu", "kind", "text")),
            strict=True,
        )
    ]
    return Timeline(
        data["title_"],
        data["vcpus"],
        begin,
        data["end"],
        data["skippedBefore"],
        spans,
        slices,
        arrows,
        data["handOffs"],
        ipis,
        marks,
        [Skip(*each) for each in data["skips"]],
        data["leftOut"],
        data["facts"],
    )
