"""Which programs there are, what kind of work they do, and how much of it."""

from dataclasses import dataclass, replace

CPU, SYSTEM, PARALLEL = "CPU-bound", "system-bound", "parallel"
GROUPS = (CPU, SYSTEM, PARALLEL)


@dataclass(frozen=True)
class Program:
    """A program of `src/`, its iterations, and the number of vCPUs that it runs on."""

    name: str
    group: str
    count: int
    smp: int = 1


# The counts give each half a second to a second in rr86, so that start-up (a millisecond) is
# nothing, and at most about ten in QEMU.
PROGRAMS = (
    Program("loop", CPU, 200_000_000),
    Program("sieve", CPU, 800),
    Program("crc", CPU, 3_000),
    Program("sort", CPU, 600),
    Program("chase", CPU, 150_000),
    Program("memcpy_8m", CPU, 400),
    Program("memcpy_64", CPU, 60_000),
    Program("fib", CPU, 7_000),
    Program("indirect", CPU, 50_000),
    Program("nbody", CPU, 3_000_000),
    Program("stream", CPU, 2_000),
    Program("matmul", CPU, 1_200),
    Program("x87", CPU, 20_000_000),
    Program("getppid", SYSTEM, 1_000_000),
    Program("forkexec", SYSTEM, 300),
    Program("fork", SYSTEM, 500),
    Program("pagefault", SYSTEM, 2_000),
    Program("pipe", SYSTEM, 15_000),
    Program("switch", SYSTEM, 10_000, smp=2),
    Program("parallel", PARALLEL, 50, smp=4),
)


def choose(only: str | None, scale: float, smp: int | None) -> list[Program]:
    """The programs named in a list with commas (by default all), with their counts scaled.

    `smp` goes before a program's own number of vCPUs. Raises ValueError at an unknown name.
    """
    known = {program.name: program for program in PROGRAMS}
    names = list(known) if only is None else [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no such program: {', '.join(unknown)} (there are: {', '.join(known)})")
    return [
        replace(
            known[name],
            count=max(1, round(known[name].count * scale)),
            smp=smp or known[name].smp,
        )
        for name in names
    ]
