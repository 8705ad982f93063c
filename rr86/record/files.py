"""The files of a recording: images that go in, and where the trace goes."""

import contextlib
import errno
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from rr86.errors import GuestImageError, RecordingError
from rr86.trace.place import refuse_foreign

_MOST_NUMBERED = 100_000


def read_image(path: str | Path, what: str) -> bytes:
    """A guest image's bytes; `what` ("kernel", "initrd") is for the error message.

    Raises `GuestImageError` if it cannot be read, or is empty.
    """
    try:
        data = _contents(Path(path))
    except FileNotFoundError:
        raise GuestImageError(
            f"{what} '{path}' does not exist", role=what, path=Path(path)
        ) from None
    except IsADirectoryError:
        raise GuestImageError(
            f"{what} '{path}' is a directory", role=what, path=Path(path)
        ) from None
    except OSError as error:
        raise GuestImageError(
            f"{what} '{path}' cannot be read: {error.strerror}", role=what, path=Path(path)
        ) from None
    return _filled(data, path, what)


def _contents(path: Path) -> bytes:
    """The bytes of a file or a pipe; a device such as /dev/zero may have no end."""
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "it is a device, where a file belongs", str(path))
    return path.read_bytes()


def _filled(data: bytes, path: str | Path, what: str) -> bytes:
    if not data:
        raise GuestImageError(f"{what} '{path}' is empty", role=what, path=Path(path))
    return data


class ReadAhead:
    """Reads images by a thread of its own, while others prepare what to do with them."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._contents: dict[Path, bytes] = {}
        # It is not waited for at the end: a pipe may never have anything to read.
        self._thread = threading.Thread(target=self._read, args=(list(paths),), daemon=True)
        self._thread.start()

    def _read(self, paths: list[str | Path]) -> None:
        for path in paths:
            # What cannot be read here fails again where somebody hears of it.
            with contextlib.suppress(OSError, ValueError, MemoryError):
                self._contents[Path(path)] = _contents(Path(path))

    def wait(self) -> None:
        """Return when there is nothing more to read."""
        self._thread.join()

    def __call__(self, path: str | Path, what: str) -> bytes:
        """As `read_image`."""
        self.wait()
        data = self._contents.pop(Path(path), None)
        return read_image(path, what) if data is None else _filled(data, path, what)


def next_free_name(kernel: str | Path, folder: Path) -> Path:
    """`<kernel's name>-NNN.rr86` with the lowest number that follows those in use."""
    stem = Path(kernel).name
    highest = 0
    for each in folder.glob("*.rr86"):
        name = each.name.removesuffix(".rr86")
        before, dash, number = name.rpartition("-")
        if before == stem and dash and number.isdecimal() and len(number) < 7:
            highest = max(highest, int(number))
    return folder / f"{stem}-{highest + 1:03}.rr86"


@contextlib.contextmanager
def reserved(output: Path | None, kernel: str | Path, inputs: Iterable[Path]) -> Iterator[Path]:
    """A place for the trace that is known to be writable; left as it was if the body fails.

    Without `output` it is the next free name in the current folder, taken so that two recordings
    that start at once do not get the same one.
    """
    path, created = _reserve(output, kernel, inputs)
    try:
        yield path
    except BaseException:
        if created:
            path.unlink(missing_ok=True)
        raise


def _reserve(output: Path | None, kernel: str | Path, inputs: Iterable[Path]) -> tuple[Path, bool]:
    if output is None:
        for _ in range(_MOST_NUMBERED):
            path = next_free_name(kernel, Path())
            with contextlib.suppress(FileExistsError):
                _create(path)
                return path, True
        raise RecordingError("no free name for the trace in the current folder; use --output")
    for each in inputs:
        with contextlib.suppress(OSError):
            if output.samefile(each):
                raise RecordingError(
                    f"the trace would overwrite its own input '{each}'", path=output
                )
    try:
        _create(output)
    except FileExistsError:
        if output.is_dir():
            raise RecordingError(
                f"cannot write the trace '{output}': it is a directory", path=output
            ) from None
        refuse_foreign(output)
        try:
            with output.open("r+b"):
                pass
        except OSError as error:
            raise RecordingError(
                f"cannot write the trace '{output}': {error.strerror}", path=output
            ) from None
        return output, False
    return output, True


def _create(path: Path) -> None:
    try:
        with path.open("xb"):
            pass
    except FileExistsError:
        raise
    except OSError as error:
        raise RecordingError(
            f"cannot write the trace '{path}': {error.strerror}", path=path
        ) from None
