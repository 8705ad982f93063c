"""The expressions of `monitor watch … if`."""

from __future__ import annotations

import pytest

from rr86.errors import UsageError
from rr86.gdb.question import Question

NAMES = {"value": 0x1234, "vcpu": 2, "rax": (1 << 64) - 1, "icount": 1000}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("value == 0x1234", True),
        ("value != 0x1234", False),
        ("value & 0xff == 0x34", True),
        ("vcpu == 2 and value > 5", True),
        ("vcpu == 3 or rax == -1", True),
        ("not vcpu", False),
        ("1 < vcpu < 3", True),
        ("rax + 1 == 0", True),
        ("icount >> 3 == 125", True),
        ("value << 1000000000 == 0", True),
        ("~rax", False),
    ],
)
def test_expressions_mean_what_they_say(text: str, expected: bool) -> None:
    assert Question(text, NAMES.__contains__).holds(NAMES) is expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "value ==", "rbx == 1", "__import__('os')", "value.real", "[1]", "1.5", "'a'"),
        *("value ** 9", "value / 2", "lambda: 1", "f'{value}'", "(value := 1)", "value is 1"),
        *("x" * 1000, "-" * 400 + "1", "value\0"),
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Question(text, NAMES.__contains__)
