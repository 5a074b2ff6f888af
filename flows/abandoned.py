"""MLflow runs whose process was killed: they would stay RUNNING for ever.

A run carries the process that writes it; the next execution on the same machine closes those whose
process is gone. Runs of other machines are left alone, for nobody here can tell.
"""

import socket

import psutil
from mlflow import MlflowClient

PROCESS_TAG = "process"
SECONDS_OF_ROUNDING = 2.0  # of a process's start, which psutil derives from the clock


def process_tag() -> str:
    """Return this process as "<host>/<pid>/<seconds since 1970 of its start>"."""
    process = psutil.Process()
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.0f}"


def close_abandoned(client: MlflowClient, experiment_id: str) -> list[str]:
    """Mark as KILLED the running runs of dead processes of this machine; return their ids."""
    running = client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
    abandoned = [
        run.info.run_id for run in running if _is_abandoned(run.data.tags.get(PROCESS_TAG, ""))
    ]
    for run_id in abandoned:
        client.set_terminated(run_id, "KILLED")
    return abandoned


def _is_abandoned(tag: str) -> bool:
    host, *rest = tag.rsplit("/", 2)
    if host != socket.gethostname():
        return False
    pid, started = int(rest[0]), float(rest[1])
    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        return dead or abs(process.create_time() - started) > SECONDS_OF_ROUNDING
    except psutil.NoSuchProcess:
        return True
