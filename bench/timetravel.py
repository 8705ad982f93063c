"""Going back: how long debuggers wait on a recording, and in QEMU's reverse debugging on one vCPU.

    python -m bench.timetravel --kernel vmlinuz --initrd initrd.gz --smp 4

Records a guest (or takes a trace, --trace) and measures, from the trace's end: to the last hit of a
breakpoint in the last third, to one early in the run and to it again, single steps back, and jumps
to random moments once the trace has been passed through. A thousand steps back and as many forward
have to end in the same digests. Without a kernel the demo guest is taken.

QEMU 7 and newer go back too, on one vCPU, from a log that they recorded and from snapshots in a
qcow2 file: it is measured on the same kernel with one snapshot, at the start, as it comes.
"""

import argparse
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.common import (
    BenchError,
    add_common_arguments,
    note,
    positive,
    qemu_command,
    qemu_recording,
    qemu_records,
    qemu_there,
    table,
    write_json,
)
from rr86.errors import Error
from rr86.guests import demo_image
from rr86.machine.spec import parse_size
from rr86.record.recorder import record
from rr86.replay.trace import Trace, open_trace
from rr86.replay.travel import TimeTravel
from rr86.session.conditions import Rip

_STEPS = 1000


@dataclass
class Result:
    """Seconds, but where a name says something else."""

    instructions: int = 0
    vcpus: int = 0
    replay: float = 0.0
    passing: float = 0.0
    snapshots: int = 0
    snapshot_bytes: int = 0
    last_hit: float = 0.0
    early_hit: float = 0.0
    early_hit_again: float = 0.0
    steps: list[float] = field(default_factory=list)
    steps_equal: bool = False
    jumps: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {
            "instructions": self.instructions,
            "vcpus": self.vcpus,
            "replay_s": self.replay,
            "passing_s": self.passing,
            "snapshots": self.snapshots,
            "snapshot_bytes": self.snapshot_bytes,
            "last_hit_s": self.last_hit,
            "early_hit_s": self.early_hit,
            "early_hit_again_s": self.early_hit_again,
            "step_back_ms_median": 1000 * statistics.median(self.steps),
            "step_back_ms_most": 1000 * max(self.steps),
            "steps_equal": self.steps_equal,
            "goto_s_median": statistics.median(self.jumps),
            "goto_s_most": max(self.jumps),
        }


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _breakpoint(trace: Trace, first: int, last: int, draw: random.Random) -> Rip:
    """An address that is executed in this stretch for the last time: of a block that is made
    there, as much of what a kernel runs is run once."""
    made = [each.fields["pc"] for each in trace.events(("fetch",), first=first, last=last)]
    there = TimeTravel(trace)
    there.goto(there.last)
    for address in draw.sample(made, min(100, len(made))):
        condition = Rip(int(address))
        there.goto(there.last)
        if first <= there.run_back(condition).icount < last:
            return condition
    raise BenchError("no address is executed there for the last time")


