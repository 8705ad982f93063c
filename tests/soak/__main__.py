"""All robustness tests, one after the other: `make soak` runs this. See docs/testing.md.

python -m tests.soak [--seeds N] [--kills N] [--boots N] [--jobs N] [KERNEL_FOLDER …]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.soak import boots, code, death, devices, frame


def main(arguments: list[str] | None = None) -> int:
    """Run every part from where it was left; 1 if any of them found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("kernels", nargs="*", type=Path, help="folders with vmlinuz and initrd.gz")
    parser.add_argument("--seeds", type=int, default=1000, help="of each mode, and of devices")
    parser.add_argument("--kills", type=int, default=200, help="commands killed at work")
    parser.add_argument("--boots", type=int, default=48, help="boots, if kernels are named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--folder", type=Path, default=frame.DEFAULT_FOLDER, help="findings, state")
    chosen = parser.parse_args(arguments)
    common = ["--jobs", str(chosen.jobs), "--folder", str(chosen.folder)]
    many = ["--seeds", str(chosen.seeds), *common]
    status = code.main(many) | devices.main(many)
    kernels = [str(kernel) for kernel in chosen.kernels]
    killed = [word for kernel in kernels for word in ("--kernel", kernel)]
    place = ["--folder", str(chosen.folder / "death")]
    status |= death.main(["--kills", str(chosen.kills), *place, *killed])
    if kernels:
        status |= boots.main(["--seeds", str(chosen.boots), *common, *kernels])
    else:
        print("boots: no kernels were named, so none were booted")
    return status


if __name__ == "__main__":
    sys.exit(main())
