import pytest

from tests.fake_core import core
from tests.guests.machines import Recorded
from tests.guests.poking import STRAY_INT3, poking

__all__ = ["core"]


@pytest.fixture(scope="session")
def stale(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A recording that ends with an INT3 that memory does not hold."""
    recorded = poking(tmp_path_factory.mktemp("stale") / "stale.rr86", "qemu-7.2", 1000)
    assert recorded.outcome.code == STRAY_INT3
    return recorded


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A recording in which every INT3 is honest."""
    return poking(tmp_path_factory.mktemp("clean") / "clean.rr86", "precise", 50)
