"""Makes a small initramfs around a static busybox: it says where it runs, and powers off.

    python3 tools/initramfs.py BUSYBOX -o initrd.gz [--init SCRIPT]

The same input gives the same bytes: the archive holds no times, owners or inode numbers of the
host. The format is the "newc" cpio of the kernel's Documentation/driver-api/early-userspace.
"""

import argparse
import gzip
import stat
from collections.abc import Iterable
from pathlib import Path

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "CPUS: $(grep -c ^processor /proc/cpuinfo)"
uname -a
ls /
free
seq 1 200 | sort -r | md5sum
cat /proc/interrupts
poweroff -f
"""
FOLDERS = ("bin", "dev", "proc", "sys", "tmp")
FILE = stat.S_IFREG | 0o644
EXECUTABLE = stat.S_IFREG | 0o755
FOLDER = stat.S_IFDIR | 0o755


def entry(name: str, mode: int, content: bytes, number: int) -> bytes:
    """One file, folder or link of the archive."""
    path = name.encode() + b"\0"
    fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0]
    head = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + path
    head += b"\0" * (-len(head) % 4)
    return head + content + b"\0" * (-len(content) % 4)


def archive(parts: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A compressed archive of these files and folders: name, mode, content."""
    entries = [*parts, ("TRAILER!!!", 0, b"")]
    joined = b"".join(entry(*part, number) for number, part in enumerate(entries, 1))
    return gzip.compress(joined, mtime=0)


def initramfs(busybox: bytes, init: str = INIT) -> bytes:
    """The usual archive: busybox, an init, and folders to mount things on."""
    folders = [(folder, FOLDER, b"") for folder in FOLDERS]
    return archive(
        [*folders, ("bin/busybox", EXECUTABLE, busybox), ("init", EXECUTABLE, init.encode())]
    )


def main() -> None:
    """Read busybox, write the archive."""
    parser = argparse.ArgumentParser(description="Makes an initramfs around a static busybox.")
    parser.add_argument("busybox", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("initrd.gz"))
    parser.add_argument("--init", type=Path, help="a script to run instead of the usual one")
    arguments = parser.parse_args()
    init = INIT if arguments.init is None else arguments.init.read_text(encoding="utf-8")
    arguments.output.write_bytes(initramfs(arguments.busybox.read_bytes(), init))


if __name__ == "__main__":
    main()
