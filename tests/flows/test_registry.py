"""Trained detectors as MLflow models, and where `python -m flows predict` finds them."""

import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import cv2
import pytest
from ruamel.yaml import YAML

from flows.environment import default_settings
from flows.graph import PREDICTOR, DagError
from flows.predictor import find, fingerprint, is_complete, measured_inference
from stages.models.detection.detector import load, save
from tests.support.evaluation_inputs import EVALUATION_PARAMS
from tests.support.images_folder import phone_jpeg
from tests.support.region_hook import region_head
from tests.support.tiny_detector import INFERENCE, draw
from tests.support.tiny_predictor import PROMPTS, write_predictor
from tests.support.toy import PATIENCE, REPOSITORY, write_empty_project
from tests.support.tracked import read_versions

PARAMS = {"seed": 0, "deterministic": "device", "vocabulary": PROMPTS}
PARAMS["evaluation"] = EVALUATION_PARAMS.model_dump()
PUBLISH = """
import json, sys
from pathlib import Path
from flows.registry import publish_model
from flows.tracking import Tracking
root = Path.cwd()
def publish():
    with Tracking(root) as tracking:
        return publish_model(root, "detector", tracking.uri, tracking.run_id, "what it is")
lock, params, first = Path("dvc.lock"), Path("params.yaml"), publish()
own = params.read_text()
edited = own.replace("name_tokens", "class_token").replace('iou": 0.5', 'iou": 0.4')
assert edited.count("class_token") == edited.count('iou": 0.4') == 1
params.write_text(edited)  # nothing ran with it
again, made = publish(), lock.read_text()
params.write_text(own)
lock.write_text(made.replace("name_tokens", "class_token"))
other = publish()
lock.write_text(made)
print(json.dumps([first, again, other, publish(), "torch" in sys.modules]))
"""
NUMBERS = """
import hashlib, json
from pathlib import Path
from mlflow import MlflowClient
from ruamel.yaml import YAML
from flows.registry import publish_model
from flows.tracking import Tracking
from tests.support.models_lock import write_lock
root, told, lock, yaml = Path.cwd(), [], Path("dvc.lock"), YAML()
vocabulary = yaml.load(lock)["stages"]["vocabulary"]
results = Path("data/evaluation/metrics.json")
results.parent.mkdir()
for evaluated, value in (("d1", 1.0), ("d2", 2.0), ("d1", 3.0)):
    results.write_text(json.dumps({"detector": {"AP": value}}))
    write_lock(root, {"detector": evaluated}, md5=hashlib.md5(results.read_bytes()).hexdigest())
    made = json.loads(lock.read_text())
    made["stages"]["vocabulary"] = vocabulary
    yaml.dump(made, lock)
    with Tracking(root) as tracking:
        publish_model(root, "detector", tracking.uri, tracking.run_id, "what it is")
    client = MlflowClient(tracking.uri)
    version = client.get_model_version("ovis-dag-detector", "1")
    metrics = client.get_logged_model(version.source.rpartition("/")[2]).metrics or []
    told.append([(metric.key, metric.value) for metric in metrics])
print(json.dumps(told))
"""
LOAD = """
import json, sys
from pathlib import Path
import mlflow
model = mlflow.pyfunc.load_model("models:/ovis-dag-detector@candidate")
image, *phone = (Path(path).read_bytes() for path in sys.argv[1:])
rows = [{"image": image, "names": ["cup", "hot dog"]}, {"image": image, "names": ["hat"]}]
rows += [{"image": content, "names": ["cup"]} for content in phone]
found = model.predict(rows, params={"min_score": 0.1})["instances"]
try:
    model.predict([*rows[:2], {"image": image, "names": ["zebra"]}])
except ValueError as error:
    refused = str(error)
import stages
print(json.dumps({"stages": stages.__file__, "found": list(found), "refused": refused}))
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """Give a project whose stage `detector` has made its weights."""
    root = tmp_path / "project"
    written = write_predictor(tmp_path / "written")
    for name, path in PREDICTOR.items():
        target = root / path.format(model="detector")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(written / name, target)
    write_empty_project(root)
    (root / "params.yaml").write_text(json.dumps(PARAMS))
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    record(root, PROMPTS)
    for package in ("stages/common", "stages/models"):
        shutil.copytree(REPOSITORY / package, root / package)
    (root / "pyproject.toml").write_text('[project]\ndependencies = ["numpy>=2", "torch>=2.9"]\n')
    cv2.imwrite(str(tmp_path / "image.png"), draw(1)[0])
    return root


def record(root: Path, prompts: dict) -> None:
    """Write the dvc.lock of a project whose stages ran with these prompts."""
    ran = {"vocabulary": prompts, "evaluation": PARAMS["evaluation"]}
    stages = {k: {"cmd": "x", "params": {"params.yaml": {k: own}}} for k, own in ran.items()}
    lock = {"schema": "2.0", "stages": stages}
    YAML().dump(lock, root / "dvc.lock")


def with_inference(inference: object) -> dict:
    return PARAMS | {"evaluation": PARAMS["evaluation"] | {"inference": inference}}


def call(folder: Path, root: Path, *arguments: str, path: str = "") -> str:
    """Run Python in `folder` with the settings of the project at `root`; return its output."""
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**kept, **default_settings(root), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_logged_when_changed_and_served_without_the_repository(project, tmp_path):
    told = json.loads(call(project, project, "-c", PUBLISH, path=str(REPOSITORY)))
    first, second = (f"models:/ovis-dag-detector/{number}" for number in (1, 2))
    assert told == [first, first, second, first, False]
    assert read_versions(project) == [(1, ["candidate"]), (2, [])]

    shutil.rmtree(project / "stages")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    images = [tmp_path / name for name in ("image.png", "phone.jpg", "shown.png")]
    for path, content in zip(images[1:], phone_jpeg(), strict=True):
        path.write_bytes(content)
    told = json.loads(call(elsewhere, project, "-c", LOAD, *map(str, images)))
    assert "artifacts/code/stages" in told["stages"]
    assert told["refused"].startswith("row 2: the text encoder has never read 'zebra'")
    *found, phone, shown = told["found"]
    assert phone == shown != []
    assert {tuple(instance["segmentation"]["size"]) for instance in phone} == {(64, 40)}
    for instances, names in zip(found, ({"cup", "hot dog"}, {"hat"}), strict=True):
        assert instances
        assert {instance["name"] for instance in instances} <= names
        for instance in instances:
            assert 0.1 <= instance["score"] <= 1
            assert instance["segmentation"]["size"] == [64, 64]
            assert len(instance["bbox"]) == 4

    # The same model by the command, from its URI and from this project's own results.
    image = str(tmp_path / "image.png")
    uri = ["--model", "models:/ovis-dag-detector@candidate"]
    results = []
    for name, more in (("own", []), ("registry", uri)):
        output = ["--names", "cup,hot dog", "--min-score", "0.1", "--output", name]
        arguments = ["-m", "flows", "predict", image, *more, *output]
        assert "1 images, 0 broken" in call(project, project, *arguments, path=str(REPOSITORY))
        results.append(json.loads((project / name / "predictions.json").read_text()))
    assert results[0] == results[1]
    scores = [annotation["score"] for annotation in results[0]["annotations"]]
    assert scores == [instance["score"] for instance in told["found"][0]]


def test_a_version_gets_its_own_numbers_however_late_and_no_others(project):
    own = ["evaluation/detector/AP", 2.0]
    told = json.loads(call(project, project, "-c", NUMBERS, path=str(REPOSITORY)))
    assert told == [[], [own], [own]]


ONCE = """
from pathlib import Path
from flows.registry import publish_model
from flows.tracking import Tracking
with Tracking(Path.cwd()) as tracking:
    publish_model(Path.cwd(), "detector", tracking.uri, tracking.run_id, "what it is")
