"""One MLflow run per execution, read off the files that the stages wrote.

Stages know nothing of MLflow: the metric files on disk are the truth, so a stage that was restored
or left alone shows the same numbers as one that ran. sqlite in the project by default, any store
by MLFLOW_TRACKING_URI.
"""

import csv
import fcntl
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import RESOURCE_ALREADY_EXISTS, ErrorCode, MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from ruamel.yaml import YAML

from flows.abandoned import PROCESS_TAG, close_abandoned, process_tag
from flows.environment import STATE_FOLDER
from flows.graph import Stage
from flows.journal import fingerprint, remember
from flows.overlay import flatten
from flows.predictor import MODELS, is_complete
from flows.stage import Outcome
from flows.table import describe_execution

EXPERIMENT = "ovis-dag"
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # its pages are of agents otherwise
    "mlflow.note.content": "One run per execution of the DAG, named by what changed since the last",
}
BATCH_METRICS, BATCH_PARAMS = 1000, 100  # what one request of MLflow may carry
LONGEST_PARAM = 6000
PARENT_TAG = "mlflow.parentRunId"
SQLITE = "sqlite:///"
PREFECT_LINK_TAG = "prefect.flow_run_url"
PICTURES = {".png", ".svg", ".jpg"}
REPORT = "report.json"  # what a stage left out, and why


class Tracking:
    """An open MLflow run of this project.

    As a context it also watches the machine, and closes the run if the block is left by an error.
    """

    def __init__(
        self,
        root: Path,
        name: str | None = None,
        tags: dict[str, str] | None = None,
        resume: bool = False,
    ) -> None:
        """Make the store if there is none, and open a run; call before any stage starts.

        Args:
            root: of the project.
            name: of the run; MLflow makes one up if there is none.
            tags: of the run, from its start on.
            resume: go on with the last run of this name and tags, if there is one.

        Raises:
            RuntimeError: the store cannot be reached; the message names it.
        """
        self._root = root
        self.uri = os.environ["MLFLOW_TRACKING_URI"]
        logging.getLogger("alembic").setLevel(logging.WARNING)  # one line per migration otherwise
        with _one_process_at_a_time(root, self.uri):
            try:
                self._client = MlflowClient(self.uri)
                experiment = self._find_experiment()
            except MlflowException as error:
                raise RuntimeError(f"MLFLOW_TRACKING_URI={self.uri}: {error}") from error
        close_abandoned(self._client, experiment)
        # Points of a sweep register no model: which one is the candidate is for people to say.
        self._registers = PARENT_TAG not in (tags or {})
        run = self._find_run(experiment, name, tags or {}) if resume else None
        run = run or self._client.create_run(experiment, tags=tags, run_name=name)
        self.run_id = run.info.run_id
        self._client.set_tag(self.run_id, PROCESS_TAG, process_tag())
        self._link = (tags or {}).get(PREFECT_LINK_TAG)
        self._monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.uri)

    def __enter__(self) -> Self:
        self._monitor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._monitor.finish()
        if kind is not None:
            status = "FAILED" if issubclass(kind, Exception) else "KILLED"
            self._client.set_terminated(self.run_id, status)

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found:
            return found.experiment_id
        local = self.uri.startswith(SQLITE)
        artifacts = (self._root / "mlruns").as_uri() if local else None
        try:
            return self._client.create_experiment(EXPERIMENT, artifacts, EXPERIMENT_TAGS)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            return self._client.get_experiment_by_name(EXPERIMENT).experiment_id

    def _find_run(self, experiment: str, name: str, tags: dict[str, str]) -> Run | None:
        tags = {"mlflow.runName": name, **tags}
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return next(iter(self._client.search_runs([experiment], wanted, max_results=1)), None)

    def has_published(self) -> bool:
        """Say whether this run already shows the results that dvc.lock has now."""
        run = self._client.get_run(self.run_id)
        shown = run.data.tags.get("dvc.lock.sha256") == fingerprint(self._root)
        return shown and run.info.status == "FINISHED"

    def publish(
        self,
        stages: Iterable[Stage],
        outcomes: Iterable[Outcome],
    ) -> None:
        """Log params, metrics, curves, pictures and tags of a finished execution, and close it.

        `stages` are those whose files are there; the run is failed if any of `outcomes` is.
        """
        self._monitor.finish()
        stages, outcomes = list(stages), list(outcomes)
        failed = any(outcome.outcome == "failed" for outcome in outcomes)
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in read_metrics(self._root, stages)]
        metrics += [
            Metric(f"seconds/{_legal(outcome.stage)}", outcome.seconds, now, 0)
            for outcome in outcomes
            if outcome.seconds
        ]
        metrics += [
            Metric(key, value, now, step) for key, step, value in read_curves(self._root, stages)
        ]
        for batch in _batches(metrics, BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=batch)
        params = [Param(key, value) for key, value in read_params(self._root)]
        for batch in _batches(params, BATCH_PARAMS):
            self._client.log_batch(self.run_id, params=batch)
        self._log_files(stages)
        description = describe_execution(self._root, outcomes)
        if self._link:
            description += f"\n\n[Flow run in Prefect]({self._link})"
        tags = {**execution_tags(self._root), "mlflow.note.content": description}
        if self._registers:
            tags |= self._publish_models(stages, description)
        for outcome in outcomes:
            tags[f"dvc.outcome.{_legal(outcome.stage)}"] = outcome.outcome
        for batch in _batches([RunTag(*tag) for tag in tags.items()], BATCH_PARAMS):
            self._client.log_batch(self.run_id, tags=batch)
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
        if not failed:
            remember(self._root, tracked_to=self.uri, fingerprint=fingerprint(self._root))

    def _publish_models(self, stages: list[Stage], description: str) -> dict[str, str]:
        """Register the detectors among what these stages made; return tags with their URIs."""
        models = [m for m in MODELS if m in {s.name for s in stages} and is_complete(self._root, m)]
        if not models:
            return {}
        from flows.registry import publish_model  # takes a second that most executions save

        return {
            f"model.{model}": publish_model(self._root, model, self.uri, self.run_id, description)
            for model in models
        }

    def _log_files(self, stages: list[Stage]) -> None:
        for name in ("dvc.lock", "params.yaml"):
            if (self._root / name).is_file():
                self._client.log_artifact(self.run_id, str(self._root / name))
        for stage in stages:
            seen = [
                path
                for path in stage.outputs
                if Path(path).suffix in PICTURES or Path(path).name == REPORT
            ]
            for path in dict.fromkeys((*stage.metrics, *stage.plots, *seen)):
                if (self._root / path).is_file():
                    folder = Path(path).parent.as_posix()
                    self._client.log_artifact(self.run_id, str(self._root / path), folder)


