"""Board specifications: validation and the way through a trace's header."""

from typing import Any

import msgpack
import pytest

from rr86.errors import SpecError
from rr86.machine.spec import SEMANTICS, BoardSpec, format_size, parse_size
from rr86.record.recorder import board_spec

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 * MIB), ("1G", 1024 * MIB), ("512", 512 * MIB), ("65536k", 64 * MIB),
     ("1GiB", 1024 * MIB), ("128MB", 128 * MIB), ("4096B", 4096), (" 2g ", 2048 * MIB)],
)  # fmt: skip
def test_sizes_are_read_as_qemu_does(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "1T", "0x100", "12 34", "9" * 30])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize("size", [0, 1, 4096, 512 * MIB, 1 << 30, 3 << 30, 1025 * MIB])
def test_formatted_sizes_are_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vcpus": 0}, "vcpus must be 1 to 64, not 0"),
        ({"vcpus": 65}, "vcpus must be 1 to 64"),
        ({"memory": 31 * MIB}, "memory must be 32M to 64G, not 31M"),
        ({"memory": 65 << 30}, "memory must be"),
        ({"memory": 64 * MIB + 4096}, "whole number of MiB"),
        ({"cpu_model": "max"}, "unknown CPU model 'max'; known: westmere, default"),
        ({"schedule": "x"}, "unknown schedule"),
        ({"protocol": "x"}, "unknown block protocol"),
        ({"start_time": -1}, "start_time"),
        ({"seed": 1 << 64}, "seed"),
        ({"quantum": 0}, "quantum"),
        ({"max_block": 0}, "max_block"),
        ({"command_line": "a\0b"}, "zero byte"),
        ({"vcpus": "4"}, "vcpus must be of type int"),
        ({"vcpus": True}, "vcpus must be of type int"),
        ({"memory": 512.0 * MIB}, "memory must be of type int"),
    ],
)
def test_bad_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        BoardSpec(**change)


def test_spec_survives_the_trace_header() -> None:
    spec = BoardSpec(vcpus=4, memory=1 << 30, command_line="quiet", seed=2**64 - 1, quantum=7)
    stored = msgpack.unpackb(msgpack.packb(spec.to_dict()))
    assert BoardSpec.from_dict(stored) == spec


def test_setting_of_a_later_version_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown board settings: sockets"):
        BoardSpec.from_dict({"vcpus": 1, "sockets": 2})


def test_linux_needs_more_memory_than_multiboot() -> None:
    small = BoardSpec(memory=32 * MIB)
    with pytest.raises(SpecError, match="at least 96M of memory, not 32M"):
        small.require_linux()
    BoardSpec(memory=96 * MIB).require_linux()


def test_a_spec_without_semantics_follows_the_first_version() -> None:
    values = BoardSpec().to_dict()
    assert values.pop("semantics") == SEMANTICS
    assert BoardSpec.from_dict(values).semantics == 1


def test_new_recordings_follow_the_newest_version() -> None:
    assert board_spec().semantics == SEMANTICS
    assert board_spec(semantics=1).semantics == 1


def test_an_older_trace_without_a_model_has_the_first_one() -> None:
    values = BoardSpec().to_dict()
    assert values.pop("cpu_model") == "westmere"
    assert BoardSpec.from_dict(values).cpu_model == "default"
