"""Which loader fits an image: decided by its contents, never by its name."""

from pathlib import Path

from rr86.errors import GuestImageError
from rr86.machine.loaders import bzimage, elf, multiboot
from rr86.machine.loaders.image import EXPECTED, BootFiles, LoadedKernel
from rr86.machine.memory_map import MemoryMap
from rr86.machine.spec import BoardSpec

_FOREIGN = (
    (b"\x1f\x8b", "a gzip file within another file; unpack it first"),
    (b"\xfd7zXZ\0", "an xz file within another file; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file within another file; unpack it first"),
    (b"070701", "a cpio archive: that is an initrd, not a kernel"),
    (b"MZ", "a PE program (EFI or Windows) without a Linux setup header"),
    (b"!<arch>\n", "an ar archive or Debian package; the kernel is inside"),
    (b"#!", "a script"),
)


def read_image(path: Path, what: str = "kernel") -> bytes:
    """The contents of a kernel, initrd or module file; raises `GuestImageError` for a person."""
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise GuestImageError(f"the {what} {path} is a directory") from None
    except OSError as error:
        raise GuestImageError(f"cannot read the {what} {path}: {error.strerror}") from None
    if not data:
        raise GuestImageError(f"the {what} {path} is empty")
    return data


def load_kernel(files: BootFiles, spec: BoardSpec, memory: MemoryMap) -> LoadedKernel:
    """Place the kernel by the loader that its contents ask for."""
    image = files.kernel
    if not image:
        raise GuestImageError("the kernel is empty")
    if bzimage.is_bzimage(image):
        _check_linux(files, spec)
        return bzimage.load(files, spec, memory)
    header = multiboot.find_header(image)
    if header is not None:
        return multiboot.load(header, files, spec, memory)
    if image[:4] == elf.MAGIC:
        _check_linux(files, spec)
        return elf.load_vmlinux(files, spec, memory)
    for magic, reason in _FOREIGN:
        if image.startswith(magic):
            raise GuestImageError(f"the kernel is {reason} ({EXPECTED})")
    raise GuestImageError(f"the kernel is of no known kind; {EXPECTED}")


def _check_linux(files: BootFiles, spec: BoardSpec) -> None:
    spec.require_linux()
    if files.modules:
        raise GuestImageError("a Linux kernel takes one initrd and no Multiboot modules")
