"""The server as a debugger of our own meets it: every packet, and what it means."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

import rr86
from rr86.gdb.commands import PACKETS
from rr86.gdb.description import REGISTERS
from rr86.session.conditions import Rip
from tests.gdb.client import Client, Lost, Served, Stop

RIP, RSP = 16, 7


@pytest.fixture(scope="module")
def reference(recorded: rr86.Trace) -> rr86.ReplaySession:
    """The same recording, replayed to the moment of the tests without any debugger."""
    session = recorded.session()
    session.run("icount=5000000")
    return session


@pytest.fixture(scope="module")
def symbols(recorded: rr86.Trace) -> dict[str, int]:
    table = recorded.symbols().table
    assert table is not None
    return {symbol.name: address for address, symbol in table.search()}


@pytest.fixture(scope="module")
def slices(recorded: rr86.Trace) -> list[tuple[int, int, int]]:
    """Who ran when: first moment, moment behind the last, vCPU."""
    rows = recorded.events(kinds=["slice"])
    return [
        (e.icount, e.icount + int(e.fields["instructions"]), e.vcpu)
        for e in rows
        if e.vcpu is not None
    ]


def own_before(slices: list[tuple[int, int, int]], vcpu: int, moment: int) -> int:
    """The vCPU's last own moment before one."""
    return max(min(end, moment) - 1 for start, end, who in slices if who == vcpu and start < moment)


# -- hello -----------------------------------------------------------------------------------------


def test_the_features_are_those_that_a_replay_can_have(served: Served) -> None:
    with served.client() as client:
        offered = client.hello()
    assert {
        *("ReverseStep+", "ReverseContinue+", "ConditionalBreakpoints+", "qXfer:features:read+"),
        *("qXfer:threads:read+", "QStartNoAckMode+", "vContSupported+", "hwbreak+", "swbreak+"),
    } <= offered
    assert not {each for each in offered if each in ("multiprocess+", "QNonStop+")}


# What the machine at the tests' moment answers to each packet, as a regular expression.
ANSWERS = {
    "?": r"T05.*thread:2;",
    "QStartNoAckMode": "OK",
    "bc": r"T05.*replaylog:begin;",
    "bs": r"T05.*thread:[1-4];",
    "g": rf"[0-9a-f]{{{sum(each.bits // 4 for each in REGISTERS)}}}",
    "qC": "QC2",
    "qRr86.Moved": "[0-4]",
    "qSymbol::": "OK",
    "qfThreadInfo": "m1,2,3,4",
    "qqemu.PhyMemMode": "0",
    "qsThreadInfo": "l",
    "vCont?": "vCont;c;C;s;S",
    "C05": r"T05.*replaylog:end;",
    "G00": r"E\.a recording cannot be changed.*rr86 branch.*",
    "Hg3": "OK",
    "M101000,1:90": r"E\.a recording cannot be changed.*rr86 branch.*",
    "P0=0000000000000000": r"E\.a recording cannot be changed.*rr86 branch.*",
    "Qqemu.PhyMemMode:0": "OK",
    "S05": r"T05.*thread:2;",
    "T4": "OK",
    "X101000,1:z": r"E\.a recording cannot be changed.*rr86 branch.*",
    "X101000,0:": "",
    "Z0,101000,1": "OK",
    "c": r"T05.*replaylog:end;",
    "m101000,4": "[0-9a-f]{8}",
    "p10": "[0-9a-f]{16}",
    "qAttached": "1",
    "qSupported": ".*ReverseStep.*",
    "qThreadExtraInfo,1": "76435055.*",
    "qXfer:features:read:target.xml:0,20": r"m<\?xml version.*",
    "s": r"T05.*thread:2;",
    "vCont;s:1": r"T05.*thread:1;",
    "z0,101000,1": "OK",
    # What is not understood, gets the empty answer.
    "vMustReplyEmpty": "",
    "!": "",
    "qCRC:0,10": "",
    "QNonStop:1": "",
    "vCtrlC": "",
    "vFile:open:2f6574632f706173737764,0,0": "",
    "vRun;2f62696e2f7368": "",
    "jThreadsInfo": "",
    "i": "",
    "R00": "",
    "qXfer:auxv:read::0,100": "",
    "qXfer:exec-file:read:1:0,100": "",
    "Z5,101000,1": "",
}
# These have no answer, or many, and tests of their own.
APART = {"k", "D", "qRcmd,"}


