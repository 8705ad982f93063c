"""Which vCPU executes what: the answers of the index are those of the whole list."""

import itertools
import random

import pytest

from rr86.trace.slices import Slice, Slices
from tests.guests.build import load_manifest
from tests.guests.machines import record_guest
from tests.guests.test_guests import short

MANIFEST = load_manifest()


@pytest.fixture(scope="module", params=["smp", "xmod"])
def indexed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Slices, list[Slice]]:
    path = tmp_path_factory.mktemp("slices") / "guest.rr86"
    guest = MANIFEST[request.param]
    trace = record_guest(guest, path, append=short(request.param), quantum=700).trace()
    whole = [
        Slice(event.icount, event.vcpu, int(event.fields["instructions"]))
        for event in trace.events(("slice",))
        if event.vcpu is not None and event.fields["instructions"]
    ]
    return Slices(trace.slice_source), whole


def test_every_instruction_is_of_one_slice(indexed: tuple[Slices, list[Slice]]) -> None:
    index, whole = indexed
    assert len(whole) > 100
    # They follow one another without a gap.
    assert all(a.end == b.start for a, b in itertools.pairwise(whole))
    draw = random.Random(1)
    edges = [edge for each in draw.sample(whole, 50) for edge in (each.start, each.end - 1)]
    last = whole[-1].end
    for moment in [0, last - 1, *edges, *(draw.randrange(last) for _ in range(100))]:
        assert index.at(moment) == next(e for e in whole if e.start <= moment < e.end)
    assert index.at(last) is None


def test_neighbours_of_a_moment_on_one_vcpu(indexed: tuple[Slices, list[Slice]]) -> None:
    index, whole = indexed
    draw = random.Random(2)
    last = whole[-1].end
    moments = [e for each in draw.sample(whole, 30) for e in (each.start, each.end - 1, each.end)]
    moments += [0, last, *(draw.randrange(last) for _ in range(50))]
    for moment in moments:
        for vcpu in {each.vcpu for each in whole}:
            own = [each for each in whole if each.vcpu == vcpu]
            before = [min(each.end, moment) - 1 for each in own if each.start < moment]
            after = [max(each.start, moment + 1) for each in own if each.end > moment + 1]
            assert index.previous_of(vcpu, moment) == max(before, default=None)
            assert index.next_of(vcpu, moment) == min(after, default=None)
