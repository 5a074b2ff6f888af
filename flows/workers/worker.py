"""Start this clone as a worker of one Prefect pool. It stops cleanly on SIGTERM."""

import os
import socket
from pathlib import Path

from flows.dvc.command import STOP_ORPHANS
from flows.environment import stage_environment
from flows.resources import count_cores, list_devices, require_devices
from flows.workers.reproduce import CLONE, NAME
from flows.workers.space import require_space

POOL = "ovis-dag-{}"  # on a server that other teams use too
HEARTBEAT_SECONDS = 30  # the least that Prefect 3.8 takes
SECONDS_BETWEEN_QUERIES = 2


def default_stages(pool: str) -> int:
    """Return how many stages at once: one per CUDA device, or per two cores where there are none.

    Training keeps two threads busy whatever the machine has (stages/common/runtime/seeding.py).

    Raises:
        DeviceError: the pool is for CUDA devices and there are none, unless OVIS_FEWER_GPUS=1.
    """
    devices = len(list_devices()) if pool == "gpu" else 0
    require_devices(devices, int(pool == "gpu"))
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
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",  # a worker's terminal is its log
        "PREFECT_WORKER_QUERY_SECONDS": str(SECONDS_BETWEEN_QUERIES),
    }


def become_worker(root: Path, pool: str, name: str | None, stages: int | None) -> None:
    """Run stages of a pool until this is stopped.

    Raises:
        ValueError: there is no address of a server, the pool is missing or of a foreign type, or
            this machine has no CUDA device for pool gpu.
        RuntimeError: the server refuses or does not answer, or this machine turned out unfit.
    """
    name = name or f"{socket.gethostname()}-{pool}-{os.getpid()}"
    default = default_stages(pool)
    limit = stages or default
    os.environ.update(worker_environment(root, name))
    # Prefect reads the environment once.
    from flows.server import require_server
    from flows.workers.pools import has_pool
    from flows.workers.stage_worker import work

    require_server()
    if not has_pool(POOL.format(pool)):
        raise ValueError(f"Prefect's server has no pool {POOL.format(pool)}; `make pools` makes it")
    require_space(root, print)
    print(f"worker {name}: pool {pool}, {limit} stages at once; stop it with Ctrl-C or SIGTERM")
    work(POOL.format(pool), name, limit)
