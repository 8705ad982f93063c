"""The Q35 board: what it is made of, its tables, and how kernels get into it."""

from rr86.errors import GuestImageError, SpecError
from rr86.machine.board import Placement, build, power_on
from rr86.machine.device import Device
from rr86.machine.loaders.detect import read_image
from rr86.machine.loaders.image import BootFiles
from rr86.machine.spec import BoardSpec, parse_size

__all__ = [
    "BoardSpec",
    "BootFiles",
    "Device",
    "GuestImageError",
    "Placement",
    "SpecError",
    "build",
    "parse_size",
    "power_on",
    "read_image",
]