@pytest.mark.parametrize("packet", ANSWERS)
def test_every_packet_is_answered(client: Client, packet: str) -> None:
    client.write(packet.encode())
    while (answer := client.read())[:1] == b"O" and answer != b"OK":
        pass
    assert re.fullmatch(ANSWERS[packet], answer.decode(), re.DOTALL), answer


def test_no_packet_is_left_out() -> None:
    named = set(ANSWERS) | APART
    assert [each for each in PACKETS if not any(name.startswith(each) for name in named)] == []


@pytest.mark.parametrize(
    "packet",
    [
        *("Hx1", "Hg9", "Hgz", "T0", "T9", "p", "p999", "px", "m", "m1", "mx,4", "m1,zz"),
        *("m" + "1" * 17 + ",4", "Z0", "Z0,1", "Zx,1,1", "Z0,x,1", "Z0,1,1;X2,ff", "Z2,101000,0"),
        *("z0,1", "vCont;x", "vCont;s:9", "vCont;", "vCont;t:1", "qXfer:features:read:target.xml"),
        *("qXfer:features:read:target.xml:x,1", "qXfer:features:read:other.xml:0,10"),
        *("qThreadExtraInfo,9", "qRcmd,6", "qRcmd,zz", "Qqemu.PhyMemMode:2", "C05;1000", "c1000"),
        *("s1000", "Z2,ffffffffffffffff,8", "Z2,101000,100001", "Z0,101000,1;X1,zz"),
    ],
)
def test_what_is_malformed_is_an_error_and_changes_nothing(client: Client, packet: str) -> None:
    before = client.moment()
    assert re.fullmatch(r"E[0-9a-f]{2}|E\..*|", client.ask(packet).decode())
    assert client.moment() == before


# -- looking ---------------------------------------------------------------------------------------


def test_registers_are_those_of_the_replay(client: Client, reference: rr86.ReplaySession) -> None:
    for vcpu in range(4):
        client.ok(f"Hg{vcpu + 1:x}")
        values = reference.registers(vcpu)
        together = bytes.fromhex(client.ask("g").decode())
        singly = b""
        for number, register in enumerate(REGISTERS):
            answer = client.ask(f"p{number:x}")
            singly += bytes.fromhex(answer.decode())
            name = {"eflags": "rflags", "k_gs_base": "kernel_gs_base"}.get(register.name)
            if (name or register.name) in values:
                value = int.from_bytes(bytes.fromhex(answer.decode()), "little")
                assert value == values[name or register.name], register.name
        assert together == singly
        area = reference.machine.fpu_state(vcpu)
        assert client.register(57) == int.from_bytes(area[160 + 8 * 16 :][:16], "little")


def test_threads_are_vcpus_with_names(client: Client, reference: rr86.ReplaySession) -> None:
    rows = client.document("threads")
    activity = {0: "running", 1: "halted", 2: "waiting for SIPI", 3: "shut down"}
    expected = [
        (f"{vcpu + 1:x}", f"vCPU {vcpu}, {activity[reference.registers(vcpu)['activity']]}")
        for vcpu in range(4)
    ]
    assert [(row.attrib["id"], row.text) for row in rows] == expected
    for thread, name in expected:
        assert bytes.fromhex(client.ask(f"qThreadExtraInfo,{thread}").decode()).decode() == name
    client.monitor("goto begin")
    names = [row.text for row in client.document("threads")]
    assert names == ["vCPU 0, running", *(f"vCPU {n}, waiting for SIPI" for n in (1, 2, 3))]


def test_memory_is_read_as_a_vcpu_maps_it(client: Client, reference: rr86.ReplaySession) -> None:
    for vcpu in range(4):
        client.ok(f"Hg{vcpu + 1:x}")
        stack = reference.registers(vcpu)["rsp"]
        assert client.memory(stack, 64) == reference.read_virtual(stack, 64, vcpu)
    # As much as there is; nothing at all is an error.
    assert client.ask("m7fffffff0000,10") == b"E14"
    assert client.ask("m101000,0") == b""
    assert len(client.memory(0x10_0000, 0x7FFF)) <= 0x7FFF


def test_physical_memory_is_read_as_in_qemu(client: Client, reference: rr86.ReplaySession) -> None:
    assert client.ask("qqemu.PhyMemMode") == b"0"
    client.ok("Qqemu.PhyMemMode:1")
    assert client.ask("qqemu.PhyMemMode") == b"1"
    assert client.memory(0x10_1000, 256) == reference.memory(0x10_1000, 256)
    assert client.ask(f"m{1 << 60:x},4") == b"E14"
    client.ok("Qqemu.PhyMemMode:0")
    assert client.ask(f"m{1 << 60:x},4") == b"E14"


