"""Core files of a moment, read by others: pyelftools, gdb."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from typer.testing import CliRunner

import rr86
from rr86.cli.app import app
from tests.kernel.debian import VCPUS, Boot
from tests.kernel.gdb import gdb

# `struct user_regs_struct`.
REGISTERS = [
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base"),
    *("ds", "es", "fs", "gs"),
]


def parts(path: Path) -> tuple[list[Any], dict[str, list[bytes]]]:
    """The loadable segments and the notes of a core file."""
    with path.open("rb") as file:
        elf: Any = ELFFile(file)
        assert elf["e_type"] == "ET_CORE"
        loads = [dict(each.header) for each in elf.iter_segments() if each["p_type"] == "PT_LOAD"]
        found: dict[str, list[bytes]] = {}
        for segment in elf.iter_segments():
            if segment["p_type"] == "PT_NOTE":
                for note in segment.iter_notes():
                    found.setdefault(note["n_name"], []).append(note["n_descdata"])
    return loads, found


def registers(status: bytes) -> dict[str, int]:
    return dict(zip(REGISTERS, struct.unpack_from("<27Q", status, 112), strict=True))


def holds(path: Path, load: Any, session: rr86.ReplaySession) -> None:
    """Compare a segment with guest RAM."""
    with path.open("rb") as file:
        for at in range(0, load["p_filesz"], 1 << 20):
            size = min(1 << 20, load["p_filesz"] - at)
            file.seek(load["p_offset"] + at)
            assert file.read(size) == session.memory(load["p_paddr"] + at, size)


def test_a_core_has_all_of_ram_and_the_registers_of_each_vcpu(
    demo_trace: Path, tmp_path: Path
) -> None:
    session = rr86.open_trace(demo_trace).session()
    session.run(until="icount=1500000")
    done = session.dump(tmp_path / "core")
    loads, found = parts(done.path)
    assert sum(load["p_filesz"] for load in loads) == done.ram == 64 << 20
    for load in loads:
        holds(done.path, load, session)
    assert not done.vmcoreinfo
    assert list(found) == ["CORE"]
    for vcpu, status in enumerate(found["CORE"]):
        own = session.registers(vcpu)
        assert {**registers(status), "orig_rax": 0} == {
            name: 0 if name == "orig_rax" else own[name] for name in REGISTERS
        }
        assert len(status) == 336
        assert struct.unpack_from("<i", status, 32) == (vcpu + 1,)


def test_pages_of_zeros_take_no_room(demo_trace: Path, tmp_path: Path) -> None:
    session = rr86.open_trace(demo_trace).session()
    done = session.dump(tmp_path / "core")
    assert done.path.stat().st_size > done.ram
    assert done.path.stat().st_blocks * 512 < done.ram // 4


def test_a_core_of_linux_has_its_vmcoreinfo_and_mappings(boot: Boot, tmp_path: Path) -> None:
    session = boot.at_the_end
    done = session.dump(tmp_path / "core")
    loads, found = parts(done.path)
    # The guest says where its note is.
    place, size = (int(each, 16) for each in boot.said("vmcoreinfo").split()[:2])
    own = session.memory(place, size)
    assert found["VMCOREINFO"][0].rstrip(b"\0") in own
    assert found["VMCOREINFO"][0].startswith(b"OSRELEASE=" + boot.said("release").encode())
    assert len(found["CORE"]) == VCPUS
    for load in loads[1:]:
        for at in range(0, load["p_filesz"], 4096):
            virtual = session.read_virtual(load["p_vaddr"] + at, 64, 0)
            # Memory that only some vCPUs map is rare, and freed memory of the image is unmapped.
            assert virtual in (b"", session.memory(load["p_paddr"] + at, 64))
    image = next(each for each in loads if each["p_vaddr"] == session.kernel.address("_text"))
    assert image["p_paddr"] == session.kernel.translate(image["p_vaddr"])


def test_gdb_reads_a_cores_registers_and_memory(boot: Boot, tmp_path: Path) -> None:
    session = boot.at_the_end
    session.dump(tmp_path / "core")
    task = session.kernel.address("init_task") + session.kernel.offset("task_struct", "comm")
    stack = session.kernel.field(session.kernel.address("init_task"), "task_struct", "stack")
    commands = [f"core {tmp_path / 'core'}", "set architecture i386:x86-64"]
    for vcpu in range(VCPUS):
        commands += [f"thread {vcpu + 1}", 'printf "SP %lx %lx\\n", $rsp, $rip']
    commands += [f'printf "COMM %s\\n", (char *){task:#x}', f"x/gx {stack:#x}"]
    said = gdb(tmp_path, *commands)
    for vcpu in range(VCPUS):
        own = session.registers(vcpu)
        assert f"SP {own['rsp']:x} {own['rip']:x}\n" in said
    assert "COMM swapper/0" in said
    assert f"{session.kernel.number(stack):#018x}" in said


def test_the_command_writes_both_files_and_replaces_none(boot: Boot, tmp_path: Path) -> None:
    core, symbols = tmp_path / "core", tmp_path / "symbols"
    words = ["dump", str(boot.trace.path), "--at", str(boot.moments["release"])]
    words += ["-o", str(core), "--symbol-file", str(symbols)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "268.4 MB of RAM at instruction" in done.stderr
    said = gdb(tmp_path, f"symbol-file {symbols}", f"core {core}", "thread 1", "bt")
    session = boot.session_at(boot.moments["release"])
    own = [str(frame).split("+")[0] for frame in session.backtrace(0) if frame.address >> 63]
    assert re.findall(r"^#\d+ +0xf\w+ in ([\w.]+) \(\)", said, re.MULTILINE)[-len(own) :] == own
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 1
    assert again.stderr == f"rr86: error: '{core}' exists; --force replaces it\n"


def test_the_command_reports_as_json(demo_trace: Path, tmp_path: Path) -> None:
    words = ["dump", str(demo_trace), "--at", "1000000", "-o", str(tmp_path / "core"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert (said["icount"], said["ram"], said["vmcoreinfo"]) == (1_000_000, 64 << 20, False)
    assert said["path"] == str(tmp_path / "core")


def test_a_moment_that_was_not_recorded_is_refused(demo_trace: Path, tmp_path: Path) -> None:
    words = ["dump", str(demo_trace), "--at", "900G", "-o", str(tmp_path / "core")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "moment 900,000,000,000 is not in the recording" in done.stderr
    assert not (tmp_path / "core").exists()


@pytest.mark.parametrize("command", ["dmesg", "drgn"])
def test_commands_that_need_linux_say_that_there_is_none(demo_trace: Path, command: str) -> None:
    done = CliRunner().invoke(app, [command, str(demo_trace), "--at", "1000000"])
    assert done.exit_code == 1
    assert done.stderr.startswith("rr86: error: ")
    assert "no Linux" in done.stderr
