"""drgn on a stopped guest without debugging information: what it says is what the guest said."""

import gc
import os
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rr86
from rr86.cli.app import app
from rr86.kernel.tasks import Tasks
from tests.kernel.debian import VCPUS, Boot

drgn = pytest.importorskip("drgn", reason="drgn is not installed (the extra rr86[drgn])")
# Its names are exported at run time only.
linux: Any = pytest.importorskip("drgn.helpers.linux")


@pytest.fixture(scope="module")
def prog(boot: Boot) -> Any:
    return boot.at_the_end.drgn()


def test_tasks_are_those_that_rr86_sees(boot: Boot, prog: Any) -> None:
    found = {
        (int(task.pid), task.comm.string_().decode(), task.value_())
        for task in linux.for_each_task(prog)
    }
    own = {
        (task.pid, task.name, task.address)
        for task in Tasks(boot.at_the_end.inspector).all()
        if task.pid
    }
    assert found == own
    assert len(found) > 50


def test_types_are_those_of_btf(boot: Boot, prog: Any) -> None:
    btf = boot.at_the_end.kernel.btf
    for name in ("task_struct", "mm_struct", "file", "module", "page", "rq"):
        kind = prog.type(f"struct {name}")
        assert drgn.sizeof(kind) == btf.struct(name).size
        for member in btf.members(btf.struct(name).id):
            if member.name and not member.bits:
                assert kind.member(member.name).offset == member.offset
    assert prog.type("unsigned long").size == 8
    assert str(prog.type("pid_t").type_name()) == "pid_t"
    assert "PIDTYPE_PID = 0" in str(prog.type("enum pid_type"))
    assert int(prog["PIDTYPE_TGID"]) == 1


def test_the_log_the_modules_and_the_name_are_the_guests(boot: Boot, prog: Any) -> None:
    assert (
        linux.get_dmesg(prog).decode().splitlines()[:100] == boot.said("dmesg").splitlines()[:100]
    )
    said = re.findall(r"^(\w+) ", boot.said("modules"), re.MULTILINE)
    assert [module.name.string_().decode() for module in linux.for_each_module(prog)] == said
    assert prog["init_uts_ns"].name.release.string_().decode() == boot.said("release").strip()
    assert list(linux.for_each_online_cpu(prog)) == list(range(VCPUS))


def test_stacks_are_unwound_by_orc(boot: Boot) -> None:
    session = boot.session_at(boot.moments["kallsyms"] + 1_000_000)
    stop = session.run(until="irq=0xec")
    stop = session.run(until=f"icount={stop.icount + 300}")
    prog = session.drgn()
    for vcpu in range(VCPUS):
        if session.registers(vcpu)["cpl"] == 3:
            continue
        own = [frame.address for frame in session.backtrace(vcpu, 64) if frame.address >> 63]
        trace = prog.stack_trace(linux.cpu_curr(prog, vcpu))
        assert [frame.pc for frame in trace if frame.pc >> 63] == own
    # Also of a task that does not run.
    names = [frame.name for frame in prog.stack_trace(linux.find_task(prog, 2))]
    assert names[:2] == ["__schedule", "schedule"]
    assert "kthreadd" in names


def test_symbols_and_objects_are_the_kernels(boot: Boot, prog: Any) -> None:
    kernel = boot.at_the_end.kernel
    address = kernel.address("do_sys_openat2")
    for symbol in (prog.symbol("do_sys_openat2"), prog.symbol(address + 7)):
        assert (symbol.name, symbol.address) == ("do_sys_openat2", address)
    function = prog["do_sys_openat2"]
    assert function.address_ == address
    assert "struct open_how *" in function.type_.type_name()
    queue = linux.per_cpu(prog["runqueues"], 1)
    assert queue.address_of_().value_() == kernel.per_cpu("runqueues", 1)
    assert int(queue.cpu) == 1
    assert prog["init_task"].comm.string_() == b"swapper/0"
    with pytest.raises(KeyError):
        prog["no_such_variable"]
    with pytest.raises(LookupError):
        prog.type("struct no_such_struct")


def test_a_program_that_is_dropped_closes_no_file_of_others(boot: Boot) -> None:
    prog = boot.at_the_end.drgn()
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(16)]
    del prog
    gc.collect()
    for each in opened:
        os.fstat(each)
        os.close(each)


def test_a_script_and_code_are_run_at_the_moment(boot: Boot, tmp_path: Path) -> None:
    script = tmp_path / "tasks.py"
    script.write_text(
        "import sys\nfrom drgn.helpers.linux import find_task\n"
        "print(sys.argv[1:], find_task(prog, 1).comm.string_(), session.icount)\n"
    )
    at = boot.moments["after-tasks"]
    words = ["drgn", "--at", str(at), str(boot.trace.path)]
    done = CliRunner().invoke(app, [*words, str(script), "first", "second"])
    assert done.stdout == f"['first', 'second'] b'init' {at}\n", done.stderr
    done = CliRunner().invoke(app, [*words, "-e", "print(find_task(2).comm.string_())"])
    assert done.stdout == "b'kthreadd'\n"
    done = CliRunner().invoke(app, [*words, str(tmp_path / "none.py")])
    assert done.exit_code == 1
    assert "none.py' does not exist" in done.stderr


def test_a_vmlinux_of_another_build_is_refused(boot: Boot) -> None:
    with pytest.raises(rr86.KernelError, match="they are not of the same build"):
        boot.at_the_end.drgn(boot.programs / "fixed")


def test_before_linux_runs_drgn_cannot_look(demo_trace: Path) -> None:
    with pytest.raises(rr86.KernelError, match="no Linux"):
        rr86.open_trace(demo_trace).session().drgn()
