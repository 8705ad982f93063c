"""Kernel files that are compressed as a whole."""

import bz2
import gzip
import lzma
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import rr86
from rr86.record.packed import is_packed, unpacked
from tests.fake_core import FakeCore
from tests.images import elf

KERNEL = elf([("start", 0x100000, 64)]) + bytes(range(256)) * 300


def zstd_stream(data: bytes) -> bytes:
    """A frame that does not say how long its content is, as zstd writes them from a pipe."""
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return packer.compress(data) + packer.flush()


PACKED = {
    "gz": gzip.compress(KERNEL),
    "two members": gzip.compress(KERNEL[:1000]) + gzip.compress(KERNEL[1000:]),
    "zst": zstandard.compress(KERNEL),
    "two frames": zstandard.compress(KERNEL[:1000]) + zstandard.compress(KERNEL[1000:]),
    "stream": zstd_stream(KERNEL),
    "xz": lzma.compress(KERNEL),
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_kernel_is_recorded_as_what_is_in_it(
    core: FakeCore, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "vmlinux.packed"
    place.write_bytes(PACKED[kind])
    recording = rr86.record(place, output=tmp_path / "run.rr86")
    trace = rr86.open_trace(recording.path)
    assert trace.image("kernel") == KERNEL
    assert trace.images()[0].file == "vmlinux.packed"
    assert trace.spec.kernel_name == "vmlinux.packed"


def test_an_initrd_stays_packed(core: FakeCore, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd.gz"
    kernel.write_bytes(KERNEL)
    initrd.write_bytes(gzip.compress(b"files"))
    recording = rr86.record(kernel, initrd=initrd, output=tmp_path / "run.rr86")
    assert rr86.open_trace(recording.path).image("initrd") == initrd.read_bytes()


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_kernel_that_is_cut_off_is_refused(
    core: FakeCore, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "kernel"
    place.write_bytes(PACKED[kind][:-20])
    with pytest.raises(rr86.GuestImageError, match=r"kernel '.*/kernel' cannot be unpacked from"):
        rr86.record(place, output=tmp_path / "run.rr86")
    assert not (tmp_path / "run.rr86").exists()


@pytest.mark.parametrize("kind", PACKED)
def test_a_small_file_cannot_fill_the_hosts_memory(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    module = sys.modules[unpacked.__module__]
    monkeypatch.setattr(module, "LARGEST", len(KERNEL) - 1)
    with pytest.raises(rr86.GuestImageError, match="unpacks to more than"):
        unpacked(PACKED[kind], "kernel")
    monkeypatch.setattr(module, "LARGEST", len(KERNEL))
    assert unpacked(PACKED[kind], "kernel") == KERNEL


def test_what_is_not_packed_stays_as_it_is() -> None:
    for data in (KERNEL, b"", bz2.compress(KERNEL)):
        assert unpacked(data, "kernel") == data
        assert not is_packed(data)


@given(st.sampled_from(sorted(PACKED)), st.integers(0, 400), st.integers(0, 255))
def test_damage_is_told_in_words(kind: str, place: int, value: int) -> None:
    data = bytearray(PACKED[kind])
    data[place % len(data)] ^= value
    message = "kernel 'x' "
    try:
        unpacked(bytes(data), "kernel 'x'")
    except rr86.GuestImageError as error:
        message = str(error)
    assert message.startswith("kernel 'x' ")
