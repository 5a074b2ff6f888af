"""Start this clone as an agent: a Prefect worker of one pool. It stops cleanly on SIGTERM."""

import os
import signal
import socket
import sys
from pathlib import Path

from flows.agents.pools import HEARTBEAT_SECONDS
from flows.agents.stage_flow import CLONE, NAME
from flows.cores import count_cores
from flows.devices import list_devices
from flows.dvc.command import STOP_ORPHANS
from flows.environment import stage_environment

SECONDS_BETWEEN_QUERIES = 2


def default_stages(pool: str) -> int:
    """Return how many stages at once: one per CUDA device, or per two cores where there are none.

    Training keeps two threads busy whatever the machine has (stages/common/seeding.py).
    """
    devices = len(list_devices()) if pool == "gpu" else 0
    return devices or max(1, count_cores() // 2)


def worker_environment(root: Path, name: str) -> dict[str, str]:
    """Return the environment of a worker in the clone at `root`, and of the stages it runs."""
    return {
        **stage_environment(),
        # The flow is imported from here; a stage's own code comes first in its checkout.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        # A worker that is stopped kills its runs, and nobody would push what the stages then make.
        STOP_ORPHANS: "1",
        CLONE: str(root),
        NAME: name,
        "DVC_SITE_CACHE_DIR": str(root / ".dvc/tmp/site"),
        "PREFECT_HOME": str(root / ".prefect"),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",  # an agent's terminal is its log
        "PREFECT_WORKER_QUERY_SECONDS": str(SECONDS_BETWEEN_QUERIES),
    }


def become_worker(root: Path, pool: str, name: str | None, stages: int | None) -> None:
    """Replace this process by the worker.

    Raises:
        ValueError: PREFECT_API_URL does not name the server.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise ValueError("PREFECT_API_URL is not set: which Prefect server is the fleet's?")
    name = name or f"{socket.gethostname()}-{pool}-{os.getpid()}"
    limit = stages or default_stages(pool)
    # A shell's `&` hands down an ignored SIGINT, with which Prefect's worker never stops.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
    command += ["--pool", pool, "--name", name, "--limit", str(limit)]
    print(f"agent {name}: pool {pool}, {limit} stages at once; stop it with Ctrl-C or SIGTERM")
    sys.stdout.flush()
    os.execve(sys.executable, command, worker_environment(root, name))