def measure(trace: Trace, seed: int, jumps: int) -> Result:
    """All times of a trace."""
    draw = random.Random(seed)
    result = Result(vcpus=trace.spec.vcpus)
    result.replay = _timed(lambda: trace.session(verify=False).run())
    there = TimeTravel(trace)
    last = result.instructions = there.last
    near = _breakpoint(trace, 2 * last // 3, last * 9 // 10, draw)
    early = _breakpoint(trace, last // 20, last // 5, draw)
    result.passing = _timed(lambda: there.goto(last))
    result.snapshots, result.snapshot_bytes = len(there.snapshots), there.snapshot_bytes
    result.last_hit = _timed(lambda: there.run_back(near))
    there.goto(last)
    result.early_hit = _timed(lambda: there.run_back(early))
    there.goto(last)
    result.early_hit_again = _timed(lambda: there.run_back(early))
    there.goto(last * 3 // 4)
    vcpu, before = there.vcpu, there.session.machine.digests()
    result.steps = [_timed(lambda: there.step_back(vcpu)) for _ in range(_STEPS)]
    for _ in range(_STEPS):
        there.step(vcpu)
    there.goto(last * 3 // 4)
    result.steps_equal = there.session.machine.digests() == before
    result.jumps = [_timed(lambda: there.goto(draw.randrange(last))) for _ in range(jumps)]
    return result


def show(result: Result) -> None:
    """A table for people."""
    values = result.as_dict()
    print(f"{result.instructions:,} instructions, {result.vcpus} vCPUs")
    rows = [
        ["replay to the end", f"{result.replay:.2f} s", ""],
        ["the same with snapshots", f"{result.passing:.2f} s", _in_replays(result.passing, result)],
        ["to a last hit in the last third", f"{result.last_hit:.2f} s", ""],
        ["to an early one", f"{result.early_hit:.2f} s", _in_replays(result.early_hit, result)],
        ["to it again", f"{result.early_hit_again:.2f} s", ""],
        ["a step back, median", f"{values['step_back_ms_median']:.1f} ms", ""],
        ["a step back, the longest", f"{values['step_back_ms_most']:.1f} ms", ""],
        ["to a random moment, median", f"{values['goto_s_median']:.3f} s", ""],
        ["to a random moment, the longest", f"{values['goto_s_most']:.3f} s", ""],
    ]
    print(table(["", "time", "replays"], rows))
    size = result.snapshot_bytes / 1e6
    print(f"{result.snapshots} snapshots, {size:.0f} MB")
    equal = "the same digests" if result.steps_equal else "OTHER DIGESTS"
    print(f"{_STEPS} steps back and {_STEPS} forward: {equal}")


def _in_replays(seconds: float, result: Result) -> str:
    return f"{seconds / result.replay:.2f}"


# -- QEMU ------------------------------------------------------------------------------------------


class _Remote:
    """As much of gdb's remote protocol as it takes to go back."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        for _ in range(100):
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise BenchError("QEMU does not listen for a debugger")
        self._bytes = b""

    def interrupt(self, seconds: float) -> str:
        """Let the guest run for a while, and stop it: behind its end the log has nothing to go
        back in."""
        self._send("c")
        time.sleep(seconds)
        self._socket.sendall(b"\x03")
        return self._answer()

    def ask(self, command: str) -> str:
        """Send a packet, and wait for the answer."""
        self._send(command)
        return self._answer()

    def _send(self, command: str) -> None:
        data = command.encode()
        self._socket.sendall(b"$" + data + b"#%02x" % (sum(data) & 255))

    def _answer(self) -> str:
        while True:
            begin = self._bytes.find(b"$")
            end = self._bytes.find(b"#", begin)
            if begin >= 0 and end >= 0 and len(self._bytes) >= end + 3:
                answer = self._bytes[begin + 1 : end]
                self._bytes = self._bytes[end + 3 :]
                self._socket.sendall(b"+")
                return answer.decode("latin-1")
            more = self._socket.recv(4096)
            if not more:
                raise BenchError("QEMU has closed the debugger's connection")
            self._bytes += more


def measure_qemu(
    kernel: Path, initrd: Path | None, append: str, memory: int, timeout: float
) -> dict[str, float]:
    """Seconds that QEMU takes to record, to replay, and for one step back near the end."""
    with tempfile.TemporaryDirectory(prefix="rr86-bench-") as name:
        folder = Path(name)
        disk, log, gdb = folder / "snapshots.qcow2", folder / "qemu.log", folder / "gdb"
        subprocess.run(
            ["qemu-img", "create", "-f", "qcow2", str(disk), "64M"], check=True, capture_output=True
        )
        base = qemu_command(kernel, initrd, append, 1, memory)
        base += ["-drive", f"driver=qcow2,file={disk},if=none,id=snapshots", "-net", "none"]
        recording = qemu_recording(log)
        recording[-1] += ",rrsnapshot=start"
        replaying = [each.replace("rr=record", "rr=replay") for each in recording]

        def run(options: list[str]) -> None:
            subprocess.run(base + options, check=True, capture_output=True, timeout=timeout)

        times = {"record_s": _timed(lambda: run(recording))}
        times["replay_s"] = _timed(lambda: run(replaying))
        options = [*replaying, "-S", "-gdb", f"unix:{gdb},server=on,wait=off"]
        process = subprocess.Popen(
            base + options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            remote = _Remote(gdb, timeout)
            remote.ask("qSupported:swbreak+")
            times["to_the_end_s"] = _timed(lambda: remote.interrupt(times["replay_s"] * 0.9))
            steps = [_timed(lambda: remote.ask("bs")) for _ in range(3)]
            times["step_back_s"] = statistics.median(steps)
        finally:
            process.kill()
            process.wait()
        return times


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.timetravel", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trace", type=Path, help="take this trace instead of recording one")
    parser.add_argument("--initrd", type=Path)
    parser.add_argument("--append", default="console=ttyS0 quiet")
    parser.add_argument("--smp", type=positive, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jumps", type=positive, default=100)
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    arguments = _arguments()
    memory = parse_size(arguments.memory)
    try:
        with tempfile.TemporaryDirectory(prefix="rr86-bench-") as folder:
            path = arguments.trace
            if path is None:
                path = Path(folder) / "bench.rr86"
                note("recording…")
                kernel = arguments.kernel
                if kernel is None:
                    kernel = Path(folder) / "demo.elf"
                    kernel.write_bytes(demo_image())
                record(
                    kernel,
                    smp=arguments.smp,
                    memory=memory,
                    initrd=arguments.initrd,
                    append=arguments.append if arguments.kernel else "",
                    output=path,
                )
            note("going back…")
            result = measure(open_trace(path), arguments.seed, arguments.jumps)
        found: dict[str, object] = {"rr86": result.as_dict()}
        if arguments.json != "-":
            show(result)
        if arguments.kernel and qemu_there(not arguments.no_qemu) and qemu_records():
            note("QEMU, one vCPU…")
            times = measure_qemu(
                arguments.kernel, arguments.initrd, arguments.append, memory, arguments.timeout
            )
            found["qemu"] = times
            if arguments.json != "-":
                print("QEMU, 1 vCPU: " + ", ".join(f"{k} {v:.2f}" for k, v in times.items()))
    except (BenchError, Error, subprocess.SubprocessError) as error:
        note(f"error: {error}")
        return 1
    if arguments.json:
        write_json(found, arguments.json)
    return 0 if result.steps_equal else 1


if __name__ == "__main__":
    sys.exit(main())
