"""The block protocols, as data: in which order a translator takes the steps of a block's life and
of a store, where another vCPU may run in between, and what it forgets.

This is the one description. The core gets its properties with every machine (`properties`), the
command and docs/block-protocols.md show it, and tests hold the core's own table against it. Users
describe protocols of their own in the same terms; those go into the trace's header as a whole
(`text`), and a replay reads them from there.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.errors import UsageError

if TYPE_CHECKING:
    from rr86._native import BlockProtocol

WINDOW = "|"
"""Stands between two steps where another vCPU may run."""
BLOCK_STEPS = {
    "fetch": "the source bytes are read",
    "guard": "from here on, stores to these pages are checked",
    "link": "the block is among those that run, and that a check finds",
}
STORE_STEPS = {
    "check": "blocks made from the bytes are looked for and invalidated",
    "commit": "the data is in memory",
    "unguard": "stores to a page that has no block left are not checked any more",
}
WRITERS = {
    "helper": "string instructions, atomics, and what instructions write beside their effect",
    "walk": "accessed and dirty bits, set by the page walker",
    "device": "DMA",
}

# What an order means. With no window between fetch and link, that of a block's steps shows nowhere.
_BLOCK_ORDERS = {
    "guard fetch link": (False, False),
    "fetch guard link": (False, False),
    "fetch link guard": (False, False),
    "fetch | guard link": (True, False),
    "fetch | link guard": (True, False),
    "guard fetch | link": (True, True),
}
_STORE_ORDERS = {
    "check commit unguard": (False, False, False),
    "commit check unguard": (False, False, False),
    "check | commit unguard": (True, False, False),
    "commit | check unguard": (True, True, False),
    "check commit | unguard": (False, False, True),
    "check | commit | unguard": (True, False, True),
    "commit | check | unguard": (True, True, True),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_SWITCHES = {
    "stores-wait": "stores_wait",
    "second-page-untracked": "second_page_untracked",
    "virtual-keyed": "virtual_keyed",
    "chains-kept": "chains_kept",
    "same-block-ignored": "same_block_ignored",
}


@dataclass(frozen=True)
class Protocol:
    """A block protocol.

    `block` and `store` are the steps in their order, with `|` where another vCPU may run.

    Raises `UsageError` where the steps are not those that there are, or in an order that no
    translator here can take.
    """

    name: str
    block: str = "guard fetch link"
    store: str = "check commit unguard"
    stores_wait: bool = False
    """A check waits for fetches from the page that are under way: these are then made anew."""
    unchecked: Collection[str] = ()
    """Writers (`WRITERS`) whose stores are not checked."""
    second_page_untracked: bool = False
    """A block in two pages is guarded and found by its first one only."""
    virtual_keyed: bool = False
    """A check looks for blocks at the store's linear address, and misses those of an alias."""
    chains_kept: bool = False
    """Jumps between blocks still lead to one that was invalidated."""
    same_block_ignored: bool = False
    """What is left of the running block still runs when it has invalidated itself."""
    mistake: str = ""
    """How a write gets past it, in a few words; empty for one that nothing gets past."""
    origin: str = ""
    """Where that was seen."""

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise UsageError(
                f"a protocol's name is letters, digits, '.', '_' and '-': {self.name!r}"
            )
        for what, orders in (("block", _BLOCK_ORDERS), ("store", _STORE_ORDERS)):
            steps = " ".join(getattr(self, what).replace(WINDOW, f" {WINDOW} ").split())
            if steps not in orders:
                raise UsageError(
                    f"protocol {self.name}: there is no order {steps!r} of a {what}'s steps; there "
                    f"are {', '.join(repr(each) for each in orders)}"
                )
            object.__setattr__(self, what, steps)
        unknown = sorted(set(self.unchecked) - WRITERS.keys())
        if unknown:
            raise UsageError(
                f"protocol {self.name}: no such writer: {', '.join(unknown)} (there are: "
                f"{', '.join(WRITERS)})"
            )
        object.__setattr__(self, "unchecked", tuple(w for w in WRITERS if w in self.unchecked))

    @property
    def windows(self) -> bool:
        """Whether another vCPU may run between two of its steps."""
        return WINDOW in self.block or WINDOW in self.store

    @property
    def built_in(self) -> bool:
        """Whether it is one of `PROTOCOLS`."""
        return protocol_named(self.name) == self

    @property
    def text(self) -> str:
        """All that makes it up but its name: what `described` reads, and the header holds."""
        parts = [f"block: {self.block}", f"store: {self.store}"]
        if self.unchecked:
            parts.append(f"unchecked: {' '.join(self.unchecked)}")
        parts += [word for word, field in _SWITCHES.items() if getattr(self, field)]
        return "; ".join(parts)

    def properties(self) -> "BlockProtocol":
        """The protocol in the core's terms."""
        fetch_window, guard_first = _BLOCK_ORDERS[self.block]
        store_window, commit_first, unguard_window = _STORE_ORDERS[self.store]
        return {
            "fetch_window": fetch_window,
            "guard_first": guard_first,
            "store_waits": self.stores_wait,
            "store_window": store_window,
            "commit_first": commit_first,
            "unguard_window": unguard_window,
            "second_page_untracked": self.second_page_untracked,
            "dma_unchecked": "device" in self.unchecked,
            "helper_unchecked": "helper" in self.unchecked,
            "virtual_keyed": self.virtual_keyed,
            "chain_kept": self.chains_kept,
            "same_block_ignored": self.same_block_ignored,
            "walk_unchecked": "walk" in self.unchecked,
        }


