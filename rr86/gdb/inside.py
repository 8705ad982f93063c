"""Commands for the gdb that `rr86 gdb` starts. It runs inside of gdb, not of rr86.

A monitor verb can move the machine, and gdb would not look again at what it has read before. So the
server is asked after each verb whether it has moved, and to which vCPU.
"""

from typing import Any

import gdb


def _connection() -> Any:
    connection = gdb.selected_inferior().connection
    return connection if isinstance(connection, gdb.RemoteTargetConnection) else None


def rr86_follow() -> None:
    """Forget what was read, and select the vCPU that runs, if a monitor verb has moved."""
    connection = _connection()
    answer = connection.send_packet(b"qRr86.Moved") if connection is not None else None
    if not answer or answer == b"0":
        return
    gdb.execute("maintenance flush register-cache", to_string=True)
    gdb.execute("maintenance flush dcache", to_string=True)
    gdb.execute(f"thread {int(answer, 16)}")


def rr86_connected() -> None:
    """Once gdb is connected: have a step be that of the selected vCPU, which gdb does not tell a
    server otherwise when it steps back, and follow the monitor."""
    gdb.execute("set scheduler-locking step")
    gdb.execute("define hookpost-monitor\npython rr86_follow()\nend")
    rr86_follow()
