"""The guests build from their sources, and the demo in the package is what its sources say."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rr86.guests import demo_build_commands, demo_folder, demo_image
from tests.guests.build import GUESTS, BuildError, Guest, build, load_manifest

# The compiler that built demo.elf; another one may choose other instructions.
DEMO_COMPILER = "12.2.0"
MULTIBOOT_MAGIC = 0x1BADB002


def assert_multiboot_elf32(image: bytes) -> None:
    assert image[:5] == b"\x7fELF\x01"
    offset = image.find(struct.pack("<I", MULTIBOOT_MAGIC), 0, 8192)
    assert offset >= 0
    assert offset % 4 == 0
    magic, flags, checksum = struct.unpack_from("<III", image, offset)
    assert (magic + flags + checksum) & 0xFFFF_FFFF == 0


@pytest.mark.parametrize("name", sorted(load_manifest()))
def test_guest_builds_as_a_multiboot_image(name: str, guest_image: Callable[[str], Path]) -> None:
    assert_multiboot_elf32(guest_image(name).read_bytes())


# Guests of machines that have a device in Python: tests/machine/test_devices.py runs them.
WITH_DEVICES = {"device.c"}


def test_every_guest_source_is_in_the_manifest(guests: dict[str, Guest]) -> None:
    named = {source for guest in guests.values() for source in guest.sources} | WITH_DEVICES
    assert {path.name for pattern in ("*.c", "*.S") for path in GUESTS.glob(pattern)} == named


def test_a_second_build_is_taken_from_the_cache(guests: dict[str, Guest], tmp_path: Path) -> None:
    first = build(guests["hello"], tmp_path)
    stamp = first.stat().st_mtime_ns
    assert build(guests["hello"], tmp_path) == first
    assert first.stat().st_mtime_ns == stamp


def test_a_missing_compiler_is_named(
    guests: dict[str, Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="gcc"):
        build(guests["hello"], tmp_path)


def test_the_embedded_demo_is_built_from_its_sources(tmp_path: Path) -> None:
    source = tmp_path / "somewhere" / "else"
    shutil.copytree(demo_folder(), source)
    for command in demo_build_commands(source, tmp_path):
        subprocess.run(command, cwd=source, check=True, capture_output=True)
    rebuilt = (tmp_path / "demo.elf").read_bytes()
    assert_multiboot_elf32(rebuilt)
    version = subprocess.run(
        ["gcc", "-dumpfullversion"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if version == DEMO_COMPILER:
        assert rebuilt == demo_image()


def test_the_embedded_demo_is_small() -> None:
    assert len(demo_image()) <= 64 * 1024
    assert_multiboot_elf32(demo_image())
