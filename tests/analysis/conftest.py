"""Recordings whose course is known, for tests of timelines and profiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import rr86
from rr86.analysis.collector import collect
from rr86.analysis.timeline import Timeline
from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, record_guest

TRACES = Path(__file__).parents[2] / "traces"

Record = Callable[..., Recorded]


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Record a test guest by name, once for each name."""
    known: dict[str, Recorded] = {}

    def record(name: str, **options: object) -> Recorded:
        if name not in known:
            path = tmp_path_factory.mktemp(name) / f"{name}.rr86"
            known[name] = record_guest(load_manifest()[name], path, **options)  # type: ignore[arg-type]
        return known[name]

    return record


@pytest.fixture(scope="session")
def smp(record: Record) -> Recorded:
    """Four vCPUs that send each other IPIs of each kind."""
    return record("smp")


@pytest.fixture(scope="session")
def smp_timeline(smp: Recorded) -> Timeline:
    return collect(smp.trace())


@pytest.fixture(scope="session")
def stale_trace() -> rr86.Trace:
    """A recording that ends at an INT3 that memory does not hold."""
    return rr86.open_trace(TRACES / "stale-int3.rr86")


@pytest.fixture(scope="session")
def stale_timeline(stale_trace: rr86.Trace) -> Timeline:
    return collect(stale_trace)
