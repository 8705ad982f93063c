"""VMCOREINFO: what a Linux kernel tells those who read its memory after a crash (crash, drgn,
makedumpfile). It is text, a line for each fact, in a page of the kernel's own.

Source: Documentation/admin-guide/kdump/vmcoreinfo.rst in the kernel's sources.
"""

from rr86.errors import KernelError, SymbolsError
from rr86.kernel.identity import build_id, release
from rr86.kernel.memory import PAGE
from rr86.kernel.running import RunningKernel

_SYMBOLS = (
    *("init_uts_ns", "node_online_map", "swapper_pg_dir", "_stext", "vmap_area_list"),
    *("contig_page_data", "prb", "init_top_pgt"),
)


def vmcoreinfo(kernel: RunningKernel) -> bytes:
    """The kernel's own text, once its boot has come so far; before, the facts without which no
    reader can do. Raises `KernelError` where no Linux runs yet."""
    try:
        data, size = (
            kernel.number(kernel.address(name)) for name in ("vmcoreinfo_data", "vmcoreinfo_size")
        )
    except (KernelError, SymbolsError):
        data = size = 0
    if data and 0 < size <= PAGE:
        own = kernel.read(data, size)
        if len(own) == size and own.startswith(b"OSRELEASE="):
            return own
    return _made(kernel)


def _made(kernel: RunningKernel) -> bytes:
    table = kernel.symbols
    lines = [f"OSRELEASE={release(kernel)}"]
    identity = build_id(kernel)
    if identity is not None:
        lines.append(f"BUILD-ID={identity}")
    lines.append(f"PAGESIZE={PAGE}")
    for name in _SYMBOLS:
        if table.link_address(name) is not None:
            lines.append(f"SYMBOL({name})={table.address(name):x}")
    if table.link_address("swapper_pg_dir") is None and kernel.has("init_top_pgt"):
        lines.append(f"SYMBOL(swapper_pg_dir)={table.address('init_top_pgt'):x}")
    lines += [
        f"NUMBER(phys_base)={_phys_base(kernel)}",
        f"NUMBER(pgtable_l5_enabled)={int(kernel.page_tables.levels == 5)}",
        f"KERNELOFFSET={table.offset:x}",
        f"NUMBER(KERNEL_IMAGE_SIZE)={1 << 30}",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


# __START_KERNEL_map, to which physical address 0 would belong without phys_base.
_START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000


def _phys_base(kernel: RunningKernel) -> int:
    return _START_KERNEL_MAP - kernel.bias
