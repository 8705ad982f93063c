"""Options of the benchmarks that are more than a number."""

import argparse

import pytest

from bench.programs.__main__ import variants


def test_variants_are_named_and_a_replay_needs_its_recording() -> None:
    assert variants("plain,QEMU") == ["plain", "QEMU"]
    assert variants("recording,replaying") == ["recording", "replaying"]
    with pytest.raises(argparse.ArgumentTypeError, match="no such variant: fast"):
        variants("plain,fast")
    with pytest.raises(argparse.ArgumentTypeError, match="needs a recording"):
        variants("replaying")
