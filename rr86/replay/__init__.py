"""Reading traces, replaying them, and stopping where it matters."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rr86.replay.writers import Store, WriteHistory, WriteRecord, who_wrote

__all__ = ["Store", "WriteHistory", "WriteRecord", "who_wrote"]


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: most runs have no such question.
    if name not in __all__:
        raise AttributeError(f"module 'rr86.replay' has no attribute {name!r}")
    from rr86.replay import writers

    return getattr(writers, name)
