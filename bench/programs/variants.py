"""The five ways in which the programs are run: natively, plain, recording, replaying, in QEMU.

Each takes a list of programs and returns what became of them. A guest that dies takes the
program that ran with it; the ones after it get another boot.
"""

import contextlib
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.common import BenchError, qemu_command
from bench.programs.catalogue import Program
from bench.programs.guest import APPEND, MARKER_END, Markers, Outcome, initramfs
from rr86.cpu.guest_symbols import GuestSymbols
from rr86.cpu.inspection import Inspector
from rr86.record.recorder import Recorder, board_spec
from rr86.replay.trace import open_trace
from rr86.session.conditions import Condition, as_conditions
from rr86.session.execution import Execution
from rr86.session.power import start
from rr86.session.stop import Stop

NATIVE, PLAIN, RECORDING, REPLAYING, IN_QEMU = "native", "plain", "recording", "replaying", "QEMU"


@dataclass(frozen=True)
class Setting:
    """What does not change from run to run."""

    kernel: Path | None
    executables: dict[str, Path]
    memory: int
    # Seconds without any marker after which a run is given up.
    timeout: float
    folder: Path


@dataclass
class Results:
    """What became of each program in one variant: an outcome, or why there is none."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Boot:
    """One boot's outcomes; `error` says how it failed, while `running` ran, if it did."""

    outcomes: dict[str, Outcome]
    running: str | None = None
    error: str | None = None


def run_native(setting: Setting, programs: Sequence[Program]) -> Results:
    """As processes of the host, one after the other."""
    results = Results()
    for program in programs:
        command = [str(setting.executables[program.name]), str(program.count)]
        started = time.monotonic()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=setting.timeout
            )
        except subprocess.TimeoutExpired:
            results.failures[program.name] = f"no end within {setting.timeout:g} s"
            continue
        seconds = time.monotonic() - started
        lines = (done.stdout or done.stderr).splitlines() or [""]
        if done.returncode:
            results.failures[program.name] = f"status {done.returncode}: {lines[0]}".strip(": ")
        else:
            results.outcomes[program.name] = Outcome(seconds, 0, lines[0])
    return results


def run_guests(boot: Callable[[list[Program]], Boot], programs: Sequence[Program]) -> Results:
    """Boot until each of the programs has had its turn."""
    results = Results()
    left = list(programs)
    while left:
        done = boot(left)
        for name, outcome in done.outcomes.items():
            if outcome.status == 0:
                results.outcomes[name] = outcome
            else:
                said = f"{_wait_status(outcome.status)}: {outcome.answer}"
                results.failures[name] = said.rstrip(": ")
        left = [program for program in left if program.name not in done.outcomes]
        if done.error is None:
            results.failures |= {program.name: "never ran" for program in left}
            break
        # Without a program under way it is the guest that does not work, with any of them.
        lost = [program.name for program in left if done.running in (None, program.name)]
        results.failures |= dict.fromkeys(lost, done.error)
        left = [program for program in left if program.name not in lost]
    return results


def _wait_status(status: int) -> str:
    code = os.waitstatus_to_exitcode(status) if status >= 0 else status
    return f"status {code}" if code >= 0 else f"killed by signal {-code}"


def _images(setting: Setting, programs: Sequence[Program]) -> dict[str, bytes]:
    assert setting.kernel is not None
    listing = [(program.name, program.count) for program in programs]
    return {
        "kernel": setting.kernel.read_bytes(),
        "initrd": initramfs(setting.executables, listing),
    }


class _Console:
    """Feeds the markers from a machine of rr86, which is run from marker to marker."""

    conditions: Sequence[Condition] = as_conditions(f"console={MARKER_END}")

    def __init__(self, timeout: float) -> None:
        self.markers = Markers()
        self._timeout = timeout
        self._heard = time.monotonic()

    def feed(self, data: bytes) -> None:
        self._heard = time.monotonic()
        self.markers.feed(data, self._heard)

    def impatient(self, _: Stop) -> bool:
        return time.monotonic() - self._heard > self._timeout

    def follow(self, run: Callable[[], Stop]) -> Boot:
        """Run to the end, with any failure of the machine as the boot's error."""
        error: str | None = None
        try:
            while (stop := run()).reason == "condition":
                pass
            if not self.markers.over:
                error = f"{stop.describe()}; {self.markers.last_words}".strip("; ")
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        except BaseException as failure:
            # A panic of the core, which is no Exception; it is what a benchmark has to report.
            if type(failure).__name__ != "PanicException":
                raise
            error = f"the core panicked: {failure}"
        return Boot(self.markers.outcomes, self.markers.running, error)


