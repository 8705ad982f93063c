"""`rr86 protocols`: the block protocols that a recording can choose."""

from typing import Annotated

from typer import Option

from rr86.cli.status import reporting_errors


@reporting_errors
def command(
    as_json: Annotated[bool, Option("--json", help="As a JSON list.")] = False,
) -> None:
    """List the block protocols for `record --block-protocol`, with where each was seen.

    NAME=STEPS, in the form that is listed, is a protocol of your own.
    """
    from dataclasses import asdict

    from rr86.translate.protocols import PROTOCOLS

    if as_json:
        import json

        print(json.dumps([asdict(each) for each in PROTOCOLS], indent=2))
        return
    width = max(len(each.name) for each in PROTOCOLS)
    for each in PROTOCOLS:
        lines = [each.text, *([each.mistake] if each.mistake else []), each.origin]
        for number, line in enumerate(lines):
            print(f"{each.name if number == 0 else '':<{width}}  {line}")
