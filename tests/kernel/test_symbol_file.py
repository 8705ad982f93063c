"""The ELF file that is made for debuggers: its symbols against the guest's own /proc/kallsyms, its
unwind tables against rr86's call stacks, with the real gdb."""

import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

import rr86
from rr86.cpu.guest_symbols import GuestSymbols
from rr86.cpu.inspection import Inspector
from rr86.kernel.identity import build_id, debug_kernel, notes
from rr86.kernel.modules import module_symbols, modules, section_addresses
from rr86.kernel.symbol_file import write_symbol_file
from tests.kernel.debian import VCPUS, Boot
from tests.kernel.gdb import frames, gdb

_CONDITIONS = ("irq=0xec", "symbol=irq_exit_rcu", "symbol=exc_page_fault", "symbol=do_syscall_64")


def test_the_symbols_are_all_those_that_the_guest_lists(boot: Boot) -> None:
    session = boot.at_the_end
    own = "".join(
        f"{address:016x} {row.kind} {row.name}\n"
        for address, row in session.kernel.symbols.search()
    )
    assert hashlib.md5(own.encode()).hexdigest() in boot.said("kallsyms")
    said = re.findall(r"^(\w{16}) (\S) (\S+)\t\[(\w+)\]$", boot.said("kallsyms"), re.MULTILINE)
    of_modules = [
        (f"{row.address:016x}", row.kind, row.name, module.name)
        for module in modules(session.kernel)
        for row in module_symbols(session.kernel, module)
    ]
    assert sorted(of_modules) == sorted(said)


def test_modules_are_those_that_the_guest_lists(boot: Boot) -> None:
    said = re.findall(r"^(\w+) \d+ \d+ \S+ (\w+) 0x(\w+)", boot.said("modules"), re.MULTILINE)
    found = modules(boot.at_the_end.kernel)
    assert [(each.name, each.state, f"{each.base:x}") for each in reversed(found)] == [
        (name, state.lower(), base) for name, state, base in said
    ]
    for module in found:
        assert section_addresses(boot.at_the_end.kernel, module)[".text"] == module.base


def test_the_file_has_each_symbol_with_its_kind_and_size(boot: Boot, tmp_path: Path) -> None:
    session = boot.at_the_end
    made = write_symbol_file(session.inspector, tmp_path / "symbols")
    assert made.release == boot.said("release").strip()
    assert made.offset == session.inspector.symbols.offset
    with made.path.open("rb") as file:
        elf: Any = ELFFile(file)
        rows = [
            (each.name, each["st_value"], each["st_size"], each["st_info"]["type"])
            for each in elf.get_section_by_name(".symtab").iter_symbols()
        ]
    table = session.kernel.symbols
    own = [(row.name, address) for address, row in table.search()]
    own += [
        (row.name, row.address)
        for module in made.modules
        for row in module_symbols(session.kernel, module)
    ]
    assert sorted((name, value) for name, value, _, _ in rows[1:]) == sorted(own)
    by_name = {name: (value, size, kind) for name, value, size, kind in rows}
    for name in ("do_sys_openat2", "schedule", "start_kernel"):
        address = table.address(name)
        assert by_name[name] == (address, table.size_at(address), "STT_FUNC")
    assert by_name["init_task"][2] == "STT_OBJECT"
    # Per-CPU variables have their places in a CPU's area, as in a vmlinux.
    assert by_name["irq_stack_backing_store" if "runqueues" not in by_name else "runqueues"][0] < (
        1 << 24
    )


def test_the_build_id_is_the_one_of_the_guests_notes(boot: Boot) -> None:
    kernel = boot.at_the_end.kernel
    start, stop = kernel.address("__start_notes"), kernel.address("__stop_notes")
    raw = kernel.bytes_at(start, stop - start)
    assert hashlib.md5(raw).hexdigest() in boot.said("notes")
    assert build_id(kernel) in [content.hex() for name, kind, content in notes(raw) if kind == 3]


def test_a_vmlinux_of_another_build_is_refused_with_both_ids(boot: Boot, tmp_path: Path) -> None:
    kernel = boot.at_the_end.kernel
    # Any program has a build-id, and a folder of installed ones has this one where it is looked
    # for.
    other = boot.programs / "fixed"
    own = build_id(kernel)
    with pytest.raises(rr86.KernelError, match=rf"build-id \w+, but the guest's kernel has {own}"):
        debug_kernel(kernel, other)
    installed = tmp_path / f"usr/lib/debug/boot/vmlinux-{boot.said('release').strip()}"
    installed.parent.mkdir(parents=True)
    installed.write_bytes(other.read_bytes())
    assert debug_kernel(kernel, root=tmp_path) is None


def moments(boot: Boot, count: int, seed: int) -> Iterator[rr86.ReplaySession]:
    """Sessions that stand at moments drawn by a seed, many of them in interrupts, faults and
    system calls."""
    rng = random.Random(seed)
    found = 0
    while found < count:
        session = boot.session_at(rng.randrange(boot.moments["release"], boot.moments["dmesg"]))
        if found % 4:
            stop = session.run(until=_CONDITIONS[found % len(_CONDITIONS)])
            stop = session.run(until=f"icount={stop.icount + 1 + rng.randrange(40)}")
            if stop.over:
                continue
        found += 1
        yield session


