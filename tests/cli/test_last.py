"""`rr86 replay --last`: the last time that a condition held."""

import json

import pytest

from rr86.replay.travel import TimeTravel
from tests.cli.test_real_commands import rr86
from tests.guests.machines import Recorded
from tests.replay.conftest import clean

__all__ = ["clean"]


def last(recorded: Recorded, *arguments: str) -> dict[str, object]:
    done = rr86(recorded.path.parent, "replay", "--last", *arguments, "--json", recorded.path.name)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["exit_status"] == done.returncode
    return dict(found["stop"])


def test_it_stops_where_a_run_forward_stops_for_the_last_time(clean: Recorded) -> None:
    there = TimeTravel(clean.trace())
    moments = []
    while there.run("any-int3").reason == "condition":
        moments.append(there.icount)
    assert len(moments) > 3
    found = last(clean, "any-int3")
    assert (found["icount"], found["reason"]) == (moments[-1], "condition")
    found = last(clean, "any-int3", "--before", str(moments[-1]))
    assert found["icount"] == moments[-2]
    found = last(clean, "any-int3", "--before", f"icount={moments[2] + 1}")
    assert found["icount"] == moments[2]


def test_the_console_is_what_the_guest_had_sent_by_then(clean: Recorded) -> None:
    there = TimeTravel(clean.trace())
    there.run()
    there.run_back("any-int3")
    done = rr86(clean.path.parent, "replay", "--last", "any-int3", clean.path.name)
    assert done.returncode == 0
    assert done.stdout.encode().rstrip() == there.console.rstrip()
    assert "condition any-int3 met" in done.stderr


def test_what_never_held_is_told_with_a_status_of_its_own(clean: Recorded) -> None:
    done = rr86(clean.path.parent, "replay", "--last", "stale-int3", clean.path.name)
    assert done.returncode == 6
    assert "never met: stale-int3" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--before", "5"], "--before is for --last"),
        (["--last", "int3", "--until", "panic"], "--last goes with"),
        (["--last", "int3", "--vcpu", "0"], "--last goes with"),
        (["--last", "nonsense"], "unknown condition"),
        (["--last", "int3", "--before", "900G"], "the trace has moments 0 to"),
        (["--last", "int3", "--memory-for-snapshots", "much"], "is not a size"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], message: str, clean: Recorded
) -> None:
    done = rr86(clean.path.parent, "replay", *options, clean.path.name)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
