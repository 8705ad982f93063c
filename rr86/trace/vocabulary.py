"""The words of a trace's events, in the order of their numbers; see docs/trace-format.md."""

EVENT_KINDS = (
    "slice",
    "time-skip",
    "input",
    "digests",
    "fetch",
    "link",
    "invalidate",
    "flush",
    "hand-off",
    "cross-write",
    "stop",
    "stale",
)
# What the field "stop" of a slice and the field "reason" of a stop say, by number.
SLICE_ENDS = (
    *("quantum", "pause", "halt", "deadline", "exit"),
    *("fetch-window", "store-window", "unguard-window", "shutdown"),
)
STOP_REASONS = (
    *("none", "condition", "limit", "poweroff", "reset", "debug-exit"),
    *("triple-fault", "end", "deadlock", "host-fault", "device-error"),
)
NO_VCPU = 0xFF
# What a stale event tells of a block: 0 that it never matched memory since it was linked, 1 that it
# was overwritten later, 2 that it was executed; and, for the first time, an INT3 in it that memory
# did not hold.
STALE_ENTRY = 2
STALE_INT3 = 3
