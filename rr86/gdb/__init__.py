"""Serving a recording to gdb: the remote serial protocol, both directions of time included."""
