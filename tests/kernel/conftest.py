"""A boot of a real Linux, for tests of what rr86 sees in one."""

from pathlib import Path

import pytest

from tests.kernel.debian import Boot, folders, record_boot

FOLDERS: list[Path | None] = [*folders()]


@pytest.fixture(scope="session", params=FOLDERS or [None], ids=lambda each: each and each.name)
def boot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """A recorded boot of each kernel in $RR86_KERNELS, with what the guest said of itself."""
    folder: Path | None = request.param
    if folder is None:
        pytest.skip("RR86_KERNELS names no folder of kernels (tools/debian-guest.sh makes one)")
    return record_boot(folder, tmp_path_factory.mktemp(folder.name))
