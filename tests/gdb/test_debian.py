"""The real gdb on Debian's kernels with four vCPUs, without any debug package.

RR86_KERNELS names the folder with the kernels (`tests/kernel/debian.py`).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rr86
from tests.gdb.scripts import Guest, gdb, needs_gdb
from tests.gdb.test_gdb import frames, moment
from tests.kernel.debian import folders

FOLDERS = folders()
pytestmark = [
    needs_gdb,
    pytest.mark.skipif(not FOLDERS, reason="RR86_KERNELS names no folder with Debian's kernels"),
]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def boot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    folder: Path = request.param
    trace = tmp_path_factory.mktemp(folder.name) / "boot.rr86"
    rr86.record(
        folder / "vmlinuz",
        initrd=folder / "initrd.gz",
        smp=4,
        memory="512M",
        seed=1,
        append="console=ttyS0 quiet panic=-1 cryptomgr.notests",
        checkpoints=200_000_000,
        output=trace,
    )
    return Guest(trace)


def test_breakpoints_set_before_the_kernel_has_placed_itself_are_met(boot: Guest) -> None:
    said = gdb(
        boot,
        *("break start_kernel", "break do_sys_openat2", "print/x $rip", "continue", "bt"),
        *("continue", "bt", "info threads", "print (char *)$rsi", "x/i $pc"),
        *("reverse-continue", "reverse-continue"),
        at="begin",
    )
    assert int(said[2].split()[-1], 16) < 1 << 32
    assert "hit Breakpoint 1, " in said[3]
    assert frames(said[4])[0] == "start_kernel"
    assert "hit Breakpoint 2, " in said[5]
    stack = frames(said[6])
    assert stack[0] == "do_sys_openat2"
    assert "do_syscall_64" in stack
    assert any(name.startswith("entry_SYSCALL_64") for name in stack)
    assert len(re.findall(r"Thread \d \(vCPU \d, (?:running|halted)\)", said[7])) == 4
    assert '"/' in said[8]
    assert "hit Breakpoint 1, " in said[10]
    assert "No more reverse-execution history" in said[11]


def test_a_call_stack_leads_through_an_interrupt(boot: Guest) -> None:
    """Back from the end to timer interrupts, until one has met a vCPU other than 0 at work."""
    tries = 12
    said = gdb(
        boot,
        "break hrtimer_interrupt",
        *("reverse-continue", "thread", "bt") * tries,
        at="end",
    )
    stacks = [frames(text) for text in said[3::3]]
    assert all(stack[0] == "hrtimer_interrupt" for stack in stacks)
    through = [
        text for text in said[3::3] if "<signal handler called>" in text and len(frames(text)) > 5
    ]
    assert through
    # Beyond the interrupt it goes on in what was interrupted: idling, a program, or the kernel.
    beyond = [frames(text.partition("<signal handler called>")[2]) for text in through]
    assert any(len(names) > 1 and "??" not in names[0] for names in beyond)
    assert len({re.findall(r"Current thread is (\d)", text)[0] for text in said[2::3]}) > 1


def test_other_vcpus_than_the_first_go_back_and_forth(boot: Guest) -> None:
    """System calls of all vCPUs: out of functions backwards, and to where they were called."""
    said = gdb(
        boot,
        *("break vfs_read if $_thread != 1", "reverse-continue", "thread", "monitor moment", "bt"),
        *("delete", "reverse-finish", "x/i $pc", "bt 1", "stepi", "monitor moment", "x/i $pc"),
        *("stepi 30", "reverse-stepi 30", "monitor moment", "thread"),
        *("stepi 30", "reverse-next", "bt 1", "finish", "bt 1"),
        at="end",
    )
    assert frames(said[4])[0] == "vfs_read"
    thread = re.findall(r"Current thread is (\d)", said[2])[0]
    assert thread != "1"
    caller = frames(said[4])[1]
    assert re.search(r"call .*<vfs_read>", said[7])
    assert frames(said[8]) == [caller]
    assert moment(said[10]) == moment(said[3]) == moment(said[14])
    assert re.findall(r"Current thread is (\d)", said[15]) == [thread]
    # Without line numbers, gdb steps back out of a function as a whole.
    assert frames(said[18]) == [caller]
    # And out of that, forwards.
    assert frames(said[20]) == frames(said[4])[2:3]


def test_memory_is_watched_in_both_directions(boot: Guest) -> None:
    said = gdb(
        boot,
        *("watch *(unsigned long *)&jiffies_64", "reverse-continue", "bt", "reverse-continue"),
        *("continue", "monitor moment", "monitor who-wrote jiffies_64", "delete"),
        *("awatch *(unsigned long *)&jiffies_64", "continue", "delete"),
        *("rwatch *(unsigned long *)&jiffies_64", "continue", "bt 1"),
        *("continue", "print/x $cr3", "maint packet Qqemu.PhyMemMode:1", "x/gx $cr3 & ~0xfff"),
        at="end",
    )
    change = r"Old value = (\d+)\nNew value = (\d+)\n"
    values = [re.findall(change, said[n])[0] for n in (1, 3, 4)]
    assert int(values[0][0]) == int(values[0][1]) + 1
    assert values[1] == (values[0][1], str(int(values[0][1]) - 1))
    # Forward over the write that it has gone back over.
    assert values[2] == (values[1][1], values[1][0])
    assert frames(said[2])[0].startswith("tick_do_update_jiffies64")
    match = re.search(r"written by vCPU \d at instruction ([0-9,]+) by", said[6])
    assert match is not None
    assert int(match[1].replace(",", "")) == moment(said[5]) - 1
    assert "Hardware access (read/write) watchpoint" in said[9]
    assert "Hardware read watchpoint" in said[12]
    assert "0x" in said[17]


def test_the_ends_and_the_monitor(boot: Guest) -> None:
    said = gdb(
        boot,
        *(
            "continue",
            "monitor goto begin",
            "reverse-continue",
            "monitor until symbol=start_kernel",
        ),
        *("bt 1", "monitor console", "monitor goto end", "monitor back-until symbol=vfs_open"),
        *("bt", "monitor console", "monitor checkpoints", "monitor events 3", "set var $rip = 0"),
        at="end",
    )
    assert "No more reverse-execution history" in said[0]
    assert "No more reverse-execution history" in said[2]
    assert frames(said[4]) == ["start_kernel"]
    assert frames(said[8])[0] == "vfs_open"
    assert len(said[9]) > 0
    assert "instruction" in said[10]
    assert "rr86 branch" in said[12]
