"""Devices in Python between a trace's header and a machine: which were recorded with, and which a
replay was given."""

from collections.abc import Iterable, Sequence

from rr86.errors import DeviceError
from rr86.machine.device import Device, class_name, make
from rr86.trace.metadata import DeviceEntry

Given = Iterable[Device | type[Device]]
"""Devices for a replay: classes, of which each session makes its own, or one session's devices."""


def entry_of(device: Device) -> DeviceEntry:
    """What a header says of a device."""
    return DeviceEntry(class_name(type(device)), dict(device.options))


def for_replay(entries: Sequence[DeviceEntry], given: Given) -> list[Device]:
    """The devices of a trace, made from its header by the classes that were given.

    Raises `DeviceError` if one is missing, if one was given that the trace does not have, or if a
    device was made with other options than the recorded one.
    """
    left = list(given)
    devices = []
    for entry in entries:
        found = next((each for each in left if _kind(each) == entry.kind), None)
        if found is None:
            raise DeviceError(
                f"the trace was recorded with the device {entry.kind}, and no trace makes rr86 "
                f"import anything: give the class, as --device {entry.kind}, or devices=[…] in "
                "Python"
            )
        if isinstance(found, Device):
            left.remove(found)
            if entry_of(found) != entry:
                raise DeviceError(
                    f"the trace was recorded with the device {entry}, not {entry_of(found)}"
                )
            devices.append(found)
        else:
            devices.append(make(found, entry.options))
    recorded = {entry.kind for entry in entries}
    for each in left:
        if isinstance(each, Device) or _kind(each) not in recorded:
            raise DeviceError(f"the trace was recorded without the device {_kind(each)}")
    return devices


def _kind(given: "Device | type[Device]") -> str:
    return class_name(type(given) if isinstance(given, Device) else given)
