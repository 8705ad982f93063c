"""The header and the footer of a trace: msgpack maps around the events.

The header says what was started, the footer what became of it. Neither holds wall-clock time, so
two recordings of one run are equal byte for byte. The core stores both without looking inside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rr86.errors import TraceContentError

_LARGEST = 16 << 20
# What a stop's entries are; the others are numbers.
_STOP = {"reason": str, "condition": str, "detail": str}


class Host(NamedTuple):
    """The maker and family of the host's CPU, for what makers do differently."""

    maker: str
    family: int

    def __str__(self) -> str:
        return f"{self.maker} family {self.family}"


def this_host(cpuinfo: Path = Path("/proc/cpuinfo")) -> Host:
    """This host, as the Linux kernel describes its CPU."""
    maker, family = "unknown", 0
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return Host(maker, family)
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "vendor_id":
            maker = value
        elif key == "cpu family" and value.isdecimal():
            family = int(value)
    return Host(maker, family)


class DeviceEntry(NamedTuple):
    """A device in Python: its class (`module:name`) and what it was made with."""

    kind: str
    options: Mapping[str, int | str | bool]


@dataclass(frozen=True)
class Origin:
    """Where a branch comes from: the name of the parent's file, its content id, the moment (an
    instruction count) and the vCPU at which it left it, and what was changed there."""

    parent: str
    content_id: str
    icount: int
    vcpu: int
    # "seed", "quantum" and "window_bias" (numbers), "schedule" and "protocol" (names), "input"
    # (bytes for the console), "writes" (physical address, length, the first bytes of each).
    changed: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; bytes in hexadecimal."""
        changed = dict(self.changed)
        if "input" in changed:
            changed["input"] = changed["input"].hex()
        if "writes" in changed:
            changed["writes"] = [
                {"paddr": paddr, "length": length, "bytes": data.hex()}
                for paddr, length, data in changed["writes"]
            ]
        return {
            "parent": self.parent,
            "content_id": self.content_id,
            "icount": self.icount,
            "vcpu": self.vcpu,
            "changed": changed,
        }


@dataclass(frozen=True)
class Header:
    """What a trace says about its start: rr86's version, board, images by name, and host."""

    version: str
    spec: Mapping[str, Any]
    # Image name ("kernel", "initrd", "module0"…) to the name of the file it came from.
    images: Mapping[str, str]
    host: Host
    # Devices by users, which a replay has to be given.
    devices: Sequence[DeviceEntry] = ()
    # Of a trace that begins at a moment of another.
    branch: Origin | None = None

    def pack(self) -> bytes:
        """The header as msgpack."""
        import msgpack

        content: dict[str, Any] = {
            "rr86": self.version,
            "spec": dict(self.spec),
            "images": dict(self.images),
            "host": {"maker": self.host.maker, "family": self.host.family},
        }
        if self.devices:
            content["devices"] = [[each.kind, dict(each.options)] for each in self.devices]
        if self.branch is not None:
            origin = self.branch
            content["branch"] = {
                "parent": origin.parent,
                "content_id": origin.content_id,
                "icount": origin.icount,
                "vcpu": origin.vcpu,
                "changed": dict(origin.changed),
            }
        packed: bytes = msgpack.packb(content)
        return packed

    @classmethod
    def unpack(cls, raw: bytes) -> "Header":
        """The header of a trace; `TraceContentError` if it is none."""
        content = _unpack_map(raw, "header")
        host = _entry(content, "host", dict)
        spec = _entry(content, "spec", dict)
        images = _entry(content, "images", dict)
        for what, rows, kinds in (("spec", spec, (int, str, bool)), ("images", images, (str,))):
            for key, value in rows.items():
                if not isinstance(key, str) or not isinstance(value, kinds):
                    raise TraceContentError(f"the trace's header makes no sense at {what!r}")
        return cls(
            version=_entry(content, "rr86", str),
            spec=spec,
            images=images,
            host=Host(_entry(host, "maker", str), _entry(host, "family", int)),
            devices=_devices(content.get("devices", [])),
            branch=_origin(content["branch"]) if "branch" in content else None,
        )


# The core's counters that the guest and the schedule determine. The others tell how the run was
# executed, and differ with shortcuts and with the host.
COUNTERS = (
    *("instructions", "skipped_ns", "slices", "exceptions", "interrupts", "hand_offs"),
    *("blocks", "blocks_translated", "instructions_translated", "blocks_invalidated"),
    *("block_flushes", "stale_blocks", "stale_entries", "stale_int3s"),
)


