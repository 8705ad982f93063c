"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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
