"""`rr86 sharing`, `rr86 events --cross-writes` and `rr86 replay --oracle`, on the real core."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rr86
from rr86.cli.app import app


def run(*arguments: str, status: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


def test_sharing_lists_pages_and_lines(demo_trace: Path) -> None:
    sharing = rr86.open_trace(demo_trace).sharing(top=5)
    text, _ = run("sharing", str(demo_trace), "--top", "5")
    first, *rest = text.splitlines()
    assert first.startswith(f"{sharing.hand_offs:,} hand-offs of {sharing.page_count:,} pages")
    addresses = [each.address for each in sharing.pages] + [each.address for each in sharing.lines]
    for address in addresses:
        assert any(f"{address:#x}" in line for line in rest)


def test_sharing_as_json_is_what_the_library_says(demo_trace: Path) -> None:
    trace = rr86.open_trace(demo_trace)
    sharing, names = trace.sharing(first=100_000, top=4), trace.names()
    text, _ = run("sharing", str(demo_trace), "--json", "--top", "4", "--from", "100000")
    said = json.loads(text)
    assert said["hand_offs"] == sharing.hand_offs
    assert [page["address"] for page in said["pages"]] == [page.address for page in sharing.pages]
    assert [(line["address"], line["symbol"]) for line in said["lines"]] == [
        (line.address, names.lookup(line.address)) for line in sharing.lines
    ]


def test_cross_writes_are_listed_with_their_moments(demo_trace: Path) -> None:
    told = list(rr86.open_trace(demo_trace).cross_writes(vcpu=2, first=300_000))
    options = ("--cross-writes", "--vcpu", "2", "--from", "300000")
    text, _ = run("events", str(demo_trace), *options)
    assert len(text.splitlines()) == len(told)
    line = text.splitlines()[0].split()
    assert line[:2] == [str(told[0].icount), str(told[0].writer)]
    text, _ = run("events", str(demo_trace), *options, "--json", "--limit", "2")
    rows = [json.loads(each) for each in text.splitlines()]
    assert [(row["icount"], row["page"], row["lines"]) for row in rows] == [
        (each.icount, each.page, each.lines) for each in told[:2]
    ]


def test_cross_writes_of_a_page_and_of_a_symbol(demo_trace: Path) -> None:
    trace = rr86.open_trace(demo_trace)
    names = trace.names()
    lines = trace.sharing(top=1000).lines
    named = next(line for line in lines if names.lookup(line.address))
    name = str(names.lookup(named.address)).partition("+")[0]
    text, _ = run("events", str(demo_trace), "--cross-writes", "--symbol", name, "--symbols")
    told = list(trace.cross_writes(ranges=names.ranges(name)))
    assert len(text.splitlines()) == len(told) > 0
    assert named.address >> 12 << 12 in {each.page for each in told}
    text, _ = run("events", str(demo_trace), "--cross-writes", "--page", f"{named.address:#x}")
    told = list(trace.cross_writes(ranges=[(named.address & -4096, 4096)]))
    assert len(text.splitlines()) == len(told) > 0


@pytest.mark.parametrize(
    "options",
    [("--page", "0x1000"), ("--symbol", "x"), ("--cross-writes", "--kind", "slice")],
)
def test_options_that_do_not_go_together_are_refused(
    demo_trace: Path, options: tuple[str, ...]
) -> None:
    run("events", str(demo_trace), *options, status=2)


def test_the_oracle_says_what_it_saw(demo_trace: Path) -> None:
    _, said = run("replay", str(demo_trace), "--oracle")
    assert "rr86: oracle: " in said
    assert " 0 not told by " in said