class Rr86:
    """The three variants of rr86. A replay runs what the last recording has left."""

    def __init__(self, setting: Setting, smp: int) -> None:
        self._setting = setting
        self._smp = smp
        self._spec = board_spec(smp=smp, memory=setting.memory, append=APPEND)
        self._traces: list[Path] = []

    def plain(self, programs: Sequence[Program]) -> Results:
        """The machine alone: no trace, no events kept."""
        return run_guests(self._plain_boot, programs)

    def _plain_boot(self, programs: list[Program]) -> Boot:
        images = _images(self._setting, programs)
        console = _Console(self._setting.timeout)
        machine = start(self._spec, images)
        inspector = Inspector(machine, GuestSymbols(images["kernel"]), self._smp)
        execution = Execution(machine, inspector, console.feed)
        return console.follow(lambda: execution.run(console.conditions, tick=console.impatient))

    def recording(self, programs: Sequence[Program]) -> Results:
        """With everything that `rr86 record` keeps."""
        for trace in self._traces:
            trace.unlink()
        self._traces = []
        return run_guests(self._recording_boot, programs)

    def _recording_boot(self, programs: list[Program]) -> Boot:
        handle, name = tempfile.mkstemp(suffix=".rr86", dir=self._setting.folder)
        os.close(handle)
        self._traces.append(Path(name))
        console = _Console(self._setting.timeout)
        recorder = Recorder(
            self._spec, _images(self._setting, programs), name, console=console.feed
        )
        boot = console.follow(
            lambda: recorder.run(None, console.conditions, tick=console.impatient)
        )
        with contextlib.suppress(Exception):
            recorder.finish()
        return boot

    def replaying(self, programs: Sequence[Program]) -> Results:
        """From the traces alone, with verification."""
        results = Results()
        for trace in self._traces:
            boot = self._replaying_boot(trace)
            results.outcomes |= boot.outcomes
            if boot.running is not None:
                results.failures[boot.running] = boot.error or "never ended"
        for program in programs:
            if program.name not in results.outcomes:
                results.failures.setdefault(program.name, "never ran")
        return results

    def _replaying_boot(self, trace: Path) -> Boot:
        console = _Console(self._setting.timeout)
        session = open_trace(trace).session(console=console.feed)
        return console.follow(lambda: session.run(console.conditions, tick=console.impatient))


class Qemu:
    """QEMU's translator, with a host thread for each vCPU."""

    def __init__(self, setting: Setting, smp: int) -> None:
        self._setting = setting
        self._smp = smp

    def run(self, programs: Sequence[Program]) -> Results:
        """Boot with these programs and read the console as it comes."""
        return run_guests(self._boot, programs)

    def _boot(self, programs: list[Program]) -> Boot:
        setting = self._setting
        assert setting.kernel is not None
        initrd = setting.folder / "initrd.gz"
        initrd.write_bytes(_images(setting, programs)["initrd"])
        command = qemu_command(setting.kernel, initrd, APPEND, self._smp, setting.memory)
        markers = Markers()
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        ) as process:
            assert process.stdout is not None
            ended = _read(process.stdout.fileno(), markers, setting.timeout)
            if not ended:
                process.kill()
        error = None
        if not ended:
            error = f"nothing for {setting.timeout:g} s; {markers.last_words}".strip("; ")
        elif not markers.over:
            error = f"ended with status {process.returncode}; {markers.last_words}".strip("; ")
        return Boot(markers.outcomes, markers.running, error)


def _read(descriptor: int, markers: Markers, timeout: float) -> bool:
    """Until the other side closes the pipe; false if it has been silent for too long."""
    while select.select([descriptor], [], [], timeout)[0]:
        data = os.read(descriptor, 65536)
        if not data:
            return True
        markers.feed(data, time.monotonic())
    return False


def require(setting: Setting) -> None:
    """Raise `BenchError` if the kernel cannot be read."""
    if setting.kernel is not None and not setting.kernel.is_file():
        raise BenchError(f"no kernel at {setting.kernel}")
