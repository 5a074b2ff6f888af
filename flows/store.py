"""MLflow's store: how it is opened, and what is written to it under which names.

One process at a time opens it, and closes the runs of killed processes, which would otherwise stay
RUNNING forever. A run's tag names the process that writes it; the next execution on the same
machine closes runs whose process is gone. Runs of other machines are left alone, even if they have
this one's name, because their processes cannot be checked from here. If the clock is set while an
execution runs, its run may be closed too early; its end mends that.
"""

import csv
import fcntl
import hashlib
import json
import logging
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import RESOURCE_ALREADY_EXISTS, ErrorCode, MlflowException
from sqlalchemy.exc import SQLAlchemyError

from flows.environment import STATE_FOLDER, sqlite_path, sqlite_url, without_user
from flows.graph import Stage
from flows.overlay import PARAMS, flatten

LONGEST_PARAM = 6000
DEBRIS = "')\""  # after the cause in the text of nested exceptions
SOURCE = "download"  # the stage that makes the data

EXPERIMENT = "ovis-dag"
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # else MLflow shows pages for LLM agents
    "mlflow.note.content": "One run per execution of the DAG, named by what changed since the last",
}
PROCESS_TAG = "process"
MACHINE_ID = Path("/etc/machine-id")  # of systemd; images of one container may share it
SECONDS_OF_ROUNDING = 2.0  # error of a process's start time, which psutil derives from the clock


def open_store(root: Path, uri: str) -> tuple[MlflowClient, str]:
    """Return the store at `uri` and the id of the project's experiment; create both if needed."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # one line per migration otherwise
    with _one_process_at_a_time(root, uri), reaching(uri):
        if (database := sqlite_path(uri)) and not database.exists():
            # MLflow cannot go on where a killed process left the migrations of a new database.
            for path in database.parent.glob(f"{database.name}.partial*"):
                path.unlink()
            partial = database.with_name(f"{database.name}.partial")
            MlflowClient(sqlite_url(partial))
            partial.replace(database)
        client = MlflowClient(uri)
        return client, _find_experiment(client, root, uri)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn MLflow's errors within the block into a RuntimeError that names the store."""
    try:
        yield
    except MlflowException as error:
        raise RuntimeError(f"MLFLOW_TRACKING_URI={without_user(uri)}: {in_words(error)}") from error
    except SQLAlchemyError as error:
        raise RuntimeError(
            f"MLFLOW_TRACKING_URI={without_user(uri)}: MLflow cannot use this database:"
            f" {in_words(error)}; if it is damaged, move it away, and the next run makes a new one"
        ) from error


def in_words(error: Exception) -> str:
    """Return an error of MLflow in one line; if its server does not answer or refuses, only why."""
    if isinstance(error, MlflowException) and error.get_http_status_code() == 401:
        return "refuses this user (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    line = str(error).splitlines()[0]
    _, failed, why = line.partition(" failed with exception ")
    return f"does not answer ({why.rpartition(': ')[2].rstrip(DEBRIS)})" if failed else line


def _find_experiment(client: MlflowClient, root: Path, uri: str) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return found.experiment_id
    artifacts = (root / "mlruns").as_uri() if sqlite_path(uri) else None
    try:
        return client.create_experiment(EXPERIMENT, artifacts, EXPERIMENT_TAGS)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
        return client.get_experiment_by_name(EXPERIMENT).experiment_id


@contextmanager
def _one_process_at_a_time(root: Path, uri: str) -> Iterator[None]:
    """Hold a lock that all processes of this machine share for the store.

    If six processes create one sqlite store at once, five crash in its migrations. The lock lies
    beside the database, because the worktrees of a sweep share it.
    """
    lock = root / STATE_FOLDER / "mlflow.lock"
    if database := sqlite_path(uri):
        lock = Path(f"{database}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def process_tag() -> str:
    """Return this process as "<machine>/<pid>/<seconds since 1970 of its start>"."""
    process = psutil.Process()
    return f"{_machine()}/{process.pid}/{process.create_time():.0f}"


def _machine() -> str:
    """Return this machine's name, with the id that tells it from others of that name."""
    own = MACHINE_ID.read_text(encoding="utf-8").strip() if MACHINE_ID.is_file() else ""
    return f"{socket.gethostname()} {own}".strip()


def close_abandoned(client: MlflowClient, experiment_id: str) -> None:
    """Mark as KILLED the running runs of dead processes of this machine."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if _is_abandoned(run.data.tags.get(PROCESS_TAG, "")):
            client.set_terminated(run.info.run_id, "KILLED")


def _is_abandoned(tag: str) -> bool:
    machine, *rest = tag.rsplit("/", 2)
    if machine != _machine():
        return False
    pid, started = int(rest[0]), float(rest[1])
    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        return dead or abs(process.create_time() - started) > SECONDS_OF_ROUNDING
    except psutil.NoSuchProcess:
        return True


def read_dataset(entry: dict) -> DatasetInput:
    """Return the data set, identified by its hashes in dvc.lock."""
    hashes = "".join(f"{out['path']} {out['md5']}\n" for out in entry["outs"])
    digest = hashlib.md5(hashes.encode(), usedforsecurity=False).hexdigest()
    name = f"data/{SOURCE}"
    dataset = Dataset(name, digest, source_type="local", source=json.dumps({"uri": name}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def read_params(entry: dict) -> Iterator[tuple[str, str]]:
    """Yield every leaf of the params in an entry of dvc.lock as dotted key and JSON text."""
    for key, value in flatten(entry.get("params", {}).get(PARAMS, {}), "."):
        text = value if isinstance(value, str) else json.dumps(value)
        yield legal(key), text[:LONGEST_PARAM]


def read_metrics(root: Path, stages: Iterable[Stage]) -> Iterator[tuple[str, float]]:
    """Yield every number of every JSON metrics file as `<stage>/<nested/key>`."""
    for stage in stages:
        for path in stage.metrics:
            if (root / path).is_file():
                content = json.loads((root / path).read_text(encoding="utf-8"))
                for key, value in flatten(content, "/"):
                    if isinstance(value, int | float):
                        yield f"{legal(stage.name)}/{legal(key)}", float(value)


def read_curves(root: Path, stages: Iterable[Stage]) -> Iterator[tuple[str, int, float]]:
    """Yield (key, step, value) of every CSV plot with a `step` column; empty cells are left out."""
    for stage in stages:
        for path in stage.curves:
            if not (root / path).is_file():
                continue
            with (root / path).open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                if "step" not in (rows.fieldnames or ()):
                    continue
                for row in rows:
                    step = int(float(row.pop("step")))
                    for name, value in row.items():
                        if value:
                            yield f"{legal(stage.name)}/curve/{legal(name)}", step, float(value)


def legal(name: str) -> str:
    """Return a name that MLflow accepts: `pseudo_boxes@0` becomes `pseudo_boxes.0`."""
    return "".join(c if c.isalnum() or c in "_-. /" else "." for c in name)
