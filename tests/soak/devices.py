"""Hostile devices: random accesses to ports, MMIO, PCI, MSRs and DMA, by a guest that goes on.

    python -m tests.soak.devices --seeds 1000 --first 0

See docs/testing.md.
"""

from __future__ import annotations

import sys

from tests.soak import code


def main(arguments: list[str] | None = None) -> int:
    """Run seeds; 1 if something was found."""
    return code.main(arguments, ("devices",), "devices")


if __name__ == "__main__":
    sys.exit(main())
