"""Timelines and profiles of a real Linux, against what its memory says at single moments."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from pathlib import Path

import pytest

import rr86
from rr86.analysis.collector import collect
from rr86.analysis.linux import _call_name, handler_name
from rr86.analysis.profile import Profile
from rr86.analysis.sampler import profile
from rr86.analysis.timeline import Kind, MarkKind, Span, Timeline
from rr86.kernel.tasks import Tasks
from rr86.session.conditions import Before
from tests.analysis.test_timeline import assert_well_formed
from tests.kernel.conftest import boot
from tests.kernel.debian import VCPUS, Boot

__all__ = ["boot"]

# The kernel changes the current task a few instructions behind the probe.
NEAR = 2000


@pytest.fixture(scope="module")
def timeline(boot: Boot) -> Timeline:
    return collect(boot.trace)


@pytest.fixture(scope="module")
def found(boot: Boot) -> Profile:
    return profile(boot.trace)


def at(spans: list[Span], time: int) -> Span | None:
    index = bisect_right(spans, time, key=lambda span: span.start) - 1
    return spans[index] if index >= 0 and time < spans[index].end else None


def test_a_boot_fills_the_time_of_each_vcpu(boot: Boot, timeline: Timeline) -> None:
    assert_well_formed(timeline)
    assert [text for text in timeline.left_out if "is an arrow" not in text] == []
    assert timeline.instructions == boot.last
    assert timeline.hand_offs == boot.trace.sharing().hand_offs


def test_a_trace_that_was_cut_off_shows_its_tasks_too(
    boot: Boot, timeline: Timeline, tmp_path: Path
) -> None:
    # Nothing says where its kernel is before that has placed itself.
    whole = boot.trace.path.read_bytes()
    (tmp_path / "cut.rr86").write_bytes(whole[: len(whole) * 99 // 100])
    trace = rr86.open_trace(tmp_path / "cut.rr86")
    assert trace.footer is None
    cut = collect(trace)
    assert_well_formed(cut)
    assert cut.end > 500_000_000
    for vcpu in range(VCPUS):
        owners = [span for span in cut.of_vcpu(vcpu, 0) if span.kind is Kind.TASK]
        same = [s for s in timeline.of_vcpu(vcpu, 0) if s.kind is Kind.TASK and s.end < cut.end]
        assert owners[: len(same)] == same


def test_tasks_are_those_of_the_kernels_memory(boot: Boot, timeline: Timeline) -> None:
    drawn = random.Random(7)
    # Most of it is at the end, where programs run.
    start = boot.moments["release"]
    moments = sorted(drawn.randrange(start, boot.last) for _ in range(150))
    owners = [timeline.of_vcpu(vcpu, 0) for vcpu in range(VCPUS)]
    session = boot.session_at(moments[0] - 1)
    tasks = Tasks(session.inspector)
    compared = Counter[str]()
    for moment in moments:
        time = session.run(Before(moment)).time_ns
        for vcpu in range(VCPUS):
            owner, task = at(owners[vcpu], time), tasks.current(vcpu)
            assert owner is not None
            assert task is not None
            if time - owner.start < NEAR:
                continue
            compared[str(owner.kind)] += 1
            if task.idle:
                assert owner.kind is Kind.IDLE
            else:
                assert (owner.kind, owner.name, owner.pid) == (Kind.TASK, task.name, task.pid)
    assert compared["task"] > 50
    assert compared["idle"] > 50


def test_nothing_of_the_kernel_is_under_way_in_user_mode(boot: Boot, timeline: Timeline) -> None:
    drawn = random.Random(8)
    inner = [timeline.of_vcpu(vcpu, 1) for vcpu in range(VCPUS)]
    moments = sorted(drawn.randrange(boot.moments["release"], boot.last) for _ in range(300))
    session = boot.session_at(moments[0] - 1)
    tasks = Tasks(session.inspector)
    modes = Counter[tuple[bool, bool]]()
    for moment in moments:
        stop = session.run(Before(moment))
        registers = session.registers(stop.vcpu)
        user = registers["cpl"] == 3
        span = at(inner[stop.vcpu], stop.time_ns)
        modes[user, span is not None] += 1
        if user:
            assert span is None
            continue
        names = [str(frame.symbol) for frame in session.backtrace(stop.vcpu, 64)]
        task = tasks.current(stop.vcpu)
        if span is None and task is not None and task.mm and not task.kernel:
            # The kernel works for a program only because that has asked or failed, or is new.
            assert any("ret_from_fork" in name for name in names), names
        elif span is not None and span.kind is Kind.SYSTEM_CALL:
            assert any("entry_SYSCALL_64" in name or "syscall" in name for name in names), names
    assert modes[True, False] > 10
    assert modes[False, True] > 40


def test_programs_make_the_calls_that_their_sources_say(timeline: Timeline) -> None:
    for program in ("fixed", "moving"):
        ((vcpu, pid),) = {(s.vcpu, s.pid) for s in timeline.spans if s.name == program}
        (mine,) = [s for s in timeline.of_vcpu(vcpu, 0) if s.name == program][-1:]
        assert pid is not None
        calls = Counter(
            span.name
            for owner in timeline.of_vcpu(vcpu, 0)
            if owner.name == program
            for span in timeline.of_vcpu(vcpu, 1)
            if owner.start <= span.start < owner.end and span.kind is Kind.SYSTEM_CALL
        )
        # inner() calls getpid() and main() does.
        assert calls["getpid"] == 2
        assert calls["write"] == 1
        assert calls["exit_group"] == 1
        assert mine.end > mine.start


def test_calls_and_interrupts_have_the_kernels_names(timeline: Timeline) -> None:
    calls = {span.name for span in timeline.spans if span.kind is Kind.SYSTEM_CALL}
    assert {"execve", "clone", "mount", "reboot", "wait4"} <= calls
    assert not [name for name in calls if name.startswith("system call")]
    assert {s.name for s in timeline.spans if s.kind is Kind.TIMER} == {"apic timer"}
    interrupts = {span.name for span in timeline.spans if span.kind is Kind.INTERRUPT}
    assert {"reschedule ipi", "call function single"} <= interrupts
    assert any(name.startswith("ttyS0 (vector ") for name in interrupts)
    assert {"page fault"} <= {s.name for s in timeline.spans if s.kind is Kind.EXCEPTION}


def test_reschedule_ipis_arrive(timeline: Timeline) -> None:
    sent = [ipi for ipi in timeline.ipis if ipi.name == "reschedule ipi"]
    assert len(sent) > 20
    assert sum(ipi.taken is not None for ipi in sent) > 0.9 * len(sent)


def test_console_lines_are_the_consoles(boot: Boot, timeline: Timeline) -> None:
    lines = [mark.text for mark in timeline.marks if mark.kind is MarkKind.CONSOLE]
    assert "@release" in lines
    assert [line for line in lines if line.startswith("pid ")] == [
        line for line in boot.console.splitlines() if line.startswith("pid ")
    ]


def test_stacks_go_from_the_program_through_the_kernel(boot: Boot, found: Profile) -> None:
    assert sum(found.tasks().values()) == found.instructions == boot.last
    calls = [sample.stack for sample in found.samples if "do_syscall_64" in sample.stack]
    assert calls
    for stack in calls:
        entry = next(n for n, name in enumerate(stack) if name.startswith("entry_SYSCALL_64"))
        program = stack[1:entry]
        assert program
        assert all(name == "[user]" or ":" in name for name in program)
    threads = [sample.stack for sample in found.samples if "kthread" in sample.stack]
    assert threads
    assert all(stack[1].startswith("ret_from_fork") for stack in threads)


def test_functions_of_a_program_have_names_down_to_its_system_calls(boot: Boot) -> None:
    for name in ("fixed", "moving"):
        first = boot.moments[name]
        found = profile(boot.trace, first, first + 2_000_000, interval=500)
        stacks = [sample.stack for sample in found.samples if sample.stack[0] == name]
        own = [stack for stack in stacks if f"{name}:main" in stack]
        assert own
        writing = [stack for stack in own if "ksys_write" in stack]
        assert writing
        for stack in writing:
            assert stack.index(f"{name}:main") < stack.index("do_syscall_64")


def test_names_of_calls_and_handlers() -> None:
    assert _call_name("__x64_sys_openat") == "openat"
    assert _call_name("__ia32_compat_sys_openat") == "openat"
    assert _call_name("__x64_sys_ni_syscall") == ""
    assert handler_name("asm_sysvec_apic_timer_interrupt") == "apic timer"
    assert handler_name("asm_sysvec_reschedule_ipi") == "reschedule ipi"
    assert handler_name("timer_entry") == "timer entry"
