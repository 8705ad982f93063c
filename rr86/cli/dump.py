"""`rr86 dump`: a moment as an ELF core file, for crash, drgn and gdb."""

from pathlib import Path
from typing import Annotated

from typer import Option

from rr86.cli.devices import Devices
from rr86.cli.moment import At, TraceArgument, standing_at
from rr86.cli.status import fail, reporting_errors, say


@reporting_errors
def command(
    trace: TraceArgument = None,
    at: At = None,
    output: Annotated[
        Path, Option("-o", "--output", metavar="FILE", help="The file to write.")
    ] = Path("vmcore"),
    symbols: Annotated[
        Path | None,
        Option(
            "--symbol-file",
            metavar="FILE",
            help="Also write an ELF file with the kernel's symbols and unwind tables, made from "
            "what the guest's kernel knows of itself: gdb FILE vmcore.",
        ),
    ] = None,
    force: Annotated[bool, Option("-f", "--force", help="Replace files that exist.")] = False,
    device: Devices = None,
    as_json: Annotated[bool, Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Write the guest's memory and the registers of its vCPUs at a moment to an ELF core file.

    It is what kdump would have written: a segment for each range of RAM, NT_PRSTATUS for each vCPU
    (thread n+1 is vCPU n), and the kernel's VMCOREINFO. gdb also sees the kernel's image, stacks
    and modules where they are mapped. Pages of zeros take no room on the disk.
    """
    from rr86.cli.progress import size_text

    for each in (output, symbols):
        if each is not None and each.exists() and not force:
            fail(f"'{each}' exists; --force replaces it")
    with standing_at(trace, at, device) as (_, session):
        if symbols is not None:
            from rr86.kernel.symbol_file import write_symbol_file

            write_symbol_file(session.kernel, symbols)
        dump = session.dump(output)
        if as_json:
            from rr86.cli.as_json import print_json

            print_json({**vars(dump), "path": str(dump.path), "icount": session.icount})
            return
        say(
            f"{output}: {size_text(dump.ram)} of RAM at instruction {session.icount:,}, "
            f"{size_text(dump.stored)} of it not zero"
        )
        if dump.offset:
            say(f"the kernel is {dump.offset:#x} from its link-time addresses (crash --kaslr)")
        if not dump.vmcoreinfo:
            say("no Linux runs there yet: the file has physical addresses only, and no VMCOREINFO")
