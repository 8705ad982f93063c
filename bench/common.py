"""What the benchmarks share: alternating repetitions, medians, tables."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """One run of one variant."""

    seconds: float
    # Whatever else was measured; the same keys in each sample of a variant.
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Series:
    """All samples of a variant."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median time."""
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def spread(self) -> float:
        """From the fastest sample to the slowest, as a part of the median."""
        times = [sample.seconds for sample in self.samples]
        return (max(times) - min(times)) / self.seconds if self.seconds else 0.0

    def count(self, name: str) -> int | None:
        """The median of a count, if this variant has it."""
        found = [sample.counts[name] for sample in self.samples if name in sample.counts]
        return int(statistics.median(found)) if found else None


def alternate(
    variants: Sequence[tuple[str, Callable[[], Sample]]],
    repetitions: int,
    say: Callable[[str], None],
) -> list[Series]:
    """Run the variants in turn, so that whatever slows the host down meets all of them alike."""
    series = [Series(name) for name, _ in variants]
    for number in range(1, repetitions + 1):
        for (name, run), kept in zip(variants, series, strict=True):
            sample = run()
            kept.samples.append(sample)
            say(f"{number}/{repetitions} {name}: {sample.seconds:.2f} s")
    return series


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first is flush left, the others are numbers."""
    widths = [max(len(row[at]) for row in [header, *rows]) for at in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells)

    return "\n".join([line(header), *(line(row) for row in rows)])
