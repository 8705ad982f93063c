"""A short run of the fuzzer; `python -m tests.gdb.fuzz` is the long one."""

from __future__ import annotations

from tests.gdb.fuzz import Generator, run


def test_the_server_survives_broken_packets_and_the_machine_is_unharmed() -> None:
    found = run(2_000, seed=7)
    # Most of it means nothing, some of it means something.
    assert found["empty"] > 100
    assert found["error"] > 100
    assert found["answer"] > 100


def test_a_seed_says_everything() -> None:
    first, again = Generator(3), Generator(3)
    assert [first.packet() for _ in range(500)] == [again.packet() for _ in range(500)]
