"""What the commands that run a guest live have in common: the console at the terminal, the run to
its end, and what is said of it."""

from typing import TYPE_CHECKING, NoReturn

from rr86.cli.status import OK, Exit, never_met, of_stop, say

if TYPE_CHECKING:
    from rr86.cli.consoles import Consoles
    from rr86.cli.progress import Progress
    from rr86.cli.terminal import Input, Interruption
    from rr86.session.conditions import Condition
    from rr86.session.limits import Limits
    from rr86.session.live import LiveSession, Recording
    from rr86.session.stop import Stop

_INTERACTIVE_WAIT = 0.5


class Live:
    """A live session at a terminal, and how it is reported."""

    def __init__(
        self,
        session: "LiveSession",
        out: "Consoles",
        source: "Input",
        interruption: "Interruption",
        *,
        as_json: bool,
        quiet: bool,
        stats: bool,
    ) -> None:
        self.session = session
        self.out = out
        self.source = source
        self.interruption = interruption
        self.as_json = as_json
        self.quiet = quiet
        self.stats = stats

    def run(self, conditions: "list[Condition]", limits: "Limits") -> NoReturn:
        """Run to the end, finish the trace, say what became of it, and end with the status."""
        from rr86.cli.progress import Progress
        from rr86.cli.terminal import HELP

        session, out, quiet = self.session, self.out, self.quiet
        out.begin()
        progress = Progress("recording")
        progress.began = session.icount
        if session.without_side_file and not quiet:
            why = session.without_side_file
            say(f"warning: no side file, so a killed recorder loses up to a second: {why}")
        if self.source.interactive and not quiet:
            say(HELP)
        with session:
            with self.source.raw(), progress.shown(not quiet, out.shown):
                run = _Run(session, self.source, out, progress, self.interruption)
                stop = run.to_the_end(conditions, limits)
                speed = progress.text(stop)
            unmet = never_met(conditions, stop)
            status = run.status(stop, bool(unmet) and stop.condition is None)
            # Before the recording is finished: that runs the slice under way to its end.
            out.end_line()
            if self.as_json:
                from rr86.cli.as_json import of_machine, of_run

                machine = of_machine(stop, session.inspector)
            elif not quiet:
                from rr86.cli.show import show_stop

                show_stop(stop, session.inspector)
        recording = session.finish()
        out.end_line()
        if not quiet:
            if unmet:
                say(f"never met: {', '.join(unmet)}")
            out.tell_unseen()
        if self.as_json:
            seconds = session.seconds() if self.stats else None
            _print_json(recording, machine, of_run(stop, unmet, status), seconds)
            raise Exit(status)
        if not quiet:
            _report(recording, speed, session.spec.protocol)
        if self.stats:
            from rr86.cli.show import show_statistics

            show_statistics(recording.statistics, session.seconds())
        raise Exit(status)


def _report(recording: "Recording", speed: str, protocol: str) -> None:
    """What a finished recording is like, on stderr."""
    from rr86.cli.progress import size_text

    size, images = size_text(recording.trace_bytes), size_text(recording.image_bytes)
    say(f"{speed}; {size} in {recording.path} ({images} of it images)")
    if protocol != "precise":
        born = recording.statistics.get("stale_blocks", 0)
        entered = recording.statistics.get("stale_entries", 0)
        say(f"stale blocks: {born:,}, executed {entered:,} times")


def _print_json(
    recording: "Recording",
    machine: dict[str, object],
    run: dict[str, object],
    seconds: dict[str, float] | None,
) -> None:
    """The same as one JSON object on stdout."""
    from rr86.cli.as_json import of_counters, print_json

    content = {
        "trace": str(recording.path),
        "trace_bytes": recording.trace_bytes,
        "image_bytes": recording.image_bytes,
        "kaslr_offset": recording.kaslr_offset,
        "stale_blocks": recording.statistics.get("stale_blocks", 0),
        "stale_executions": recording.statistics.get("stale_entries", 0),
        **run,
        **machine,
    }
    counters = {} if seconds is None else of_counters(recording.statistics, seconds)
    print_json(content | counters)


class _Run:
    """The run of a recorder with a console attached."""

    def __init__(
        self,
        recorder: "LiveSession",
        source: "Input",
        out: "Consoles",
        progress: "Progress",
        interruption: "Interruption",
    ) -> None:
        self.recorder = recorder
        self.source = source
        self.out = out
        self.progress = progress
        self.interruption = interruption

    def _between_calls(self, moment: "Stop") -> bool:
        self.recorder.send(self.source.poll())
        self.progress.update(moment, self.recorder.trace_bytes())
        return self._wanted_to_end()

    def _wanted_to_end(self) -> bool:
        if self.source.keys.help:
            from rr86.cli.terminal import HELP

            self.source.keys.help = False
            say(HELP)
        return bool(self.interruption) or self.source.keys.leave or self.out.closed

    def to_the_end(self, conditions: "list[Condition]", limits: "Limits") -> "Stop":
        """Run; a guest in which nothing moves any more may be woken by a key."""
        while True:
            stop = self.recorder.run(until=conditions, limits=limits, tick=self._between_calls)
            if stop.reason != "deadlock" or not self._woken():
                return stop

    def _woken(self) -> bool:
        # A pipe that is not written to must not make a dead guest wait for ever.
        wait = _INTERACTIVE_WAIT if self.source.interactive else 0.0
        while self.source.open and not self._wanted_to_end():
            data = self.source.poll(wait)
            if data:
                self.recorder.send(data)
                return True
            if not self.source.interactive:
                return False
        return False

    def status(self, stop: "Stop", unmet: bool) -> int:
        """The exit status of the command; `unmet` if no condition of those waited for was met."""
        if stop.reason != "interrupted":
            return of_stop(stop, unmet)
        if self.interruption:
            return 128 + self.interruption.signal
        return 141 if self.out.closed else OK
