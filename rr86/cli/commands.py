"""The commands that there are, and where each one is."""

from rr86.cli.status import EPILOG

# Module and closing words of each command, in the order in which help lists them.
COMMANDS: dict[str, tuple[str, str | None]] = {
    "record": ("rr86.cli.record", EPILOG),
    "replay": ("rr86.cli.replay", EPILOG),
    "gdb": ("rr86.cli.gdb", None),
    "branch": ("rr86.cli.branch", EPILOG),
    "checkpoint": ("rr86.cli.checkpoint", None),
    "info": ("rr86.cli.info", None),
    "events": ("rr86.cli.events", None),
    "sharing": ("rr86.cli.sharing", None),
    "timeline": ("rr86.cli.timeline", None),
    "profile": ("rr86.cli.profile", None),
    "symbols": ("rr86.cli.symbols", None),
    "protocols": ("rr86.cli.protocols", None),
    "dmesg": ("rr86.cli.dmesg", None),
    "dump": ("rr86.cli.dump", None),
    "drgn": ("rr86.cli.drgn", None),
    "who-wrote": ("rr86.cli.who_wrote", None),
    "origin": ("rr86.cli.origin", None),
    "bisect-invalidation": ("rr86.cli.bisect_invalidation", None),
}
