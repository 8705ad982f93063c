"""Where the guest's consoles go."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rr86.cli.app import app
from tests.fake_core import FakeCore, Guest, Step
from tests.images import elf


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "guest.elf"
    path.write_bytes(elf([("start", 0x100000, 64)]))
    return path


def rr86(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def both_ways(*options: str) -> list[Result]:
    """The same of a recording and of its replay."""
    # The fake core's traces do not look like traces, and are not overwritten.
    Path("run.rr86").unlink(missing_ok=True)
    return [
        rr86("record", "guest.elf", "-o", "run.rr86", *options),
        rr86("replay", "run.rr86", *options),
    ]


def says(*pieces: tuple[bytes, bytes]) -> Guest:
    """A guest that sends each (serial, debug) pair by one instruction, the debug bytes first."""
    return Guest(
        [Step(0x100000 + n, out=out, debug=debug) for n, (out, debug) in enumerate(pieces)]
    )


def test_a_debug_console_is_shown_where_there_is_no_other(core: FakeCore, kernel: Path) -> None:
    core.guest = says((b"", b"one\n"), (b"", b"two\n"))
    for done in both_ways():
        assert (done.exit_code, done.stdout) == (0, "one\ntwo\n")
        assert "--debugcon" not in done.stderr


def test_once_the_serial_console_is_used_the_debug_console_is_only_counted(
    core: FakeCore, kernel: Path
) -> None:
    core.guest = says((b"", b"early\n"), (b"serial\n", b""), (b"", b"late\n"), (b"end\n", b""))
    for done in both_ways():
        assert done.stdout == "early\nserial\nend\n"
        assert "sent 5 bytes to its debug console, which are not shown" in done.stderr


def test_the_debug_console_goes_where_it_is_sent(core: FakeCore, kernel: Path) -> None:
    core.guest = says((b"", b"early\n"), (b"serial\n", b""), (b"", b"late\n"))
    for done in both_ways("--debugcon", "debug.txt"):
        assert done.stdout == "serial\n"
        assert Path("debug.txt").read_text() == "early\nlate\n"
        assert "not shown" not in done.stderr
    for done in both_ways("--debugcon", "-"):
        assert done.stdout == "early\nserial\nlate\n"


def test_quiet_is_quiet_on_both_consoles_and_leaves_files(core: FakeCore, kernel: Path) -> None:
    core.guest = says((b"serial\n", b"debug\n"))
    for done in both_ways("--quiet"):
        assert (done.stdout, done.stderr) == ("", "")
    for done in both_ways("--quiet", "--console", "c.txt", "--debugcon", "d.txt"):
        assert (done.stdout, done.stderr) == ("", "")
        assert Path("c.txt").read_text() == "serial\n"
        assert Path("d.txt").read_text() == "debug\n"


def test_a_console_can_be_a_file(core: FakeCore, kernel: Path) -> None:
    core.guest = says((b"serial\n", b""))
    Path("c.txt").write_text("what was there before, which was longer")
    for done in both_ways("--console", "c.txt"):
        assert done.stdout == ""
        assert Path("c.txt").read_text() == "serial\n"
    both_ways("--console", "both.txt", "--debugcon", "both.txt")
    assert Path("both.txt").read_text() == "serial\n"


def test_a_console_overwrites_neither_trace_nor_image(core: FakeCore, kernel: Path) -> None:
    both_ways()
    before = Path("run.rr86").read_bytes()
    image = kernel.read_bytes()
    for command in (("record", "guest.elf", "-o", "x.rr86"), ("replay", "run.rr86")):
        mine = "guest.elf" if command[0] == "record" else "run.rr86"
        for option in ("--console", "--debugcon"):
            refused = rr86(*command, option, mine)
            assert refused.exit_code == 1
            assert refused.stderr == f"rr86: error: the console would overwrite '{mine}'\n"
    Path("other.rr86").write_bytes(b"\x89RR86\r\n\x1aand more")
    refused = rr86("replay", "run.rr86", "--console", "other.rr86")
    assert refused.exit_code == 1
    assert "'other.rr86' is a trace" in refused.stderr
    refused = rr86("replay", "run.rr86", "--console", "no/where")
    assert (refused.exit_code, refused.stderr) == (
        1,
        "rr86: error: 'no/where': No such file or directory\n",
    )
    assert Path("run.rr86").read_bytes() == before
    assert kernel.read_bytes() == image
    assert not Path("x.rr86").exists()


def test_with_json_the_console_is_on_stderr(core: FakeCore, kernel: Path) -> None:
    core.guest = says((b"serial\n", b""))
    recorded, replayed = both_ways("--json")
    for done in (recorded, replayed):
        assert done.stderr == "serial\n"
        content = json.loads(done.stdout)
        assert content["stop"]["reason"] == "poweroff"
        assert content["exit_status"] == done.exit_code == 0
        assert content["trace"] == "run.rr86"
    for done in both_ways("--json", "--console", "c.txt"):
        assert done.stderr == ""
        json.loads(done.stdout)
        assert Path("c.txt").read_text() == "serial\n"
    for command in (("record", "guest.elf"), ("replay", "run.rr86")):
        for option in ("--console", "--debugcon"):
            refused = rr86(*command, "--json", option, "-")
            assert (refused.exit_code, refused.stdout) == (2, "")
            assert f"{option} - does not go with --json" in " ".join(refused.stderr.split())


def test_json_has_what_a_person_is_told(core: FakeCore, kernel: Path) -> None:
    core.guest = Guest(
        [Step(0x100000), Step(0x100001, vcpu=1), Step(0x100002)], memory={0x100000: b"\x90" * 64}
    )
    options = ("--until", "icount=1", "--until", "irq=9", "--json", "--stats")
    recorded = json.loads(
        rr86("record", "guest.elf", "-o", "run.rr86", "--smp", "2", *options).stdout
    )
    replayed = json.loads(rr86("replay", "run.rr86", *options).stdout)
    for content in (recorded, replayed):
        assert content["stop"]["condition"] == "icount=1"
        assert (content["stop"]["icount"], content["never_met"]) == (1, [])
        assert content["symbol"] == "start+0x1"
        assert [each["vcpu"] for each in content["vcpus"]] == [0, 1]
        assert content["vcpus"][1]["registers"]["rip"] == 0x100001
        assert content["statistics"]["slices"] > 0
        assert content["seconds"]["whole"] == 2.5
    assert recorded["trace_bytes"] == Path("run.rr86").stat().st_size
    assert (replayed["digests_equal"], replayed["digest_moments"]) == (12, 3)
    unmet = rr86("replay", "run.rr86", "--until", "irq=9", "--json")
    assert (unmet.exit_code, unmet.stderr) == (6, "rr86: never met: irq=9\n")
    content = json.loads(unmet.stdout)
    assert (content["never_met"], content["exit_status"]) == (["irq=9"], 6)
    assert "registers" not in content


def test_symbols_speak_json(core: FakeCore, kernel: Path) -> None:
    row = json.loads(rr86("symbols", "guest.elf", "--json").stdout)
    assert row == {"address": 0x100000, "kind": "T", "name": "start"}
    named = json.loads(rr86("symbols", "guest.elf", "0x100008", "--json").stdout)
    assert named == {"address": 0x100008, "name": "start+0x8"}


def test_each_line_is_handed_on_when_it_is_complete(
    core: FakeCore, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when the host's twentieth of a second is over."""
    core.guest = says((b"a", b""), (b"b\n", b""), (b"", b"c\n"), (b"d\n", b""), (b"e", b""))
    heard: list[tuple[int, bytes]] = []

    def write(self: object, data: bytes) -> None:
        heard.append((core.machines[-1].position, data))

    monkeypatch.setattr("rr86.cli.terminal.Output.write", write)
    for done in both_ways("--debugcon", "-"):
        assert done.exit_code == 0
    assert heard == 2 * [(2, b"ab\n"), (3, b"c\n"), (4, b"d\n"), (5, b"e")]


def test_a_full_replay_says_how_many_digests_were_equal(core: FakeCore, kernel: Path) -> None:
    _, replayed = both_ways()
    lines = [line for line in replayed.stderr.splitlines() if "digests" in line]
    assert lines == ["rr86: 12 digests were compared at 3 moments, and all are equal"]
    assert "digests" not in rr86("replay", "run.rr86", "--no-verify").stderr
    assert "digests" not in rr86("replay", "run.rr86", "--until", "icount=2").stderr
