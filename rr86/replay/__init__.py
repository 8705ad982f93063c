"""Reading traces, replaying them, and stopping where it matters."""
