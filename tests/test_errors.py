"""The errors of rr86: one root, fields, docstrings that name them, and one line in the command."""

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rr86
from rr86 import errors
from rr86.cli.status import DIVERGENCE, ERROR, USAGE, reporting_errors
from tests.demo import record_demo

CLASSES = {
    name: each
    for name, each in vars(errors).items()
    if isinstance(each, type) and issubclass(each, Exception)
}


def test_every_error_has_the_one_root() -> None:
    assert CLASSES.keys() >= {"Error", "UsageError", "TraceError", "DivergenceError"}
    assert all(issubclass(each, rr86.Error) for each in CLASSES.values())


def test_every_error_can_be_had_from_the_package() -> None:
    assert {name: getattr(rr86, name) for name in CLASSES} == CLASSES
    assert CLASSES.keys() <= set(rr86.__all__)


def test_no_module_defines_errors_of_its_own_for_others() -> None:
    # What is raised and caught within a file may be what it likes.
    own = [
        f"{path}: {found[1]}"
        for path in Path(rr86.__file__).parent.rglob("*.py")
        if path.name != "errors.py"
        for found in re.finditer(
            r"^class ([A-Za-z]\w*)\((?:Exception|OSError|\w*ValueError|RuntimeError)\)",
            path.read_text(),
            re.MULTILINE,
        )
    ]
    assert own == []


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_command_makes_one_line_and_a_status_of_each(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @reporting_errors
    def command() -> None:
        raise CLASSES[name]("what is wrong,\nand what to do")

    with pytest.raises(SystemExit) as ended:
        command()
    expected = ERROR
    if issubclass(CLASSES[name], errors.UsageError):
        expected = USAGE
    elif name == "DivergenceError":
        expected = DIVERGENCE
    assert ended.value.code == expected
    line = capsys.readouterr().err
    assert line.startswith("rr86: error: ")
    assert line.endswith("what is wrong, and what to do\n")
    assert line.count("\n") == 1


def test_errors_of_the_core_are_of_these_classes(tmp_path: Path) -> None:
    place = tmp_path / "x.rr86"
    place.write_bytes(b"no trace at all, whoever may say so")
    with pytest.raises(rr86.TraceError, match="not an rr86 trace") as caught:
        rr86.open_trace(place)
    assert type(caught.value) is rr86.TraceError


def test_what_is_wrong_with_a_call_is_in_fields(tmp_path: Path) -> None:
    with pytest.raises(rr86.ConditionError) as condition:
        rr86.parse_condition("icount=many")
    assert (condition.value.condition, condition.value.position) == ("icount=many", 7)
    with pytest.raises(rr86.SpecError) as spec:
        rr86.BoardSpec(quantum=0)
    assert spec.value.setting == "quantum"
    with pytest.raises(rr86.GuestImageError) as image:
        rr86.record(tmp_path / "none", output=tmp_path / "x.rr86")
    assert (image.value.role, image.value.path) == ("kernel", tmp_path / "none")
    with pytest.raises(rr86.TraceError) as trace:
        rr86.open_trace(tmp_path / "none.rr86")
    assert trace.value.path == tmp_path / "none.rr86"


def _public() -> Iterator[tuple[str, Callable[..., Any]]]:
    # `rr86.record` loads it late.
    yield "record", import_module("rr86.record.recorder").record
    for name in ("start_recording", "open_trace", "parse_condition"):
        yield name, getattr(rr86, name)
    for kind in (rr86.Trace, rr86.ReplaySession, rr86.Recorder):
        for name, member in inspect.getmembers(kind):
            if not name.startswith("_") and callable(member):
                yield f"{kind.__name__}.{name}", member


# They look at what is there already.
_RAISE_NOTHING = {
    *("ReplaySession.compared_digests", "ReplaySession.statistics", "ReplaySession.seconds"),
    *("Recorder.statistics", "Recorder.seconds", "Recorder.trace_bytes"),
}


def test_every_public_function_says_what_it_raises() -> None:
    silent = []
    for name, function in _public():
        text = inspect.getdoc(function) or ""
        named = set(re.findall(r"`(\w+Error)`", text.partition("Raises ")[2]))
        assert named <= CLASSES.keys(), name
        if "Raises " not in text and name not in _RAISE_NOTHING:
            silent.append(name)
    assert silent == []


def test_a_missing_vcpu_is_wrong_usage(tmp_path: Path) -> None:
    from rr86.cli.app import app

    trace = record_demo(tmp_path).path
    result = CliRunner().invoke(app, ["replay", str(trace), "--vcpu", "9"])
    assert (result.exit_code, result.stderr.count("\n")) == (USAGE, 1)
    assert "there is no vCPU 9" in result.stderr
