"""Recordings of the guest that patches running code as Linux's text_poke_bp does."""

from dataclasses import replace
from pathlib import Path

from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, record_guest

# What the guest writes to the debug-exit port when an INT3 comes for which no patch is responsible.
STRAY_INT3 = 0x21


def poking(path: Path, protocol: str, rounds: int, seed: int = 3) -> Recorded:
    """Record so many rounds of patching; under qemu-7.2, seed 3 finds a stale INT3."""
    guest = replace(load_manifest()["textpoke"], append=f"rounds={rounds}")
    return record_guest(guest, path, protocol=protocol, seed=seed, quantum=2000, window_bias=32768)
