"""What is at a path: a trace, something else that must not be overwritten, or nothing."""

from pathlib import Path

from rr86.errors import RecordingError

# What a trace begins with; see docs/trace-format.md.
_MAGIC = b"\x89RR86\r\n\x1a"


def is_trace(path: Path) -> bool:
    """Whether there is a trace at `path`."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def refuse_foreign(output: Path) -> None:
    """Raise `RecordingError` if there is a file at `output` that is no trace, and not empty."""
    try:
        if not output.exists():
            return
        if not output.is_file():
            raise RecordingError(
                f"cannot write the trace '{output}': it is not a regular file", path=output
            )
        with output.open("rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        raise RecordingError(
            f"cannot write the trace '{output}': {error.strerror}", path=output
        ) from None
    if not _MAGIC.startswith(head):
        raise RecordingError(
            f"'{output}' is not a trace, and is left as it is: remove it, or choose another name",
            path=output,
        )
