import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

import rr86
from rr86.errors import DivergenceError
from rr86.session.conditions import AtSymbol, Console, End, Int3
from tests.fake_core import FakeCore, Guest, Step
from tests.images import elf, kallsyms, vmlinux

BASE = 0xFFFFFFFF81000000
OFFSET = 0x1200000


def kernel_with_kaslr() -> bytes:
    rows = [(BASE + 16 * n, "T", f"function_{n}") for n in range(1200)]
    named = {
        0: "_text",
        1: "entry_SYSCALL_64",
        2: "x86_64_start_kernel",
        3: "start_kernel",
        4: "panic",
    }
    rows = [(a, kind, named.get(n, name)) for n, (a, kind, name) in enumerate(rows)]
    return vmlinux(kallsyms(rows))


def at(symbol: int) -> int:
    return BASE + OFFSET + 16 * symbol


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "guest.elf"
    path.write_bytes(elf([("start", 0x100000, 64)]))
    return path


def recorded(kernel: Path, tmp_path: Path) -> rr86.Trace:
    path = tmp_path / "run.rr86"
    if not path.exists():
        rr86.record(kernel, output=path)
    return rr86.open_trace(path)


def test_a_replay_runs_to_the_end_and_keeps_the_console(
    core: FakeCore, kernel: Path, tmp_path: Path
) -> None:
    session = recorded(kernel, tmp_path).session()
    stop = session.run()
    assert stop.reason == "poweroff"
    assert stop.icount == 5
    assert session.console == b"hello\n"


def test_a_run_goes_on_behind_a_condition(core: FakeCore, kernel: Path, tmp_path: Path) -> None:
    core.guest.steps = [Step(0x100000), Step(0x100001, code=b"\xcc"), Step(0x100002)]
    session = recorded(kernel, tmp_path).session()
    first = session.run(["int3", "console=never"])
    assert first.condition == Int3()
    assert (first.icount, first.rip) == (1, 0x100001)
    second = session.run(["int3", "end"])
    assert second.reason == "poweroff"
    assert second.condition == End()


def test_console_text_is_found_where_it_is_sent(
    core: FakeCore, kernel: Path, tmp_path: Path
) -> None:
    core.guest.steps = [Step(0x100000 + n, out=bytes([c])) for n, c in enumerate(b"my login: x")]
    stop = recorded(kernel, tmp_path).replay("console=login:")
    assert stop.condition == Console("login:")
    assert stop.icount == len("my login:")


def test_sessions_do_not_share_anything(core: FakeCore, kernel: Path, tmp_path: Path) -> None:
    trace = recorded(kernel, tmp_path)
    one, other = trace.session(), trace.session()
    one.run("icount=3")
    assert (one.icount, other.icount) == (3, 0)
    assert (one.console, other.console) == (b"hello\n", b"")


def test_a_session_goes_with_its_last_reference(
    core: FakeCore, kernel: Path, tmp_path: Path
) -> None:
    heard: list[bytes] = []
    trace = recorded(kernel, tmp_path)
    gc.collect()
    gc.disable()
    try:
        session = trace.session(console=heard.append)
        session.run()
        gone = weakref.ref(session)
        del session
        assert gone() is None
    finally:
        gc.enable()
    assert heard


def test_a_bounded_run_can_be_continued(core: FakeCore, kernel: Path, tmp_path: Path) -> None:
    session = recorded(kernel, tmp_path).session()
    assert session.run(max_instructions=2).icount == 2
    assert session.run(max_instructions=2).icount == 4
    assert session.run().reason == "poweroff"


def test_a_divergence_comes_through_unless_verification_is_off(
    core: FakeCore, kernel: Path, tmp_path: Path
) -> None:
    trace = recorded(kernel, tmp_path)
    core.guest.diverges_at = 2
    with pytest.raises(DivergenceError, match=r"cpu0 .* instruction 2 on vCPU 0"):
        trace.replay()
    assert trace.replay(verify=False).reason == "poweroff"


