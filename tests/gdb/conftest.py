"""A recording under a server, for clients of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import rr86
from tests.gdb.client import Client, Served, serving

TRACES = Path(__file__).parents[2] / "traces"


@pytest.fixture(scope="session")
def recorded() -> rr86.Trace:
    """Four vCPUs that pass messages, take timer interrupts and patch code; 13 M instructions."""
    return rr86.open_trace(TRACES / "stale-int3.rr86")


@pytest.fixture(scope="module")
def served(recorded: rr86.Trace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of that recording, for all tests of a module."""
    with serving(recorded, tmp_path_factory.mktemp("gdb")) as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    """A debugger that has said hello, with the machine at a moment where all vCPUs work."""
    with served.session() as one:
        one.monitor("goto 5M")
        yield one
