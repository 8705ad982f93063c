"""Means, ratios, tables and options of the benchmarks."""

import argparse

import pytest

from bench.common import Sample, Series, counts, geometric_mean, ratio, table


def test_the_geometric_mean_takes_what_was_measured() -> None:
    assert geometric_mean([2.0, None, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([]) is None
    assert geometric_mean([None]) is None


def test_a_ratio_needs_both_sides() -> None:
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(None, 2.0) is None
    assert ratio(3.0, None) is None
    assert ratio(3.0, 0.0) is None


def test_a_series_gives_median_and_spread() -> None:
    series = Series("x", [Sample(seconds) for seconds in (4.0, 1.0, 2.0)])
    assert series.seconds == 2.0
    assert series.spread == 1.5


def test_a_table_lines_numbers_up_on_the_right() -> None:
    assert table(["", "n"], [["long name", "1"], ["b", "100"]]).splitlines() == [
        "             n",
        "long name    1",
        "b          100",
    ]


def test_numbers_of_vcpus_are_positive() -> None:
    assert counts("1,8") == [1, 8]
    for wrong in ("0", "1,", "two", "-1"):
        with pytest.raises(argparse.ArgumentTypeError):
            counts(wrong)
