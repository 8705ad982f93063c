"""Build the test guests with gcc and ld, cached by the content of everything that goes in.

Also a small command: `python tests/guests/build.py [NAME...]` builds and prints the paths.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

GUESTS = Path(__file__).resolve().parent
RUNTIME = ("lib/entry.S", "lib/base.c", "lib/traps.c", "lib/apic.c")
HEADERS = ("lib/guest.h", "lib/guest.ld", "lib/stale.h", "page-loops.h")
CFLAGS = (
    *("-m64", "-std=gnu11", "-O2", "-ffreestanding", "-fno-pic", "-fno-pie", "-mno-red-zone"),
    *("-mgeneral-regs-only", "-fcf-protection=none", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-fno-tree-loop-distribute-patterns"),
    *("-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-array-bounds", "-Wno-stringop-overflow"),
)
LDFLAGS = (
    *("-m", "elf_x86_64", "-static", "-nostdlib", "--build-id=none", "-z", "max-page-size=4096"),
    "--no-warn-rwx-segments",
)


class BuildError(Exception):
    """A guest did not build; the message holds the tool's own words."""


@dataclass(frozen=True)
class Guest:
    """One guest of the manifest: how to build it, how to run it, what it must do."""

    name: str
    sources: tuple[str, ...]
    smp: int
    # MiB of RAM
    memory: int
    # multiboot command line
    append: str
    # serial input to give once the guest asks for it
    input: str
    # regular expressions that must each match a console line, in this order
    console: tuple[str, ...]
    # regular expressions that must each match a debug console line, in this order
    debugcon: tuple[str, ...]
    # "poweroff", "debug-exit", "triple-fault", "deadlock" or "never"
    end: str
    # value written to the debug-exit port (0 when the guest ends otherwise)
    code: int


def load_manifest() -> dict[str, Guest]:
    """All guests by name, from manifest.toml."""
    with (GUESTS / "manifest.toml").open("rb") as file:
        rows = tomllib.load(file)["guest"]
    guests = {}
    for row in rows:
        guests[row["name"]] = Guest(
            name=row["name"],
            sources=tuple(row.get("sources", [f"{row['name']}.c"])),
            smp=row.get("smp", 1),
            memory=row.get("memory", 64),
            append=row.get("append", ""),
            input=row.get("input", ""),
            console=tuple(row.get("console", [])),
            debugcon=tuple(row.get("debugcon", [])),
            end=row.get("end", "debug-exit"),
            code=row.get("code", 0x10 if row.get("end", "debug-exit") == "debug-exit" else 0),
        )
    return guests


def tool(name: str) -> str:
    """The full path of a build tool, or an error that says what to install."""
    path = shutil.which(name)
    if path is None:
        raise BuildError(
            f"building the test guests needs '{name}', which is not on PATH; "
            "install gcc and binutils (Debian: apt-get install gcc binutils)"
        )
    return path


def run(*command: str) -> str:
    """Run a build tool; its output, or a BuildError with what it complained about."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def default_cache() -> Path:
    """Where built guests are kept: $RR86_GUEST_CACHE, or build/guests at the top of the tree."""
    chosen = os.environ.get("RR86_GUEST_CACHE")
    return Path(chosen) if chosen else GUESTS.parents[1] / "build" / "guests"


def build(guest: Guest, cache: Path | None = None) -> Path:
    """Build one guest (or find it built already) and return its multiboot ELF32 image."""
    cache = cache or default_cache()
    gcc, ld, objcopy = tool("gcc"), tool("ld"), tool("objcopy")
    inputs = (*RUNTIME, *guest.sources)
    digest = hashlib.sha256(" ".join((*CFLAGS, *LDFLAGS)).encode())
    digest.update(run(gcc, "--version").encode() + run(ld, "--version").encode())
    for name in (*HEADERS, *inputs):
        digest.update(f"\0{name}\0".encode() + (GUESTS / name).read_bytes())
    folder = cache / f"{guest.name}-{digest.hexdigest()[:16]}"
    image = folder / f"{guest.name}.elf"
    if image.exists():
        return image
    # A folder of this process's own, renamed at the end: parallel test runs never see half a build.
    work = cache / f"{folder.name}.{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    objects = []
    for name in inputs:
        out = work / f"{Path(name).stem}.o"
        run(gcc, *CFLAGS, "-I", str(GUESTS), "-c", str(GUESTS / name), "-o", str(out))
        objects.append(str(out))
    wide = work / f"{guest.name}.elf64"
    run(ld, *LDFLAGS, "-T", str(GUESTS / "lib/guest.ld"), "-o", str(wide), *objects)
    # Multiboot loaders take 32-bit ELF only; the code in it may be 64-bit all the same.
    run(objcopy, "-O", "elf32-i386", str(wide), str(work / f"{guest.name}.elf"))
    try:
        work.rename(folder)
    except OSError:
        shutil.rmtree(work)
        if not image.exists():
            raise
    return image


def main(names: list[str]) -> int:
    """Build the named guests, or all of them, and print where they are."""
    guests = load_manifest()
    try:
        for name in names or sorted(guests):
            print(build(guests[name]))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
