"""What all tests share: a process that stays as it was, and one Prefect server."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings

# Two workers with two threads each would fight for two cores. Before torch is imported.
os.environ.setdefault("OVIS_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A thread of torch that waits for the others spins, and takes the core that these need: on a loaded
# machine, tests with several threads take two to three times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from flows.server import SECONDS_TO_START, LocalServer
from tests.support.process_state import State, changes, read_state, seed_torch, write_state
from tests.support.shape_types import check_calls

assert "stages" not in sys.modules
check_calls(["stages", "comparators", "predict"])

# The first example pays for what a module loads or compiles, and other processes for the rest: in
# another order, or on a busy machine, any limit of time fails.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

LOOPBACK = "127.0.0.1"
SERVER = "PREFECT_API_URL"
BEFORE = pytest.StashKey[State]()  # the running test
SHARED = pytest.StashKey[tuple[ExitStack, str]]()  # what ends the workers' server, and its URL


@pytest.fixture(autouse=True)
def restored_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put back what the test changes in its process, and let torch draw by the test's name."""
    stash = request.config.stash
    stash[BEFORE] = read_state()
    # pytest-randomly seeds Python's and NumPy's draws alone; torch starts with another seed each
    # time.
    seed_torch(f"{request.config.getoption('randomly_seed', 0)} {request.node.nodeid}")
    yield
    write_state(changes(stash[BEFORE], read_state()))
    del stash[BEFORE]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Let hold what a module's or a session's fixture sets, until it is torn down."""
    if fixturedef.scope == "function":
        return (yield)
    before, own = read_state(), {}
    fixturedef.addfinalizer(lambda: write_state(own))  # the first added is the last called
    result = yield
    after = read_state()
    own |= changes(before, after)
    if test := request.config.stash.get(BEFORE, None):  # it asked for the fixture as it ran
        test |= changes(after, before)
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Start one server for all workers of xdist, and tell each where it is."""
    stash = node.config.stash
    if SHARED not in stash:
        with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
            patch.setenv(SERVER, "")
            server = LocalServer(Path(stack.enter_context(TemporaryDirectory()))).start()
            stack.callback(server.stop)
            stash[SHARED] = stack.pop_all(), server.url
    node.workerinput[SERVER] = stash[SHARED][1]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the workers' server."""
    if SHARED in session.config.stash:
        session.config.stash[SHARED][0].close()


@pytest.fixture(scope="session")
def prefect_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Give the API's URL of a server on a free loopback port; children find it by environment."""
    shared = getattr(request.config, "workerinput", {}).get(SERVER, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SERVER, shared)
        server = LocalServer(tmp_path_factory.mktemp("prefect")).start()
        try:
            assert LOOPBACK in server.url
            with pytest.MonkeyPatch.context() as meanwhile:
                meanwhile.setattr("flows.server.SECONDS_TO_ANSWER", SECONDS_TO_START)
                server.wait_until_ready()
            yield server.url
        finally:
            server.stop()


@pytest.fixture
def true_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bfloat16 computed as such on every processor, however slowly."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Give the root of this repository."""
    return Path(__file__).parents[1]
