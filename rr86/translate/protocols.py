"""The block protocols: where each comes from, and how it lets a write through.

The core implements them under the same names (`rr86._native.block_protocols`); this table is what
people get to read, at length in docs/block-protocols.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """A block protocol: name, the class of mistake it makes, and where that was seen."""

    name: str
    # How a write gets past it, in a few words; empty for the one that nothing gets past.
    mistake: str
    origin: str


PROTOCOLS = (
    Protocol("precise", "", "guards the page before its bytes are read: no write can be missed"),
    Protocol(
        "qemu-7.2",
        "fetch before guard, check before commit, guard dropped late (W1, W1', W2, W3)",
        "QEMU before 8.1, with MTTCG; fixed in part by QEMU deba78709ae8",
    ),
    Protocol(
        "qemu-10",
        "the same without W1: stores wait for a translation under way (W1', W2, W3)",
        "QEMU 8.1 and later",
    ),
    Protocol(
        "crossing-untracked",
        "the second page of a block that crosses pages is not tracked",
        "QEMU 3b279f73fa; 86Box #7580; Dolphin #1487; v86 #1585",
    ),
    Protocol(
        "dma-unchecked",
        "writes by DMA are not checked for code",
        "QEMU f874bf905f, 0b57e28713; PCSX2 #14876; PPSSPP #8321",
    ),
    Protocol(
        "helper-unchecked",
        "atomic and string stores are not checked for code",
        "QEMU 34d49937e4",
    ),
    Protocol(
        "virtual-keyed",
        "blocks are invalidated by virtual address, so that writes through an alias miss them",
        "Dolphin #9314; v86 #1575",
    ),
    Protocol(
        "chain-kept",
        "chains and jump caches still lead to a block that was invalidated",
        "QEMU 36bdbe5479, 3371802fba, 736a1588c1; v86 #1585",
    ),
    Protocol(
        "same-block-ignored",
        "a store into the running block lets the rest of it run on",
        "QEMU d720b93d0b; Unicorn #364, #820; FEX #2841",
    ),
    Protocol(
        "walk-unchecked",
        "accessed and dirty bits set by the page walker are not checked for code",
        "QEMU 7.2, by reading",
    ),
)


def protocol_named(name: str) -> Protocol | None:
    """The protocol with this name."""
    return next((each for each in PROTOCOLS if each.name == name), None)
