"""The script that checks answers about writers: right on the demo guest, and not blind."""

from pathlib import Path

from bench.whowrote import Question, compare, draw, measure, report, truths
from rr86.replay import Store, WriteHistory
from rr86.replay.trace import open_trace


def copy_of(demo_trace: Path, tmp_path: Path) -> Path:
    path = tmp_path / "demo.rr86"
    path.write_bytes(demo_trace.read_bytes())
    return path


def test_all_answers_are_right_and_most_come_from_the_log(demo_trace: Path, tmp_path: Path) -> None:
    result = measure(open_trace(copy_of(demo_trace, tmp_path)), 150, 2, 3)
    assert result.mismatches == []
    assert result.pairs == 150
    assert 100 < result.from_log <= 150
    assert 0 < result.never_written < 150
    assert "0 of " in report(result)


def test_what_another_got_to_see_is_in_the_log(demo_trace: Path, tmp_path: Path) -> None:
    result = measure(open_trace(copy_of(demo_trace, tmp_path)), 100, 2, 3, seen=True)
    assert result.mismatches == []
    assert result.from_log > 95


def test_a_wrong_answer_is_noticed(demo_trace: Path, tmp_path: Path) -> None:
    trace = open_trace(copy_of(demo_trace, tmp_path))
    history = WriteHistory(trace)
    history.expand()
    truth = truths(trace, draw(trace, 40, 1))
    question, store = next((q, s) for q, s in truth.items() if s is not None)
    (record,) = history.who_wrote(question.paddr, 1, question.at)
    assert compare(question, record, store) is None
    other = Store(store.vcpu, store.moment - 1, store.rip, store.paddr, store.old, store.new)
    assert compare(question, record, other) is not None
    assert compare(Question(question.paddr, 0), record, None) is not None
