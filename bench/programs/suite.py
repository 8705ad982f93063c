"""Measuring all programs in all variants, alternating, and what the numbers say."""

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from bench.common import Sample, Series, geometric_mean, note, ratio, table, text
from bench.programs.build import build
from bench.programs.catalogue import GROUPS, Program
from bench.programs.variants import (
    IN_QEMU,
    NATIVE,
    PLAIN,
    RECORDING,
    REPLAYING,
    Qemu,
    Results,
    Rr86,
    Setting,
    require,
    run_native,
)

VARIANTS = (NATIVE, PLAIN, RECORDING, REPLAYING, IN_QEMU)
# (name, variant above, variant below the line)
RATIOS = (
    ("plain/native", PLAIN, NATIVE),
    ("QEMU/plain", IN_QEMU, PLAIN),
    ("rec/plain", RECORDING, PLAIN),
    ("replay/rec", REPLAYING, RECORDING),
)


@dataclass
class Measured:
    """A program with the samples, answers and failures of each variant."""

    program: Program
    series: dict[str, Series] = field(default_factory=dict)
    answers: dict[str, set[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, variant: str, results: Results) -> None:
        """What one more run of a variant has given for this program."""
        name = self.program.name
        outcome = results.outcomes.get(name)
        if outcome is None:
            self.failures[variant] = results.failures.get(name, "never ran")
            return
        series = self.series.setdefault(variant, Series(variant))
        series.samples.append(Sample(outcome.seconds))
        self.answers.setdefault(variant, set()).add(outcome.answer)

    def seconds(self, variant: str) -> float | None:
        """The median of a variant, if it ever ran to its end."""
        series = self.series.get(variant)
        return None if series is None else series.seconds

    def ratios(self) -> dict[str, float | None]:
        """By the names of `RATIOS`."""
        return {
            name: ratio(self.seconds(over), self.seconds(under)) for name, over, under in RATIOS
        }

    def complaints(self) -> list[str]:
        """Failures and different answers, a sentence each."""
        said = [f"{name}: {why}" for name, why in self.failures.items()]
        if len(set().union(*self.answers.values())) > 1:
            said.append(
                "different answers: "
                + ", ".join(f"{name} {'/'.join(sorted(got))}" for name, got in self.answers.items())
            )
        return [f"{self.program.name}, {line}" for line in said]


def measure(
    kernel: Path | None,
    programs: Sequence[Program],
    repetitions: int,
    memory: int,
    timeout: float,
    variants: Sequence[str],
) -> list[Measured]:
    """In these variants, of which only the native one needs no kernel; programs as given."""
    executables = build([*(program.name for program in programs), "init"])
    measured = {program.name: Measured(program) for program in programs}
    with tempfile.TemporaryDirectory(prefix="rr86-bench-") as folder:
        setting = Setting(kernel, executables, memory, timeout, Path(folder))
        require(setting)
        by_smp = sorted(programs, key=lambda program: program.smp)
        for smp, group in groupby(by_smp, key=lambda program: program.smp):
            chosen = list(group)
            for number in range(1, repetitions + 1):
                for variant, run in _runs(setting, smp, variants):
                    note(f"{number}/{repetitions} {smp} vCPUs, {variant}")
                    gc.collect()
                    results = run(chosen)
                    for program in chosen:
                        measured[program.name].add(variant, results)
    return list(measured.values())


def _runs(
    setting: Setting, smp: int, variants: Sequence[str]
) -> list[tuple[str, Callable[[Sequence[Program]], Results]]]:
    machine = Rr86(setting, smp)
    known: dict[str, Callable[[Sequence[Program]], Results]] = {
        NATIVE: lambda programs: run_native(setting, programs),
        PLAIN: machine.plain,
        RECORDING: machine.recording,
        REPLAYING: machine.replaying,
        IN_QEMU: Qemu(setting, smp).run,
    }
    return [(name, run) for name, run in known.items() if name in variants]


def means(measured: Sequence[Measured], group: str) -> dict[str, float | None]:
    """The geometric mean of each ratio over a group."""
    rows = [each.ratios() for each in measured if each.program.group == group]
    return {name: geometric_mean(row[name] for row in rows) for name, _, _ in RATIOS}


def report(measured: Sequence[Measured]) -> str:
    """The table for people: seconds, ratios, and a mean below each group."""
    header = ["", "vCPUs", *VARIANTS, *(name for name, _, _ in RATIOS)]
    rows = []
    for group in GROUPS:
        members = [each for each in measured if each.program.group == group]
        for each in members:
            seconds = [text(each.seconds(variant), ".3f") for variant in VARIANTS]
            ratios = [text(value) for value in each.ratios().values()]
            rows.append([each.program.name, str(each.program.smp), *seconds, *ratios])
        if len(members) > 1:
            mean = [text(value) for value in means(measured, group).values()]
            rows.append([f"{group}, geometric mean", "", *[""] * len(VARIANTS), *mean])
    return table(header, rows)


def findings(measured: Sequence[Measured]) -> list[str]:
    """What is wrong, and which programs rr86 does not do faster than QEMU."""
    said = [line for each in measured for line in each.complaints()]
    slower = [
        f"{each.program.name} ({value:.2f}x)"
        for each in measured
        if (value := each.ratios()["QEMU/plain"]) is not None and value < 1
    ]
    if slower:
        said.append(f"slower than QEMU: {', '.join(slower)}")
    return said


def as_json(measured: Sequence[Measured]) -> dict[str, object]:
    """The same for machines, with every single time."""
    return {
        "programs": {
            each.program.name: {
                "group": each.program.group,
                "smp": each.program.smp,
                "count": each.program.count,
                "variants": {
                    name: {
                        "seconds": series.seconds,
                        "spread": series.spread,
                        "all_seconds": [sample.seconds for sample in series.samples],
                        "answers": sorted(each.answers[name]),
                    }
                    for name, series in each.series.items()
                },
                "ratios": each.ratios(),
                "failures": each.failures,
            }
            for each in measured
        },
        "geometric_means": {group: means(measured, group) for group in GROUPS},
        "findings": findings(measured),
    }
