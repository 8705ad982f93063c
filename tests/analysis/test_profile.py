"""Profiles: what is counted is what ran."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import rr86
from rr86.analysis.profile import Profile, Sample, places
from rr86.analysis.profile_formats import collapsed, speedscope, write_collapsed, write_speedscope
from rr86.analysis.sampler import profile
from tests.analysis.conftest import Record
from tests.guests.machines import Recorded, assert_same_run, finished


@pytest.fixture(scope="module")
def hot(record: Record) -> Recorded:
    """A guest of whose instructions three of four are in one loop, and one in another."""
    return record("hot")


@pytest.fixture(scope="module")
def hot_profile(hot: Recorded) -> Profile:
    return profile(hot.trace(), interval=2000)


# -- where samples are -----------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "interval"), [(1000, 100), (1001, 100), (7, 100), (5, 1)])
def test_each_piece_of_a_stretch_has_one_sample_that_stands_for_it(
    length: int, interval: int
) -> None:
    found = list(places(length, interval))
    assert sum(weight for _, weight in found) == length
    for number, (place, weight) in enumerate(found):
        assert number * interval <= place < number * interval + weight
    assert found == list(places(length, interval))


def test_samples_fall_anywhere_in_their_pieces() -> None:
    # A loop whose length divides the interval is met in all of its places.
    seen = Counter(place % 8 for place, _ in places(80_000, 80))
    assert set(seen) == set(range(8))
    assert all(85 < count < 165 for count in seen.values())


def test_samples_are_of_the_vcpu_that_runs(smp: Recorded) -> None:
    trace = smp.trace()
    slices = [
        (event.icount, event.icount + int(event.fields["instructions"]), event.vcpu)
        for event in trace.events(["slice"])
    ]
    found = profile(trace, interval=10_000)
    for sample in found.samples:
        (vcpu,) = [v for start, end, v in slices if start <= sample.icount < end]
        assert sample.vcpu == vcpu
    moments = [sample.icount for sample in found.samples]
    assert moments == sorted(set(moments))


# -- what they add up to ---------------------------------------------------------------------------


def test_the_whole_is_what_was_retired(smp: Recorded) -> None:
    found = profile(smp.trace(), interval=10_000)
    assert found.instructions == smp.outcome.icount
    assert sum(found.stacks().values()) == smp.outcome.icount
    assert sum(found.tasks().values()) == smp.outcome.icount
    assert sum(row.own for row in found.functions()) == smp.outcome.icount


def test_a_vcpus_profile_is_of_what_it_retired(smp: Recorded) -> None:
    trace = smp.trace()
    for vcpu, retired in enumerate(trace.retired()):
        found = profile(trace, vcpu=vcpu, interval=10_000)
        assert found.instructions == sum(s.weight for s in found.samples) == retired
        assert {sample.vcpu for sample in found.samples} == {vcpu}
        assert len(found.samples) == -(-retired // 10_000)


def test_a_stretch_is_counted_to_the_instruction(smp: Recorded) -> None:
    found = profile(smp.trace(), 1_000_001, 1_500_000, interval=7_000)
    assert found.instructions == sum(s.weight for s in found.samples) == 499_999
    assert all(1_000_001 <= sample.icount < 1_500_000 for sample in found.samples)
    assert (found.first, found.last) == (1_000_001, 1_500_000)
    trace = smp.trace()
    of_vcpu = [
        profile(trace, 1_000_001, 1_500_000, vcpu=v, interval=7_000).instructions for v in range(4)
    ]
    assert sum(of_vcpu) == 499_999


def test_two_profiles_of_a_trace_are_equal(smp: Recorded) -> None:
    once, again = (profile(smp.trace(), interval=5_000) for _ in range(2))
    assert once == again
    assert json.dumps(speedscope(once)) == json.dumps(speedscope(again))


def test_a_profile_begins_at_a_checkpoint_and_is_the_same() -> None:
    path = Path(__file__).parents[2] / "traces/checkpoints.rr86"
    trace = rr86.open_trace(path)
    first = trace.checkpoints()[-1].icount + 1000
    found = profile(trace, first, interval=10_000)
    whole = trace.session()
    for sample in found.samples[::7]:
        whole.run(f"icount={sample.icount}")
        rip = whole.registers(sample.vcpu)["rip"]
        assert sample.stack[-1] == re.sub(r"\+0x.*", "", whole.symbolize(rip) or "[no symbol]")


def test_sampling_leaves_the_run_as_it_was(smp: Recorded) -> None:
    # The replay compares itself with the recording, and its end is the recording's.
    sessions: list[rr86.ReplaySession] = []

    class Watched(rr86.Trace):
        def session(self, *args: Any, **kwargs: Any) -> rr86.ReplaySession:
            sessions.append(super().session(*args, **kwargs))
            return sessions[-1]

    profile(Watched(smp.path), interval=3_000)
    (session,) = sessions
    assert_same_run(finished(session, session.run()), smp.outcome)


# -- a guest of known instructions -----------------------------------------------------------------


def test_a_hot_loop_has_its_share(hot: Recorded, hot_profile: Profile) -> None:
    rows = {row.name: row for row in hot_profile.functions()}
    assert list(rows)[:2] == ["hot_loop", "warm_loop"]
    # 10 rounds of 150,000 and 50,000 times two instructions, give or take a sample for each.
    assert rows["hot_loop"].own == pytest.approx(3_000_000, abs=12 * 2000)
    assert rows["warm_loop"].own == pytest.approx(1_000_000, abs=12 * 2000)
    assert rows["often"].own < 10_000
    assert rows["often"].total >= rows["hot_loop"].own
    assert rows["seldom"].total >= rows["warm_loop"].own
    assert rows["guest_main"].total >= 4_000_000 - 4000
    assert hot_profile.instructions == hot.outcome.icount


def test_loops_are_below_who_called_them(hot_profile: Profile) -> None:
    stacks = Counter({s: n for s, n in hot_profile.stacks().items() if s[-1].endswith("_loop")})
    for stack in stacks:
        caller = "often" if stack[-1] == "hot_loop" else "seldom"
        assert stack[0] == "guest"
        assert stack[-3:] == ("guest_main", caller, stack[-1])


def test_a_function_that_calls_itself_counts_once() -> None:
    samples = [
        Sample(1, 0, 10, ("task", "main", "walk", "walk", "leaf")),
        Sample(2, 0, 5, ("task", "main", "walk")),
        Sample(3, 0, 1, ("other",)),
    ]
    rows = {row.name: row for row in Profile("made", 0, 16, 10, None, 1, 16, samples).functions()}
    assert (rows["walk"].own, rows["walk"].total) == (5, 15)
    assert (rows["main"].own, rows["main"].total) == (0, 15)
    assert (rows["leaf"].own, rows["leaf"].total) == (10, 10)
    assert rows["leaf"].tasks == ("task",)


# -- files -----------------------------------------------------------------------------------------


def test_collapsed_stacks_hold_the_profile(hot_profile: Profile, tmp_path: Path) -> None:
    write_collapsed(hot_profile, tmp_path / "hot.collapsed")
    found = {}
    for line in (tmp_path / "hot.collapsed").read_text(encoding="utf-8").splitlines():
        frames, _, count = line.rpartition(" ")
        found[tuple(frames.split(";"))] = int(count)
    assert found == hot_profile.stacks()


def test_names_of_tasks_do_not_break_collapsed_stacks() -> None:
    samples = [Sample(1, 0, 10, ("a; b\n1", "main"))]
    assert collapsed(Profile("made", 0, 10, 10, None, 1, 10, samples)) == "a__b_1;main 10\n"


def check_speedscope(data: Any) -> None:
    """What speedscope's published schema asks of a file with sampled profiles."""
    assert data["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = data["shared"]["frames"]
    assert all(set(frame) <= {"name", "file", "line", "col"} for frame in frames)
    assert all(isinstance(frame["name"], str) for frame in frames)
    assert 0 <= data.get("activeProfileIndex", 0) < len(data["profiles"])
    assert set(data) <= {
        *("$schema", "shared", "profiles", "name", "activeProfileIndex", "exporter")
    }
    for each in data["profiles"]:
        assert set(each) == {
            *("type", "name", "unit", "startValue", "endValue", "samples", "weights")
        }
        assert each["type"] == "sampled"
        assert each["unit"] in {
            *("none", "nanoseconds", "microseconds", "milliseconds", "seconds", "bytes")
        }
        assert len(each["samples"]) == len(each["weights"])
        assert each["endValue"] - each["startValue"] == sum(each["weights"])
        assert all(0 <= n < len(frames) for sample in each["samples"] for n in sample)


def test_speedscope_files_are_as_its_schema_says_and_hold_the_profile(
    smp: Recorded, tmp_path: Path
) -> None:
    found = profile(smp.trace(), interval=10_000)
    write_speedscope(found, tmp_path / "smp.json")
    data = json.loads((tmp_path / "smp.json").read_text(encoding="utf-8"))
    check_speedscope(data)
    names = [frame["name"] for frame in data["shared"]["frames"]]
    assert len(set(names)) == len(names)
    parts = {each["name"]: each for each in data["profiles"]}
    assert list(parts) == ["all vCPUs", *(f"vCPU {n}" for n in range(4))]
    for name, each in parts.items():
        vcpu = None if name == "all vCPUs" else int(name[-1])
        samples = [s for s in found.samples if vcpu in (None, s.vcpu)]
        stacks = [tuple(names[n] for n in sample) for sample in each["samples"]]
        assert stacks == [sample.stack for sample in samples]
        assert each["weights"] == [sample.weight for sample in samples]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vcpu": 4}, "there is no vCPU 4; the machine has 4"),
        ({"interval": 0}, "one instruction at the least"),
        ({"first": 1 << 40}, "no instruction was retired"),
        ({"first": 500, "last": 500}, "no instruction was retired"),
    ],
)
def test_what_cannot_be_profiled_is_refused(
    smp: Recorded, options: dict[str, int], message: str
) -> None:
    with pytest.raises(rr86.UsageError, match=message):
        profile(smp.trace(), **options)  # type: ignore[arg-type]
