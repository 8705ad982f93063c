"""The kernel's log out of its memory: against the guest's own dmesg, and against a ring that is
made here, with what a short boot does not have."""

import json
import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from rr86.cli.app import app
from rr86.cpu.elf import ElfFile
from rr86.errors import KernelError
from rr86.kernel.btf import Btf, Member
from rr86.kernel.dmesg import read_log
from rr86.kernel.running import RunningKernel
from tests.kernel.debian import Boot


def test_the_log_is_what_the_guests_dmesg_prints(boot: Boot) -> None:
    lines = [
        line for record in read_log(boot.session("after-dmesg").kernel) for line in record.lines()
    ]
    assert "\n".join(lines) + "\n" == boot.said("dmesg")


def test_at_an_earlier_moment_the_log_is_a_part_of_it(boot: Boot) -> None:
    whole = [record.seq for record in read_log(boot.at_the_end.kernel)]
    session = boot.trace.session(verify=False)
    session.run(until="symbol=rest_init")
    early = read_log(session.kernel)
    assert 10 < len(early) < len(whole)
    assert [record.seq for record in early] == whole[: len(early)]
    assert "Linux version" in early[0].text


def test_the_command_prints_it(boot: Boot) -> None:
    at = ["--at", str(boot.moments["after-dmesg"])]
    done = CliRunner().invoke(app, ["dmesg", str(boot.trace.path), *at])
    assert done.exit_code == 0
    assert done.stdout == boot.said("dmesg")
    done = CliRunner().invoke(app, ["dmesg", str(boot.trace.path), *at, "--json", "--level", "5"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    assert all(row["level"] <= 5 for row in rows)
    assert all(f"] {row['text']}" in boot.said("dmesg") for row in rows if "\n" not in row["text"])


# -- a ring of our own -----------------------------------------------------------------------------

SOURCE = r"""
typedef unsigned long long u64; typedef unsigned int u32; typedef unsigned char u8;
struct dev_printk_info { char subsystem[16]; char device[48]; };
struct printk_info {
    u64 seq; u64 ts_nsec; unsigned short text_len; u8 facility; u8 flags : 5; u8 level : 3;
    u32 caller_id; struct dev_printk_info dev_info;
};
typedef struct { long counter; } atomic_long_t;
struct prb_data_blk_lpos { unsigned long begin; unsigned long next; };
struct prb_desc { atomic_long_t state_var; struct prb_data_blk_lpos text_blk_lpos; };
struct prb_data_ring {
    unsigned int size_bits; char *data; atomic_long_t head_lpos; atomic_long_t tail_lpos;
};
struct prb_desc_ring {
    unsigned int count_bits; struct prb_desc *descs; struct printk_info *infos;
    atomic_long_t head_id; atomic_long_t tail_id; atomic_long_t last_finalized_id;
};
struct printk_ringbuffer {
    struct prb_desc_ring desc_ring; struct prb_data_ring text_data_ring; atomic_long_t fail;
} ring;
struct prb_desc one; struct printk_info two;
"""
RING, DESCRIPTORS, INFOS, TEXT, POINTER = 0x1000, 0x2000, 0x4000, 0x8000, 0x800
COUNT_BITS, SIZE_BITS = 4, 9
RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    if shutil.which("gcc") is None:
        pytest.fail("gcc is missing: install gcc")
    folder = tmp_path_factory.mktemp("ring")
    (folder / "ring.c").write_text(SOURCE)
    if subprocess.run(
        ["gcc", "-gbtf", "-c", "-o", folder / "ring.o", folder / "ring.c"], capture_output=True
    ).returncode:
        pytest.skip("this gcc makes no BTF (-gbtf, since 12)")
    data = (folder / "ring.o").read_bytes()
    elf = ElfFile(lambda at, length: data[at : at + length])
    section = elf.section(".BTF")
    assert section is not None
    return Btf(elf.section_bytes(section))


class Ring:
    """A kernel's memory with a ring in it, filled as printk fills it."""

    def __init__(self, types: Btf) -> None:
        self.btf = types
        self.memory = bytearray(0x10000)
        self.next_id = 0
        self.lpos = 0
        self.tail = 0

    def put(self, struct_name: str, base: int, path: str, value: int) -> None:
        found = self.btf.member(struct_name, path)
        size = found.size
        if found.bits:
            value <<= found.bit
        at = base + found.offset
        self.memory[at : at + size] = value.to_bytes(size, "little")

    def add(self, text: str, state: int = FINALIZED) -> None:
        number, size = self.next_id, 1 << SIZE_BITS
        self.next_id += 1
        data = text.encode()
        block = (8 + len(data) + 7) & -8
        begin, after = self.lpos, self.lpos + block
        place = begin % size
        if begin // size != after // size:
            # It does not fit behind the others.
            after = after // size * size + block
            place = 0
        self.lpos = after
        self.memory[TEXT + place : TEXT + place + 8 + len(data)] = struct.pack("<Q", number) + data
        descriptor = DESCRIPTORS + 24 * (number % (1 << COUNT_BITS))
        if not data:
            begin = after = 1
        values = (state << 62 | number, begin, after)
        self.memory[descriptor : descriptor + 24] = struct.pack("<3Q", *values)
        info = INFOS + self.btf.struct("printk_info").size * (number % (1 << COUNT_BITS))
        for path, value in {
            "seq": number,
            "ts_nsec": 1_000_000 * number,
            "text_len": len(data),
            "facility": 3,
            "level": number % 8,
        }.items():
            self.put("printk_info", info, path, value)
        self.tail = max(0, self.next_id - (1 << COUNT_BITS))

    def kernel(self) -> RunningKernel:
        for path, value in {
            "desc_ring.count_bits": COUNT_BITS,
            "desc_ring.descs": DESCRIPTORS,
            "desc_ring.infos": INFOS,
            "desc_ring.head_id": self.next_id - 1,
            "desc_ring.tail_id": self.tail,
            "text_data_ring.size_bits": SIZE_BITS,
            "text_data_ring.data": TEXT,
        }.items():
            self.put("printk_ringbuffer", RING, path, value)
        self.memory[POINTER : POINTER + 8] = RING.to_bytes(8, "little")
        return cast(RunningKernel, self)

    # What `read_log` asks of a kernel.
    def has(self, name: str) -> bool:
        return name == "prb"

    def address(self, name: str) -> int:
        return POINTER

    def bytes_at(self, address: int, length: int) -> bytes:
        return bytes(self.memory[address : address + length])

    def number(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.bytes_at(address, size), "little")

    def member(self, struct_name: str, path: str) -> Member:
        return self.btf.member(struct_name, path)

    def offset(self, struct_name: str, path: str) -> int:
        return self.btf.offset(struct_name, path)

    def field(self, address: int, struct_name: str, path: str) -> int:
        found = self.btf.member(struct_name, path)
        return self.number(address + found.offset, found.size)


@pytest.mark.parametrize("seed", range(5))
def test_a_ring_that_has_wrapped_gives_its_last_records(types: Btf, seed: int) -> None:
    rng = random.Random(seed)
    ring = Ring(types)
    texts = []
    for number in range(100):
        texts.append(f"{number}: " + "x" * rng.randrange(40))
        ring.add(texts[-1])
        # Texts of old records are overwritten before the records are.
        found = read_log(ring.kernel())
        assert [record.text for record in found] == texts[number + 1 - len(found) :]
        assert found[-1].seq == number
        assert found[-1].level == number % 8
        kept = min(number + 1, (1 << SIZE_BITS) // 64)
        assert len(found) >= min(kept, 1 << COUNT_BITS) - 1


def test_records_that_are_being_written_are_left_out(types: Btf) -> None:
    ring = Ring(types)
    for text, state in (
        ("one", FINALIZED), ("open", COMMITTED), ("new", RESERVED), ("", FINALIZED),
        ("gone", REUSABLE), ("two\nlines", FINALIZED),
    ):  # fmt: skip
        ring.add(text, state)
    found = read_log(ring.kernel())
    assert [record.text for record in found] == ["one", "open", "", "two\nlines"]
    assert found[-1].lines() == ["[    0.005000] two", "[    0.005000] lines"]
    assert found[0].facility == 3


def test_a_ring_of_rubbish_is_refused(types: Btf) -> None:
    ring = Ring(types)
    ring.add("text")
    kernel: Any = ring.kernel()
    ring.put("printk_ringbuffer", RING, "desc_ring.count_bits", 60)
    with pytest.raises(KernelError, match="implausibly large"):
        read_log(kernel)


def test_an_older_kernel_is_told_from_one_without_a_log(demo_trace: Path) -> None:
    class Older:
        def has(self, name: str) -> bool:
            return False

    with pytest.raises(KernelError, match=r"older than 5\.10"):
        read_log(cast(RunningKernel, Older()))
