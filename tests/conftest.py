"""What all tests share: two workers on two cores, and one Prefect server per worker."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two workers with two threads each would fight for two cores. Before torch is imported.
os.environ.setdefault("OVIS_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from flows.server import LocalServer

LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the API's URL of a server on a free loopback port; children find it by environment."""
    before = os.environ.pop("PREFECT_API_URL", None)
    server = LocalServer(tmp_path_factory.mktemp("prefect")).start()
    try:
        assert LOOPBACK in server.url
        server.wait_until_ready()
        yield server.url
    finally:
        server.stop()
        os.environ.pop("PREFECT_API_URL", None)
        if before is not None:
            os.environ["PREFECT_API_URL"] = before


@pytest.fixture(autouse=True)
def usual_kernels() -> Iterator[None]:
    """Undo what stages ask of torch for the whole process: tests run in any order."""
    yield
    if torch := sys.modules.get("torch"):
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Give the root of this repository."""
    return Path(__file__).parents[1]