def test_gdb_unwinds_as_rr86_does(boot: Boot, tmp_path: Path) -> None:
    compared = interrupted = 0
    for session in moments(boot, 5, seed=11):
        made = write_symbol_file(session.inspector, tmp_path / "symbols")
        session.dump(tmp_path / "core")
        found = frames(tmp_path, made.path, tmp_path / "core")
        assert sorted(found) == list(range(VCPUS))
        for vcpu, rows in found.items():
            if session.registers(vcpu)["cpl"] == 3:
                continue
            own = session.backtrace(vcpu, 64)
            if any(frame.doubtful for frame in own):
                continue
            # The core file has no memory of programs by linear addresses.
            in_kernel = [row[0] for row in rows if row[0] >> 63]
            own_in_kernel = [frame.address for frame in own if frame.address >> 63]
            assert in_kernel == own_in_kernel, (session.icount, vcpu, rows)
            compared += 1
            interrupted += any(row[2] for row in rows)
    assert compared > 9
    assert interrupted >= 2


def test_gdb_goes_through_a_system_call_into_the_program(boot: Boot, tmp_path: Path) -> None:
    session = boot.session("fixed")
    while True:
        stop = session.run(until="symbol=__x64_sys_getpid")
        if "in fixed" in (session.inspector.running(stop.vcpu) or ""):
            break
    made = write_symbol_file(session.inspector, tmp_path / "symbols")
    session.dump(tmp_path / "core")
    rows = frames(tmp_path, made.path, tmp_path / "core")[stop.vcpu]
    names = [row[1] for row in rows[:3]]
    assert names == ["__x64_sys_getpid", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"]
    # SYSCALL leaves the next instruction in RCX.
    kernel = session.kernel
    frame = session.registers(stop.vcpu)
    assert rows[3][0] == kernel.field(frame["rdi"], "pt_regs", "ip")


def test_gdb_finds_functions_of_modules_and_breaks_by_name(boot: Boot, tmp_path: Path) -> None:
    session = boot.at_the_end
    made = write_symbol_file(session.inspector, tmp_path / "symbols")
    rows = [
        row
        for module in made.modules
        for row in module_symbols(session.kernel, module)
        if row.kind == "t" and row.size > 16 and "." not in row.name
    ]
    session.dump(tmp_path / "core")
    said = gdb(
        tmp_path,
        f"symbol-file {made.path}",
        f"core {tmp_path / 'core'}",
        "info address do_sys_openat2",
        "info symbol schedule+4",
        *(f"info symbol {row.address + 4:#x}" for row in rows[:1]),
    )
    address = session.kernel.address("do_sys_openat2")
    assert f'Symbol "do_sys_openat2" is at {address:#x}' in said
    assert "schedule + 4 in section .text" in said
    for row in rows[:1]:
        assert f"{row.name} + 4 in section .text." in said


def test_without_symbols_the_file_unwinds_all_the_same(boot: Boot, tmp_path: Path) -> None:
    session = boot.at_the_end
    made = write_symbol_file(session.inspector, tmp_path / "unwind", symbols=False)
    with made.path.open("rb") as file:
        elf: Any = ELFFile(file)
        names = {each.name for each in elf.get_section_by_name(".symtab").iter_symbols()}
        assert elf.get_section_by_name(".eh_frame").data_size > 100_000
    assert "schedule" not in names


def test_a_finished_recording_has_symbols_before_the_kernel_runs(
    boot: Boot, tmp_path: Path
) -> None:
    early = write_symbol_file(boot.session_at(1000).inspector, tmp_path / "early")
    late = write_symbol_file(boot.at_the_end.inspector, tmp_path / "late")
    assert (early.offset, early.release, early.build_id) == (
        (late.offset, late.release, late.build_id)
    )
    assert early.modules == ()
    said = gdb(tmp_path, f"symbol-file {early.path}", "info address do_sys_openat2")
    assert f"is at {boot.at_the_end.kernel.address('do_sys_openat2'):#x}" in said


def test_where_nobody_knows_where_the_kernel_is_there_is_no_file(
    boot: Boot, tmp_path: Path
) -> None:
    session = boot.session_at(1000)
    unknown = GuestSymbols(boot.trace.all_images()["kernel"])
    with pytest.raises(rr86.KernelError, match="not placed itself"):
        write_symbol_file(Inspector(session.machine, unknown, VCPUS), tmp_path / "symbols")
    assert not (tmp_path / "symbols").exists()


def test_a_guest_without_linux_has_no_file(demo_trace: Path, tmp_path: Path) -> None:
    session = rr86.open_trace(demo_trace).session()
    session.run(until="icount=1000000")
    with pytest.raises(rr86.KernelError, match="no Linux"):
        write_symbol_file(session.inspector, tmp_path / "symbols")


def test_stacks_go_through_modules(boot: Boot, tmp_path: Path) -> None:
    if "loop" not in boot.moments:
        pytest.skip("this kernel has no loop module beside it")
    session = boot.session("loop")
    module = next(each for each in modules(session.kernel) if each.name == "loop")
    rows = module_symbols(session.kernel, module)
    address = next(row.address for row in rows if row.name == "loop_process_work")
    stop = session.run(until=f"rip={address:#x}")
    assert stop.reason == "condition"
    assert stop.describe(session.symbolize).endswith(" <loop_process_work [loop]>")
    for _ in range(200):
        stop = session.run(until=f"icount={stop.icount + 97}")
        own = session.backtrace(stop.vcpu, 64)
        if any("[loop]" in str(frame) for frame in own[1:]) and "[loop]" not in str(own[0]):
            break
    else:
        pytest.fail("the module called nothing")
    assert [str(frame).split("+")[0] for frame in own[-4:]][:3] == [
        *("process_one_work", "worker_thread", "kthread")
    ]
    made = write_symbol_file(session.inspector, tmp_path / "symbols")
    session.dump(tmp_path / "core")
    rows_of_gdb = frames(tmp_path, made.path, tmp_path / "core")[stop.vcpu]
    assert [row[0] for row in rows_of_gdb] == [frame.address for frame in own]
    assert "loop_process_work" in [row[1] for row in rows_of_gdb]
