"""What the benchmark's guest says on its console, and how it is read."""

import gzip
from pathlib import Path

from bench.programs.guest import Markers, Outcome, initramfs


def test_the_time_of_a_program_is_between_its_markers() -> None:
    markers = Markers()
    markers.feed(b"Linux [0.1] boots\r\n[bench crc begin]", 10.0)
    assert markers.running == "crc"
    markers.feed(b"\n[bench crc end 0 00ab", 11.0)
    assert markers.outcomes == {}
    markers.feed(b"cd]\n", 12.5)
    assert markers.outcomes == {"crc": Outcome(2.5, 0, "00abcd")}
    assert markers.running is None


def test_a_marker_may_arrive_in_pieces_and_with_others() -> None:
    markers = Markers()
    markers.feed(b"[ben", 1.0)
    markers.feed(b"ch a begin][bench a end 0 1]\n[bench b begin]", 2.0)
    markers.feed(b"[bench b end 256 no memory][bench over]", 3.0)
    assert markers.outcomes == {"a": Outcome(0.0, 0, "1"), "b": Outcome(1.0, 256, "no memory")}
    assert markers.over


def test_an_end_without_its_begin_counts_for_nothing() -> None:
    markers = Markers()
    markers.feed(b"[bench a begin][bench b end 0 1]", 1.0)
    assert markers.outcomes == {}
    assert markers.running == "a"


def test_the_last_words_are_what_came_after_the_last_marker() -> None:
    markers = Markers()
    markers.feed(b"[bench a begin]\r\nKernel panic - not syncing: x\r\n\r\n", 1.0)
    assert not markers.over
    assert markers.last_words == "Kernel panic - not syncing: x"


def test_the_initramfs_holds_init_the_programs_and_the_list(tmp_path: Path) -> None:
    executables = {}
    for name in ("init", "crc", "fork", "unused"):
        executables[name] = tmp_path / name
        executables[name].write_bytes(f"content of {name}".encode())
    packed = initramfs(executables, [("crc", 30), ("fork", 2)])
    content = gzip.decompress(packed)
    for name in ("init", "crc", "fork"):
        assert f"content of {name}".encode() in content
    assert b"unused" not in content
    assert b"run.list\0" in content
    assert b"crc 30\nfork 2\n" in content
    assert packed == initramfs(executables, [("crc", 30), ("fork", 2)])