@dataclass(frozen=True)
class Footer:
    """What is known only at the end of a recording."""

    # How far the kernel moved itself from its link-time addresses, if somebody needed to know.
    kaslr_offset: int | None = None
    # LSTAR of the first vCPU that set it: with the kernel's symbols, it tells the same.
    lstar: int = 0
    stop: Mapping[str, Any] = field(default_factory=dict)
    # Those of `COUNTERS`; older traces have more.
    statistics: Mapping[str, int] = field(default_factory=dict)
    # Linear and physical address of LSTAR's target, and of each vCPU's per-CPU area (None: not
    # found), from which physical addresses get names.
    image: tuple[int, int] | None = None
    per_cpu: Sequence[tuple[int, int] | None] = ()
    # A bit for each 2 MiB of RAM that the guest touched: a replay takes them from the host ahead.
    touched: bytes = b""

    def pack(self) -> bytes:
        """The footer as msgpack."""
        import msgpack

        content = {
            "kaslr_offset": self.kaslr_offset,
            "lstar": self.lstar,
            "image": self.image,
            "per_cpu": list(self.per_cpu),
            "touched": self.touched,
            "stop": dict(self.stop),
            "statistics": dict(sorted(self.statistics.items())),
        }
        packed: bytes = msgpack.packb(content)
        return packed

    @classmethod
    def unpack(cls, raw: bytes) -> "Footer":
        """The footer of a trace; `TraceContentError` if it is none."""
        content = _unpack_map(raw, "footer")
        per_cpu = content.get("per_cpu")
        touched = content.get("touched")
        stop, statistics = content.get("stop"), content.get("statistics")
        return cls(
            kaslr_offset=_address(content.get("kaslr_offset")),
            lstar=_address(content.get("lstar")) or 0,
            image=_place(content.get("image")),
            per_cpu=tuple(_place(each) for each in per_cpu) if isinstance(per_cpu, list) else (),
            touched=touched if isinstance(touched, bytes) else b"",
            stop=_plain(stop, _STOP),
            statistics=_plain(statistics, {}),
        )


def _plain(content: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Entries of a map under strings: those named in `kinds` if they are of that type, and
    numbers."""
    if not isinstance(content, dict):
        return {}
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str)
        and (type(value) is kinds.get(key, int) or (key == "condition" and value is None))
    }


def _entry(content: Mapping[str, Any], key: str, kind: type) -> Any:
    """An entry of the header that has to be there, and of this type."""
    value = content.get(key)
    if type(value) is not kind:
        raise TraceContentError(f"the trace's header lacks or misnames {key!r}")
    return value


def _devices(rows: Any) -> tuple[DeviceEntry, ...]:
    """The devices that a header names."""
    entries = []
    for row in rows if isinstance(rows, list) else [rows]:
        match row:
            case [str(kind), dict(options)] if all(
                isinstance(key, str) and isinstance(value, (int, str, bool))
                for key, value in options.items()
            ):
                entries.append(DeviceEntry(kind, options))
            case _:
                raise TraceContentError("the trace's header makes no sense at 'devices'")
    return tuple(entries)


_CHANGES = {
    **dict.fromkeys(("seed", "quantum", "window_bias"), int),
    **dict.fromkeys(("schedule", "protocol"), str),
    "input": bytes,
    "writes": list,
}


def _origin(content: Any) -> Origin:
    """Where a branch comes from, as its header has it."""
    match content:
        case {
            "parent": str(parent),
            "content_id": str(content_id),
            "icount": int(icount),
            "vcpu": int(vcpu),
            "changed": dict(changed),
        } if all(type(value) is _CHANGES.get(key) for key, value in changed.items()):
            writes = changed.get("writes", [])
            if all(_is_write(each) for each in writes):
                if writes:
                    changed["writes"] = [tuple(each) for each in writes]
                return Origin(parent, content_id, icount, vcpu, changed)
    raise TraceContentError("the trace's header makes no sense at 'branch'")


def _is_write(value: Any) -> bool:
    match value:
        case [int(), int(), bytes()]:
            return True
        case _:
            return False


def _address(value: Any) -> int | None:
    """A 64-bit number, if it is one."""
    return value if type(value) is int and 0 <= value < 1 << 64 else None


def _place(value: Any) -> tuple[int, int] | None:
    """A linear and a physical address, if it is such a pair."""
    match value:
        case [virtual, physical]:
            place = _address(virtual), _address(physical)
            return None if None in place else (virtual, physical)
        case _:
            return None


def _unpack_map(raw: bytes, what: str) -> dict[str, Any]:
    import msgpack

    if len(raw) > _LARGEST:
        raise TraceContentError(f"the trace's {what} is implausibly large ({len(raw):,} bytes)")
    try:
        content = msgpack.unpackb(raw)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise TraceContentError(f"the trace's {what} is not msgpack: {error}") from None
    if not isinstance(content, dict):
        raise TraceContentError(f"the trace's {what} is not a map")
    return content
