"""Switching a machine on from images by role: the same way for a recording and for its replay."""

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rr86._native import Machine, Recording
    from rr86.machine.device import Device
    from rr86.machine.spec import BoardSpec


def switch_on(
    spec: "BoardSpec",
    images: Mapping[str, bytes],
    oracle: bool = False,
    devices: "Sequence[Device]" = (),
) -> "Machine":
    """A machine about to run "kernel", with the "initrd" and "module0"… that there are, and with
    further devices."""
    from rr86.machine.board import power_on
    from rr86.machine.loaders.image import BootFiles

    names = takewhile(images.__contains__, (f"module{number}" for number in count()))
    files = BootFiles(
        kernel=images["kernel"],
        initrd=images.get("initrd", b""),
        modules=tuple((name, images[name]) for name in names),
    )
    machine = power_on(spec, files, oracle)
    for device in devices:
        machine.plug(device)
    return machine


def start(
    spec: "BoardSpec", images: Mapping[str, bytes], devices: "Sequence[Device]" = ()
) -> "Recording":
    """The same machine with its scheduler, ready to run; without a trace so far."""
    from rr86._native import Recording

    return Recording(
        switch_on(spec, images, devices=devices),
        seed=spec.seed,
        quantum=spec.quantum,
        schedule=spec.schedule,
        window_bias=spec.window_bias,
    )
