"""Devices in Python by name: which a trace was recorded with, which a replay was given, and which a
command names."""

import importlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rr86.errors import DeviceError
from rr86.machine.device import Device, Option

Given = Iterable[Device | type[Device]]
"""Devices for a replay: classes, of which each session makes its own, or one session's devices."""
Devices = list[Device]
Entry = tuple[str, Mapping[str, Option]]
"""What a trace says of a device: its class (`module:name`) and its options."""


def class_name(kind: type[Device]) -> str:
    """What a trace calls a class of devices, as `--device` takes it."""
    return f"{kind.__module__}:{kind.__qualname__}"


def described(device: Device) -> tuple[str, dict[str, Option]]:
    """What a trace says of a device."""
    return class_name(type(device)), dict(device.options)


def _text(kind: str, options: Mapping[str, Option]) -> str:
    """The same as `--device` takes it."""
    texts = {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in options.items()
    }
    return kind + "".join(f",{key}={text}" for key, text in texts.items())


def for_replay(entries: Iterable[Entry], given: Given) -> list[Device]:
    """The devices of a trace, made from its header by the classes that were given.

    Raises `DeviceError` if one is missing, if one was given that the trace does not have, or if a
    device was made with other options than the recorded one.
    """
    left = list(given)
    devices = []
    recorded = [(kind, dict(options)) for kind, options in entries]
    for kind, options in recorded:
        found = next((each for each in left if _kind(each) == kind), None)
        if found is None:
            raise DeviceError(
                f"the trace was recorded with the device {kind}, and no trace makes rr86 "
                f"import anything: give the class, as --device {kind}, or devices=[…] in "
                "Python"
            )
        if isinstance(found, Device):
            left.remove(found)
            if described(found) != (kind, options):
                raise DeviceError(
                    f"the trace was recorded with the device {_text(kind, options)}, not "
                    f"{_text(*described(found))}"
                )
            devices.append(found)
        else:
            devices.append(make(found, options))
    kinds = {kind for kind, _ in recorded}
    for each in left:
        if isinstance(each, Device) or _kind(each) not in kinds:
            raise DeviceError(f"the trace was recorded without the device {_kind(each)}")
    return devices


def _kind(given: "Device | type[Device]") -> str:
    return class_name(type(given) if isinstance(given, Device) else given)


def make(kind: type[Device], options: Mapping[str, Option]) -> Device:
    """A device of a class; `DeviceError` if the class does not take these options."""
    try:
        device = kind(**options)
    except TypeError as error:
        raise DeviceError(f"the device {class_name(kind)} cannot be made: {error}") from None
    return device


def parse_device(text: str) -> tuple[type[Device], dict[str, Option]]:
    """Class and options in MODULE:CLASS[,key=value…], as on the command line.

    The module is imported, from the current folder too, as Python itself does with `-m`. Numbers
    (0x… too), `true` and `false` become such, everything else is text.
    """
    named, *pairs = text.split(",")
    module_name, colon, path = named.partition(":")
    if not (colon and module_name and path):
        raise DeviceError(f"not a device: {text!r}; write it like my_module:MyDevice,key=value")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise DeviceError(f"the device {named} cannot be imported: {error}") from None
    except AttributeError:
        raise DeviceError(f"the module {module_name} has no class {path}") from None
    if not (isinstance(found, type) and issubclass(found, Device)):
        raise DeviceError(f"{named} is no subclass of rr86.machine.Device")
    options: dict[str, Option] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise DeviceError(f"not an option of a device: {pair!r}; write it like key=value")
        options[key] = _value(value)
    return found, options


def _value(text: str) -> Option:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text, 0)
    except ValueError:
        return text
