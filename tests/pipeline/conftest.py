"""The smoke profile's results, made once for all tests that only read them."""

from pathlib import Path

import pytest

from tests.support.clones import clone, reproduce


@pytest.fixture(scope="session")
def smoke(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a clone with all results of the smoke profile, made by DVC on the processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEVICE", "cpu")
        folder = clone(repository, tmp_path_factory.mktemp("smoke"), "smoke")
        reproduce(folder)
    return folder
