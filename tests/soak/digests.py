"""Digests of whole trace files over all test guests: for changes that must not show.

    python -m tests.soak.digests --write build/before.json [KERNEL FOLDER …]
    python -m tests.soak.digests --compare build/before.json [KERNEL FOLDER …]

The first command keeps what the second compares with. Each folder holds a `vmlinuz` and an
`initrd.gz` that powers off (tools/debian-guest.sh makes them). Digests hold for one host and one
version of the package, because the header of a trace names both. See docs/testing.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rr86
from rr86.machine.spec import PROTOCOLS, SCHEDULES
from tests.demo import record_demo
from tests.guests.build import build, load_manifest
from tests.guests.machines import record_guest

APPEND = "console=ttyS0 panic=-1"
LIMIT = 4_000_000_000
"""Instructions of a boot that a protocol leads astray."""
MANY_VCPUS = 4
ASTRAY = 20_000_000
"""Instructions of a guest that a protocol leads astray."""
GUESTS = load_manifest()


@dataclass(frozen=True)
class Case:
    """One recording: of a test guest, of the demo guest, or of a kernel in a folder."""

    guest: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [self.guest, *(f"{key}={value}" for key, value in sorted(self.options.items()))]
        return " ".join(words)


def cases(kernels: list[Path]) -> Iterator[Case]:
    """All of them; those of kernels last, because they take longest."""
    for number, protocol in enumerate(PROTOCOLS):
        yield Case("demo", {"protocol": protocol, "seed": number})
    for guest in GUESTS:
        yield Case(guest, {"seed": 1})
        yield Case(guest, {"seed": 2, "schedule": "random", "max_block": 7, "quantum": 5_000})
        yield Case(guest, {"seed": 3, "checkpoints": 500_000, "block_capacity": 200})
        for protocol in PROTOCOLS[1:]:
            yield Case(guest, {"seed": 4, "protocol": protocol})
        for schedule in SCHEDULES[2:]:
            yield Case(guest, {"seed": 5, "schedule": schedule})
    for kernel in kernels:
        for vcpus in (1, MANY_VCPUS):
            yield Case(str(kernel), {"smp": vcpus, "seed": 1})
            yield Case(str(kernel), {"smp": vcpus, "seed": 2, "checkpoints": 300_000_000})
        for protocol in PROTOCOLS[1:]:
            # Under `chain-kept` a kernel spins for ever, and slowly.
            if protocol != "chain-kept":
                yield Case(str(kernel), {"smp": MANY_VCPUS, "seed": 3, "protocol": protocol})
        for schedule in SCHEDULES[1:]:
            yield Case(str(kernel), {"smp": MANY_VCPUS, "seed": 4, "schedule": schedule})


def _limit(case: Case) -> int:
    """Instructions. Those of storms are faults, which take long."""
    return ASTRAY // 20 if case.guest.startswith("storm") else ASTRAY


def _record(case: Case, path: Path) -> None:
    options = case.options
    if case.guest == "demo":
        record_demo(path.parent, path.stem, **options)
    elif case.guest in GUESTS:
        record_guest(GUESTS[case.guest], path, far=_limit(case), **options)
    else:
        folder = Path(case.guest)
        rr86.record(
            folder / "vmlinuz",
            initrd=folder / "initrd.gz",
            append=APPEND,
            output=path,
            limits=rr86.Limits(instructions=LIMIT),
            **options,
        )


def digest(case: Case) -> str:
    """SHA-256 of the case's trace file."""
    with tempfile.TemporaryDirectory(prefix="digests-") as folder:
        path = Path(folder) / "case.rr86"
        _record(case, path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def compare(found: dict[str, str], kept: dict[str, str]) -> list[str]:
    """Names of the cases that were kept and are different now."""
    return [name for name, value in found.items() if kept.get(name) not in (None, value)]


def main(arguments: list[str] | None = None, run: Callable[[Case], str] = digest) -> int:
    """Write digests, or compare with those that were written; 1 if a case differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", type=Path, metavar="FILE", help="keep the digests in FILE")
    mode.add_argument("--compare", type=Path, metavar="FILE", help="compare with those in FILE")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--match", default="", help="only cases whose names hold this text")
    parser.add_argument("kernels", nargs="*", type=Path, help="folders of kernels")
    chosen = parser.parse_args(arguments)
    kept: dict[str, str] = {}
    if chosen.compare is not None:
        kept = json.loads(chosen.compare.read_text())
    todo = [case for case in cases(chosen.kernels) if chosen.match in case.name]
    for guest in GUESTS.values():
        build(guest)
    found: dict[str, str] = {}
    with ProcessPoolExecutor(chosen.jobs) as pool:
        for case, value in zip(todo, pool.map(run, todo), strict=True):
            found[case.name] = value
            if compare({case.name: value}, kept):
                print(f"DIFFERENT: {case.name}", flush=True)
    if chosen.write is not None:
        chosen.write.parent.mkdir(parents=True, exist_ok=True)
        chosen.write.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} digests in {chosen.write}")
        return 0
    compared = [name for name in found if name in kept]
    different = compare(found, kept)
    print(f"{len(compared)} of {len(found)} cases compared, {len(different)} different")
    return 1 if different or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
