"""What a machine is made of: a `BoardSpec` says it completely, and is stored in the trace.

Two machines built from equal specs and equal images are equal to the last byte; nothing else (the
host, the date, the environment) takes part. So whatever may change a run belongs here.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from rr86.cpu.model import MAX_VCPUS, MODELS
from rr86.errors import SpecError, UsageError
from rr86.machine.memory_map import GIB, KIB, MIB
from rr86.translate import protocols

MIN_MEMORY = 32 * MIB
"""For a Multiboot guest."""
MIN_LINUX_MEMORY = 96 * MIB
"""A distribution kernel unpacks itself and its initial file systems; below this it panics."""
MAX_MEMORY = 64 * GIB

SCHEDULES = ("uniform", "random", "pct", "starve")
"""How vCPUs take turns; all draw from `seed`. See docs/determinism.md."""
PROTOCOLS = tuple(each.name for each in protocols.PROTOCOLS)
"""The block protocols of rr86's own, `rr86.translate.protocols`."""

SEMANTICS = 2
"""The newest version of the machine's semantics; docs/determinism.md lists what each changed."""

_UNITS = {"": MIB, "B": 1, "K": KIB, "M": MIB, "G": GIB}


def parse_size(text: str) -> int:
    """Bytes in "512M", "1G", "65536K" or, as QEMU's -m has it, "512" (MiB).

    Raises `SpecError` if it is none.
    """
    match = re.fullmatch(r"\s*([0-9]{1,18})\s*([BKMG]?)(i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise SpecError(f"not a size: {text!r}; write it like 512M or 2G")
    return int(match[1]) * _UNITS[match[2].upper()]


def format_size(size: int) -> str:
    """The shortest exact way to write a size that `parse_size` reads back."""
    for unit, scale in (("G", GIB), ("M", MIB), ("K", KIB)):
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return f"{size}B"


@dataclass(frozen=True, kw_only=True)
class BoardSpec:
    """A Q35 machine and the rules by which it runs."""

    vcpus: int = 1
    memory: int = 512 * MIB
    """Bytes of RAM."""
    cpu_model: str = "westmere"
    """What the guest's processor is; see `rr86/cpu/model.py`."""
    command_line: str = ""
    """Handed to the kernel as it is."""
    kernel_name: str = "kernel"
    """First word of a Multiboot command line; Linux never sees it."""
    start_time: int = 1_700_000_000
    """What the RTC shows at power-on, in Unix seconds (UTC)."""
    seed: int = 0
    """Draws the schedule and the guest's entropy."""
    schedule: str = "uniform"
    quantum: int = 100_000
    """Mean length of a slice, in instructions."""
    protocol: str = "precise"
    """Name of the block protocol."""
    protocol_steps: str = ""
    """What a block protocol of the user's is (`Protocol.text`); empty for one of rr86's own."""
    window_bias: int = 8192
    """How often a vCPU is switched out in a window of the block protocol, in 65,536ths."""
    max_block: int = 64
    """Most instructions that a block may hold."""
    block_capacity: int = 262_144
    """Blocks that the cache holds before it is flushed."""
    cross_writes: bool = True
    """Whether it is tracked, and logged, which vCPU writes and reads which page."""
    semantics: int = SEMANTICS
    """Version of what the machine's instructions and devices do."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default):
                want = type(field.default).__name__
                raise SpecError(
                    f"{field.name} must be of type {want}, not {value!r}", setting=field.name
                )
        _check_range("vcpus", self.vcpus, 1, MAX_VCPUS)
        self._check_memory()
        _check_choice("cpu_model", "CPU model", self.cpu_model, tuple(MODELS))
        _check_choice("schedule", "schedule", self.schedule, SCHEDULES)
        self._check_protocol()
        # The RTC has two digits for the year and one century register; 2100 is far enough.
        _check_range("start_time", self.start_time, 0, 4_102_444_799)
        _check_range("seed", self.seed, 0, 2**64 - 1)
        _check_range("quantum", self.quantum, 1, 10**9)
        _check_range("window_bias", self.window_bias, 0, 65_536)
        _check_range("max_block", self.max_block, 1, 64)
        _check_range("block_capacity", self.block_capacity, 16, 1 << 22)
        _check_range("semantics", self.semantics, 1, SEMANTICS)
        for name in ("command_line", "kernel_name"):
            if "\0" in getattr(self, name):
                raise SpecError(f"{name} must not contain a zero byte", setting=name)

    def _check_memory(self) -> None:
        if not MIN_MEMORY <= self.memory <= MAX_MEMORY:
            raise SpecError(
                f"memory must be {format_size(MIN_MEMORY)} to {format_size(MAX_MEMORY)}, "
                f"not {format_size(self.memory)}",
                setting="memory",
            )
        if self.memory % MIB:
            raise SpecError(
                f"memory must be a whole number of MiB, not {self.memory} bytes", setting="memory"
            )

    def _check_protocol(self) -> None:
        if not self.protocol_steps:
            _check_choice("protocol", "block protocol", self.protocol, PROTOCOLS)
            return
        try:
            protocols.described(self.protocol, self.protocol_steps)
        except UsageError as error:
            raise SpecError(str(error), setting="protocol_steps") from None

    @property
    def block_protocol(self) -> protocols.Protocol:
        """The block protocol."""
        if self.protocol_steps:
            return protocols.described(self.protocol, self.protocol_steps)
        return protocols.NAMED[self.protocol]

    def require_linux(self) -> None:
        """Raise `SpecError` unless a Linux kernel can run on this board."""
        if self.memory < MIN_LINUX_MEMORY:
            raise SpecError(
                f"a Linux kernel needs at least {format_size(MIN_LINUX_MEMORY)} of memory, "
                f"not {format_size(self.memory)}",
                setting="memory",
            )

    def to_dict(self) -> dict[str, int | str | bool]:
        """Plain values under string keys, for the trace's header.

        The steps of the protocol are among them only if it is none of rr86's own.
        """
        values = asdict(self)
        if not self.protocol_steps:
            del values["protocol_steps"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The spec that `to_dict` described; refuses keys that this version does not know.

        A key may be missing (an older trace): it then has the value that was implied at the time.
        For `semantics` that is 1, and for `cpu_model` "default"; the other keys' defaults never
        change their meaning.

        Raises `SpecError` if a value makes no sense.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown:
            raise SpecError(f"unknown board settings: {', '.join(unknown)}")
        return cls(**{"semantics": 1, "cpu_model": "default", **values})


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SpecError(f"{name} must be {low} to {high}, not {value}", setting=name)


def _check_choice(name: str, what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SpecError(f"unknown {what} {value!r}; known: {', '.join(known)}", setting=name)