@contextmanager
def _one_process_at_a_time(root: Path, uri: str) -> Iterator[None]:
    """Hold a lock that all processes of this machine share for the store.

    Five of six that create one sqlite store at once crash in its migrations. The lock lies beside
    the database, for worktrees of a sweep share one.
    """
    lock = root / STATE_FOLDER / "mlflow.lock"
    if uri.startswith(SQLITE):
        lock = Path(uri.removeprefix(SQLITE) + ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def execution_tags(root: Path) -> dict[str, str]:
    """Return what identifies the code and data of an execution: git commit and dvc.lock's hash."""
    tags = {"dvc.lock.sha256": fingerprint(root), "mlflow.source.name": "flows"}
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["git.uncommitted"] = str(bool(_git(root, "status", "--porcelain"))).lower()
    return tags


def read_params(root: Path) -> Iterator[tuple[str, str]]:
    """Yield every leaf of params.yaml as dotted key and JSON text."""
    path = root / "params.yaml"
    content = YAML(typ="safe").load(path) if path.is_file() else {}
    for key, value in flatten(content or {}, "."):
        text = value if isinstance(value, str) else json.dumps(value)
        yield _legal(key), text[:LONGEST_PARAM]


def read_metrics(root: Path, stages: Iterable[Stage]) -> Iterator[tuple[str, float]]:
    """Yield every number of every JSON metrics file as `<stage>/<nested/key>`."""
    for stage in stages:
        for path in stage.metrics:
            if (root / path).is_file():
                content = json.loads((root / path).read_text(encoding="utf-8"))
                for key, value in flatten(content, "/"):
                    if isinstance(value, int | float):
                        yield f"{_legal(stage.name)}/{_legal(key)}", float(value)


def read_curves(root: Path, stages: Iterable[Stage]) -> Iterator[tuple[str, int, float]]:
    """Yield (key, step, value) of every CSV plot with a `step` column; empty cells are left out."""
    for stage in stages:
        for path in stage.plots:
            if Path(path).suffix != ".csv" or not (root / path).is_file():
                continue
            with (root / path).open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                if "step" not in (rows.fieldnames or ()):
                    continue
                for row in rows:
                    step = int(float(row.pop("step")))
                    for name, value in row.items():
                        if value:
                            yield f"{_legal(stage.name)}/curve/{_legal(name)}", step, float(value)


def _legal(name: str) -> str:
    """Return the name with what MLflow refuses in keys replaced: `boxes@0` becomes `boxes.0`."""
    return "".join(c if c.isalnum() or c in "_-. /" else "." for c in name)


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
