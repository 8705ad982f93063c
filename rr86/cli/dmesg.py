"""`rr86 dmesg`: the kernel's log at a moment, out of its memory."""

from typing import Annotated

from typer import Option

from rr86.cli.devices import Devices
from rr86.cli.moment import At, TraceArgument, standing_at
from rr86.cli.status import reporting_errors


@reporting_errors
def command(
    trace: TraceArgument = None,
    at: At = None,
    level: Annotated[
        int,
        Option(
            "--level",
            metavar="N",
            min=0,
            max=7,
            help="Only records of this level and more urgent ones: 3 has errors, 4 warnings too.",
        ),
    ] = 7,
    device: Devices = None,
    as_json: Annotated[bool, Option("--json", help="One JSON object for each record.")] = False,
) -> None:
    """Print the log of the Linux that runs in the guest, as its dmesg would at that moment.

    It is read from guest memory, so that it also has what the kernel has not printed on a console:
    with `quiet`, before the console is there, and what it said last before it died.
    """
    import json

    from rr86.kernel.dmesg import read_log

    with standing_at(trace, at, device) as (_, session):
        for record in read_log(session.kernel):
            if record.level > level:
                continue
            if as_json:
                row = {
                    "seq": record.seq,
                    "time_ns": record.time_ns,
                    "facility": record.facility,
                    "level": record.level,
                    "text": record.text,
                }
                print(json.dumps(row))
            else:
                print("\n".join(record.lines()))
