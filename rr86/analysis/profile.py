"""A profile of a stretch of a run, as data: how many instructions went where.

It counts instructions, which is virtual time: one nanosecond each. It is made of samples. The
stretch is cut into pieces of `interval` instructions, and in each piece one instruction is looked
at, which stands for all of the piece. Which one follows from the piece's number alone, as if drawn
at random: at equal distances a loop of a fitting length would always be met in the same place. So
each instruction has the same chance, the weights add up to the instructions of the stretch, and two
profiles of one trace are equal.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Sample:
    """What a vCPU was about to execute at a moment, for `weight` instructions.

    `stack` has the task first, then its functions from the outermost to the one that runs.
    """

    icount: int
    vcpu: int
    weight: int
    stack: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """The samples of the moments from `first` up to but not including `last`, in order; of one vCPU
    or (None) of the whole machine. `instructions` is what was retired there."""

    title: str
    first: int
    last: int
    interval: int
    vcpu: int | None
    vcpus: int
    instructions: int
    samples: Sequence[Sample]

    def stacks(self) -> dict[tuple[str, ...], int]:
        """Instructions by stack."""
        found: Counter[tuple[str, ...]] = Counter()
        for sample in self.samples:
            found[sample.stack] += sample.weight
        return dict(found)

    def tasks(self) -> dict[str, int]:
        """Instructions by task, most first."""
        found: Counter[str] = Counter()
        for sample in self.samples:
            found[sample.stack[0]] += sample.weight
        return _most_first(found)

    def functions(self) -> list["Function"]:
        """What each function executed, those first that did the most themselves."""
        own: Counter[str] = Counter()
        total: Counter[str] = Counter()
        tasks: dict[str, Counter[str]] = {}
        for sample in self.samples:
            leaf = sample.stack[-1]
            own[leaf] += sample.weight
            tasks.setdefault(leaf, Counter())[sample.stack[0]] += sample.weight
            # A function that calls itself counts once.
            for name in set(sample.stack[1:]) or {leaf}:
                total[name] += sample.weight
        rows = [
            Function(name, own[name], count, tuple(_most_first(tasks.get(name, Counter()))))
            for name, count in total.items()
        ]
        return sorted(rows, key=lambda row: (-row.own, -row.total, row.name))


@dataclass(frozen=True, slots=True)
class Function:
    """Instructions of a function: its `own`, and the `total` with those of what it called. `tasks`
    are those that executed its own, most first."""

    name: str
    own: int
    total: int
    tasks: tuple[str, ...]


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def places(length: int, interval: int) -> Iterator[tuple[int, int]]:
    """Where to sample a stretch of so many instructions: (place, weight) of each piece."""
    for number, start in enumerate(range(0, length, interval)):
        weight = min(interval, length - start)
        yield start + _drawn(number) % weight, weight


def _drawn(number: int) -> int:
    """A number that looks random (splitmix64)."""
    value = (number + 1) * 0x9E37_79B9_7F4A_7C15 & _MASK
    value = (value ^ value >> 30) * 0xBF58_476D_1CE4_E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D0_49BB_1331_11EB & _MASK
    return value ^ value >> 31
