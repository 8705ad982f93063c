"""vCPUs as gdb's threads: vCPU n is thread n + 1, because 0 means any thread."""

from collections.abc import Mapping

from rr86.cpu.registers import ACTIVITIES

ANY = 0
ALL = -1


def thread_of(vcpu: int) -> int:
    """The thread that a vCPU is."""
    return vcpu + 1


def parse_thread(text: bytes, vcpus: int) -> int | None:
    """The thread that a packet names, `ANY` or `ALL`; None for what is no thread here.

    A process may be named, and must be the only one there is: debuggers that know of several name
    it.
    """
    process, dot, thread = text.partition(b".")
    if text.startswith(b"p"):
        if process not in (b"p1", b"p0", b"p-1"):
            return None
        text = thread if dot else b"-1"
    if text == b"-1":
        return ALL
    number = parse_hex(text)
    return number if number is not None and 0 <= number <= vcpus else None


def parse_hex(text: bytes, digits: int = 16) -> int | None:
    """A number as the protocol writes it: hexadecimal digits and nothing else."""
    if not 0 < len(text) <= digits or any(byte not in b"0123456789abcdefABCDEF" for byte in text):
        return None
    return int(text, 16)


def name_of(vcpu: int, registers: Mapping[str, int]) -> str:
    """What `info threads` shows: `vCPU 2, halted`."""
    return f"vCPU {vcpu}, {ACTIVITIES.get(registers['activity'], 'in an unknown state')}"


def thread_list(names: list[str]) -> bytes:
    """The document of `qXfer:threads:read`."""
    rows = "".join(
        f'<thread id="{thread_of(vcpu):x}" core="{vcpu}">{name}</thread>\n'
        for vcpu, name in enumerate(names)
    )
    return f'<?xml version="1.0"?>\n<threads>\n{rows}</threads>\n'.encode()
