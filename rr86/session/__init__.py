"""What recording and replaying share: driving a machine, stopping it, and its consoles."""
