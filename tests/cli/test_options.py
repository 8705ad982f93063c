"""Calls that are understood without typer are understood as typer understands them."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rr86.cli.app import app, for_typer
from rr86.cli.commands import COMMANDS
from rr86.cli.options import understood


def _as_typer(name: str, arguments: list[str]) -> dict[str, Any] | None:
    """What typer calls the command with; None if it does not."""
    calls: list[dict[str, Any]] = []
    command = for_typer(import_module(COMMANDS[name][0]).command)

    def called(**values: Any) -> None:
        calls.append(values)

    called.__dict__["__signature__"] = command.__dict__["__signature__"]
    called.__annotations__ = command.__annotations__
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    one.command(name)(called)
    try:
        one(arguments, standalone_mode=False)
    except Exception:
        return None
    return calls[0] if calls else None


WORDS = st.sampled_from(
    [
        *(
            "--smp",
            "-m",
            "--memory",
            "--initrd",
            "--module",
            "--append",
            "-o",
            "--output",
            "--seed",
        ),
        *("--cross-writes", "--no-cross-writes", "--until", "--limit-instructions", "--stats"),
        *("--limit-virtual-time", "--no-input", "-q", "--quiet", "--vcpu", "--parallel", "--from"),
        *("--no-verify", "--json", "--top", "--symbols", "--no-symbols", "--to", "--at", "--pc"),
        *("--console", "--debugcon", "--every", "icount=1G", "--debugcon=-", "write=jiffies:8"),
        *("--smp=4", "--smp=", "--until=int3", "--until=rip=0x10", "--json=1", "-m512M", "-qm"),
        *("--help", "-h", "--nonsense", "--", "-", "", "1", "-1", "0", "4", "2G", "500M", "10s"),
        *(
            "kernel",
            "trace.rr86",
            "int3",
            "console=a b",
            "ffffffff81000000",
            "1_0",
            " 3 ",
            "/dev/null",
        ),
    ]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(COMMANDS)), st.lists(WORDS, max_size=6))
def test_what_is_understood_is_what_typer_understands(name: str, arguments: list[str]) -> None:
    command = import_module(COMMANDS[name][0]).command
    values = understood(command, arguments)
    if values is not None:
        assert values == _as_typer(name, arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("record", "--smp 4 -m 1G --initrd i --append a=b --until int3 --until=panic -q vmlinuz"),
        ("record", "vmlinuz --limit-instructions 2G --no-cross-writes --module a --module b"),
        ("replay", "boot.rr86 --until int3 --stats --from icount=5"),
        ("replay", ""),
        ("sharing", "boot.rr86 --top 3 --json"),
        ("info", "boot.rr86"),
    ],
)
def test_ordinary_calls_are_understood(name: str, arguments: str) -> None:
    command = import_module(COMMANDS[name][0]).command
    values = understood(command, arguments.split())
    assert values is not None
    assert values == _as_typer(name, arguments.split())


@pytest.mark.parametrize(
    "arguments",
    ["", "--help", "a b", "a --smp", "a --smp x", "a --smp 1 --smp 2", "a --limit-instructions 0"],
)
def test_unusual_calls_are_left_to_typer(arguments: str) -> None:
    command = import_module(COMMANDS["record"][0]).command
    assert understood(command, arguments.split()) is None


def test_a_file_that_may_not_be_read_is_left_to_typer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"x")
    command = import_module(COMMANDS["record"][0]).command
    assert understood(command, [str(kernel)]) is not None
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert understood(command, [str(kernel)]) is None


def test_every_command_is_there_both_ways() -> None:
    assert [each.name for each in app.registered_commands] == list(COMMANDS)


def test_a_call_that_makes_no_sense_is_told_as_typer_tells_it(tmp_path: Path) -> None:
    program = "from rr86.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "replay", "x", "--parallel", "--vcpu", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "rr86: error: Invalid value: --vcpu and --parallel exclude each other "
        "(see 'rr86 replay --help')\n",
    )
