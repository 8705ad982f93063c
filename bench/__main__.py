"""All benchmarks: boots on 1, 2, 4 and 8 vCPUs, small programs, and how cost grows.

    python -m bench --kernel vmlinuz --initrd initrd.gz --json results.json

Each part is a command of its own, with more words in its --help: bench.boot, bench.programs and
bench.scaling. What is missing (a kernel, QEMU, gcc) is said in a line, and the rest goes on.
"""

import argparse
import sys
from collections.abc import Callable

from bench import boot, scaling
from bench.common import (
    BenchError,
    add_common_arguments,
    counts,
    host,
    note,
    qemu_there,
    write_json,
)
from bench.programs import __main__ as programs
from bench.programs import suite
from rr86.errors import Error

PARTS = ("boot", "programs", "scaling")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--smp", type=counts, default=[1, 2, 4, 8], metavar="N,…", help="vCPUs of the boots"
    )
    add_common_arguments(parser)
    boot.add_arguments(parser)
    programs.add_arguments(parser)
    parsed = parser.parse_args()
    unknown = [part for part in parsed.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)} (there are: {', '.join(PARTS)})")
    return parsed


def main() -> int:
    """Measure and print, part by part; the exit status is 1 if any of them failed."""
    arguments = _arguments()
    with_qemu = qemu_there(not arguments.no_qemu)
    results: dict[str, object] = {"host": host()}
    failed = False
    quiet = arguments.json == "-"

    def boots() -> None:
        measured = boot.run(arguments, arguments.smp, with_qemu)
        results["boots"] = [boot.as_json(guest, series) for guest, series in measured]
        if not quiet:
            boot.show(measured)

    def small_programs() -> None:
        nonlocal failed
        measured = programs.run(arguments, None, with_qemu)
        results["programs"] = suite.as_json(measured)
        failed |= any(each.complaints() for each in measured)
        if not quiet:
            programs.show(measured)

    def growth() -> None:
        answers = scaling.run(arguments)
        results["scaling"] = scaling.as_json(answers)
        if not quiet:
            print(f"\n{scaling.report(answers)}")

    parts: dict[str, Callable[[], None]] = {
        "boot": boots,
        "programs": small_programs,
        "scaling": growth,
    }
    for name in arguments.parts or PARTS:
        try:
            parts[name]()
        except (BenchError, Error, ValueError, OSError) as error:
            note(f"bench, {name}: {error}")
            failed = True
    if arguments.json is not None:
        write_json(results, arguments.json)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