def test_a_debugger_that_goes_takes_its_settings_along(served: Served) -> None:
    with served.session() as first:
        first.monitor("goto 5M")
        first.ok("Qqemu.PhyMemMode:1")
        first.ok("Z0,102440,1")
        first.monitor("watch 0x12e010:4")
    with served.session() as second:
        assert second.moment() == 5_000_000
        assert second.ask("qqemu.PhyMemMode") == b"0"
        assert second.monitor("watch") == "nothing is watched by the monitor\n"
        assert second.stop("c").because("replaylog")


# -- moving ----------------------------------------------------------------------------------------


def hits_of(trace: rr86.Trace, address: int, most: int = 6) -> list[tuple[int, int]]:
    """The moments after the tests' one at which an address is executed, and by whom."""
    session = trace.session()
    session.run("icount=5000000")
    found: list[tuple[int, int]] = []
    while len(found) < most:
        stop = session.run(Rip(address))
        if stop.over:
            break
        found.append((stop.icount, stop.vcpu))
    return found


@pytest.mark.parametrize(("kind", "reason"), [(0, "swbreak"), (1, "hwbreak")])
def test_breakpoints_are_met_to_and_fro(
    client: Client, recorded: rr86.Trace, symbols: dict[str, int], kind: int, reason: str
) -> None:
    address = symbols["timer_entry"]
    hits = hits_of(recorded, address)
    assert len({vcpu for _, vcpu in hits}) > 1
    client.ok(f"Z{kind},{address:x},1")
    for moment, vcpu in hits:
        stop = client.stop("vCont;c")
        assert (client.moment(), stop.thread, stop.rip) == (moment, vcpu + 1, address)
        assert stop.because(reason)
        assert stop.signal == 5
    for moment, vcpu in reversed(hits[:-1]):
        stop = client.stop("bc")
        assert (client.moment(), stop.thread, stop.rip) == (moment, vcpu + 1, address)
        assert stop.because(reason)
    client.ok(f"z{kind},{address:x},1")
    assert client.stop("bc").because("replaylog")


def test_the_ends_of_the_recording_are_no_exits(client: Client, recorded: rr86.Trace) -> None:
    last = recorded.summary()["last_icount"]
    for _ in range(2):
        stop = client.stop("c")
        assert stop.rows["replaylog"] == "end"
        assert client.moment() == last
    assert client.stop("vCont;s:3").rows["replaylog"] == "end"
    for _ in range(2):
        stop = client.stop("bc")
        assert stop.rows["replaylog"] == "begin"
        assert (client.moment(), stop.thread) == (0, 1)
    assert client.stop("bs").rows["replaylog"] == "begin"


def test_a_step_back_is_that_of_the_vcpu_that_was_named(
    client: Client, slices: list[tuple[int, int, int]], reference: rr86.ReplaySession
) -> None:
    for vcpu in (0, 1, 2, 3):
        client.monitor("goto 5M")
        moment = 5_000_000
        client.ok(f"Hc{vcpu + 1:x}")
        for _ in range(5):
            moment = own_before(slices, vcpu, moment)
            stop = client.stop("bs")
            assert (client.moment(), stop.thread) == (moment, vcpu + 1)
        # Forward again: each of its own instructions, whatever the others do meanwhile.
        for _ in range(5):
            stop = client.stop(f"vCont;s:{vcpu + 1:x}")
            assert stop.thread == vcpu + 1
        assert stop.rip == reference.registers(vcpu)["rip"]
        assert own_before(slices, vcpu, 5_000_000) == client.moment() - 1


def test_a_step_without_a_thread_is_that_of_the_vcpu_that_stopped(client: Client) -> None:
    before = client.moment()
    thread = Stop(client.ask("?")).thread
    client.ok("Hc0")
    assert client.stop("bs").thread == thread
    assert client.moment() == before - 1
    assert client.stop("vCont;s").thread == thread
    assert client.moment() == before


def test_a_step_stops_at_what_another_vcpu_meets_on_the_way(
    client: Client,
    recorded: rr86.Trace,
    symbols: dict[str, int],
    slices: list[tuple[int, int, int]],
) -> None:
    address = symbols["on_int3"]
    moment, vcpu = hits_of(recorded, address, 1)[0]
    start = next(start for start, end, _ in slices if start <= moment < end)
    client.monitor(f"goto {start}")
    client.ok(f"Z0,{address:x},1")
    other = next(each for each in range(4) if each != vcpu)
    stop = client.stop(f"vCont;s:{other + 1:x}")
    assert (stop.thread, client.moment()) == (vcpu + 1, moment)
    assert stop.because("swbreak")


