"""`rr86 timeline` and `rr86 profile` as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rr86
from rr86.analysis.collector import collect
from rr86.analysis.profile_formats import collapsed, speedscope
from rr86.analysis.sampler import profile
from rr86.cli.app import app
from tests.analysis.embedded import data_of, decoded


def run(*arguments: str, status: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


def test_timeline_writes_a_page(demo_trace: Path, tmp_path: Path) -> None:
    target = tmp_path / "demo.html"
    _, said = run("timeline", str(demo_trace), "-o", str(target), "--to", "600k")
    timeline = collect(rr86.open_trace(demo_trace), last=600_000)
    assert decoded(data_of(target.read_text(encoding="utf-8"))) == timeline
    assert f"{timeline.instructions:,} instructions" in said
    assert "left out: tasks: the guest is no Linux" in said


def test_timeline_writes_perfetto_and_says_what_is_in_it(demo_trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("perfetto", reason="the extra rr86[timeline] is not installed")
    target = tmp_path / "demo.pftrace"
    options = ("--from", "100000", "--to", "icount=200000", "--arrows", "10", "--json")
    text, _ = run("timeline", str(demo_trace), "-o", str(target), *options)
    said = json.loads(text)
    timeline = collect(rr86.open_trace(demo_trace), 100_000, 200_000, arrows=10)
    assert said == {
        "output": str(target),
        "bytes": target.stat().st_size,
        "instructions": 100_000,
        "begin_ns": 100_000,
        "end_ns": 200_000,
        "spans": len(timeline.spans),
        "arrows": len(timeline.arrows),
        "hand_offs": timeline.hand_offs,
        "ipis": len(timeline.ipis),
        "marks": len(timeline.marks),
        "left_out": list(timeline.left_out),
    }


def test_timeline_has_a_name_of_its_own(
    demo_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("timeline", str(demo_trace), "--to", "100k")
    assert [each.name for each in tmp_path.iterdir()] == ["demo.html"]


@pytest.mark.parametrize("command", ["timeline", "profile"])
def test_files_of_unknown_kinds_are_refused_before_the_replay(
    command: str, demo_trace: Path, tmp_path: Path
) -> None:
    _, said = run(command, str(demo_trace), "-o", str(tmp_path / "a.svg"), status=2)
    assert said.startswith("rr86: error: ")
    assert "a.svg' is neither a ." in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["timeline", "profile"])
def test_a_file_that_cannot_be_written_is_an_error_in_one_line(
    command: str, demo_trace: Path, tmp_path: Path
) -> None:
    suffix = {"timeline": "html", "profile": "json"}[command]
    target = tmp_path / "absent" / f"a.{suffix}"
    _, said = run(command, str(demo_trace), "-o", str(target), status=1)
    assert said.splitlines() == [f"rr86: error: '{target}': No such file or directory"]


def test_profile_shows_a_table(demo_trace: Path) -> None:
    found = profile(rr86.open_trace(demo_trace), interval=10_000)
    text, _ = run("profile", str(demo_trace), "--every", "10k", "--top", "3")
    first, *rest = text.splitlines()
    assert first.startswith(f"{found.instructions:,} instructions of all vCPUs")
    rows = [line.split() for line in rest]
    for row in found.functions()[:3]:
        share = f"{100 * row.own / found.instructions:.1f}"
        (line,) = [each for each in rows if row.name in each and f"{row.own:,}" in each]
        assert line[0] == share
    assert any(line[-1:] == ["guest"] and line[0] == "100.0" for line in rows)


def test_profile_writes_both_formats(demo_trace: Path, tmp_path: Path) -> None:
    trace = rr86.open_trace(demo_trace)
    found = profile(trace, 200_000, 400_000, vcpu=1, interval=5_000)
    options = ("--from", "200000", "--to", "400000", "--vcpu", "1", "--every", "5k")
    for suffix, wanted in (
        ("collapsed", collapsed(found)),
        ("json", json.dumps(speedscope(found))),
    ):
        target = tmp_path / f"demo.{suffix}"
        _, said = run("profile", str(demo_trace), *options, "-o", str(target))
        assert target.read_text(encoding="utf-8") == wanted
        assert said == f"rr86: written to {target}\n"


def test_profile_as_json(demo_trace: Path) -> None:
    text, _ = run("profile", str(demo_trace), "--every", "20k", "--top", "2", "--json")
    said = json.loads(text)
    found = profile(rr86.open_trace(demo_trace), interval=20_000)
    assert said["instructions"] == found.instructions
    assert said["samples"] == len(found.samples)
    assert said["tasks"] == {"guest": found.instructions}
    assert [(row["name"], row["own"], row["total"]) for row in said["functions"]] == [
        (row.name, row.own, row.total) for row in found.functions()[:2]
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("profile", "--vcpu", "9"), "there is no vCPU 9; the machine has 4"),
        (("profile", "--from", "9G"), "no instruction was retired"),
        (("timeline", "--from", "9G", "-o", "a.html"), "nothing between the moments"),
    ],
)
def test_stretches_of_nothing_are_errors_in_one_line(
    arguments: tuple[str, ...], message: str, demo_trace: Path
) -> None:
    command, *rest = arguments
    _, said = run(command, str(demo_trace), *rest, status=2)
    (line,) = said.splitlines()
    assert line.startswith("rr86: error: ")
    assert message in line
