"""`rr86 symbols`: the symbols of a kernel, or of the kernel in a trace."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rr86.cli.status import fail, reporting_errors, say


@reporting_errors
def command(
    source: Annotated[
        Path, Argument(metavar="TRACE|KERNEL", help="A trace, a bzImage or an ELF file.")
    ],
    pattern: Annotated[
        str, Argument(help="A name, with * and ? as in a shell; or an address as 0x….")
    ] = "*",
    as_json: Annotated[bool, Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List symbols as nm does; those of a trace are where that run's kernel had them.

    KERNEL may be compressed as a whole (gzip, zstd or xz).
    """
    import json

    from rr86.cpu.guest_symbols import GuestSymbols
    from rr86.cpu.vmlinux import is_bzimage
    from rr86.record.files import read_image
    from rr86.record.packed import is_packed, unpacked
    from rr86.replay.trace import open_trace

    if not source.exists():
        fail(f"'{source}' does not exist")
    with source.open("rb") as file:
        head = file.read(0x400)
    if head[:4] == b"\x7fELF" or is_bzimage(head) or is_packed(head):
        kernel = unpacked(read_image(source, "kernel"), f"kernel '{source}'")
        symbols = GuestSymbols(kernel, 0)
    else:
        symbols = open_trace(source).symbols()
    table = symbols.linked
    if table is None:
        fail(f"no symbols: {symbols.problem}")
    if symbols.table is None:
        say("the trace does not say where the kernel was: these are link-time addresses")
    else:
        table = symbols.table
    if pattern[:2].lower() == "0x":
        try:
            name = table.lookup(int(pattern, 16))
        except ValueError:
            fail(f"not an address: {pattern!r}", 2)
        if name is None:
            fail(f"no symbol covers {pattern}")
        if as_json:
            print(json.dumps({"address": int(pattern, 16), "name": name}))
        else:
            print(name)
        return
    found = False
    for address, symbol in table.search(pattern):
        if as_json:
            row = {"address": address, "kind": symbol.kind, "name": symbol.name}
            print(json.dumps(row))
        else:
            print(f"{address:016x} {symbol.kind} {symbol.name}")
        found = True
    if not found:
        fail(f"no symbol matches {pattern!r}")
