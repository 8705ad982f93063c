"""Hostile headers and footers: msgpack that no recorder wrote, behind checksums that fit.

python -m tests.soak.metadata --inputs 1000000 --seed 7 [--from N]

Each input follows from the seed and its number: the header and the footer of a real trace with
values replaced, removed, moved or added, and then maybe bytes changed. They are read as `rr86 info`
and a replay's start read them. Whatever they say, that ends with a result or with an error meant
for a person.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from rr86.errors import Error
from rr86.replay.trace import Trace
from rr86.trace.metadata import Header
from tests.demo import record_demo


def _odd(rng: random.Random, depth: int = 0) -> Any:
    """A value that somebody may not have thought of."""
    simple: list[Callable[[], Any]] = [
        lambda: rng.choice(
            [0, 1, -1, 255, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)]
        ),
        lambda: rng.choice([0.0, -1.5, float("inf"), float("nan"), 1e308]),
        lambda: rng.choice(
            ["", "x", "\0", "\ud7ff", "kernel", "../../etc/passwd", "{0}", "9" * 5000]
        ),
        lambda: rng.choice([b"", b"\0", b"\xff" * 300]),
        lambda: rng.choice([None, True, False]),
    ]
    nested: list[Callable[[], Any]] = [
        lambda: [_odd(rng, depth + 1) for _ in range(rng.randrange(4))],
        lambda: {rng.choice(["a", "reason", "icount"]): _odd(rng, depth + 1) for _ in range(3)},
    ]
    return rng.choice(simple if depth > 3 else simple + nested)()


def _change(rng: random.Random, value: Any) -> Any:
    """The value with something in it replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed = dict(value)
        key = rng.choice(list(changed))
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(["extra", "", "vcpus", "x" * 300])] = _odd(rng)
            case 2:
                changed[key] = changed[rng.choice(list(changed))]
            case _:
                changed[key] = _change(rng, changed[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], _change(rng, value[at]), *value[at + rng.randrange(2) :]]
    return _odd(rng)


def _packed(rng: random.Random, content: Any) -> bytes:
    for _ in range(rng.randrange(3)):
        content = _change(rng, content)
    raw = bytearray(msgpack.packb(content))
    if rng.random() < 0.3:
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw) + 1)
            match rng.randrange(4):
                case 0:
                    del raw[at:]
                case 1:
                    raw[at:at] = rng.choice(
                        [b"\xdd\xff\xff\xff\xff", b"\xdf\0\0\xff\xff", b"\x91" * 900]
                    )
                case _:
                    raw[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(raw)


class _Reader:
    """A trace's reader that gives another header and footer."""

    def __init__(self, real: Any, header: bytes, footer: bytes) -> None:
        self._real = real
        self._header, self._footer = header, footer

    def header(self) -> bytes:
        return self._header

    def footer(self) -> bytes:
        return self._footer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Metadata:
    """The inputs of one seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.path = record_demo(folder).path
        self._real = Trace(self.path)._reader
        self._summary = self._real.summary()
        self._header = msgpack.unpackb(self._real.header())
        self._footer = msgpack.unpackb(self._real.footer() or b"\x80")

    def run(self, number: int) -> None:
        """One input; raises what it found."""
        from rr86.cli import info

        rng = random.Random(f"{self.seed}:{number}")
        header, footer = _packed(rng, self._header), _packed(rng, self._footer)
        with contextlib.suppress(Error):
            trace = Trace.__new__(Trace)
            trace.path = self.path
            trace._reader = _Reader(self._real, header, footer)  # type: ignore[assignment]
            trace.header = Header.unpack(header)
            with contextlib.redirect_stdout(io.StringIO()):
                info.show(trace, as_json=rng.random() < 0.3)
            _ = trace.spec, trace.stale_int3s
            if number % 64 == 0:
                trace.names()
                trace.session()


def main(arguments: list[str] | None = None) -> int:
    """Run the inputs; 1 if one of them found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.metadata")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--from", type=int, default=0, dest="first", help="number of the first input"
    )
    chosen = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    findings = 0
    with tempfile.TemporaryDirectory() as folder:
        metadata = Metadata(seed, Path(folder))
        for number in range(chosen.first, chosen.first + chosen.inputs):
            try:
                metadata.run(number)
            except Exception as error:
                findings += 1
                kind = type(error).__name__
                print(f"finding: --seed {seed} --from {number} --inputs 1: {kind}: {error!s:.200}")
    print(f"{chosen.inputs} inputs, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
