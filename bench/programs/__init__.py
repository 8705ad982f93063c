"""Small programs that each do one thing, timed natively, in rr86 and in QEMU."""
