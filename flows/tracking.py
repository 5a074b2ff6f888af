"""One MLflow run per execution, made from dvc.lock and the files that the stages wrote.

Stages know nothing about MLflow. The metric files on disk are authoritative, so a stage that was
restored or left alone shows the same numbers as one that ran. Params are those in dvc.lock, with
which a stage was made; commit and params.yaml are those at the start. A stage's results are shown
when it ends, its curves while it trains. The store is sqlite in the project by default, or any
store that MLFLOW_TRACKING_URI names.
"""

import getpass
import json
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from flows.dvc.records import recorded
from flows.environment import without_user
from flows.git import GitError, git
from flows.graph import MODELS, DagError, Outcome, Stage
from flows.journal import fingerprint, remember
from flows.overlay import PARAMS
from flows.predictor import is_complete
from flows.store import (
    PROCESS_TAG,
    SOURCE,
    close_abandoned,
    in_words,
    legal,
    open_store,
    process_tag,
    reaching,
    read_curves,
    read_dataset,
    read_metrics,
    read_params,
)
from flows.table import describe_execution

AT_ONCE = {"metrics": 1000, "params": 100, "tags": 100}  # at most so many per request to MLflow
PARENT_TAG = "mlflow.parentRunId"
PREFECT_LINK_TAG = "prefect.flow_run_url"
SECONDS_BETWEEN_LOOKS = 10.0  # at curves of running stages