def test_symbols_are_found_in_a_kernel_that_moves_itself(core: FakeCore, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(kernel_with_kaslr())
    core.guest = Guest([Step(0x1000), Step(at(2)), Step(at(3)), Step(at(4))])
    trace = recorded(kernel, tmp_path)
    assert trace.footer is not None
    # Nothing in this guest shows the offset at the end, so replays have to look for it.
    assert (trace.footer.kaslr_offset, trace.footer.lstar) == (None, 0)
    session = trace.session()
    stop = session.run("symbol=start_kernel")
    assert stop.condition == AtSymbol("start_kernel")
    assert (stop.icount, stop.rip) == (2, at(3))
    assert session.symbolize(at(4) + 2) == "panic+0x2"


def test_the_very_function_that_shows_the_offset_can_be_a_condition(
    core: FakeCore, tmp_path: Path
) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(kernel_with_kaslr())
    core.guest = Guest([Step(0x1000), Step(at(2)), Step(at(3))])
    stop = recorded(kernel, tmp_path).replay(["symbol=x86_64_start_kernel", "panic"])
    assert stop.condition == AtSymbol("x86_64_start_kernel")
    assert stop.icount == 1


def test_the_recorded_offset_places_symbols_from_the_start(core: FakeCore, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(kernel_with_kaslr())
    core.guest = Guest([Step(0x1000), Step(at(5)), Step(at(6), lstar=at(1))])
    trace = recorded(kernel, tmp_path)
    assert trace.footer is not None
    assert trace.footer.lstar == at(1)
    session = trace.session()
    assert session.symbolize(at(3)) == "start_kernel"
    stop = session.run("symbol=function_5")
    assert stop.icount == 1


def test_a_variable_is_watched_from_the_kernels_entry_on(core: FakeCore, tmp_path: Path) -> None:
    """Before, something else lies where it will be, whether or not its place is known by then."""
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(kernel_with_kaslr())
    physical = 0x5000000
    place = physical + 16 * 7
    steps = [Step(0x1000, write=place), Step(0x1001), Step(at(2)), Step(at(3), write=place + 8)]
    steps += [Step(at(4), lstar=at(1)), Step(at(5), write=place + 16), Step(at(5), write=place)]
    core.guest = Guest(steps, mapped=(2, at(0), physical), unpaged=(1,))
    path = tmp_path / "run.rr86"
    with rr86.start_recording(kernel, smp=2, output=path) as recorder:
        seen = [recorder.run(until="write=function_7").icount for _ in range(2)]
        assert recorder.run(until="write=function_7").reason == "poweroff"
    trace = rr86.open_trace(path)
    assert trace.footer is not None
    assert trace.footer.lstar == at(1)
    session = trace.session()
    stops = [session.run("write=function_7") for _ in range(3)]
    assert seen == [each.icount for each in stops[:2]] == [4, 7]
    assert stops[2].over
    session = trace.session()
    assert session.run("write=function_7+8:1").icount == 4
    assert session.run("write=function_7+8:1").over
    with pytest.raises(rr86.SymbolsError, match="no symbol 'functoin_7'"):
        session.run("write=functoin_7")


def test_per_cpu_variables_have_a_place_in_finished_recordings_only(
    core: FakeCore, tmp_path: Path
) -> None:
    kernel = tmp_path / "vmlinux"
    rows = [(0x1000, "A", "runqueues"), (0x2000, "A", "__per_cpu_end")]
    names = {1: "entry_SYSCALL_64", 2: "x86_64_start_kernel", 0: "_text"}
    rows += [(BASE + 16 * n, "T", names.get(n, f"function_{n}")) for n in range(1200)]
    kernel.write_bytes(vmlinux(kallsyms(rows)))
    steps = [Step(at(2)), Step(at(3), lstar=at(1)), Step(at(4), write=0x701008), Step(at(5))]
    core.guest = Guest(steps, mapped=(0, at(0), 0x5000000))
    path = tmp_path / "run.rr86"
    with rr86.start_recording(kernel, output=path) as recorder:
        with pytest.raises(rr86.ConditionError, match="per-CPU variable"):
            recorder.run(until="write=runqueues")
        recorder.run()
    with pytest.raises(rr86.ConditionError, match="per-CPU variable"):
        rr86.record(kernel, output=tmp_path / "none.rr86", until="write=runqueues")
    assert not (tmp_path / "none.rr86").exists()
    trace = rr86.open_trace(path)
    assert trace.footer is not None
    footer = replace(trace.footer, per_cpu=[(BASE, 0x700000)], image=(at(0), 0x5000000))
    vars(trace)["footer"] = footer
    assert trace.session().run("write=runqueues").icount == 3


def test_events_are_filtered(core: FakeCore, kernel: Path, tmp_path: Path) -> None:
    trace = recorded(kernel, tmp_path)
    trace._reader.trace["events"] = [  # type: ignore[attr-defined]
        ["fetch", 1, 0, {"id": 1}],
        ["slice", 0, 0, {}],
        ["fetch", 7, 1, {"id": 2}],
        ["digests", 9, 255, {}],
    ]
    assert [e.icount for e in trace.events(kinds=["fetch"])] == [1, 7]
    assert [e.kind for e in trace.events(vcpu=1)] == ["fetch"]
    assert [e.icount for e in trace.events(first=2, last=8)] == [7]
    assert [e.vcpu for e in trace.events(kinds=["digests"])] == [None]
    with pytest.raises(rr86.UsageError, match="no such kind of event: nonsense"):
        list(trace.events(kinds=["nonsense"]))


def test_a_header_that_makes_no_sense_is_an_error(
    core: FakeCore, kernel: Path, tmp_path: Path
) -> None:
    trace = recorded(kernel, tmp_path)
    text = trace.path.read_text()
    header = trace._reader.header().hex()
    for other in ("c0", "80", "c1", "81a3666f6f01", "ff" * 20):
        trace.path.write_text(text.replace(header, other))
        with pytest.raises(rr86.TraceContentError, match="header"):
            rr86.open_trace(trace.path)
