"""A stand-in for the native core, for tests of everything above it.

Its guest is a script: a list of instructions, each on some vCPU, with its effects written out.
Its trace is a JSON file, so that tests can damage it in ways they understand.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rr86.errors import DivergenceError, NativeError, TraceError

NANOSECONDS = 10
MAGIC = "fake-trace"


@dataclass(frozen=True)
class Step:
    """One instruction: where it is and what it does."""

    rip: int
    vcpu: int = 0
    code: bytes = b"\x90"
    out: bytes = b""
    debug: bytes = b""
    write: int | None = None
    vector: int | None = None
    lstar: int | None = None


@dataclass
class Guest:
    """What the fake machine runs, and how that ends."""

    steps: list[Step]
    end: str = "poweroff"
    code: int = 0
    memory: dict[int, bytes] = field(default_factory=dict)
    # Raised by `run` when this many instructions have retired.
    fails_at: int | None = None
    failure: str = "the trace cannot be written: No space left on device"
    diverges_at: int | None = None
    # Called with each piece of console input.
    inputs: list[bytes] = field(default_factory=list)
    # From this instruction on, linear addresses from the first one on are mapped at the second.
    mapped: tuple[int, int, int] | None = None
    # vCPUs that have no paging: to them every linear address is a physical one.
    unpaged: tuple[int, ...] = ()
    wakes: bool = False


class Machine:
    guest: Guest

    def __init__(self, vcpus: int) -> None:
        self.vcpus = vcpus
        self.position = 0
        self.passed = -1
        self.lstar = 0
        self.output = b""
        self.heard = b""
        self.debug = b""
        self.alone = 0
        self.path: Path | None = None
        self.trace: dict[str, Any] = {}
        self.replaying = False
        self.runs: list[int] = []

    def record_to(
        self,
        path: str,
        header: bytes,
        images: Sequence[tuple[str, bytes]],
        checkpoints: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.trace = {
            "magic": MAGIC,
            "header": header.hex(),
            "images": {name: data.hex() for name, data in images},
            "footer": None,
            "events": [
                ["slice", 0, 0, {"vcpu": 0, "instructions": len(self.guest.steps), "stop": 4}]
            ],
        }
        self._save()

    def _save(self) -> None:
        assert self.path is not None
        self.path.write_text(json.dumps(self.trace))

    def finish(self, footer: bytes) -> None:
        if self.guest.fails_at is not None and self.position >= self.guest.fails_at:
            raise NativeError("the trace is broken already")
        self.trace["footer"] = footer.hex()
        self._save()

    def replay_from(self, path: str, verify: bool = True, checkpoint: int | None = None) -> None:
        self.replaying = True
        self.verify = verify

    def replay_events(self, events: object, verify: bool) -> None:
        self.replaying = True
        self.verify = verify

    def touched_ram(self) -> bytes:
        return b"\x01"

    def take_ram(self, touched: bytes) -> None:
        pass

    def without_side_file(self) -> None:
        return None

    def trace_bytes(self) -> int:
        return 100 * self.position if self.path is not None else 0

    def _stop(self, reason: str, condition: int = -1, vcpu: int = 0) -> dict[str, Any]:
        steps = self.guest.steps
        rip = steps[min(self.position, len(steps) - 1)].rip
        return {
            "reason": reason,
            "condition": condition,
            "conditions": [condition] if condition >= 0 else [],
            "vcpu": vcpu,
            "icount": self.position,
            "time_ns": self.position * NANOSECONDS,
            "rip": rip,
            "code": self.guest.code if reason == "debug-exit" else 0,
            "detail": "",
        }

    def _before(self, step: Step, conditions: Sequence[tuple[str, int, int]]) -> int:
        for index, (kind, a, _) in enumerate(conditions):
            if (
                (kind == "rip" and a == step.rip)
                or (kind == "int3" and (step.code == b"\xcc" or step.vector == 3))
                or (kind == "icount" and a == self.position)
                or (kind == "irq" and a == step.vector)
            ):
                return index
        return -1

    def run(
        self,
        max_instructions: int,
        conditions: Sequence[tuple[str, int, int]] = (),
        console_patterns: Sequence[bytes] = (),
        by_lines: bool = False,
        filters: Sequence[tuple[int, Sequence[bytes]]] = (),
    ) -> dict[str, Any]:
        guest = self.guest
        self.runs.append(max_instructions)
        done = 0
        while True:
            if guest.diverges_at == self.position and self.replaying and self.verify:
                raise DivergenceError(
                    f"cpu0 differs from the recording at instruction {self.position} on vCPU 0"
                )
            if guest.fails_at == self.position and not self.replaying:
                raise NativeError(guest.failure)
            if self.position == len(guest.steps):
                if guest.end == "deadlock" and guest.wakes and guest.inputs:
                    guest.end = "poweroff"
                return self._stop(guest.end)
            step = guest.steps[self.position]
            if self.passed != self.position:
                hit = self._before(step, conditions)
                if hit >= 0:
                    self.passed = self.position
                    return self._stop("condition", hit, step.vcpu)
            if done >= max_instructions:
                return self._stop("limit", vcpu=step.vcpu)
            done += 1
            self.position += 1
            self.debug += step.debug
            if not self.heard:
                self.alone = len(self.debug)
            self.output += step.out
            self.heard += step.out
            if step.lstar is not None:
                self.lstar = step.lstar
            for index, (kind, a, b) in enumerate(conditions):
                if (kind == "write" and step.write is not None and a <= step.write < a + b) or (
                    kind == "console" and step.out and self.heard.endswith(console_patterns[a])
                ):
                    return self._stop("condition", index, step.vcpu)
            if by_lines and b"\n" in self.output + self.debug:
                return self._stop("limit", vcpu=step.vcpu)

    def compared_digests(self) -> tuple[int, int]:
        return (12, 3) if self.replaying and self.verify else (0, 0)

    def debugcon_output(self) -> tuple[bytes, int]:
        output, alone = (self.debug, self.alone)
        self.debug, self.alone = b"", 0
        return output, alone

    def console_output(self) -> bytes:
        output, self.output = self.output, b""
        return output

    def console_input(self, data: bytes) -> None:
        self.guest.inputs.append(data)

    def registers(self, vcpu: int) -> dict[str, int]:
        registers = dict.fromkeys(REGISTERS, 0)
        rip = next(
            (s.rip for s in self.guest.steps[self.position :] if s.vcpu == vcpu),
            self.guest.steps[-1].rip,
        )
        registers |= {
            "rip": rip,
            "rsp": 0x8000,
            "rflags": 0x246,
            "cr0": 0x60000010 if vcpu in self.guest.unpaged else 0x80050033,
            "efer": 0xD01,
            "cs": 0x10,
            "cs_attr": 0xA09B,
            "lstar": self.lstar,
        }
        return registers

    def read_physical(self, paddr: int, length: int) -> bytes:
        return self.read_virtual(0, paddr, length)

    def read_virtual(self, vcpu: int, address: int, length: int) -> bytes:
        for start, data in self.guest.memory.items():
            if start <= address < start + len(data):
                return data[address - start : address - start + length]
        return b""

    def translate(self, vcpu: int, address: int) -> int | None:
        if vcpu in self.guest.unpaged:
            return address
        if self.guest.mapped is None:
            return None
        since, linear, physical = self.guest.mapped
        return None if self.position < since else address - linear + physical

    def current_block(self, vcpu: int) -> dict[str, Any]:
        rip = self.registers(vcpu)["rip"]
        source = self.read_virtual(vcpu, rip, 1)
        return {"serial": 7, "rip": rip, "source": source, "memory": source}

    def seconds(self) -> dict[str, float]:
        return {"whole": 2.5, "guest": 2.0, "translating": 0.5}

    def stats(self) -> dict[str, int]:
        return {"instructions": self.position, "slices": len(self.runs)}


class TraceReader:
    def __init__(self, path: str) -> None:
        try:
            self.trace = json.loads(Path(path).read_text())
        except ValueError:
            raise TraceError(f"'{path}' is not a trace") from None
        if self.trace.get("magic") != MAGIC:
            raise TraceError(f"'{path}' is not a trace")

    def header(self) -> bytes:
        return bytes.fromhex(self.trace["header"])

    def begin_events(self) -> object:
        return object()

    def footer(self) -> bytes | None:
        footer = self.trace["footer"]
        return None if footer is None else bytes.fromhex(footer)

    def images(self) -> list[tuple[str, int, str]]:
        return [(name, len(data) // 2, "0" * 8) for name, data in self.trace["images"].items()]

    def image(self, name: str) -> bytes:
        return bytes.fromhex(self.trace["images"][name])

    def beginning(self) -> None:
        return None

    def content_id(self) -> str:
        return "0" * 32

    def complete(self) -> bool:
        return self.trace["footer"] is not None

    def side_file(self) -> None:
        return None

    def damage(self) -> str | None:
        return None

    def summary(self) -> dict[str, int]:
        return {
            "chunks": 1,
            "events": len(self.trace["events"]),
            "event_bytes": 100,
            "event_raw_bytes": 200,
            "last_icount": 5,
            "slice": len(self.trace["events"]),
            "file_bytes": len(json.dumps(self.trace)),
            "image_bytes": sum(len(data) // 2 for data in self.trace["images"].values()),
        }

    def checkpoints(self) -> list[tuple[int, int, int]]:
        return []

    def chunk_count(self) -> int:
        return 1

    def events(
        self, chunk: int, kinds: list[str] | None = None, first: int = 0, last: int = 1 << 64
    ) -> list[tuple[str, int, int, dict[str, int | bytes]]]:
        return [
            (kind, icount, vcpu, fields)
            for kind, icount, vcpu, fields in self.trace["events"]
            if (kinds is None or kind in kinds) and first <= icount <= last
        ]


_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
REGISTERS = [
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "cpl", "lstar", "activity"),
    *("gdtr_base", "gdtr_limit", "idtr_base", "idtr_limit", "kernel_gs_base", "star"),
    *(f"{name}{part}" for name in _SEGMENTS for part in ("", "_base", "_limit", "_attr")),
]


def _record(machine: Machine, **_: object) -> Machine:
    """A fake machine is its own session."""
    return machine


class _Replay:
    def __new__(  # type: ignore[misc]
        cls, machine: Machine, path: str, verify: bool = True, checkpoint: int | None = None
    ) -> Machine:
        machine.replay_from(path, verify, checkpoint)
        return machine

    @staticmethod
    def of_events(machine: Machine, events: object, verify: bool) -> Machine:
        machine.replay_events(events, verify)
        return machine


@dataclass
class FakeCore:
    """The handle that tests get: set `guest`, look at `machines`."""

    guest: Guest
    machines: list[Machine] = field(default_factory=list)

    def power_on(self, spec: Any, files: Any, oracle: bool = False) -> Machine:
        machine = Machine(spec.vcpus)
        machine.guest = self.guest
        self.machines.append(machine)
        return machine


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> FakeCore:
    """Replace the native core and the board's power switch."""
    fake = FakeCore(
        Guest([Step(0x100000 + n, out=b"hello\n" if n == 2 else b"") for n in range(5)])
    )
    install(fake, monkeypatch)
    return fake


def install(fake: FakeCore, monkeypatch: pytest.MonkeyPatch) -> None:
    native = ModuleType("rr86._native")
    for name, each in (
        ("Machine", Machine),
        ("TraceReader", TraceReader),
        ("Recording", _record),
        ("Replay", _Replay),
    ):
        setattr(native, name, each)
    monkeypatch.setitem(sys.modules, "rr86._native", native)
    monkeypatch.setattr("rr86.machine.board.power_on", fake.power_on)
