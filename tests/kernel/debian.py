"""Boots of Debian's kernels in which the guest itself says what rr86 is to find in its memory.

The environment variable RR86_KERNELS names a folder with one folder for each kernel, as
tools/debian-guest.sh makes them: `vmlinuz`, `initrd.gz` with a busybox, and `modules/*.ko` where
there are some.
"""

import os
import re
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import rr86
from tools.initramfs import EXECUTABLE, FILE, FOLDER, archive

VCPUS = 4
INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for each in /modules/*.ko; do [ -e $each ] && insmod $each; done
echo @release; uname -r
echo @modules; cat /proc/modules
echo @kallsyms; grep -v '\\[' /proc/kallsyms | md5sum
grep '\\[loop\\]\\|\\[dummy\\]' /proc/kallsyms
echo @vmcoreinfo; cat /sys/kernel/vmcoreinfo
echo @notes; md5sum < /sys/kernel/notes
if [ -e /dev/loop0 ]; then
    echo @loop
    dd if=/dev/zero of=/file bs=64k count=2; losetup /dev/loop0 /file; md5sum < /dev/loop0
fi
for each in fixed moving; do echo @$each; /programs/$each 7; done
echo @dmesg; dmesg; echo @after-dmesg
echo @tasks; cat /proc/[0-9]*/stat | sed 's/) \\(.\\).*/) \\1/'; echo @after-tasks
poweroff -f
"""
# Calls of each other's functions that a compiler does not fold, and an end that says all.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
volatile unsigned total;
__attribute__((noinline)) unsigned inner(unsigned value) {
    total += value;
    return getpid() + total;
}
__attribute__((noinline)) unsigned middle(unsigned value) { return inner(value * 3) + 1; }
__attribute__((noinline)) static unsigned outer(unsigned value) { return middle(value + 1) + 1; }
int main(int argc, char **argv) {
    unsigned long at = (unsigned long)inner;
    unsigned result = outer(atoi(argv[1]));
    printf("pid %d, inner at %#lx, total %u of %u\n", getpid(), at, total, result != 0);
    return 0;
}
"""


def folders() -> list[Path]:
    """The folders of the kernels to try."""
    named = os.environ.get("RR86_KERNELS")
    if not named:
        return []
    found = sorted(each.parent for each in Path(named).glob("*/vmlinuz"))
    return [each for each in found if (each / "initrd.gz").exists()]


@dataclass
class Boot:
    """A recorded boot, and the console by what the guest said it was about to print."""

    name: str
    trace: rr86.Trace
    initrd: Path
    console: str
    programs: Path
    shared: dict[str, object] = field(default_factory=dict)

    def said(self, about: str) -> str:
        """What the guest printed about this."""
        found = re.search(rf"^@{about}\n(.*?)(?=^@|\Z)", self.console, re.MULTILINE | re.DOTALL)
        assert found is not None, self.console[-2000:]
        return found[1]

    @property
    def last(self) -> int:
        """The trace's last moment."""
        return self.trace.summary()["last_icount"]

    @cached_property
    def moments(self) -> dict[str, int]:
        """When the guest announced what it was about to print."""
        session = self.trace.session(verify=False)
        found = {}
        for about in re.findall(r"^@(\S+)", self.console, re.MULTILINE):
            stop = session.run(until=f"console=@{about}")
            assert stop.reason == "condition"
            found[about] = stop.icount
        return found

    def session(self, about: str) -> rr86.ReplaySession:
        """A session that stands where the guest has announced this."""
        return self.session_at(self.moments[about])

    def session_at(self, moment: int) -> rr86.ReplaySession:
        """A session that stands at a moment."""
        session = self.trace.session(verify=False, at=moment)
        if moment > session.began:
            session.run(until=f"icount={moment}")
        return session

    @cached_property
    def at_the_end(self) -> rr86.ReplaySession:
        """A session that stands after all that the guest said of itself."""
        return self.session("after-tasks")


def record_boot(folder: Path, where: Path) -> Boot:
    """Record a boot of the kernel in a folder, with the init above."""
    overlay = [
        ("init", EXECUTABLE, INIT.encode()),
        ("programs", FOLDER, b""),
        ("modules", FOLDER, b""),
    ]
    for name, options in {"fixed": ("-static",), "moving": ("-static-pie",)}.items():
        source = where / f"{name}.c"
        source.write_text(PROGRAM)
        subprocess.run(
            ["gcc", "-O1", "-g", "-fomit-frame-pointer", *options, "-o", where / name, source],
            check=True,
        )
        overlay.append((f"programs/{name}", EXECUTABLE, (where / name).read_bytes()))
    for module in sorted((folder / "modules").glob("*.ko")):
        overlay.append((f"modules/{module.name}", FILE, module.read_bytes()))
    initrd = where / "initrd"
    # What comes later replaces what was there.
    initrd.write_bytes((folder / "initrd.gz").read_bytes() + archive(overlay))
    console = bytearray()
    rr86.record(
        folder / "vmlinuz",
        initrd=initrd,
        smp=VCPUS,
        memory="256M",
        seed=7,
        # The tests of ciphers are half of the boot.
        append="console=ttyS0 quiet cryptomgr.notests",
        checkpoints=200_000_000,
        output=where / "boot.rr86",
        console=console.extend,
    )
    text = console.decode("utf-8", "replace").replace("\r\n", "\n")
    assert "@after-tasks\n" in text, text[-3000:]
    return Boot(folder.name, rr86.open_trace(where / "boot.rr86"), initrd, text, where)
