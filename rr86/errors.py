"""The errors of rr86. All derive from `Error`; every message is one sentence or two for a person.

What is known besides the message is in attributes, for programs; an attribute that does not apply,
or is not known, is None. The native core raises these same classes (`rr86._native`). Beside them
come only what Python itself raises: `MemoryError`, `KeyboardInterrupt`, and `OSError` where a
file fails in the middle of the work.
"""

from pathlib import Path


class Error(Exception):
    """The root of everything that rr86 raises on purpose."""


class UsageError(Error, ValueError):
    """A call that makes no sense: an option or an argument with a value that cannot be meant."""


class ConditionError(UsageError):
    """A stop condition that cannot be understood, or cannot be watched for on this guest.

    `condition` is its text, `position` the index of the character at which it went wrong.
    """

    def __init__(
        self, message: str, *, condition: str | None = None, position: int | None = None
    ) -> None:
        super().__init__(message)
        self.condition = condition
        self.position = position


class SpecError(UsageError):
    """A board that cannot be built; the message says what to change.

    `setting` is the field of `BoardSpec` that is wrong.
    """

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class GuestImageError(Error):
    """A kernel, initrd or module that cannot be read, unpacked or booted.

    `role` is what it was given as ("kernel", "initrd", "module0"…), `path` the file.
    """

    def __init__(self, message: str, *, role: str | None = None, path: Path | None = None) -> None:
        super().__init__(message)
        self.role = role
        self.path = path


class KernelImageError(GuestImageError):
    """A kernel whose symbols or other tables cannot be read; it may boot all the same."""


class SymbolsError(Error):
    """A guest without symbols, or without the symbol that was asked for.

    `symbol` is its name, `near` has names that are like it.
    """

    def __init__(
        self, message: str, *, symbol: str | None = None, near: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.symbol = symbol
        self.near = near


class KernelError(Error):
    """A guest of which something was asked that only a running Linux has: its kernel has not placed
    itself yet, or lacks what the answer needs (types, a symbol, a structure)."""


class AddressError(Error):
    """An address that is not what was asked for: outside of RAM, or not mapped.

    `address` is the first one that is wrong.
    """

    def __init__(self, message: str, *, address: int | None = None) -> None:
        super().__init__(message)
        self.address = address


class DeviceError(Error):
    """A device in Python that cannot be used like this, that raised an exception (the error's
    cause), or that a trace needs and was not given.

    `device` is the component's name, where a device of a running machine is meant.
    """

    def __init__(self, message: str, device: str | None = None) -> None:
        super().__init__(message)
        self.device = device


class RecordingError(Error):
    """A recording that cannot be started or go on. `path` is its trace, if that is the reason."""

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class TraceError(Error):
    """A trace file that cannot be read or written: missing, damaged, or of another version.

    `chunk` is the number of the damaged chunk, `offset` where that begins in the file.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        chunk: int | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.chunk = chunk
        self.offset = offset


class TraceContentError(TraceError):
    """A trace whose chunks are intact, and whose header, footer or images make no sense, or that
    does not hold what was asked for."""


class ExpansionError(Error):
    """An expansion that cannot be written or used, or a trace that cannot have one.

    `path` is the expansion's.
    """

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class DivergenceError(Error):
    """A replay that left the recorded path.

    `component` is what differs ("ram", "cpu0", "schedule"…), `decision` the number of the decision
    at which that was seen, `moment` its instruction count, `vcpu` the vCPU that ran. `expected` is
    what the trace says there, `found` what the replay did.
    """

    def __init__(
        self,
        message: str,
        *,
        component: str | None = None,
        decision: int | None = None,
        moment: int | None = None,
        vcpu: int | None = None,
        expected: int | str | None = None,
        found: int | str | None = None,
    ) -> None:
        super().__init__(message)
        self.component = component
        self.decision = decision
        self.moment = moment
        self.vcpu = vcpu
        self.expected = expected
        self.found = found


class NativeError(Error):
    """Any other failure of the core: a machine that cannot do what was asked of it."""


class HostError(NativeError):
    """The host lacks something that the engine or the guest's CPU model needs."""


class EngineError(NativeError):
    """Translated code failed on the host, which is a bug in rr86; the message names the
    instruction and its block. Nothing runs any more, and a trace holds what ran before the slice in
    which it happened.

    `vcpu` ran, `moment` is the instruction count, `rip` the instruction's address.
    """

    def __init__(
        self,
        message: str,
        *,
        vcpu: int | None = None,
        moment: int | None = None,
        rip: int | None = None,
    ) -> None:
        super().__init__(message)
        self.vcpu = vcpu
        self.moment = moment
        self.rip = rip
