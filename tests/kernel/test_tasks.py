"""Tasks in a guest's memory, against what the guest's own /proc says."""

import random
import re
from pathlib import Path

import rr86
from rr86.kernel.tasks import Tasks
from tests.kernel.debian import VCPUS, Boot


def test_all_tasks_are_those_that_the_guest_lists(boot: Boot) -> None:
    said = re.findall(r"^(\d+) \((.*)\) (\w)", boot.said("tasks"), re.MULTILINE)
    assert len(said) > 50
    found = {task.pid: task for task in Tasks(boot.at_the_end.inspector).all() if task.pid}
    for pid, name, _ in said:
        if name in ("cat", "sed"):
            # Those that listed them have ended.
            continue
        task = found[int(pid)]
        # The guest adds to the name of a worker what it works on.
        assert name.startswith(task.name)
        assert task.tgid == task.pid
        assert task.kernel == (task.mm == 0) == (task.name != "init")
    assert len(found) - len(said) <= 3


def test_the_current_task_is_the_one_that_makes_the_call(boot: Boot) -> None:
    session = boot.session("fixed")
    tasks = Tasks(session.inspector)
    seen = set()
    for _ in range(40):
        stop = session.run(until="symbol=__x64_sys_getpid")
        assert stop.reason == "condition"
        task = tasks.current(stop.vcpu)
        assert task is not None
        assert not task.kernel
        seen.add((task.name, task.pid))
        if len(seen) >= 2:
            break
    for name in ("fixed", "moving"):
        pid = int(re.findall(r"pid (\d+)", boot.said(name))[0])
        assert (name, pid) in seen


def test_a_reader_that_is_kept_says_the_same_as_a_new_one_at_every_moment(boot: Boot) -> None:
    session = boot.trace.session(verify=False)
    kept = Tasks(session.inspector)
    names: set[str] = set()
    moments = sorted(random.Random(5).sample(range(boot.last), 40))
    for moment in moments:
        session.run(until=f"icount={moment}")
        for vcpu in range(VCPUS):
            task = kept.current(vcpu)
            assert task == Tasks(session.inspector).current(vcpu)
            if task is not None:
                names.add("idle" if task.idle else task.name)
    assert {"swapper/0", "idle"} <= names
    assert any(name.startswith("kworker") for name in names)


def test_before_the_kernel_runs_nothing_is_current(boot: Boot) -> None:
    session = boot.session_at(1000)
    assert [Tasks(session.inspector).current(vcpu) for vcpu in range(VCPUS)] == [None] * VCPUS


def test_a_guest_without_linux_has_no_current_task(demo_trace: Path) -> None:
    session = rr86.open_trace(demo_trace).session()
    session.run(until="icount=1000000")
    assert Tasks(session.inspector).current(0) is None
