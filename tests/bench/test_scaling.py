"""The parts of the scaling benchmark that need no guest."""

from bench.scaling import TIMES, Answer, Child, high_water, length_answers, report, resident

SMAPS = """\
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:              100000 kB
7f0020000000-7f0020100000 rw-p 00000000 00:00 0
Size:               1024 kB
Rss:                1024 kB
7f0030000000-7f0050000000 r-xs 00000000 00:01 7    /memfd:code (deleted)
Size:             524288 kB
Rss:                4000 kB
"""


def test_guest_ram_is_the_private_mapping_that_is_large_enough() -> None:
    assert resident(SMAPS, 512 << 20) == 100_000 * 1024
    assert resident(SMAPS, 1 << 20) == 101_024 * 1024
    assert resident("", 1 << 20) == 0


def test_the_high_water_mark_is_in_kilobytes() -> None:
    assert high_water("Name:\tx\nVmPeak:\t 900 kB\nVmHWM:\t  250 kB\nVmRSS:\t 1 kB\n") == 256_000
    assert high_water("Name:\tkthreadd\n") == 0


def test_a_bound_is_kept_or_not() -> None:
    lines = report(
        [
            Answer("start", "a", 149.0, "ms", 150),
            Answer("start", "b", 151.0, "ms", 150),
            Answer("length", "c", 1.0, "s"),
        ]
    ).splitlines()
    assert lines[1].endswith("  kept")
    assert lines[2].endswith("not kept")
    assert lines[3].endswith("-")


def test_growth_is_that_of_the_work_and_not_of_the_boot() -> None:
    mib = 1 << 20
    runs = {
        0: [Child(2.0, 0.0, 90 * mib, 40 * mib)],
        1: [Child(9.0, each, 100 * mib, 40 * mib) for each in (1.0, 1.5, 7.0)],
        TIMES: [Child(9.0, 12.0, 108 * mib, 41 * mib)],
    }
    answers = {each.what: each for each in length_answers(runs)}
    assert answers["the work once, after the boot"].value == 1.5
    ratio = answers["10 times to 10 x once"]
    assert (ratio.value, ratio.kept) == (0.8, True)
    assert answers["memory that it adds"].value == 7.0
