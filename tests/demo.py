"""The embedded demo guest, recorded once a session on the real core, for tests of what follows."""

from pathlib import Path

import rr86
from rr86.guests import demo_image
from rr86.session.live import Recording

VCPUS = 4


def record_demo(folder: Path, name: str = "demo", **options: object) -> Recording:
    """Record the demo guest into `folder`."""
    kernel = folder / "demo.elf"
    if not kernel.exists():
        kernel.write_bytes(demo_image())
    settings = {"smp": VCPUS, "memory": "64M", **options}
    recording: Recording = rr86.record(kernel, output=folder / f"{name}.rr86", **settings)  # type: ignore[arg-type]
    return recording
