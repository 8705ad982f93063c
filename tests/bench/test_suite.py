"""How runs of programs become results, and results a report."""

import pytest

from bench.programs.build import SOURCES
from bench.programs.catalogue import CPU, PROGRAMS, Program, choose
from bench.programs.guest import Outcome
from bench.programs.suite import Measured, as_json, findings, means, report
from bench.programs.variants import IN_QEMU, NATIVE, PLAIN, Boot, Results, run_guests

A, B, C = (Program(name, CPU, 1) for name in "abc")


def result(seconds: float, answer: str = "1") -> Results:
    return Results({"a": Outcome(seconds, 0, answer)})


def test_every_program_has_a_source() -> None:
    for program in PROGRAMS:
        assert (SOURCES / f"{program.name}.c").is_file()


def test_programs_are_chosen_by_name_scaled_and_placed() -> None:
    (crc,) = choose("crc", 0.5, None)
    assert crc.count == next(each.count for each in PROGRAMS if each.name == "crc") // 2
    assert [each.smp for each in choose("crc,switch", 1.0, 4)] == [4, 4]
    assert choose("crc", 1e-9, None)[0].count == 1
    with pytest.raises(ValueError, match="no such program: nothing"):
        choose("crc,nothing", 1.0, None)


def test_a_program_that_kills_the_guest_does_not_take_the_others_with_it() -> None:
    boots = [
        Boot({"a": Outcome(1.0, 0, "x")}, running="b", error="panic"),
        Boot({"c": Outcome(2.0, 0, "y")}),
    ]
    asked = []

    def boot(programs: list[Program]) -> Boot:
        asked.append([program.name for program in programs])
        return boots[len(asked) - 1]

    results = run_guests(boot, [A, B, C])
    assert asked == [["a", "b", "c"], ["c"]]
    assert set(results.outcomes) == {"a", "c"}
    assert results.failures == {"b": "panic"}


def test_a_guest_that_does_not_boot_fails_all_programs_at_once() -> None:
    results = run_guests(lambda _: Boot({}, error="no kernel"), [A, B])
    assert results.failures == {"a": "no kernel", "b": "no kernel"}


def test_a_program_that_fails_is_told_from_one_that_ends_well() -> None:
    outcomes = {"a": Outcome(1.0, 256, "mmap"), "b": Outcome(1.0, 11, ""), "c": Outcome(1.0, 0, "")}
    results = run_guests(lambda _: Boot(outcomes), [A, B, C])
    assert list(results.outcomes) == ["c"]
    assert results.failures == {"a": "status 1: mmap", "b": "killed by signal 11"}


def test_different_answers_are_found() -> None:
    measured = Measured(A)
    measured.add(NATIVE, result(1.0))
    measured.add(PLAIN, result(2.0))
    assert findings([measured]) == []
    measured.add(PLAIN, result(2.0, "2"))
    assert findings([measured]) == ["a, different answers: native 1, plain 1/2"]


def test_ratios_come_from_medians_and_need_both_variants() -> None:
    measured = Measured(A)
    for seconds in (1.0, 9.0, 2.0):
        measured.add(NATIVE, result(seconds))
    measured.add(PLAIN, result(3.0))
    assert measured.ratios() == {
        "plain/native": 1.5,
        "QEMU/plain": None,
        "rec/plain": None,
        "replay/rec": None,
    }


def test_what_is_slower_than_qemu_is_said() -> None:
    measured = Measured(A)
    measured.add(PLAIN, result(2.0))
    measured.add(IN_QEMU, result(1.0))
    assert findings([measured]) == ["slower than QEMU: a (0.50x)"]


def test_a_failure_leaves_a_dash_in_the_table_and_a_sentence_below() -> None:
    fine, failed = Measured(A), Measured(B)
    fine.add(PLAIN, result(2.0))
    fine.add(IN_QEMU, result(8.0))
    failed.add(PLAIN, Results(failures={"b": "panic"}))
    failed.add(IN_QEMU, Results(failures={"b": "never ran"}))
    lines = report([fine, failed]).splitlines()
    assert lines[1].split() == ["a", "1", "-", "2.000", "-", "-", "8.000", "-", "4.00", "-", "-"]
    assert set(lines[2].split()[2:]) == {"-"}
    assert means([fine, failed], CPU)["QEMU/plain"] == pytest.approx(4.0)
    assert findings([fine, failed]) == ["b, plain: panic", "b, QEMU: never ran"]


def test_the_json_holds_every_single_time() -> None:
    measured = Measured(A)
    measured.add(PLAIN, result(2.0))
    measured.add(PLAIN, result(3.0))
    programs = as_json([measured])["programs"]
    assert isinstance(programs, dict)
    assert programs["a"]["variants"]["plain"]["all_seconds"] == [2.0, 3.0]
