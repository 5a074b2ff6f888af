import json
from dataclasses import replace

import pytest
from test_graph import make

from flows.stage import Outcome
from flows.tracking import (
    EXPERIMENT,
    Tracking,
    read_curves,
    read_metrics,
    read_params,
)


def stage(name: str, metrics=(), plots=(), outputs=()):
    files = (*metrics, *plots, *outputs)
    return replace(make(name), metrics=metrics, plots=plots, outputs=files)


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


def test_params_are_all_leaves_of_all_sections(tmp_path):
    write(tmp_path, "params.yaml", "seed: 0\nshards: [0, 1]\na: {b: {c: x}, d: null, e: true}\n")
    assert dict(read_params(tmp_path)) == {
        "seed": "0",
        "shards": "[0, 1]",
        "a.b.c": "x",
        "a.d": "null",
        "a.e": "true",
    }


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
def test_a_run_shows_everything_of_an_execution(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write(tmp_path, "data/q/m.json", '{"iou": 0.5}')
    write(tmp_path, "data/q/curve.csv", "loss,step\n" + "".join(f"{k},{k}\n" for k in range(2500)))
    write(tmp_path, "data/q/montage.png", "picture")
    write(tmp_path, "data/q/weights.safetensors", "large")
    write(tmp_path, "params.yaml", "\n".join(f"p{k}: {k}" for k in range(230)))
    write(tmp_path, "dvc.lock", "lock")
    quality = stage(
        "q@0",
        ("data/q/m.json",),
        ("data/q/curve.csv",),
        ("data/q/montage.png", "data/q/weights.safetensors"),
    )
    tracking = Tracking(tmp_path)
    outcomes = [Outcome("q@0", "q", "executed", 3.0), Outcome("w", "w", "failed", 0.0, "why")]
    tracking.publish([quality], outcomes, {"more": "yes"})

    client = tracking._client
    assert client.get_experiment_by_name(EXPERIMENT) is not None
    run = client.get_run(tracking.run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics["q.0/iou"] == 0.5
    assert run.data.metrics["seconds/q.0"] == 3.0
    assert len(run.data.params) == 230
    assert run.data.tags["dvc.outcome.q.0"] == "executed"
    assert run.data.tags["dvc.outcome.w"] == "failed"
    assert run.data.tags["more"] == "yes"
    assert len(run.data.tags["dvc.lock.sha256"]) == 64
    history = client.get_metric_history(tracking.run_id, "q.0/curve/loss")
    assert [(point.step, point.value) for point in history[:2]] == [(0, 0.0), (1, 1.0)]
    assert len(history) == 2500
    names = {file.path for file in client.list_artifacts(tracking.run_id)}
    assert names == {"dvc.lock", "params.yaml", "data"}
    data = {file.path for file in client.list_artifacts(tracking.run_id, "data/q")}
    assert data == {"data/q/m.json", "data/q/curve.csv", "data/q/montage.png"}
    assert (tmp_path / "mlruns").is_dir()
