"""Trace files: what is in them. Reading one needs no machine and no guest."""
