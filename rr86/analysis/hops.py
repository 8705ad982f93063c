"""The hops of a value's way back, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

ENDS = {
    "computed": "an instruction computed it",
    "constant": "a constant of the code",
    "input": "it came in from outside: a port, a device's register, RDTSC, CPUID",
    "device": "a device wrote it by DMA",
    "interrupt": "it was saved when an interrupt or an exception was delivered",
    "loaded": "it was loaded before power-on",
    "beginning": "it was there when the recording began",
    "lost": "it cannot be followed",
}
"""How a value's way ends."""


@dataclass(frozen=True)
class Hop:
    """One instruction on a value's way back, or where that ends.

    `kind` is "store", "load", "move" or "copy" for an instruction that copied it, or one of `ENDS`.
    `place` is where it put the value, `source` where it took it from; both are texts. `value` are
    the bytes that are followed, lowest address first, and `inputs` what they were computed from,
    with values. The first hop has no `parent`; of others it is the number of the hop that led
    here.
    """

    kind: str
    place: str
    source: str
    value: bytes
    icount: int | None = None
    vcpu: int | None = None
    rip: int | None = None
    symbol: str | None = None
    text: str = ""
    inputs: tuple[str, ...] = ()
    parent: int | None = None
    # Physical address that was written, or that the value was read from where it came in.
    paddr: int | None = None

    @property
    def is_end(self) -> bool:
        """Whether the value's way ends here."""
        return self.kind in ENDS

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON; bytes in hexadecimal."""
        return {
            "kind": self.kind,
            "icount": self.icount,
            "vcpu": self.vcpu,
            "rip": self.rip,
            "symbol": self.symbol,
            "instruction": self.text,
            "place": self.place,
            "source": self.source,
            "value": self.value.hex(),
            "inputs": list(self.inputs),
            "paddr": self.paddr,
            "parent": self.parent,
        }


def in_order(hops: list[Hop]) -> list[Hop]:
    """Hops right behind those that led to them, renumbered."""
    children: dict[int | None, list[int]] = {}
    for number, hop in enumerate(hops):
        children.setdefault(hop.parent, []).append(number)
    ordered: list[Hop] = []
    numbers: dict[int | None, int | None] = {None: None}
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        number = waiting.pop()
        numbers[number] = len(ordered)
        ordered.append(replace(hops[number], parent=numbers[hops[number].parent]))
        waiting += reversed(children.get(number, []))
    return ordered


def without_saves(hops: Sequence[Hop]) -> list[Hop]:
    """The same hops, without those in which a register was only saved on the stack by PUSH and
    taken back by POP."""
    children: dict[int | None, list[int]] = {}
    for number, hop in enumerate(hops):
        children.setdefault(hop.parent, []).append(number)
    left_out: set[int] = set()
    for number, hop in enumerate(hops):
        inner = children.get(number, [])
        if len(inner) != 1 or not hop.text.startswith("pop "):
            continue
        saved = hops[inner[0]]
        if saved.text == f"push {hop.text[4:]}" and saved.vcpu == hop.vcpu:
            left_out |= {number, inner[0]}
    kept: list[Hop] = []
    numbers: dict[int | None, int | None] = {None: None}
    for number, hop in enumerate(hops):
        if number in left_out:
            numbers[number] = numbers[hop.parent]
        else:
            numbers[number] = len(kept)
            kept.append(replace(hop, parent=numbers[hop.parent]))
    return kept
