"""User programs: their files in an initrd, their functions in conditions and at stops."""

import bz2
import contextlib
import gzip
import lzma
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard

import rr86
from rr86.kernel.cpio import files
from rr86.kernel.programs import Program, Programs
from rr86.replay.travel import TimeTravel
from rr86.session.conditions import InProgram, RipIn
from tests.kernel.debian import Boot
from tools.initramfs import EXECUTABLE, FOLDER, entry


def cpio(*parts: tuple[str, bytes]) -> bytes:
    rows = [("bin", FOLDER, b""), *((name, EXECUTABLE, data) for name, data in parts)]
    rows.append(("TRAILER!!!", 0, b""))
    return b"".join(entry(*row, number) for number, row in enumerate(rows, 1))


def legacy_lz4(data: bytes) -> bytes:
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        out += len(block).to_bytes(4, "little") + block
    return out


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": legacy_lz4,
}
BYTES = random.Random(3).randbytes(300_000) + bytes(100_000)


def read(image: bytes) -> dict[str, bytes]:
    return {each.path: each.data for each in files(image)}


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_an_initrd_is_read_in_every_packing(packing: Callable[[bytes], bytes]) -> None:
    image = packing(cpio(("bin/a", b"first"), ("./bin/b", BYTES)))
    assert read(image) == {"bin/a": b"first", "bin/b": BYTES}


@pytest.mark.parametrize("first", PACKINGS)
@pytest.mark.parametrize("second", PACKINGS)
def test_archives_one_behind_the_other_are_all_read(first: str, second: str) -> None:
    early, late = cpio(("a", b"old"), ("b", b"kept")), cpio(("a", b"new"))
    image = PACKINGS[first](early) + bytes(36) + PACKINGS[second](late)
    assert read(image) == {"a": b"new", "b": b"kept"}


def test_what_comes_before_the_damage_is_there() -> None:
    good = cpio(("a", b"1"), ("b", b"2"))
    found = files(good + gzip.compress(good)[:-20])
    assert [next(found).path, next(found).path] == ["a", "b"]
    with pytest.raises(rr86.GuestImageError, match="the initrd cannot be read"):
        next(found)
    programs = Programs(lambda: good + b"rubbish")
    with pytest.raises(rr86.SymbolsError, match="nothing is known of a program 'b'"):
        programs.of_name("b")


@pytest.mark.parametrize("packing", PACKINGS)
def test_no_damage_makes_anything_but_an_error(packing: str) -> None:
    rng = random.Random(packing)
    image = PACKINGS[packing](cpio(("a", b"text" * 50), ("b", bytes(200))))
    for _ in range(300):
        damaged = bytearray(image)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        with contextlib.suppress(rr86.GuestImageError):
            read(bytes(damaged))


def test_nothing_is_unpacked_twice() -> None:
    with pytest.raises(rr86.GuestImageError, match="what is packed in it is no cpio archive"):
        read(gzip.compress(gzip.compress(cpio(("a", b"1")))))


SOURCE = """
__attribute__((noinline)) int first(int a) { return a * 3; }
static __attribute__((noinline)) int second(int a) { return first(a) + 1; }
int main(int argc, char **argv) { return second(argc); }
"""