_QEMU_BLOCK, _QEMU_STORE = "fetch | link guard", "check | commit | unguard"

PROTOCOLS = (
    Protocol(
        "precise",
        origin="guards the page before its bytes are read: no write can be missed",
    ),
    Protocol(
        "qemu-7.2",
        _QEMU_BLOCK,
        _QEMU_STORE,
        mistake="fetch before guard, check before commit, guard dropped late (W1, W1', W2, W3)",
        origin="QEMU before 8.1, with MTTCG; fixed in part by QEMU deba78709ae8",
    ),
    Protocol(
        "qemu-10",
        _QEMU_BLOCK,
        _QEMU_STORE,
        stores_wait=True,
        mistake="the same without W1: stores wait for a translation under way (W1', W2, W3)",
        origin="QEMU 8.1 and later",
    ),
    Protocol(
        "crossing-untracked",
        second_page_untracked=True,
        mistake="the second page of a block that crosses pages is not tracked",
        origin="QEMU 3b279f73fa; 86Box #7580; Dolphin #1487; v86 #1585",
    ),
    Protocol(
        "dma-unchecked",
        unchecked=("device",),
        mistake="writes by DMA are not checked for code",
        origin="QEMU f874bf905f, 0b57e28713; PCSX2 #14876; PPSSPP #8321",
    ),
    Protocol(
        "helper-unchecked",
        unchecked=("helper",),
        mistake="atomic and string stores are not checked for code",
        origin="QEMU 34d49937e4",
    ),
    Protocol(
        "virtual-keyed",
        virtual_keyed=True,
        mistake="blocks are invalidated by virtual address, so that writes through an alias miss "
        "them",
        origin="Dolphin #9314; v86 #1575",
    ),
    Protocol(
        "chain-kept",
        chains_kept=True,
        mistake="chains and jump caches still lead to a block that was invalidated",
        origin="QEMU 36bdbe5479, 3371802fba, 736a1588c1; v86 #1585",
    ),
    Protocol(
        "same-block-ignored",
        same_block_ignored=True,
        mistake="a store into the running block lets the rest of it run on",
        origin="QEMU d720b93d0b; Unicorn #364, #820; FEX #2841",
    ),
    Protocol(
        "walk-unchecked",
        unchecked=("walk",),
        mistake="accessed and dirty bits set by the page walker are not checked for code",
        origin="QEMU 7.2, by reading",
    ),
)
NAMED = {each.name: each for each in PROTOCOLS}


def protocol_named(name: str) -> Protocol | None:
    """The protocol with this name, of those that rr86 has."""
    return NAMED.get(name)


def described(name: str, text: str) -> Protocol:
    """The protocol that `Protocol.text` was made from.

    Raises `UsageError` if that makes no sense, or the name is that of a protocol of rr86's own.
    """
    if name in NAMED:
        raise UsageError(f"there is a protocol {name} already; choose another name")
    given = {"block": "guard fetch link", "store": "check commit unguard", "unchecked": ""}
    switches = set()
    for part in filter(None, (each.strip() for each in text.split(";"))):
        key, colon, value = (each.strip() for each in part.partition(":"))
        if colon and key in given:
            given[key] = value
        elif not colon and key in _SWITCHES:
            switches.add(key)
        else:
            raise UsageError(
                f"protocol {name}: {part!r} is none of 'block: …', 'store: …', 'unchecked: …', "
                f"{', '.join(_SWITCHES)}"
            )
    return Protocol(
        name,
        block=given["block"],
        store=given["store"],
        unchecked=given["unchecked"].split(),
        stores_wait="stores-wait" in switches,
        second_page_untracked="second-page-untracked" in switches,
        virtual_keyed="virtual-keyed" in switches,
        chains_kept="chains-kept" in switches,
        same_block_ignored="same-block-ignored" in switches,
    )


def board_settings(protocol: str | Protocol) -> dict[str, str]:
    """The settings of a board for a block protocol, which may be named, described as `NAME=STEPS`,
    or given.

    Raises `UsageError` if a description makes no sense.
    """
    if isinstance(protocol, str):
        name, described_as, steps = (part.strip() for part in protocol.partition("="))
        if not described_as:
            return {"protocol": name}
        protocol = described(name, steps)
    if protocol.built_in:
        return {"protocol": protocol.name}
    # Whatever else it is, it must not be taken for the one of this name.
    described(protocol.name, protocol.text)
    return {"protocol": protocol.name, "protocol_steps": protocol.text}
