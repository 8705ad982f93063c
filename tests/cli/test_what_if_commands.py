"""`rr86 branch` and `rr86 origin` as people call them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rr86.cli.app import app
from rr86.replay.trace import open_trace
from tests.guests.build import load_manifest
from tests.guests.machines import record_guest


def rr86(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def error(result: Result, status: int) -> str:
    """The one line with which a command failed; of a wrong call, what typer makes of it."""
    assert result.exit_code == status, result.output
    line = " ".join(result.stderr.split())
    assert line.startswith("rr86: error: ") or status == 2, line
    assert "Traceback" not in line
    return line


def test_a_branch_is_recorded_and_says_where_it_comes_from(
    demo_trace: Path, tmp_path: Path
) -> None:
    path = tmp_path / "branch.rr86"
    done = rr86(
        *("branch", demo_trace, "--from", "2M", "--seed", "9", "--quantum", "700"),
        *("--write", "0x3f00000=90 cc", "--input", r"a\n\xff", "-o", path),
        *("--no-input", "--limit-instructions", "2.5M"),
    )
    assert done.exit_code == 3, done.output
    assert f"in {path}" in done.stderr
    shown = rr86("info", path).stdout
    assert "begins at       instruction 2,000,000, with the whole machine" in shown
    assert f"branch of       {demo_trace.name}, content id {open_trace(demo_trace).content_id}" in (
        shown
    )
    told = json.loads(rr86("info", "--json", path).stdout)
    assert told["begins"] == 2_000_000
    assert told["branch"]["changed"] == {
        "seed": 9,
        "quantum": 700,
        "input": b"a\n\xff".hex(),
        "writes": [{"paddr": 0x3F00000, "length": 2, "bytes": "90cc"}],
    }
    replayed = rr86("replay", "--json", path)
    assert replayed.exit_code == 0, replayed.output
    answer = json.loads(replayed.stdout)
    assert (answer["began"], answer["verified"]) == (2_000_000, True)
    assert answer["digests_equal"] > 0
    inside = rr86("replay", "-q", "--from", "2.2M", "--until", "icount=2.3M", path)
    assert inside.exit_code == 0, inside.output
    events = rr86("events", "--kind", "input", path).stdout
    assert events.count("\n") == 1
    written = rr86("who-wrote", path, "0x3f00000:2")
    assert written.exit_code == 1
    assert "since instruction 2,000,000, where the trace begins: 90 cc" in written.stdout


def test_a_branch_begins_where_a_condition_holds(demo_trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "branch.rr86"
    done = rr86(
        *("branch", demo_trace, "--from", "irq=0x40", "-o", path, "-q", "--no-input"),
        *("--limit-instructions", "2M"),
    )
    assert done.exit_code == 3, done.output
    assert open_trace(path).begins == open_trace(demo_trace).replay(until="irq=0x40").icount


def test_what_a_branch_cannot_be(demo_trace: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.rr86"

    def failing(*options: str | Path, status: int = 1, output: Path = new) -> str:
        return error(rr86("branch", demo_trace, "--no-input", "-o", output, *options), status)

    assert "never came to instruction 900,000,000,000" in failing("--from", "900G")
    assert "never came to the moment" in failing("--from", "console=no such thing")
    assert "is not a write" in failing("--from", "1M", "--write", "0x1000", status=2)
    assert "is not a write" in failing("--from", "1M", "--write", "0x1000=9", status=2)
    assert "no RAM" in failing("--from", "1M", "--write", "0xfee00000=90")
    assert "unknown schedule" in failing("--from", "1M", "--schedule", "none", status=2)
    assert "unknown escape" in failing("--from", "1M", "--input", r"\q", status=2)
    assert "chain-kept" in failing("--from", "1M", "--block-protocol", "chain-kept")
    assert "overwrite its own input" in failing("--from", "1M", output=demo_trace)
    assert not new.exists()
    rr86(
        "branch", demo_trace, "--from", "2M", "-qo", new, "--no-input", "--limit-instructions", "2M"
    )
    early = rr86("branch", new, "--from", "1M", "-o", tmp_path / "early.rr86")
    assert "begins at instruction 2,000,000, after 1,000,000" in error(early, 1)


@pytest.fixture(scope="module")
def origin_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("origin") / "origin.rr86"
    return record_guest(load_manifest()["origin"], path, seed=1, quantum=2000).path


def test_an_origin_is_told_in_one_line_for_each_hop(origin_trace: Path) -> None:
    at = str(open_trace(origin_trace).summary()["last_icount"])
    done = rr86("origin", origin_trace, "sum", "--at", at)
    assert done.exit_code == 0, done.output
    head, store, computed = done.stdout.splitlines()
    assert head.endswith(f"<sum>, before instruction {int(at):,}: 0c 00 00 00 00 00 00 00")
    assert "vCPU 0  sum_store  mov qword ptr" in store
    assert "sum_add" in computed
    assert "= 0c 00 00 00 00 00 00 00, computed from rax = 0x5, physical" in computed
    answer = json.loads(rr86("origin", "--json", origin_trace, "sum", "--at", at).stdout)
    (found,) = answer["ranges"]
    assert [hop["kind"] for hop in found["hops"]] == ["store", "computed"]
    assert found["value"] == "0c00000000000000"
    through = rr86("origin", origin_trace, "sum", "--at", at, "--through").stdout
    assert through.count("loaded into memory before power-on") == 2


def test_a_linear_address_is_followed_from_where_it_is_mapped(origin_trace: Path) -> None:
    at = str(open_trace(origin_trace).summary()["last_icount"])
    alias = rr86("origin", origin_trace, "0x8000000000:8", "--virtual", "--at", at)
    direct = rr86("origin", origin_trace, "place_a", "--at", at)
    assert alias.stdout.splitlines()[1:] == direct.stdout.splitlines()[1:]
    assert "way_constant" in direct.stdout


def test_questions_that_have_no_origin(origin_trace: Path) -> None:
    assert "is not in the recording" in error(rr86("origin", origin_trace, "sum", "--at", "9G"), 2)
    assert "not all RAM" in error(rr86("origin", origin_trace, "0xfee00000", "--at", "5000"), 1)
    assert "1 to 64 bytes" in error(rr86("origin", origin_trace, "0x1000:65", "--at", "5000"), 2)
    assert "no symbol" in error(rr86("origin", origin_trace, "nothing", "--at", "5000"), 1)
