"""Hostile code: random and structured instructions in every mode, recorded, replayed, compared.

    python -m tests.soak.code --mode ring3|ring0|32|16 --seeds 1000 --first 0

See docs/testing.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.soak import frame
from tests.soak.checks import check
from tests.soak.hostile import build

MODES = ("ring3", "ring0", "32", "16")


def main(
    arguments: list[str] | None = None, modes: tuple[str, ...] = MODES, name: str = "code"
) -> int:
    """Run seeds of a mode, or of all; 1 if something was found."""
    parser = frame.options(__doc__, 200, 120.0)
    parser.add_argument("--mode", choices=(*modes, "all"), default="all")
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        return frame.work(chosen.worker, lambda seed: one(chosen.mode, seed, chosen.scratch))
    status = 0
    for mode in modes if chosen.mode == "all" else (chosen.mode,):
        title = name if len(modes) == 1 else f"{name}-{mode}"
        first = frame.begin_at(chosen.folder, title, chosen.first)
        campaign = frame.Campaign(
            module=f"tests.soak.{name}",
            name=title,
            arguments=["--mode", mode],
            first=first,
            seeds=chosen.seeds,
            jobs=chosen.jobs,
            timeout=chosen.timeout,
            folder=chosen.folder,
        )
        status |= frame.run(campaign)
        if chosen.first is None:
            frame.note(chosen.folder, title, first + chosen.seeds)
    return status


def one(mode: str, seed: int, scratch: Path) -> str:
    """Everything that is asked of one seed."""
    guest = build(mode, seed)
    (scratch / "kernel.elf").write_bytes(guest.kernel)
    (scratch / "spec.json").write_text(json.dumps({**guest.spec.to_dict(), "limit": guest.limit}))
    return check(guest, scratch)


if __name__ == "__main__":
    sys.exit(main())
