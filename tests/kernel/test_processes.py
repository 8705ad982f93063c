"""Processes named where a stop is shown."""

import re
from pathlib import Path

import pytest

import rr86
from rr86.cli.as_json import of_machine
from rr86.cli.show import show_stop
from tests.kernel.debian import VCPUS, Boot


def stopped_in(boot: Boot, name: str) -> tuple[rr86.ReplaySession, rr86.Stop, int]:
    """A session at the first getpid of a program, and the pid that this printed."""
    session = boot.session(name)
    pid = int(re.findall(r"pid (\d+)", boot.said(name))[0])
    while True:
        stop = session.run(until="symbol=__x64_sys_getpid")
        assert stop.reason == "condition"
        if session.inspector.running(stop.vcpu) == f"in {name} (pid {pid})":
            return session, stop, pid


def test_a_stop_names_the_process(boot: Boot, capsys: pytest.CaptureFixture[str]) -> None:
    session, stop, pid = stopped_in(boot, "fixed")
    show_stop(stop, session.inspector)
    shown = capsys.readouterr().err
    assert f" on vCPU {stop.vcpu}, in fixed (pid {pid}), " in shown.splitlines()[0]
    others = re.findall(r"^vCPU (\d), (idle|in \S+ \(pid \d+\)): ", shown, re.MULTILINE)
    assert [int(vcpu) for vcpu, _ in others] == [v for v in range(VCPUS) if v != stop.vcpu]
    for vcpu, who in others:
        assert who == session.inspector.running(int(vcpu))
    # An idle vCPU may be on its way into HLT or out of it; one that is halted is idle.
    halted = re.findall(r"^vCPU \d, ([^:]*): halted at", shown, re.MULTILINE)
    assert set(halted) <= {"idle"}


def test_json_has_the_process_of_every_vcpu(boot: Boot) -> None:
    session, stop, pid = stopped_in(boot, "fixed")
    rows = of_machine(stop, session.inspector)["vcpus"]
    assert isinstance(rows, list)
    process = rows[stop.vcpu]["process"]
    assert (process["name"], process["pid"], process["idle"]) == ("fixed", pid, False)
    assert all(row["process"] is not None for row in rows)


def test_a_guest_without_linux_has_no_processes(
    demo_trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = rr86.open_trace(demo_trace).session()
    stop = session.run(until="irq=0x40")
    show_stop(stop, session.inspector)
    assert f" on vCPU {stop.vcpu}, {stop.time_ns / 1e9:.6f} s of " in capsys.readouterr().err
