"""Guests that ship inside the package: `demo`, a small multi-vCPU Multiboot guest with its source.

`python -m rr86.guests` records and replays it, so that a first recording needs no kernel.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

# What builds demo.elf from its sources, in this order; see `demo_build_commands`.
DEMO_SOURCES = ("boot.S", "demo.c")
DEMO_CFLAGS = (
    *("-m64", "-std=gnu11", "-O2", "-ffreestanding", "-fno-pic", "-fno-pie", "-mno-red-zone"),
    *("-mgeneral-regs-only", "-fcf-protection=none", "-fno-stack-protector"),
    *("-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"),
    *("-fno-asynchronous-unwind-tables", "-Wall", "-Wextra", "-Werror"),
)
DEMO_LDFLAGS = (
    *("-m", "elf_x86_64", "-static", "-nostdlib", "--build-id=none", "-z", "max-page-size=4096"),
    "--no-warn-rwx-segments",
)


def demo_image() -> bytes:
    """The demo guest: a Multiboot ELF32 image, ready to be loaded."""
    return files(__name__).joinpath("demo", "demo.elf").read_bytes()


def demo_folder() -> Path:
    """The folder with the demo guest and its source, to read, copy or change."""
    with as_file(files(__name__).joinpath("demo")) as folder:
        return folder


def demo_build_commands(source: Path, out: Path) -> list[list[str]]:
    """The commands (gcc, ld, objcopy) that build the demo guest at `source` as `out`/demo.elf.

    The same compiler makes the same bytes wherever the folders are: sources are named relatively,
    so run these commands with `source` as the working directory.
    """
    objects = []
    commands = []
    for name in DEMO_SOURCES:
        made = str(out / f"{Path(name).stem}.o")
        commands.append(["gcc", *DEMO_CFLAGS, "-c", name, "-o", made])
        objects.append(made)
    wide = str(out / "demo.elf64")
    script = str(source / "demo.ld")
    commands.append(["ld", *DEMO_LDFLAGS, "-T", script, "-o", wide, *objects])
    # Multiboot loaders take 32-bit ELF only; the code in it is 64-bit all the same.
    commands.append(["objcopy", "-O", "elf32-i386", wide, str(out / "demo.elf")])
    return commands