class Tracking:
    """An open MLflow run of this project.

    As a context manager it shows what stages make while they run, and closes the run if the block
    raises. It also watches the machine, except for points of a sweep, whose sweep does so.
    """

    def __init__(
        self,
        root: Path,
        name: str | None = None,
        tags: dict[str, str] | None = None,
        resume: bool = False,
    ) -> None:
        """Create the store if there is none, and open a run; call before any stage starts.

        With `resume`, take the last run of this name and tags, if there is one. The context manager
        continues it.

        Raises:
            RuntimeError: the store cannot be reached; the message names it.
        """
        self._root = root
        self.uri = os.environ["MLFLOW_TRACKING_URI"]
        self._shown_uri = without_user(self.uri)
        tags = tags or {}
        self._client, experiment = open_store(root, self.uri)
        with reaching(self.uri):
            close_abandoned(self._client, experiment)
            run = self._find_run(experiment, name, tags) if resume and name else None
            run = run or self._client.create_run(experiment, tags=tags, run_name=name)
            self.run_id = run.info.run_id
            self._log_tags({PROCESS_TAG: process_tag(), **_start_tags(root)})
        params = root / PARAMS
        self._params_file = params.read_text(encoding="utf-8") if params.is_file() else None
        self._params = dict(run.data.params)  # what the run shows
        self._steps: dict[str, int] = {}  # the last step of each curve that is shown
        self._shown: set[str] = set()  # stages
        self._running: dict[Stage, float] = {}  # with the time when each began, seconds since 1970
        self._ended: list[tuple[Stage, Outcome]] = []  # to be shown
        self._lock = threading.Lock()  # guards what is running or has ended
        self._wake, self._closing, self._published = threading.Event(), False, False
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._link = tags.get(PREFECT_LINK_TAG)
        self._is_point = PARENT_TAG in tags
        self._monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.uri)

    def __enter__(self) -> Self:
        self._client.update_run(self.run_id, status="RUNNING")  # a resumed one was killed
        if not self._is_point:
            self._monitor.start()
        self._follower.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop_following()
        if error is not None and not self._published:
            self._client.set_terminated(
                self.run_id, "FAILED" if isinstance(error, Exception) else "KILLED"
            )

    def _find_run(self, experiment: str, name: str, tags: dict[str, str]) -> Run | None:
        tags = {"mlflow.runName": name, **tags}
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return next(iter(self._client.search_runs([experiment], wanted, max_results=1)), None)

    def has_published(self) -> bool:
        """Say whether this run already shows the present results in dvc.lock."""
        run = self._client.get_run(self.run_id)
        shown = run.data.tags.get("dvc.lock.sha256") == fingerprint(self._root)
        return shown and run.info.status == "FINISHED"

    def begin(self, stage: Stage) -> None:
        """Show the stage's curves as they grow, within the context manager's block."""
        with self._lock:
            self._running[stage] = time.time()

    def end(self, stage: Stage, outcome: Outcome) -> None:
        """Have the stage's results shown soon, if it succeeded; return at once."""
        with self._lock:
            self._running.pop(stage, None)
            if outcome.outcome not in ("failed", "not run"):
                self._ended.append((stage, outcome))
        self._wake.set()

    def _follow(self) -> None:
        told = closing = False
        while not closing:
            self._wake.wait(SECONDS_BETWEEN_LOOKS)
            self._wake.clear()
            closing = self._closing  # one more pass, for what ended meanwhile
            try:
                self._catch_up()
            except (MlflowException, DagError, OSError) as error:
                if not told:  # `publish` shows the rest, or reports the error
                    print(
                        f"MLflow at {self._shown_uri} cannot be written now: {in_words(error)}",
                        flush=True,
                    )
                told = True

    def _catch_up(self) -> None:
        with self._lock:
            ended, running = list(self._ended), dict(self._running)
        if ended:
            stages, outcomes = map(list, zip(*ended, strict=True))
            self._show(stages, outcomes)
            with self._lock:
                self._ended = self._ended[len(ended) :]
        self._log_curves(stage for stage, began in running.items() if self._is_new(stage, began))

    def _is_new(self, stage: Stage, began: float) -> bool:
        """Say whether the stage has written its curve; until then an older one may be there."""
        files = [self._root / path for path in stage.curves]
        return any(file.is_file() and file.stat().st_mtime > began for file in files)

    def _stop_following(self) -> None:
        self._closing = True
        self._wake.set()
        if self._follower.is_alive():
            self._follower.join()
        self._monitor.finish()

    def publish_or_tell(self, stages: Iterable[Stage], outcomes: Iterable[Outcome]) -> None:
        """Publish, or print why MLflow does not take it; nothing else is lost."""
        try:
            self.publish(stages, outcomes)
        except (MlflowException, OSError) as error:  # the latter from uploads, or from this disk
            print(
                f"MLflow at {self._shown_uri} does not have this execution: {in_words(error)}."
                " Its results are in data/ and dvc.lock, and the same again publishes them",
                flush=True,
            )

    def publish(self, stages: Iterable[Stage], outcomes: Iterable[Outcome]) -> None:
        """Show whatever of a finished execution is not shown yet, and close the run.

        `stages` are those whose files exist; the run is failed if any of `outcomes` is.
        """
        self._stop_following()
        stages, outcomes = list(stages), list(outcomes)
        lock = fingerprint(self._root)
        failed = any(outcome.outcome == "failed" for outcome in outcomes)
        self._show([stage for stage in stages if stage.name not in self._shown], outcomes)
        if (self._root / "dvc.lock").is_file():
            self._client.log_artifact(self.run_id, str(self._root / "dvc.lock"))
        if self._params_file is not None:
            self._client.log_text(self.run_id, self._params_file, PARAMS)
        description = describe_execution(self._root, outcomes)
        if self._link:
            description += f"\n\n[Flow run in Prefect]({self._link})"
        tags = {"dvc.lock.sha256": lock, "mlflow.note.content": description}
        if not self._is_point:  # people decide which point is the candidate
            tags |= self._publish_models(stages, description)
        self._log_tags(tags)
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
        self._published = True
        if not failed:
            remember(self._root, tracked_to=self.uri, fingerprint=lock)

    def _show(self, stages: list[Stage], outcomes: list[Outcome]) -> None:
        """Log params, metrics, curves and images of stages, and details of their `outcomes`."""
        entries = recorded(self._root, [stage.name for stage in stages])
        self._log_params(entries)
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in read_metrics(self._root, stages)]
        metrics += [
            Metric(f"seconds/{legal(outcome.stage)}", outcome.seconds, now, 0)
            for outcome in outcomes
            if outcome.seconds and outcome.stage not in self._shown
        ]
        self._log("metrics", metrics)
        self._log_curves(stages)
        self._log_files(stages)
        if SOURCE in entries:
            self._client.log_inputs(self.run_id, [read_dataset(entries[SOURCE])])
        tags = {f"dvc.outcome.{legal(o.stage)}": o.outcome for o in outcomes}
        made = {f"made.{legal(o.stage)}": o.made for o in outcomes if o.made}
        self._log_tags(tags | {key: json.dumps(own, sort_keys=True) for key, own in made.items()})
        self._shown.update(stage.name for stage in stages)

    def _log_params(self, entries: dict[str, dict]) -> None:
        """Log the params of these entries of dvc.lock.

        If a param was edited between two stages, its second value is also shown, under that stage's
        name.
        """
        new = {}
        for name, entry in entries.items():
            for key, value in read_params(entry):
                if self._params.setdefault(key, value) != value:
                    key = f"{legal(name)}/{key}"
                    self._params[key] = value
                new[key] = value
        self._log("params", [Param(*param) for param in new.items()])

    def _log_curves(self, stages: Iterable[Stage]) -> None:
        """Log the part of the stages' curves after the last step that is shown."""
        points = [
            (key, step, value)
            for key, step, value in read_curves(self._root, stages)
            if step > self._steps.get(key, -1)
        ]
        now = int(time.time() * 1000)
        self._log("metrics", [Metric(key, value, now, step) for key, step, value in points])
        self._steps.update((key, step) for key, step, _ in points)

    def _log_tags(self, tags: dict[str, str]) -> None:
        self._log("tags", [RunTag(*tag) for tag in tags.items()])

    def _log(self, kind: str, entities: list) -> None:
        for start in range(0, len(entities), AT_ONCE[kind]):
            batch = entities[start : start + AT_ONCE[kind]]
            self._client.log_batch(self.run_id, **{kind: batch})

    def _publish_models(self, stages: list[Stage], description: str) -> dict[str, str]:
        """Register the detectors that these stages made; return tags with their URIs."""
        models = [m for m in MODELS if m in {s.name for s in stages} and is_complete(self._root, m)]
        if not models:
            return {}
        from flows.registry import publish_model  # takes a second; most executions skip it

        tags = {}
        for model in models:
            arguments = (self._root, model, self.uri, self.run_id, description)
            try:
                tags[f"model.{model}"] = publish_model(*arguments)
            except ValueError as error:
                print(f"{model} is not registered: {error}", flush=True)
        return tags

    def _log_files(self, stages: list[Stage]) -> None:
        for stage in stages:
            for path in stage.shown:
                if (self._root / path).is_file():
                    folder = Path(path).parent.as_posix()
                    self._client.log_artifact(self.run_id, str(self._root / path), folder)


def _start_tags(root: Path) -> dict[str, str]:
    """Return tags that say who starts an execution, and with which code."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    tags = {"mlflow.user": user, "mlflow.source.name": "flows", "mlflow.source.type": "LOCAL"}
    with suppress(GitError):  # a project without git, or without a commit
        tags["mlflow.source.git.commit"] = git(root, "rev-parse", "HEAD")
        tags["git.uncommitted"] = str(bool(git(root, "status", "--porcelain"))).lower()
    return tags
