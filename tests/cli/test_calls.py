"""How the command line is read: by typer, with as little imported as the call needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from rr86.cli.commands import COMMANDS

_MAIN = "from rr86.cli import main; main()"


def rr86(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )


def test_help_lists_every_command_in_order() -> None:
    listed = rr86("--help").stdout.partition("Commands:\n")[2]
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert names[: len(COMMANDS)] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_of_its_own(name: str) -> None:
    done = rr86(name, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: rr86 {name} ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay", "x", "--parallel", "--vcpu", "1"], "--vcpu and --parallel exclude each other"),
        (["replay", "--vcpu", "-1"], "'--vcpu': -1 is not in the range x>=0"),
        (["replay", "x", "y"], "unexpected extra argument"),
        (["replay", "--from", "then"], "'then' is not a moment; write N or icount=N"),
        (["record", "k", "--limit-instructions", "0"], "has to be more than 0"),
        (
            ["record", "k", "--quiett"],
            "No such option: --quiett (Possible options: --output, --quiet)",
        ),
        (["record", "k", "--console", "-", "--json", "--debugcon", "-"], "does not go with --json"),
    ],
)
def test_a_call_that_makes_no_sense_is_one_line_that_names_the_command(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = rr86(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("rr86: error: ")
    assert said.lower() in done.stderr.lower()
    assert done.stderr.endswith(f" (see 'rr86 {arguments[0]} --help')\n")
    assert done.stderr.count("\n") == 1


def test_a_misspelt_command_is_answered_with_one_that_there_is() -> None:
    done = rr86("recrd")
    assert done.returncode == 2
    assert "No such command 'recrd'" in done.stderr
    assert done.stderr.endswith(" (see 'rr86 --help')\n")


@pytest.mark.parametrize(
    "arguments", [["--version"], ["info", "none.rr86"], ["replay", "-h"], ["record", "none"]]
)
def test_a_call_imports_no_other_command_and_nothing_for_colours(
    arguments: list[str], tmp_path: Path
) -> None:
    """What `rr86 --version` and `rr86 info` take before they do something (see
    docs/decisions/start-up.md) is what they import."""
    program = (
        "import atexit, sys; from rr86.cli import main\n"
        "atexit.register(lambda: print('\\n' + ' '.join(sys.modules), file=sys.stderr))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    imported = set(done.stderr.split())
    others = {module for module, _ in COMMANDS.values()} - {f"rr86.cli.{arguments[0]}"}
    # A replay tells of side files as `rr86 info` does.
    others -= {"rr86.cli.info"} if arguments[0] == "replay" else set()
    assert "rr86.cli.app" in imported
    assert not imported & others
    assert not imported & {"rich", "pygments", "capstone"}
