"""The guests that patch code go stale under the block protocol that they were written for, and
under no other; each of them knows the store that was missed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guests.build import load_manifest
from tests.guests.machines import assert_same_run, record_guest, replay

MANIFEST = load_manifest()
EXIT_CLEAN = 0x10
EXIT_STALE = 0x11
# The protocol that each guest exposes, and its number of cases.
EXPOSES = {
    "rel-alias": ("virtual-keyed", 2),
    "rel-chain": ("chain-kept", 5),
    "rel-crossing": ("crossing-untracked", 3),
    "rel-dma": ("dma-unchecked", 2),
    "rel-helper": ("helper-unchecked", 9),
    "rel-same": ("same-block-ignored", 3),
    "rel-walk": ("walk-unchecked", 2),
}
RACES = ("qemu-7.2", "qemu-10")
# Switch in each fetch window, and in so many of the others as that allows.
ALL_WINDOWS = 65_536
PROTOCOLS = ("precise", *RACES, *sorted(protocol for protocol, _ in EXPOSES.values()))

GUILTY = re.compile(
    r"GUILTY paddr=(?P<paddr>[0-9a-f]+) "
    r"old=(?P<old>(?:[0-9a-f]{2})+) new=(?P<new>(?:[0-9a-f]{2})+) "
    r"vcpu=(?P<vcpu>\d|device) tsc=(?P<tsc>\d+) until=(?P<until>\d+) va=(?P<va>[0-9a-f]+) "
    r"how=(?P<how>\S+) case=(?P<case>\S+) round=(?P<round>\d+)"
)


@dataclass(frozen=True)
class Guilty:
    """A store that should have removed a block, as the guest tells it."""

    paddr: int
    old: bytes
    new: bytes
    vcpu: str
    tsc: int
    until: int
    case: str


def guilty_stores(debugcon: bytes) -> list[Guilty]:
    """The stores that a guest found guilty, in the order of their discovery."""
    lines = [line for line in debugcon.decode().splitlines() if line.startswith("GUILTY")]
    matches = [GUILTY.fullmatch(line) for line in lines]
    return [
        Guilty(
            paddr=int(found["paddr"], 16),
            old=bytes.fromhex(found["old"]),
            new=bytes.fromhex(found["new"]),
            vcpu=found["vcpu"],
            tsc=int(found["tsc"]),
            until=int(found["until"]),
            case=found["case"],
        )
        for found in matches
        if found is not None
    ]


def assert_stores_are_told_rightly(stores: list[Guilty], vcpu: str) -> None:
    for store in stores:
        assert len(store.old) == len(store.new)
        assert store.old != store.new
        assert store.tsc < store.until
        assert store.vcpu == vcpu


def test_every_relative_has_its_guest() -> None:
    assert set(EXPOSES) == {name for name in MANIFEST if name.startswith("rel-")}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", sorted(EXPOSES))
def test_a_relative_goes_stale_under_its_own_protocol_alone(
    name: str, protocol: str, tmp_path: Path
) -> None:
    guest = MANIFEST[name]
    seen = record_guest(guest, tmp_path / "guest.rr86", protocol=protocol).outcome
    own, cases = EXPOSES[name]
    stores = guilty_stores(seen.debugcon)
    if protocol != own:
        assert (seen.code, stores) == (EXIT_CLEAN, []), seen.debugcon
        return
    assert seen.code == EXIT_STALE, seen.console
    assert len({store.case for store in stores}) == len(stores) == cases
    assert_stores_are_told_rightly(stores, "device" if name == "rel-dma" else "0")


@pytest.mark.parametrize("protocol", ["precise", *RACES])
@pytest.mark.parametrize("name", ["xmod", "xmod-shared", "xmod-alias", "xmod-string"])
def test_cross_modified_code_goes_stale_only_where_there_is_a_window(
    name: str, protocol: str, tmp_path: Path
) -> None:
    guest = MANIFEST[name]
    seen = record_guest(
        guest, tmp_path / "guest.rr86", protocol=protocol, window_bias=ALL_WINDOWS
    ).outcome
    stores = guilty_stores(seen.debugcon)
    if protocol == "precise":
        assert (seen.code, stores) == (EXIT_CLEAN, [])
        return
    assert seen.code == EXIT_STALE, seen.console
    summary = re.search(rb"xmod: \d+ rounds, (\d+) stale", seen.console)
    assert summary is not None
    assert int(summary[1]) == len(stores) > 0
    assert_stores_are_told_rightly(stores, "0")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_instruction_that_ends_in_the_page_it_begins_in_is_patched(
    protocol: str, tmp_path: Path
) -> None:
    """Two linear pages in a row are one page of RAM, which lists the block that crosses once."""
    recorded = record_guest(MANIFEST["own-alias"], tmp_path / "guest.rr86", protocol=protocol)
    seen = recorded.outcome
    assert seen.reason == "debug-exit"
    if protocol == "precise":
        assert seen.code == MANIFEST["own-alias"].code, seen.console
    assert_same_run(replay(recorded), seen)
