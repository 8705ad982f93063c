"""What rr86 knows of a running Linux, by reading its memory and nothing else: types (BTF), tasks,
modules, the kernel's log. Nothing here changes the guest."""