# -- words, interrupts, farewells ------------------------------------------------------------------


def test_an_interrupt_ends_a_run_where_it_is(served: Served, client: Client) -> None:
    client.monitor("goto begin")
    client.write(b"vCont;c")
    client.socket.sendall(b"\x03")
    stop = client.stopped()
    # It may have been too fast for us.
    assert stop.signal == 2 or stop.because("replaylog")
    # One that comes too late is nothing.
    client.socket.sendall(b"\x03")
    assert client.ask("qAttached") == b"1"


def test_an_interrupt_in_the_same_breath_as_the_command_counts(
    client: Client, recorded: rr86.Trace
) -> None:
    client.monitor("goto begin")
    client.socket.sendall(b"$vCont;c#a8\x03")
    stop = client.stopped()
    assert stop.signal == 2
    assert client.moment() < recorded.summary()["last_icount"]


def test_acknowledgements_are_given_and_asked_for_until_they_are_not_wanted(
    served: Served,
) -> None:
    with served.client() as client:
        assert client.ask("qAttached") == b"1"
        # A packet that is broken is asked for again.
        client.socket.sendall(b"$qAttached#00")
        assert client._byte() == ord("-")
        assert client.ask("qAttached") == b"1"
        # One that we say we could not read comes again.
        client.socket.sendall(b"-")
        assert client.read() == b"1"
        assert client.ask("QStartNoAckMode") == b"OK"
        client.acknowledges = False
        client.socket.sendall(b"$qAttached#00")
        assert client.ask("qC")[:2] == b"QC"


def refuse_for_ever(client: Client) -> None:
    while True:
        client.socket.sendall(b"-")
        assert client.read() == b"1"


def test_a_debugger_that_refuses_every_answer_is_left(served: Served) -> None:
    with served.client() as client:
        assert client.ask("qAttached") == b"1"
        client.acknowledges = False
        with pytest.raises((Lost, ConnectionError)):
            refuse_for_ever(client)
    with served.session() as client:
        assert client.ask("qAttached") == b"1"


@pytest.mark.parametrize("goodbye", ["D", "D;1", "k"])
def test_goodbyes_end_the_connection_and_not_the_server(served: Served, goodbye: str) -> None:
    with served.session() as client:
        client.write(goodbye.encode())
        if goodbye != "k":
            assert client.read() == b"OK"
        with pytest.raises(Lost):
            client.read()
    with served.session() as client:
        assert client.ask("qAttached") == b"1"


def test_a_debugger_that_dies_while_the_machine_runs_stops_it(served: Served) -> None:
    with served.session() as client:
        client.monitor("goto begin")
        client.write(b"vCont;c")
    with served.session() as client:
        assert client.ask("qAttached") == b"1"


def test_one_debugger_is_served_at_a_time_and_the_next_one_waits(served: Served) -> None:
    with served.session() as first, served.client() as second:
        second.socket.settimeout(0.2)
        second.socket.sendall(b"$qAttached#8f")
        with pytest.raises(TimeoutError):
            second._byte()
        assert first.ask("qAttached") == b"1"
        first.write(b"k")
        second.socket.settimeout(30)
        assert second._byte() == ord("+")
        assert second.read() == b"1"


def test_what_a_debugger_must_not_do_is_said_where_people_see_it(
    served: Served, client: Client
) -> None:
    served.said.clear()
    assert client.ask("M101000,1:90").startswith(b"E.")
    assert any("cannot be changed" in line and "rr86 branch" in line for line in served.said)
    assert client.memory(0x10_1000, 1) != b"\x90"


def ask_for_ever(deaf: socket.socket) -> None:
    while True:
        deaf.sendall(b"$m100000,7ff0#d1" * 100)


def test_a_debugger_that_does_not_read_is_left_in_the_end(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rr86.gdb.link._PATIENCE", 0.2)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(served.path))
        deaf.settimeout(10)
        with pytest.raises((ConnectionError, TimeoutError)):
            ask_for_ever(deaf)
    with served.session() as client:
        assert client.ask("qAttached") == b"1"


def test_the_socket_is_for_its_owner_alone(served: Served) -> None:
    assert Path(served.path).stat().st_mode & 0o777 == 0o600
