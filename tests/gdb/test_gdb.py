"""The real gdb on four vCPUs: everything that it does with a recording, forwards and backwards."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import rr86
from rr86.session.conditions import Rip
from tests.gdb.conftest import TRACES
from tests.gdb.scripts import COMMAND, Guest, build_demo, environment, gdb, needs_gdb

pytestmark = needs_gdb


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    return build_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def trace(demo: Guest) -> rr86.Trace:
    return rr86.open_trace(demo.trace)


@pytest.fixture(scope="module")
def address(trace: rr86.Trace) -> Callable[[str], int]:
    table = trace.symbols().table
    assert table is not None
    return table.address


def frames(text: str) -> list[str]:
    """The functions of a call stack, innermost first."""
    return re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+) \(", text, re.MULTILINE)


def moment(text: str) -> int:
    match = re.match(r"instruction ([0-9,]+) of", text)
    assert match is not None, text
    return int(match[1].replace(",", ""))


def test_threads_are_vcpus(demo: Guest) -> None:
    at_power_on, later = gdb(demo, "info threads", "info threads", at="begin")[:1] + gdb(
        demo, "info threads", at="5M"
    )
    names = re.findall(r"Thread \d \(([^)]*)\)", at_power_on)
    assert names == ["vCPU 0, running", *(f"vCPU {n}, waiting for SIPI" for n in (1, 2, 3))]
    assert len(re.findall(r"Thread \d \(vCPU \d, (?:running|halted)\)", later)) == 4


def test_it_begins_at_the_end_ready_to_go_back(demo: Guest, trace: rr86.Trace) -> None:
    where, back, where_back, stack, end = gdb(
        demo, "monitor moment", "reverse-stepi", "monitor moment", "bt", "continue", at="end"
    )
    last = trace.summary()["last_icount"]
    assert moment(where) == last
    assert "outw" in back
    assert moment(where_back) == last - 1
    assert frames(stack)[:3] == ["outw", "power_off", "demo_main"]
    assert "No more reverse-execution history" in end
    assert "guest powered off" in end


def test_a_breakpoint_is_met_in_both_directions(
    demo: Guest, trace: rr86.Trace, address: Callable[[str], int]
) -> None:
    session = trace.session()
    hits = [session.run(Rip(address("serialise_all"))).icount for _ in range(3)]
    commands = ["break *serialise_all"]
    commands += ["continue", "monitor moment"] * 3 + ["reverse-continue", "monitor moment"] * 3
    said = gdb(demo, *commands)
    assert [moment(text) for text in said[2::2]] == [*hits, hits[1], hits[0], 0]
    assert "hit Breakpoint 1, serialise_all" in said[1]
    assert "No more reverse-execution history" in said[-2]


def test_steps_back_undo_steps(demo: Guest) -> None:
    commands = ["break patch", "continue"]
    commands += ["monitor moment", "p/x $rip", "p $rsp"] + ["stepi"] * 40 + ["reverse-stepi"] * 40
    commands += ["monitor moment", "p/x $rip", "p $rsp"]
    said = gdb(demo, *commands)
    values = [re.sub(r"\$\d+ = ", "", text) for text in said]
    assert values[2:5] == values[-3:]


def test_lines_are_stepped_in_both_directions(demo: Guest) -> None:
    said = gdb(
        demo,
        *("break serialise_all", "continue", "bt", "delete"),
        *("reverse-step", "bt 1", "reverse-next", "bt 1", "next", "step", "bt 1"),
        *("reverse-finish", "bt 1", "finish"),
    )
    assert frames(said[2])[:4] == ["serialise_all", "poke", "patch", "work"]
    assert frames(said[5]) == ["poke"]
    assert "rep movsb" in said[6]
    assert frames(said[7]) == ["poke"]
    assert "serialise_all();" in said[8]
    assert frames(said[10]) == ["serialise_all"]
    assert "serialise_all();" in said[11]
    assert frames(said[12]) == ["poke"]
    assert "patch ()" in said[13]


def test_another_vcpu_than_the_first_goes_back_over_calls_and_out_of_them(demo: Guest) -> None:
    """`work` of vCPU 2: `meet(2)` before the call waits for all others, so that stepping back over
    it goes back through what they all did meanwhile."""
    said = gdb(
        demo,
        *("break run_jobs if me == 2", "continue", "info threads", "bt", "print me"),
        *("reverse-finish", "bt 1", "print me"),
        *("reverse-next", "reverse-next", "reverse-next", "bt 1", "print me", "print arrived"),
        *("next", "print arrived", "thread"),
    )
    assert "Thread 3 hit Breakpoint 1, run_jobs (me=me@entry=2)" in said[1]
    assert re.search(r"^\* 3 ", said[2], re.MULTILINE)
    assert frames(said[3])[:3] == ["run_jobs", "work", "other_main"]
    assert said[4].endswith("= 2\n")
    assert frames(said[6]) == ["work"]
    assert said[7].endswith("= 2\n")
    assert "meet(2);" in said[10]
    assert frames(said[11]) == ["work"]
    assert said[12].endswith("= 2\n")
    before, after = (int(said[n].split()[-1]) for n in (13, 15))
    assert before < 8
    assert after == 8
    assert "Thread 3" in said[16]


def test_conditions_of_breakpoints_hold(demo: Guest) -> None:
    said = gdb(
        demo,
        *("break poke if length == 4", "continue", "print length", "print patching"),
        *("continue", "print length", "reverse-continue", "print length", "info breakpoints"),
    )
    assert [said[n].split()[-1] for n in (2, 5, 7)] == ["4", "4", "4"]


def test_watched_memory_shows_old_and_new_in_both_directions(demo: Guest) -> None:
    said = gdb(
        demo,
        *("break demo_main", "continue", "watch online", "continue", "continue"),
        *("reverse-continue", "reverse-continue", "print online"),
    )
    assert "Old value = 1\nNew value = 2\n" in said[3]
    assert "Old value = 2\nNew value = 3\n" in said[4]
    assert "Old value = 3\nNew value = 2\n" in said[5]
    assert "Old value = 2\nNew value = 1\n" in said[6]
    assert said[7].endswith("= 1\n")


def test_reads_and_accesses_are_watched(demo: Guest) -> None:
    said = gdb(
        demo,
        *("break work if me == 0", "continue", "delete", "rwatch messages_done", "continue", "bt"),
        *("delete", "awatch messages_done", "reverse-continue", "bt", "delete"),
        *("awatch messages_done", "continue", "bt 1"),
        at="begin",
    )
    assert "Hardware read watchpoint" in said[4]
    assert "Value = " in said[4]
    assert "Hardware access (read/write) watchpoint" in said[8]
    assert frames(said[5])[0] in ("work", "pass_messages", "demo_main")


def test_registers_of_the_system_have_names_and_fields(demo: Guest) -> None:
    said = gdb(
        demo,
        *("info registers cr0 cr4 efer eflags", "print $cr0", "print/x $idtr_base"),
        *("print $xmm3.uint128", "info float", "print $fs_base", "info registers"),
        at="5M",
    )
    assert re.search(r"cr0 +0x8\w+ +\[ .*PG.* \]", said[0])
    assert re.search(r"efer +0x500 +\[ .*LM[AE].*LM[AE].*\]", said[0])
    assert "PG" in said[1]
    assert int(said[2].split()[-1], 16) > 0
    assert "TOP" in said[4]
    assert "tr_base" in said[6]


def test_physical_memory_is_read_as_in_qemu(demo: Guest) -> None:
    said = gdb(
        demo,
        *("x/4xw 0x101000", "x/xw 0x8000101000", "maint packet Qqemu.PhyMemMode:1"),
        *("x/4xw 0x101000", "x/xw 0x8000101000"),
        at="5M",
    )
    assert said[0] == said[3]
    # The second mapping of code is a linear address alone.
    assert said[1].split()[-1] == said[0].split()[-4]
    assert "OK" in said[2]
    assert "Cannot access memory" in said[4]


def test_nothing_can_be_changed_and_it_is_said_what_to_do(demo: Guest) -> None:
    said = gdb(
        demo,
        *("print/x $rax", "set var $rax = 0x1234", "print/x $rax"),
        *("set var counter = 77", "print counter", "call serialise_all()", "x/i $pc"),
        at="5M",
    )
    assert "rr86 branch" in said[1]
    assert "a recording cannot be changed" in said[1]
    assert said[0].split()[-1] == said[2].split()[-1]
    assert "rr86 branch" in said[3]
    assert "Cannot access memory" in said[3]
    assert "= 77" not in said[4]
    assert "rr86 branch" in said[5]


def test_the_monitor_moves_and_gdb_follows(demo: Guest) -> None:
    said = gdb(
        demo,
        *("monitor goto 5M", "monitor moment", "print/x $rip", "thread", "monitor goto -1"),
        *("print/x $rip", "monitor until symbol=on_timer", "print/x $rip", "bt 1"),
        *("monitor back-until symbol=poke", "bt 1", "monitor goto nowhere", "monitor fly"),
    )
    assert moment(said[0]) == moment(said[1]) == 5_000_000
    rip = re.search(r"rip (0x[0-9a-f]+)", said[1])
    assert rip is not None
    assert said[2].split()[-1] == rip[1]
    thread = re.search(r"thread (\d)\)", said[1])
    assert thread is not None
    assert f"Current thread is {thread[1]}" in said[3]
    assert moment(said[4]) == 4_999_999
    assert said[5] != said[2]
    # Its first instruction belongs to a function that was inlined.
    assert frames(said[8])[-1] in ("on_timer", "this_cpu")
    assert "on_timer" in said[6]
    assert frames(said[10]) == ["poke"]
    assert "'nowhere' is no moment" in said[11]
    assert "there is no verb 'fly'" in said[12]


def test_the_monitor_names_the_last_writer(demo: Guest, trace: rr86.Trace) -> None:
    said = gdb(
        demo,
        *("monitor who-wrote counter", "print &counter", "watch counter", "reverse-continue"),
        *("monitor moment", "print counter", "monitor console", "monitor help"),
        at="5M",
    )
    match = re.search(r"written by vCPU (\d) at instruction ([0-9,]+) by 0x", said[0])
    assert match is not None
    # The watchpoint goes back to just before that write.
    assert moment(said[4]) == int(match[2].replace(",", ""))
    assert f"on vCPU {match[1]} " in said[4]
    assert "vCPUs running:           4" in said[6]
    for verb in ("goto MOMENT", "until CONDITION", "back-until", "who-wrote", "events", "console"):
        assert verb in said[7]


def test_a_value_is_followed_back_by_the_monitor(demo: Guest) -> None:
    said = gdb(
        demo,
        *("break run_jobs", "continue", "monitor moment", "monitor origin messages_done 4"),
        *("monitor moment", "monitor who-wrote $sp 8", "monitor who-wrote $nowhere", "print $sp"),
        *("monitor origin $sp+8:4", "x/2gx $sp", "monitor origin"),
    )
    # Counted by vCPU 0, and it stands where it stood.
    stored, added = said[3].splitlines()
    assert re.search(r"vCPU 0  work\+.* store: physical .* from eax \(c8 00 00 00\)", stored)
    assert re.search(r"vCPU 0  work\+.* computed: eax from eax = 0xc7", added)
    assert said[2] == said[4]
    # The return address, pushed by the call.
    assert re.search(r"written by vCPU \d at instruction [0-9,]+ by .*<work\+", said[5])
    assert "there is no register 'nowhere'" in said[6]
    assert re.search(r"push .*store: physical", said[8])
    assert "ADDR [LEN]" in said[10]


def test_the_story_of_a_stale_int3_is_told_in_gdb() -> None:
    """docs/the-int3-bug.md: stop at it, look at the bytes, go back to the write."""
    guest = Guest(TRACES / "stale-int3.rr86")
    said = gdb(
        guest,
        *("monitor back-until stale-int3", "x/i $pc", "x/xb $pc", "thread", "monitor moment"),
        *("watch -l *(unsigned char *)$pc", "monitor who-wrote $pc", "reverse-continue"),
        *("monitor moment", "thread", "info symbol $pc", "x/xb 0x102142"),
        at="end",
    )
    assert "int3" not in said[1]
    assert said[2].split()[-1] != "0xcc"
    match = re.search(r"written by vCPU 0 at instruction ([0-9,]+) by .*<poke", said[6])
    assert match is not None
    assert "New value = 204" in said[7]
    # Under this protocol the bytes change some time after the instruction, before another one.
    committed = int(match[1].replace(",", ""))
    assert moment(said[8]) in (committed - 1, committed)
    assert "Current thread is 1" in said[9]
    assert "Current thread is 1" not in said[3]
    assert "poke" in said[10]


def test_a_condition_on_watched_memory_is_the_monitors(demo: Guest) -> None:
    said = gdb(
        demo,
        *("monitor watch messages_done:4 if value == 100 and vcpu < 4", "monitor watch"),
        *(
            "continue",
            "print messages_done",
            "monitor unwatch",
            "monitor watch",
            "monitor watch x if (",
        ),
        *("break run_jobs", "continue", "monitor watch messages_done:4 if value == 150"),
        *("reverse-continue", "print messages_done"),
    )
    assert "monitor watch 1" in said[0]
    assert said[1] == "1: messages_done:4 if value == 100 and vcpu < 4\n"
    assert "monitor watch 1 (messages_done:4 if" in said[2]
    assert said[3].endswith("= 100\n")
    assert "nothing is watched" in said[5]
    assert "no symbol 'x'" in said[6]
    # Backwards it stands before the write.
    assert said[11].endswith("= 149\n")


def test_symbols_come_from_the_guest_without_a_file(demo: Guest) -> None:
    said = gdb(
        Guest(demo.trace), "break run_jobs", "continue", "info symbol $rip", "x/2i $pc", at="begin"
    )
    assert "hit Breakpoint 1, " in said[1]
    assert "run_jobs in section .text" in said[2]
    assert "<run_jobs" in said[3]


def test_the_exit_status_is_that_of_gdb(demo: Guest, tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "gdb", str(demo.trace), "--at", "begin", "--", "-batch", "-ex", "quit 7"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7
    assert "error" not in done.stderr