"""


def test_a_region_head_of_a_comparator_is_served_too(project, tmp_path):
    weights = project / "data/detector/model.safetensors"
    model = load(weights)
    model.use_region_head(region_head)
    model.region_head = "head"  # of a file that is nowhere
    save(weights, model)
    with pytest.raises(AssertionError, match="region head head is in no package of this repo"):
        call(project, project, "-c", ONCE, path=str(REPOSITORY))
    assert read_versions(project) == []
    model.region_head = "comparators.mine.head"
    save(weights, model)
    method = project / "comparators/mine"
    method.mkdir(parents=True)
    shutil.copy(REPOSITORY / "tests/support/region_hook.py", method / "head.py")
    call(project, project, "-c", ONCE, path=str(REPOSITORY))
    shutil.rmtree(project / "comparators")
    image = str(tmp_path / "image.png")
    told = json.loads(call(tmp_path, project, "-c", LOAD, image))
    assert len(told["found"]) == 2


def test_fingerprint_is_of_all_that_decides_and_of_nothing_else(project):
    usual = measured_inference(project)
    before = fingerprint(project, "detector", usual)
    other, params = PROMPTS | {"templates": ["{}"]}, project / "params.yaml"
    params.write_text(json.dumps(PARAMS | {"seed": 1, "vocabulary": other}))
    assert fingerprint(project, "detector", usual) == before
    assert fingerprint(project, "detector", usual.replace(b"0.5", b"0.4")) != before
    record(project, other)
    assert fingerprint(project, "detector", usual) != before
    (project / "dvc.lock").unlink()
    with pytest.raises(ValueError, match=r"^dvc\.lock: vocabulary: has no encoder, .*make repro"):
        find(project, "detector")


def test_a_prediction_follows_params_yaml_and_a_registered_model_what_was_measured(project):
    params, changed = project / "params.yaml", INFERENCE | {"nms_iou": 0.4}
    params.write_text(json.dumps(with_inference(changed)))
    assert json.loads((find(project, "detector") / "inference.json").read_text()) == changed
    assert json.loads(measured_inference(project)) == INFERENCE
    (project / "dvc.lock").write_text("stages: {}\n")
    assert json.loads(measured_inference(project)) == changed
    for wrong, told in (
        (INFERENCE | {"nms_iou": date(2024, 1, 1)}, "inference.nms_iou: .* found .*2024"),
        (INFERENCE | {5: 1}, "inference.5: "),
        (0.4, "inference: .*found 0.4"),
    ):
        YAML().dump(with_inference(wrong), params)
        with pytest.raises(DagError, match=rf"^params\.yaml: evaluation\.{told}"):
            find(project, "detector")


def test_only_what_is_there_is_found(project):
    assert [is_complete(project, name) for name in ("detector", "finetune")] == [True, False]
    folder = find(project, None)
    assert folder.name == "detector"
    files = {*PREDICTOR, "inference.json", "prompts.json"}
    assert {path.name for path in folder.iterdir()} == files
    assert find(project, str(folder)) == folder
    with pytest.raises(ValueError, match=r"data/finetune/model\.safetensors: not there"):
        find(project, "finetune")
    with pytest.raises(ValueError, match="--model nothing: expected finetune or detector"):
        find(project, "nothing")
