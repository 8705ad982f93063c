"""Sessions of the core as Python has them: diversions, who owns a machine, what errors carry."""

from pathlib import Path

import pytest

from rr86 import _native
from rr86.errors import DivergenceError, EngineError, NativeError, TraceError
from rr86.replay.trace import Trace
from rr86.session.power import start, switch_on
from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, record_guest
from tests.guests.test_guests import short

MANIFEST = load_manifest()
FAR = 1 << 40


@pytest.fixture(scope="module")
def smp(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two vCPUs and more; a block protocol with windows, in which the diversions switch too."""
    path = tmp_path_factory.mktemp("smp") / "guest.rr86"
    append = short("smp")
    return record_guest(
        MANIFEST["smp"], path, append=append, protocol="qemu-7.2", quantum=3000, seed=7
    )


def machine(trace: Trace) -> _native.Machine:
    return switch_on(trace.spec, trace.all_images())


def finish(session: _native.Recording | _native.Diversion) -> "_native.StopInfo":
    """Run on to the machine's end."""
    while True:
        stop = session.run(FAR)
        if stop["reason"] != "time-up":
            return stop


def snapshot_at_power_on(trace: Trace) -> _native.Snapshot:
    return _native.Replay(machine(trace), str(trace.path)).snapshot(str(trace.path))


def test_a_diversion_with_the_recordings_options_is_the_recorded_run(smp: Recorded) -> None:
    trace, spec = smp.trace(), smp.trace().spec
    diversion = _native.Diversion.from_snapshot(
        machine(trace),
        snapshot_at_power_on(trace),
        seed=spec.seed,
        quantum=spec.quantum,
        schedule=spec.schedule,
        window_bias=spec.window_bias,
    )
    stop = finish(diversion)
    assert (stop["reason"], stop["icount"]) == (smp.outcome.reason, smp.outcome.icount)
    assert diversion.console_output() == smp.outcome.console
    assert diversion.digests() == smp.outcome.digests


def test_a_diversion_with_another_seed_is_another_run(smp: Recorded) -> None:
    trace = smp.trace()
    ends = []
    for _ in range(2):
        replay = _native.Replay(machine(trace), str(trace.path))
        replay.run(FAR, [("icount", smp.outcome.icount // 2, 0)])
        diversion = replay.divert_with(seed=1234, quantum=500)
        stop = finish(diversion)
        assert stop["reason"] == smp.outcome.reason
        ends.append((stop["icount"], diversion.digests()))
    assert ends[0] == ends[1]
    assert ends[0] != (smp.outcome.icount, smp.outcome.digests)


def test_a_plain_run_is_the_recorded_run(smp: Recorded) -> None:
    trace = smp.trace()
    plain = start(trace.spec, trace.all_images())
    assert finish(plain)["icount"] == smp.outcome.icount
    assert plain.digests() == smp.outcome.digests
    assert plain.trace_bytes() == 0


def test_a_machine_belongs_to_one_session(smp: Recorded) -> None:
    trace = smp.trace()
    taken = machine(trace)
    replay = _native.Replay(taken, str(trace.path))
    with pytest.raises(NativeError, match="taken this machine over"):
        taken.registers(0)
    with pytest.raises(NativeError, match="taken this machine over"):
        _native.Recording(taken)
    diversion = replay.divert()
    with pytest.raises(NativeError, match="left for a diversion"):
        replay.run(1)
    assert diversion.run(1)["reason"] == "limit"


def test_a_failed_session_leaves_the_machine_to_others(smp: Recorded, tmp_path: Path) -> None:
    trace = smp.trace()
    kept = machine(trace)
    with pytest.raises(NativeError, match="no vCPU 99"):
        _native.Alone(kept, str(trace.path), str(tmp_path / "none"), 99)
    with pytest.raises(TraceError):
        _native.Replay(kept, str(tmp_path / "none"))
    with pytest.raises(NativeError, match="no checkpoint 5"):
        _native.Replay(kept, str(trace.path), checkpoint=5)
    assert _native.Replay(kept, str(trace.path)).run(1)["reason"] == "limit"


def test_sessions_have_no_methods_that_make_no_sense_for_them() -> None:
    for session, absent in {
        _native.Recording: ("keep", "divert", "compared_digests", "load", "invalidate_block"),
        _native.Replay: ("console_input", "record_to", "finish", "load", "invalidate_block"),
        _native.Diversion: ("keep", "record_to", "compared_digests", "load"),
        _native.Alone: ("console_output", "console_input", "keep", "divert", "load"),
        _native.Machine: ("run", "stats", "console_input", "record_to"),
    }.items():
        assert [name for name in absent if hasattr(session, name)] == []


def test_a_divergence_says_what_was_expected_and_found(smp: Recorded) -> None:
    trace = smp.trace()
    changed = machine(trace)
    changed.set_registers(0, {"r15": 0x1234})
    with pytest.raises(DivergenceError, match="cpu0 differs at instruction 0") as caught:
        _native.Replay(changed, str(trace.path)).run(1)
    error = caught.value
    assert (error.component, error.decision, error.moment, error.vcpu) == ("cpu0", 0, 0, 0)
    assert isinstance(error.expected, int)
    assert isinstance(error.found, int)
    assert error.expected != error.found


def test_a_slice_that_cannot_run_is_a_divergence_of_the_schedule(smp: Recorded) -> None:
    trace = smp.trace()
    changed = machine(trace)
    changed.set_registers(0, {"activity": 2})
    with pytest.raises(DivergenceError) as caught:
        _native.Replay(changed, str(trace.path), verify=False).run(1)
    error = caught.value
    assert (error.component, error.decision, error.moment) == ("schedule", 1, 0)
    assert error.expected == "a vCPU that can run"
    assert error.found == "a deadlock"


def read_all(path: Path) -> None:
    trace = _native.TraceReader(str(path))
    for name, _, _ in trace.images():
        trace.image(name)
    for chunk in range(trace.chunk_count()):
        trace.events(chunk)


def test_damage_names_its_chunk_and_place(smp: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "damaged.rr86"
    content = bytearray(smp.path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(TraceError, match="chunk") as caught:
        read_all(path)
    assert isinstance(caught.value.chunk, int)
    assert isinstance(caught.value.offset, int)
    assert caught.value.offset <= len(content) // 2
    with pytest.raises(TraceError) as caught:
        _native.TraceReader(str(tmp_path / "none"))
    assert caught.value.path == tmp_path / "none"


def test_code_that_fails_on_the_host_names_its_place(smp: Recorded) -> None:
    trace = smp.trace()
    failing = machine(trace)
    rip = failing.registers(0)["rip"]
    failing.plant(rip, b"\x0f\x0b")
    with pytest.raises(EngineError, match="#UD") as caught:
        _native.Recording(failing).run(FAR)
    error = caught.value
    assert (error.vcpu, error.moment, error.rip) == (0, 0, rip)
