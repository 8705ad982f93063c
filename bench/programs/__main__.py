"""Times small programs natively, in rr86 (plain, recording, replaying) and in QEMU.

    python -m bench.programs --kernel vmlinuz [--only crc,fork] [-n 5] [--json programs.json]

The programs are compiled with gcc, put into an initramfs with an init of their own, and run one
after the other in one boot; no busybox is needed. A program's time is what passes on the host
between two markers on the guest's console. All variants must print the same checksum. The exit
status is 1 if a program failed somewhere or gave different answers.
"""

import argparse
import sys

from bench.common import (
    BenchError,
    add_common_arguments,
    host,
    note,
    positive,
    qemu_there,
    write_json,
)
from bench.programs.catalogue import choose
from bench.programs.suite import VARIANTS, Measured, as_json, findings, measure, report
from bench.programs.variants import IN_QEMU, NATIVE, RECORDING, REPLAYING
from rr86.errors import SpecError
from rr86.machine.spec import parse_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that only this benchmark has."""
    parser.add_argument("--only", metavar="NAME,…", help="these programs, by default all")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies every program's iterations"
    )
    parser.add_argument(
        "--variants",
        type=variants,
        default=VARIANTS,
        metavar="NAME,…",
        help=f"of {', '.join(VARIANTS)}; by default all",
    )


def variants(value: str) -> list[str]:
    """Names of variants with commas between, as an option's value."""
    names = value.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such variant: {', '.join(unknown)}")
    if REPLAYING in names and RECORDING not in names:
        raise argparse.ArgumentTypeError("a replay needs a recording")
    return names


def run(arguments: argparse.Namespace, smp: int | None, with_qemu: bool) -> list[Measured]:
    """Measure what the options ask for."""
    programs = choose(arguments.only, arguments.scale, smp)
    wanted = [name for name in arguments.variants if with_qemu or name != IN_QEMU]
    if arguments.kernel is None and wanted != [NATIVE]:
        note("Without --kernel the programs run natively only.")
        wanted = [NATIVE]
    return measure(
        arguments.kernel,
        programs,
        arguments.repetitions,
        parse_size(arguments.memory),
        arguments.timeout,
        wanted,
    )


def show(measured: list[Measured]) -> None:
    """The table, and what is wrong with it."""
    print(f"\n{report(measured)}")
    for line in findings(measured):
        print(f"! {line}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.programs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--smp", type=positive, help="vCPUs; by default what a program wants")
    add_common_arguments(parser)
    add_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    arguments = _arguments()
    try:
        with_qemu = qemu_there(not arguments.no_qemu)
        measured = run(arguments, arguments.smp, with_qemu)
    except (BenchError, SpecError, ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if arguments.json != "-":
        show(measured)
    if arguments.json is not None:
        write_json({"host": host(), **as_json(measured)}, arguments.json)
    return 1 if any(each.complaints() for each in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
