"""The kernel's log, out of its memory.

Since 5.10 it is a ring of records: descriptors with a state and a place in a second ring, which has
the text, and beside each a `struct printk_info` with time and level. All of it can be read without
a lock, at any moment; a record that is just being written is left out.

Source: kernel/printk/printk_ringbuffer.c and printk.c in the kernel's sources.
"""

import struct
from dataclasses import dataclass

from rr86.errors import KernelError
from rr86.kernel.running import RunningKernel

_STATE_SHIFT = 62
_COMMITTED, _FINALIZED = 1, 2
_ID_MASK = (1 << _STATE_SHIFT) - 1
# A block without data; the lowest bit of its position is set.
_DATALESS = 1
_MOST_BITS = 28


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record: its number, time in nanoseconds, facility and level as in syslog(3), and text,
    which may have several lines."""

    seq: int
    time_ns: int
    facility: int
    level: int
    text: str

    def lines(self) -> list[str]:
        """As dmesg prints it: each line with the time in front."""
        stamp = f"[{self.time_ns // 10**9:5}.{self.time_ns % 10**9 // 1000:06}]"
        return [f"{stamp} {line}" for line in self.text.split("\n")]


def read_log(kernel: RunningKernel) -> list[LogRecord]:
    """The kernel's log at this moment, oldest record first.

    Raises `KernelError` if no Linux runs yet, or one from before 5.10.
    """
    if not kernel.has("prb"):
        raise KernelError(
            "the guest's kernel has no log that can be read: it is older than 5.10, or prints none"
        )
    ring = kernel.number(kernel.address("prb"))
    bits, descriptors, infos, head, tail = (
        kernel.field(ring, "printk_ringbuffer", f"desc_ring.{name}")
        for name in ("count_bits", "descs", "infos", "head_id", "tail_id")
    )
    data_bits, data = (
        kernel.field(ring, "printk_ringbuffer", f"text_data_ring.{name}")
        for name in ("size_bits", "data")
    )
    if max(bits, data_bits) > _MOST_BITS:
        raise KernelError("the guest's kernel log is implausibly large")
    reader = _Reader(kernel, (1 << bits, descriptors, infos), (1 << data_bits, data))
    found = []
    number = tail
    for _ in range(1 << bits):
        record = reader.record(number)
        if record is not None:
            found.append(record)
        if number == head:
            break
        number = number + 1 & _ID_MASK
    return found


class _Reader:
    def __init__(
        self, kernel: RunningKernel, records: tuple[int, int, int], text: tuple[int, int]
    ) -> None:
        self._kernel = kernel
        self._count, descriptors, infos = records
        self._size, data = text
        types = kernel.btf
        self._step = types.struct("prb_desc").size
        self._info_step = types.struct("printk_info").size
        # In three reads instead of three for each record.
        self._descriptors = kernel.bytes_at(descriptors, self._count * self._step)
        self._infos = kernel.bytes_at(infos, self._count * self._info_step)
        self._text = kernel.bytes_at(data, self._size)
        self._state, self._begin, self._next = (
            kernel.offset("prb_desc", name)
            for name in ("state_var", "text_blk_lpos.begin", "text_blk_lpos.next")
        )
        self._seq, self._time, self._length, self._facility = (
            kernel.offset("printk_info", name)
            for name in ("seq", "ts_nsec", "text_len", "facility")
        )
        self._level = kernel.member("printk_info", "level")

    def record(self, number: int) -> LogRecord | None:
        """The record of this number; None if it is not there, or not whole yet."""
        index = number % self._count
        at = index * self._step
        state, begin, after = (
            struct.unpack_from("<Q", self._descriptors, at + offset)[0]
            for offset in (self._state, self._begin, self._next)
        )
        if state & _ID_MASK != number or state >> _STATE_SHIFT not in (_COMMITTED, _FINALIZED):
            return None
        info = index * self._info_step
        seq, time = (
            struct.unpack_from("<Q", self._infos, info + offset)[0]
            for offset in (self._seq, self._time)
        )
        (length,) = struct.unpack_from("<H", self._infos, info + self._length)
        level = self._infos[info + self._level.offset] >> self._level.bit & 7
        text = self._text_of(number, begin, after, length)
        if text is None:
            return None
        return LogRecord(seq, time, self._infos[info + self._facility], level, text)

    def _text_of(self, number: int, begin: int, after: int, length: int) -> str | None:
        if begin & _DATALESS:
            return ""
        # A block that would not fit behind the others begins at the start.
        wraps = begin // self._size != (after - 1) // self._size
        start = 0 if wraps else begin % self._size
        owner = struct.unpack_from("<Q", self._text, start)[0] if start + 8 <= self._size else None
        # Where another record has its text by now, this one has lost it.
        if owner != number:
            return None
        return self._text[start + 8 : start + 8 + length].decode("utf-8", "replace")
