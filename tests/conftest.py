"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.demo import record_demo
from tests.guests.build import Guest, build, load_manifest


@pytest.fixture(scope="session")
def guests() -> dict[str, Guest]:
    """The manifest's guests by name."""
    return load_manifest()


@pytest.fixture(scope="session")
def guest_image(guests: dict[str, Guest]) -> Callable[[str], Path]:
    """Build a test guest by name (once per content) and return its Multiboot image.

    Fails, rather than skips, where gcc or binutils are missing: the message says what to install.
    """
    return lambda name: build(guests[name])


@pytest.fixture(scope="session")
def demo_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished recording of the embedded guest on four vCPUs; not to be changed."""
    return record_demo(tmp_path_factory.mktemp("demo")).path
