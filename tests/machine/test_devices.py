"""Devices in Python: the one of docs/devices.md with a guest that uses all of it, recorded and
replayed, and what goes wrong."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rr86
from rr86.errors import DeviceError
from rr86.machine import Device
from rr86.replay.checkpoints import add_checkpoints
from rr86.session.devices import described, for_replay, make, parse_device
from rr86.trace.metadata import DeviceEntry
from tests.guests.build import Guest, build
from tests.guests.machines import (
    Outcome,
    Recorded,
    assert_same_run,
    finished,
    record_guest,
)

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^rr86 (\w+) (.*--device .*)$", PAGE.read_text(), re.MULTILINE)
GUEST = Guest(
    name="device",
    sources=("device.c",),
    smp=1,
    memory=64,
    append="",
    input="",
    console=(),
    debugcon=(),
    end="debug-exit",
    code=0x10,
)
RR86 = (sys.executable, "-c", "from rr86.cli import main; main()")
EVERY = 200_000
"""Instructions between checkpoints."""


@pytest.fixture
def adder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the documentation's example."""
    (tmp_path / "adder.py").write_text(EXAMPLES[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("adder")
    sys.modules.pop("adder", None)


def record(device: Device, path: Path, **options: Any) -> Recorded:
    return record_guest(GUEST, path, devices=[device], **options)


def replay(recorded: Recorded, kind: type[Device], at: int | None = None) -> Outcome:
    session = rr86.open_trace(recorded.path, devices=[kind]).session(at=at)
    return finished(session, session.run())


def test_a_guest_uses_a_device_by_all_its_ways_and_replays_equal(
    adder: Any, tmp_path: Path
) -> None:
    recorded = record(adder.Adder(), tmp_path / "one.rr86", checkpoints=EVERY)
    assert b"device: 40 rounds" in recorded.outcome.console
    assert b"0 failed" in recorded.outcome.console
    assert (recorded.outcome.reason, recorded.outcome.code) == ("debug-exit", 0x10)
    assert "adder" in recorded.outcome.digests
    assert_same_run(replay(recorded, adder.Adder), recorded.outcome)
    again = record(adder.Adder(), tmp_path / "two.rr86", checkpoints=EVERY)
    assert again.path.read_bytes() == recorded.path.read_bytes()


def test_a_replay_begins_at_any_checkpoint(adder: Any, tmp_path: Path) -> None:
    recorded = record(adder.Adder(), tmp_path / "one.rr86", checkpoints=EVERY)
    checkpoints = rr86.open_trace(recorded.path).checkpoints()
    assert len(checkpoints) >= 5
    for checkpoint in checkpoints:
        outcome = replay(recorded, adder.Adder, checkpoint.icount)
        assert outcome.digests == recorded.outcome.digests


def test_stops_and_snapshots_inside_the_devices_work_change_nothing(
    adder: Any, tmp_path: Path
) -> None:
    recorded = record(adder.Adder(delay=3), tmp_path / "one.rr86", append="delay=3 rounds=4")
    trace = rr86.open_trace(recorded.path, devices=[adder.Adder])
    session = trace.session()
    stop = session.run(max_instructions=2)
    while not stop.over:
        session.machine.set_call_limit(1)
        stop = session.run(max_instructions=977)
    assert_same_run(finished(session, stop), recorded.outcome)
    session = trace.session()
    session.run(max_instructions=recorded.outcome.icount // 2)
    session = trace.session(snapshot=session.snapshot())
    stop = session.run()
    assert session.machine.digests() == recorded.outcome.digests


def test_options_come_from_the_trace(adder: Any, tmp_path: Path) -> None:
    recorded = record(adder.Adder(delay=9000), tmp_path / "one.rr86", append="delay=9000")
    assert b"0 failed" in recorded.outcome.console
    header = rr86.open_trace(recorded.path).header
    assert header.devices == (DeviceEntry("adder:Adder", {"delay": 9000}),)
    assert_same_run(replay(recorded, adder.Adder), recorded.outcome)
    session = recorded.trace().session(devices=[adder.Adder(delay=9000)])
    assert_same_run(finished(session, session.run()), recorded.outcome)
    with pytest.raises(DeviceError, match=r"adder:Adder,delay=9000, not adder:Adder,delay=50000"):
        recorded.trace().session(devices=[adder.Adder()])


def test_a_replay_without_the_class_says_what_to_give(adder: Any, tmp_path: Path) -> None:
    recorded = record(adder.Adder(), tmp_path / "one.rr86", append="rounds=1")
    with pytest.raises(DeviceError, match=r"--device adder:Adder, or devices=\[…\] in Python"):
        recorded.trace().session()


def test_a_trace_imports_nothing(adder: Any, tmp_path: Path) -> None:
    recorded = record(adder.Adder(), tmp_path / "one.rr86", append="rounds=1")
    program = (
        "import sys, rr86\n"
        f"trace = rr86.open_trace({str(recorded.path)!r})\n"
        "try:\n    trace.session()\n"
        "except rr86.DeviceError as error:\n    print(error)\n"
        "assert 'adder' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "adder:Adder" in done.stdout


def test_a_trace_without_devices_refuses_one(adder: Any, tmp_path: Path) -> None:
    trace = rr86.open_trace(record_guest(GUEST, tmp_path / "none.rr86").path)
    assert b"devices" not in trace.header.pack()
    with pytest.raises(DeviceError, match="recorded without the device adder:Adder"):
        trace.session(devices=[adder.Adder])


def test_a_device_that_is_not_deterministic_is_named_by_the_divergence(
    adder: Any, tmp_path: Path
) -> None:
    class Leaky(adder.Adder):  # type: ignore[misc]
        """Its state holds how many of its kind were made before."""

        made = 0

        def reset(self) -> None:
            super().reset()
            self.secret = Leaky.made
            Leaky.made += 1

        def save(self) -> bytes:
            saved: bytes = super().save()
            return saved + bytes([self.secret])

    recorded = record(Leaky(), tmp_path / "one.rr86", checkpoints=EVERY)
    with pytest.raises(rr86.DivergenceError, match="leaky"):
        replay(recorded, Leaky)


def test_a_device_that_raises_ends_the_run_and_leaves_a_whole_trace(
    adder: Any, tmp_path: Path
) -> None:
    class Faulty(adder.Adder):  # type: ignore[misc]
        left = 5

        def timer(self) -> None:
            self.left -= 1
            if not self.left:
                raise ValueError("out of order")
            super().timer()

    path = tmp_path / "one.rr86"
    with pytest.raises(
        DeviceError, match='the device "faulty" raised ValueError: out of order'
    ) as e:
        record(Faulty(), path)
    assert isinstance(e.value.__cause__, ValueError)
    assert e.value.device == "faulty"
    trace = rr86.open_trace(path, devices=[Faulty])
    assert trace.complete
    assert [event.fields["reason"] for event in trace.events(["stop"])] == [10]
    with pytest.raises(DeviceError, match="out of order"):
        trace.session().run()


@pytest.mark.parametrize("method", ["read_port", "write_memory", "add", "save"])
def test_an_exception_is_reported_wherever_it_happens(
    adder: Any, tmp_path: Path, method: str
) -> None:
    def fail(self: Device, *arguments: object) -> None:
        raise RuntimeError("broken")

    fail.__name__ = method
    broken = type("Broken", (adder.Adder,), {method: fail})
    with pytest.raises(DeviceError, match='"broken" raised RuntimeError: broken'):
        record(broken(), tmp_path / "one.rr86", checkpoints=EVERY)
    assert rr86.open_trace(tmp_path / "one.rr86").complete


def test_a_saved_state_that_a_device_refuses_stops_the_replay(adder: Any, tmp_path: Path) -> None:
    class Choosy(adder.Adder):  # type: ignore[misc]
        def load(self, state: bytes) -> None:
            raise ValueError("not mine")

    recorded = record(Choosy(), tmp_path / "one.rr86", checkpoints=EVERY)
    trace = rr86.open_trace(recorded.path, devices=[Choosy])
    with pytest.raises(rr86.TraceError, match=r'"choosy" does not take the state.*not mine'):
        trace.session(at=recorded.outcome.icount)


class Plain(Device):
    ports = (range(0x5F0, 0x5F4),)
    irq = 5

    def read_port(self, port: int, size: int) -> int:
        return 0

    def write_port(self, port: int, size: int, value: int) -> None:
        pass


def test_devices_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def fails(message: str, *devices: Device) -> None:
        with pytest.raises((DeviceError, rr86.NativeError), match=message):
            record_guest(GUEST, tmp_path / "no.rr86", devices=devices)

    def of(**attributes: object) -> Device:
        made: Device = type("Plain", (Plain,), attributes)()
        return made

    fails('component "plain" already', Plain(), Plain())
    fails('component "rtc" already', of(name="rtc"))
    fails('component "cpu0" already', of(name="cpu0"))
    fails("0x3f8 to 0x3ff, where the machine has something", of(ports=(range(0x3F8, 0x400),)))
    fails("0xfee00000 to 0xfee00fff", of(memory=(range(0xFEE0_0000, 0xFEE0_1000),)))
    fails("there is RAM", of(memory=(range(0x10_0000, 0x10_1000),)))
    fails("no range of ports", of(ports=(range(0xFFFF, 0x1_0001),)))
    fails("interrupt line 2", of(irq=2))
    used = Plain()
    record_guest(GUEST, tmp_path / "yes.rr86", devices=[used])
    fails("part of a machine already", used)


def serve(device: Device, what: str, value: object = 0, now: int = 0) -> tuple[object, ...]:
    return device._serve(what, 0x5F0, 1, value, now)


def test_a_device_acts_only_while_it_is_called() -> None:
    device = Plain()
    with pytest.raises(DeviceError, match="only while the machine calls it"):
        device.set_irq(True)
    with pytest.raises(DeviceError, match="only while the machine calls it"):
        device.dma_write(0, b"x")


class Mover(Plain):
    """Copies what it reads, on the guest's word."""

    def reset(self) -> None:
        self.seen: bytes | None = b""

    def write_port(self, port: int, size: int, value: int) -> None:
        self.dma_read(0x1FFE, 4098, self.got)
        self.dma_write(0x2FFF, b"abc")

    def got(self, data: bytes | None) -> None:
        self.seen = data


def test_transfers_go_page_by_page_in_order() -> None:
    device = Mover()
    assert serve(device, "write_port")[3] == (0x1FFE, 2)
    assert serve(device, "dma", b"xy")[3] == (0x2000, 4096)
    assert device.seen == b""
    assert serve(device, "dma", b"z" * 4096)[3] == (0x2FFF, b"a")
    assert device.seen == b"xy" + b"z" * 4096
    assert serve(device, "dma", b"")[3] == (0x3000, b"bc")
    assert serve(device, "dma", None)[3] is None


def test_a_transfer_without_ram_says_so() -> None:
    device = Mover()
    serve(device, "write_port")
    assert serve(device, "dma", None)[3] == (0x2FFF, b"a")
    assert device.seen is None


def test_a_saved_transfer_goes_on_in_another_device() -> None:
    one, two = Mover(), Mover()
    serve(one, "write_port")
    serve(one, "dma", b"xy")
    saved = one._save()
    two._load(saved)
    assert two._save() == saved
    assert serve(two, "dma", b"z" * 4096)[3] == (0x2FFF, b"a")
    assert two.seen == b"xy" + b"z" * 4096


def test_a_damaged_state_is_refused_or_safe() -> None:
    one = Mover()
    serve(one, "write_port")
    saved = one._save()
    for at in range(len(saved)):
        for value in (0, 0x7F, 0xC0, 0xFF):
            two = Mover()
            damaged = saved[:at] + bytes([value]) + saved[at + 1 :]
            try:
                two._load(damaged)
            except ValueError:
                continue
            again = two._save()
            two._load(again)
            assert two._save() == again
    for end in range(len(saved)):
        with pytest.raises(ValueError, match="damaged"):
            Mover()._load(saved[:end])


def test_misuse_is_said_plainly() -> None:
    class Odd(Plain):
        def write_port(self, port: int, size: int, value: int) -> None:
            [
                lambda: self.set_timer(self.now),
                lambda: self.dma_read(0, 4, print),
                lambda: self.dma_read(0, 0, self.got),
                lambda: self.dma_write(-1, b"x"),
            ][value]()

        def read_port(self, port: int, size: int) -> int:
            return 256

        def got(self, data: bytes | None) -> None:
            pass

    words = ["it is 7 ns already", "a method of the device", "0 bytes", "no physical address"]
    for value, message in enumerate(words):
        with pytest.raises(DeviceError, match=message):
            serve(Odd(), "write_port", value, now=7)
    with pytest.raises(DeviceError, match="gave 256 for 1 bytes"):
        serve(Odd(), "read_port")
    with pytest.raises(DeviceError, match="no number, text or truth value"):
        Plain(rate=1.5)  # type: ignore[arg-type]


def test_the_command_line_names_class_and_options(adder: Any) -> None:
    assert parse_device("adder:Adder") == (adder.Adder, {})
    kind, options = parse_device("adder:Adder,delay=0x10,fast=true,to=disk:0")
    assert options == {"delay": 16, "fast": True, "to": "disk:0"}
    with pytest.raises(DeviceError, match="cannot be made"):
        make(kind, options)
    for text, message in [
        ("adder", "write it like"),
        ("no_such_module:X", "cannot be imported"),
        ("adder:Subtractor", "no class Subtractor"),
        ("adder:struct.Struct", "no subclass"),
        ("adder:Adder,delay", "write it like key=value"),
    ]:
        with pytest.raises(DeviceError, match=message):
            parse_device(text)


class Forgetful(Plain):
    """Says nothing of its options to the base class."""

    def __init__(self, first: int, *, speed: int = 3, label: str | None = None) -> None:
        super().__init__()
        self.product = first * speed

    def reset(self) -> None:
        assert dict(self.options)["first"]


def test_options_are_those_that_the_device_was_made_with_whatever_it_hands_on() -> None:
    assert dict(Forgetful(2).options) == {"first": 2, "speed": 3}
    device = Forgetful(2, label="x", speed=4)
    assert dict(device.options) == {"first": 2, "speed": 4, "label": "x"}
    again = for_replay([DeviceEntry(*described(device))], [Forgetful])
    assert dict(again[0].options) == dict(device.options)
    # A trace of a version that did not know all of them.
    (older,) = for_replay([DeviceEntry(described(device)[0], {"first": 7})], [Forgetful])
    assert (older.options["first"], older.options["speed"]) == (7, 3)
    with pytest.raises(DeviceError, match="no number, text or truth value"):
        Forgetful(2, speed=1.5)  # type: ignore[arg-type]

    class Other(Plain):
        def __init__(self, speed: int) -> None:
            super().__init__(speed=speed + 1)

    with pytest.raises(DeviceError, match=r"is made with \{'speed': 1\} and hands on speed=2"):
        Other(1)


def test_info_lists_the_devices_of_a_trace(adder: Any, tmp_path: Path) -> None:
    recorded = record(adder.Adder(delay=70_000), tmp_path / "one.rr86")
    call = [*RR86, "info", str(recorded.path)]
    text = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^device +adder:Adder, delay=70000$", text, re.MULTILINE)
    found = subprocess.run([*call, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(found)["devices"] == [{"class": "adder:Adder", "options": {"delay": 70_000}}]


def test_each_recorded_device_is_given_once(adder: Any) -> None:
    entries = [DeviceEntry("adder:Adder", {"delay": n}) for n in (1, 2)]
    made = for_replay(entries, [adder.Adder])
    assert [device.options["delay"] for device in made] == [1, 2]
    with pytest.raises(DeviceError, match="recorded without the device"):
        for_replay(entries, [adder.Adder, Plain])


@pytest.mark.usefixtures("adder")
def test_the_documented_commands_and_python_work_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "kernel.elf").write_bytes(build(GUEST).read_bytes())
    assert [name for name, _ in COMMANDS] == ["record", "replay"]
    for name, words in COMMANDS:
        call = [*RR86, name, "--append", "delay=70000", *words.split()]
        if name == "replay":
            del call[len(RR86) + 1 : len(RR86) + 3]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "device: 40 rounds" in done.stdout, done.stderr
        assert "diverged" not in done.stderr
    (tmp_path / "adder.rr86").unlink()
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[1]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    call = [*RR86, "replay", "adder.rr86"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "--device adder:Adder" in done.stderr


def test_everything_that_replays_a_trace_takes_its_devices(adder: Any, tmp_path: Path) -> None:
    recorded = record(adder.Adder(), tmp_path / "one.rr86", checkpoints=EVERY)
    trace = rr86.open_trace(recorded.path, devices=[adder.Adder])
    session = trace.session(oracle=True)
    session.run()
    assert session.oracle_report().clean
    alone = trace.alone(0)
    assert alone.run().reason == "end"
    add_checkpoints(trace, EVERY, tmp_path / "more.rr86")
    more = rr86.open_trace(tmp_path / "more.rr86", devices=[adder.Adder])
    assert more.checkpoints()
    last = more.session(at=recorded.outcome.icount)
    last.run()
    assert last.machine.digests() == recorded.outcome.digests


def test_ctrl_c_inside_a_device_stays_what_it_is(adder: Any, tmp_path: Path) -> None:
    class Slow(adder.Adder):  # type: ignore[misc]
        def timer(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(Slow(), tmp_path / "one.rr86")
    assert rr86.open_trace(tmp_path / "one.rr86").complete
