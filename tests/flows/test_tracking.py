import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.environment import default_settings
from flows.graph import Outcome
from flows.store import read_curves, read_metrics, read_params
from flows.tracking import Tracking
from tests.support.graph import make_stage
from tests.support.toy import PATIENCE, REPOSITORY, wait_until
from tests.support.tracked import read_runs


def stage(name: str, metrics=(), plots=(), outputs=()):
    files = (*metrics, *plots, *outputs)
    return make_stage(name, metrics=metrics, plots=plots, outputs=files)


def write(root, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_metrics_are_every_number_of_every_file(tmp_path):
    write(tmp_path, "m.json", json.dumps({"a": {"b@1": 1}, "n": None, "s": "x", "f": 0.5}))
    stages = [stage("cut@0", metrics=("m.json", "missing.json"))]
    assert dict(read_metrics(tmp_path, stages)) == {"cut.0/a/b.1": 1.0, "cut.0/f": 0.5}


def test_curves_are_csv_plots_with_steps(tmp_path):
    write(tmp_path, "curve.csv", "loss,step\n3.5,10\n,20\n")
    write(tmp_path, "pr.csv", "recall,precision\n0,1\n")
    write(tmp_path, "points.json", "[]")
    stages = [stage("wspn", plots=("curve.csv", "pr.csv", "points.json"))]
    assert list(read_curves(tmp_path, stages)) == [("wspn/curve/loss", 10, 3.5)]


def test_params_are_all_leaves_of_those_recorded():
    params = {"seed": 0, "shards": [0, 1], "a": {"b": {"c": "x"}, "d": None, "e": True}}
    assert dict(read_params({"cmd": "q", "params": {"params.yaml": params}})) == {
        "seed": "0",
        "shards": "[0, 1]",
        "a.b.c": "x",
        "a.d": "null",
        "a.e": "true",
    }


QUALITY = stage(
    "q@0",
    ("data/q/m.json",),
    ("data/q/curve.csv",),
    ("data/q/montage.png", "data/q/report.json", "data/q/weights.safetensors"),
)


def record(root: Path, **stages: dict) -> None:
    """Make a project whose dvc.lock has these stages, each with its params."""
    write(root, ".dvc/config", "[core]\n    no_scm = true\n")
    write(root, "dvc.yaml", "stages: {}\n")
    entries = {name: {"cmd": "x", "params": {"params.yaml": own}} for name, own in stages.items()}
    with (root / "dvc.lock").open("w") as file:
        YAML().dump({"schema": "2.0", "stages": entries}, file)


def publish(root: Path) -> None:
    made = {"device": "cuda", "torch": "2.15"}
    outcomes = [
        Outcome("q@0", "q", "executed", 3.0, made=made),
        Outcome("w", "w", "failed", 0.0, "why"),
    ]
    with Tracking(root, "a: 1 → 2", {"more": "yes"}) as tracking:
        wait_until(lambda: system_metrics(root))
        tracking.publish([QUALITY], outcomes)


def system_metrics(root: Path) -> set[str]:
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        found = database.execute("select distinct key from metrics where key like 'system/%'")
        return {key for (key,) in found}


def leave_by(error: BaseException, root: Path) -> None:
    with suppress(type(error)), Tracking(root):
        raise error


def in_a_process(code: str, root: Path, **more: str) -> None:
    """Run code of this module in a process of its own, for MLflow leaves its connections open."""
    path = str(Path(__file__).parents[2])
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tests.flows.test_tracking import *\nroot = Path({str(root)!r})\n{code}",
        ],
        env={**os.environ, **default_settings(root), "PYTHONPATH": path, **more},
        check=True,
        timeout=PATIENCE,
    )


def test_a_run_shows_everything_of_an_execution(tmp_path):
    write(tmp_path, "data/q/m.json", '{"iou": 0.5}')
    write(tmp_path, "data/q/curve.csv", "loss,step\n" + "".join(f"{k},{k}\n" for k in range(2500)))
    write(tmp_path, "data/q/montage.png", "image")
    write(tmp_path, "data/q/report.json", "{}")
    write(tmp_path, "data/q/weights.safetensors", "large")
    write(tmp_path, "params.yaml", "p0: of the next execution\n")
    record(tmp_path, **{"q@0": {f"p{k}": k for k in range(230)}})
    in_a_process("publish(root)", tmp_path, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="0.1")
    (run,) = read_runs(tmp_path)
    assert run.status == "FAILED"
    assert run.metrics["q.0/iou"] == 0.5
    assert run.metrics["seconds/q.0"] == 3.0
    assert run.metrics["q.0/curve/loss"] == 2499
    assert run.params == {f"p{k}": str(k) for k in range(230)}
    assert json.loads(run.tags["made.q.0"]) == {"device": "cuda", "torch": "2.15"}
    assert run.tags["mlflow.user"]
    assert run.outcomes() == {"q.0": "executed", "w": "failed"}
    assert run.tags["more"] == "yes"
    assert run.tags["mlflow.runName"] == "a: 1 → 2"
    assert "1 executed, 1 failed" in run.tags["mlflow.note.content"]
    assert "system/cpu_utilization_percentage" in run.metrics
    assert len(run.tags["dvc.lock.sha256"]) == 64
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        own = "select count(*) from metrics where key not like 'system/%'"
        assert database.execute(own).fetchone() == (2502,)
    (artifacts,) = (tmp_path / "mlruns").glob("*/artifacts")
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*.*")}
    assert files == {
        "dvc.lock",
        "params.yaml",
        "data/q/m.json",
        "data/q/curve.csv",
        "data/q/montage.png",
        "data/q/report.json",
    }