@pytest.fixture(scope="module", params=["-no-pie", "-pie"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    (folder / "p.c").write_text(SOURCE)
    subprocess.run(["gcc", "-O1", request.param, "-o", folder / "prog", folder / "p.c"], check=True)
    return folder / "prog"


def test_functions_are_where_nm_says(program: Path) -> None:
    known = Program("bin/prog", program.read_bytes())
    said = subprocess.run(["nm", "-S", program], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^(\w+) (\w+) [tT] (first|second|main)$", said, re.MULTILINE)
    assert len(rows) == 3
    for address, size, name in rows:
        assert known.address(name) == int(address, 16)
        for inside in (0, int(size, 16) - 1):
            found = known.resolve(int(address, 16) + inside)
            assert found is not None
            assert (found[0].name, found[1]) == (name, inside)
    header = subprocess.run(["readelf", "-h", program], capture_output=True, text=True, check=True)
    assert f"Entry point address:               {known.entry:#x}" in header.stdout
    assert known.movable == ("DYN" in header.stdout)


def test_a_named_file_counts_before_that_of_the_initrd(program: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, program], check=True)
    programs = Programs(lambda: cpio(("usr/bin/prog", stripped.read_bytes())))
    with pytest.raises(rr86.SymbolsError, match="prog has no symbol table; --symbols names"):
        programs.of_name("prog").address("main")
    programs.add(program)
    assert programs.of_name("prog").address("main") > 0
    assert programs.of_path("/usr/bin/prog") is programs.of_name("prog")
    with pytest.raises(rr86.SymbolsError, match="no function 'secnod'; near names: second"):
        programs.of_name("prog").address("secnod")


def test_files_that_are_no_programs_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("#!/bin/sh\n")
    for each, why in (
        (text, "is no ELF file for x86-64"),
        (tmp_path, "is no file"),
        (tmp_path / "x", "cannot be read"),
    ):
        with pytest.raises(rr86.SymbolsError, match=why):
            Programs().add(each)


def test_conditions_in_programs_are_understood() -> None:
    assert rr86.parse_condition("symbol=init:main") == InProgram("init", "main")
    assert rr86.parse_condition("symbol=/bin/a:f+0x10") == InProgram("/bin/a", "f", 16)
    assert rr86.parse_condition("rip=sh:401000") == RipIn("sh", 0x401000)
    for text in ("symbol=init:main+0x8", "rip=sh:0x401000"):
        assert str(rr86.parse_condition(text)) == text
    for text in ("symbol=:main", "symbol=init:", "rip=:1", "rip=sh:zz", "symbol=a:b+zz"):
        with pytest.raises(rr86.ConditionError):
            rr86.parse_condition(text)


def test_a_guest_without_linux_has_no_programs(demo_trace: Path) -> None:
    session = rr86.open_trace(demo_trace).session()
    with pytest.raises(rr86.ConditionError, match="programs are known of a Linux guest only"):
        session.run(until="symbol=init:main")


# -- on a real kernel ------------------------------------------------------------------------------


def printed(boot: Boot, name: str) -> tuple[int, int]:
    """The pid of a program, and where its `inner` was, as it printed them."""
    found = re.search(r"pid (\d+), inner at 0x(\w+)", boot.said(name))
    assert found is not None
    return int(found[1]), int(found[2], 16)


@pytest.mark.parametrize("name", ["fixed", "moving"])
def test_a_run_stops_in_a_function_of_a_program(boot: Boot, name: str) -> None:
    pid, address = printed(boot, name)
    session = boot.session(name)
    stop = session.run(until=f"symbol={name}:inner")
    assert (stop.reason, stop.rip) == ("condition", address)
    assert session.inspector.running(stop.vcpu) == f"in {name} (pid {pid})"
    described = stop.describe(session.inspector.symbolizer(stop.vcpu))
    assert described.endswith(f"rip {address:#x} <{name}:inner>")


@pytest.mark.parametrize("name", ["fixed", "moving"])
def test_the_call_stack_goes_on_into_the_program(boot: Boot, name: str) -> None:
    session = boot.session(name)
    stop = session.run(until=f"symbol={name}:inner")
    functions = [f"{name}:{each}" for each in ("inner", "middle", "outer", "main")]
    # The program has no frame pointers.
    names = [str(frame).split("+")[0] for frame in session.backtrace(stop.vcpu)]
    assert names[:4] == functions
    assert names[-1] == f"{name}:_start"
    while True:
        stop = session.run(until="symbol=__x64_sys_getpid")
        if f"in {name} " in (session.inspector.running(stop.vcpu) or ""):
            break
    names = [str(frame).split("+")[0] for frame in session.backtrace(stop.vcpu)]
    assert names[1:3] == ["do_syscall_64", "entry_SYSCALL_64_after_hwframe"]
    assert names[3] in (f"{name}:getpid", f"{name}:__getpid")
    assert names[4:8] == functions


def test_a_run_that_begins_within_the_process_finds_the_function_too(boot: Boot) -> None:
    _, address = printed(boot, "moving")
    session = boot.session("moving")
    session.run(until="symbol=moving:main")
    # Another session knows nothing of how the program was started.
    again = boot.session_at(session.icount)
    stop = again.run(until="symbol=moving:inner")
    assert (stop.reason, stop.rip) == ("condition", address)


def test_an_address_in_another_process_does_not_stop(boot: Boot) -> None:
    _, address = printed(boot, "fixed")
    session = boot.session("fixed")
    assert session.run(until=f"rip=moving:{address:#x}").reason == "poweroff"
    session = boot.session("fixed")
    stop = session.run(until=f"rip=fixed:{address:#x}")
    assert (stop.reason, stop.rip) == ("condition", address)


def test_a_function_of_a_program_is_found_backwards(boot: Boot) -> None:
    travel = TimeTravel(boot.trace)
    travel.goto(boot.moments["dmesg"])
    stop = travel.run_back("symbol=moving:inner")
    assert (stop.reason, stop.rip) == ("condition", printed(boot, "moving")[1])
    assert boot.moments["moving"] < stop.icount < boot.moments["dmesg"]
