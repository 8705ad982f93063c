"""The option --device: devices in Python that a machine has, see docs/devices.md."""

from typing import TYPE_CHECKING, Annotated

from typer import Option

if TYPE_CHECKING:
    from rr86.session.devices import Devices as Made
    from rr86.session.devices import Given

NewDevices = Annotated[
    list[str] | None,
    Option(
        "--device",
        metavar="MODULE:CLASS[,KEY=VALUE…]",
        help="A further device of the machine, a class in Python; may be given several times. See "
        "docs/devices.md.",
    ),
]
Devices = Annotated[
    list[str] | None,
    Option(
        "--device",
        metavar="MODULE:CLASS",
        help="A device that the trace was recorded with: rr86 imports none by itself. May be given "
        "several times.",
    ),
]


def new_devices(texts: list[str] | None) -> "Made":
    """The devices that --device names for a recording."""
    if not texts:
        return []
    from rr86.session.devices import make, parse_device

    return [make(*parse_device(text)) for text in texts]


def devices(texts: list[str] | None) -> "Given":
    """What --device names for a replay: a class, which is made with the options that the trace
    names, or a device, if options are given here: they have to be equal."""
    if not texts:
        return []
    from rr86.session.devices import make, parse_device

    named = [parse_device(text) for text in texts]
    return [make(kind, options) if options else kind for kind, options in named]