FOLLOW = """
import time
import flows.tracking
flows.tracking.SECONDS_BETWEEN_LOOKS = 0.1
CURVE = "data/q/curve.csv"
write(root, CURVE, "loss,step\\n9,9\\n")  # of the last execution
with Tracking(root) as tracking:
    tracking.begin(QUALITY)
    time.sleep(1)
    assert points(root) == []
    write(root, CURVE, "loss,step\\n3,1\\n2,2\\n")
    wait_until(lambda: points(root) == [(1, 3.0), (2, 2.0)])
    write(root, CURVE, "loss,step\\n3,1\\n2,2\\n1,3\\n")
    tracking.end(QUALITY, Outcome("q@0", "q", "executed", 3.0))
    tracking.end(stage("late"), Outcome("late", "late", "executed", 1.0))
    wait_until(lambda: "seconds/late" in read_runs(root)[0].metrics)
    wait_until(lambda: "dvc.outcome.late" in read_runs(root)[0].tags)
    os._exit(9)
"""


def points(root: Path) -> list[tuple[int, float]]:
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        own = "select step, value from metrics where key = 'q.0/curve/loss' order by step"
        return database.execute(own).fetchall()


def test_what_a_killed_execution_has_made_is_shown(tmp_path):
    record(tmp_path, **{"q@0": {"seed": 0, "rounds": 2}, "late": {"seed": 1}})
    write(tmp_path, "data/q/m.json", '{"iou": 0.5}')
    with pytest.raises(subprocess.CalledProcessError, match="exit status 9"):
        in_a_process(FOLLOW, tmp_path)
    (run,) = read_runs(tmp_path)
    assert points(tmp_path) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert run.metrics["q.0/iou"] == 0.5
    assert run.outcomes() == {"q.0": "executed", "late": "executed"}
    # Somebody edited the seed between the two stages.
    assert run.params == {"seed": "0", "rounds": "2", "late/seed": "1"}


ABANDON = """
import multiprocessing, socket
from mlflow import MlflowClient
fork = multiprocessing.get_context("fork")

def open_and_die():
    Tracking(root, "abandoned")
    os._exit(9)

def together(count, function, *arguments):
    processes = [fork.Process(target=function, args=arguments) for _ in range(count)]
    [process.start() for process in processes]
    [process.join() for process in processes]
    return [process.exitcode for process in processes]

# Nobody has made the database yet.
assert together(3, open_and_die) == [9] * 3
alive = Tracking(root, "alive")
for machine in ("another", f"{socket.gethostname()} {'0' * 32}"):  # of this one's name
    other = Tracking(root, "elsewhere")
    MlflowClient(other.uri).set_tag(other.run_id, "process", f"{machine}/1/0")
together(1, leave_by, ValueError(), root)
together(1, leave_by, KeyboardInterrupt(), root)
"""


OPEN = """
import os, sys
from pathlib import Path
from sqlalchemy import Engine, event
from flows.store import open_store
@event.listens_for(Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if sys.argv[1:] and sys.argv[1] in statement:
        os._exit(9)
try:
    open_store(Path.cwd(), os.environ["MLFLOW_TRACKING_URI"])
except RuntimeError as error:
    sys.exit(str(error))
"""


def open_in(root: Path, *until: str) -> subprocess.CompletedProcess:
    """Open the store in a process, which is killed after its first statement with these words."""
    return subprocess.run(
        [sys.executable, "-c", OPEN, *until],
        cwd=root,
        env={**os.environ, **default_settings(root), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_a_process_that_is_killed_in_the_first_creation_leaves_no_half_a_database(tmp_path):
    assert open_in(tmp_path, "CREATE TABLE secrets").returncode == 9
    assert [path.name for path in tmp_path.glob("mlflow.db*")] != []
    done = open_in(tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("mlflow.db*")} == {"mlflow.db", "mlflow.db.lock"}
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("select name from experiments").fetchall()[-1] == ("ovis-dag",)


def test_a_database_that_mlflow_cannot_use_is_told_in_one_line(tmp_path):
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as database:  # as a process that was killed once left it
        database.execute("create table secrets (id text)")
    done = open_in(tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "MLFLOW_TRACKING_URI" in line]
    assert line.startswith(f"MLFLOW_TRACKING_URI=sqlite:///{file}: MLflow cannot use this database")
    assert line.endswith("; if it is damaged, move it away, and the next run makes a new one")


def test_first_creation_has_no_race_and_runs_of_dead_processes_are_closed(tmp_path):
    in_a_process(ABANDON, tmp_path)
    runs = read_runs(tmp_path)
    told = sorted((run.tags["mlflow.runName"], run.status) for run in runs[:6])
    assert told == [
        *[("abandoned", "KILLED")] * 3,
        ("alive", "RUNNING"),
        *[("elsewhere", "RUNNING")] * 2,
    ]
    assert sorted(run.status for run in runs[6:]) == ["FAILED", "KILLED"]
