"""The whole DAG on tiny profiles: same bytes twice, photographs, images without annotations."""

import json
import re
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import psutil
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ruamel.yaml import YAML

from flows.dvc.project import between_writes
from tests.support.clones import clone, clone_environment, output_hashes, reproduce, run_command
from tests.support.images_folder import write_images_folder
from tests.support.photographs import coco_mini
from tests.support.service import kill_all

pytestmark = pytest.mark.pipeline
# Minutes each, and groups begin before single tests: else one worker rests while these end.
START_EARLY = pytest.mark.xdist_group("own inputs")

KINDS = ("bbox", "segm")
STAGES = set(YAML(typ="safe").load(Path(__file__).parents[2] / "dvc.yaml")["stages"])


def recorded(folder: Path) -> set[str]:
    """Return the stages that dvc.lock has, which orphans may be about to write, in place."""
    if not (folder / "dvc.lock").exists():
        return set()
    with between_writes(folder):
        return set(output_hashes(folder))


def kill(flow: subprocess.Popen, folder: Path, with_stages: bool) -> set[str]:
    """Kill the flow and return the kinds of the stages that were under way.

    These have a log, written from their start on, and no result. What the flow printed would not
    tell of all: of two that start together, one outlives the flow and may end before its line came.
    """
    before = recorded(folder)
    children = psutil.Process(flow.pid).children(recursive=True)
    flow.kill()  # first, or it may see that its stages have died, and end by itself
    flow.wait()
    if with_stages:
        with between_writes(folder):  # else it is as if power failed while DVC writes its locks
            kill_all(children)
    begun = {path.stem for path in (folder / ".flows/logs").glob("*.log")}
    return STAGES & {name.split("@")[0] for name in begun - before}


def reproduce_with_kills(folder: Path) -> dict[str, dict[str, str]]:
    """Run the flow, end it by SIGKILL in each kind of stage once, and return the hashes.

    Every other time the stages die with the flow; else they outlive it, as orphans.
    """
    killed: set[str] = set()
    kills = 0
    while True:
        finished = recorded(folder)
        with subprocess.Popen(
            [sys.executable, "-m", "flows", "run", "--cores", "64"],  # several are killed at once
            cwd=folder,
            env=clone_environment(folder) | {"OVIS_WORKERS": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as flow:
            lines = []
            for line in flow.stdout:
                lines.append(line)
                started = re.match(r"\[(.+)\] Running stage '\1'", line)
                if started is None:
                    continue
                assert started[1] not in finished, f"{started[1]} was finished, and runs again"
                kind = started[1].split("@")[0]
                if kind not in killed and flow.poll() is None:
                    killed |= kill(flow, folder, with_stages=kills % 2 == 1)
                    kills += 1
                killed.add(kind)
        if flow.returncode == 0:
            assert killed == STAGES
            return output_hashes(folder)
        assert flow.returncode == -signal.SIGKILL, "".join(lines)


def read(folder: Path, path: str):
    return json.loads((folder / "data" / path).read_text())


def ap50(folder: Path, model: str, group: str, kind: str) -> float:
    """Return a group's AP50 in percent as pycocotools computes it from the predictions file."""
    truth = COCO(folder / "data/download/ground_truth/test.json")
    predictions = read(folder, f"evaluation/predictions_{model}.json")
    evaluator = COCOeval(truth, truth.loadRes(predictions["results"]), kind)
    evaluator.params.imgIds = predictions["image_ids"]
    categories = read(folder, "download/categories.json")
    evaluator.params.catIds = [own["id"] for own in categories if own["split"] == group]
    for compute in (evaluator.evaluate, evaluator.accumulate, evaluator.summarize):
        compute()
    return 100 * evaluator.stats[1]


@pytest.mark.xdist_group("smoke")
@pytest.mark.usefixtures("prefect_server")  # else each of some twenty flows starts its own
def test_two_clones_give_the_same_bytes_even_if_killed_in_each_stage(smoke, repository, tmp_path):
    first = output_hashes(smoke)
    second = reproduce_with_kills(clone(repository, tmp_path / "second", "smoke"))
    assert {name.split("@")[0] for name in first} == STAGES
    different = {
        f"{stage}: {path}"
        for stage in first
        for path in first[stage]
        if first[stage][path] != second[stage][path]
    }
    assert different == set()
    metrics = read(smoke, "evaluation/metrics.json")
    for model, group, kind in product(("detector", "finetune"), ("base", "novel"), KINDS):
        told = metrics[model]["generalized"][group][kind]["AP50"]
        assert told == pytest.approx(ap50(smoke, model, group, kind), abs=1e-3)


@START_EARLY
def test_real_photographs_from_end_to_end(repository, tmp_path):
    photographs = coco_mini()
    folder = clone(repository, tmp_path / "clone", "coco-mini")
    params = YAML()
    content = params.load(folder / "params.yaml")
    content["download"]["coco"]["folder"] = str(photographs)
    params.dump(content, folder / "params.yaml")
    hashes = reproduce(folder)
    assert {name.split("@")[0] for name in hashes} == STAGES

    report = read(folder, "download/report.json")
    labels = read(folder, "pseudo_labels/pseudo_annotations.json")
    predictions = read(folder, "evaluation/predictions_detector.json")
    assert report
    assert len(labels["annotations"]) > 20
    assert {"image_id", "category_id", "segmentation"} <= set(labels["annotations"][0])
    assert predictions["split"] == "test" and isinstance(predictions["results"], list)


@START_EARLY
def test_own_images_without_annotations_from_end_to_end(repository, tmp_path):
    images = write_images_folder(tmp_path / "images", num_train=40, num_test=6)
    folder = clone(repository, tmp_path / "clone", "smoke")
    params = YAML()
    content = params.load(folder / "params.yaml")
    content["download"] |= {"source": "folder", "shard_images": 1}
    content["download"]["folder"]["path"] = str(images)
    content["vocabulary"]["max_unknown_fraction"] = 0.5
    params.dump(content, folder / "params.yaml")
    hashes = reproduce(folder)
    assert {name.split("@")[0] for name in hashes} == STAGES

    assert len(read(folder, "pseudo_labels/pseudo_annotations.json")["annotations"]) > 10
    assert read(folder, "label_quality/metrics.json")["skipped"] == "no annotations: skipped"
    assert read(folder, "finetune/metrics.json")["skipped"] == "no annotations: skipped"
    detector, finetuned = (
        (folder / f"data/{stage}/model.safetensors").read_bytes()
        for stage in ("detector", "finetune")
    )
    assert finetuned == detector
    test = {image["id"] for image in read(folder, "download/ground_truth/test.json")["images"]}
    for model in ("detector", "finetune"):
        predictions = read(folder, f"evaluation/predictions_{model}.json")
        assert set(predictions["image_ids"]) == test
        found = predictions["results"]
        assert {result["image_id"] for result in found} <= test and len(test) == 6
        metrics = read(folder, "evaluation/metrics.json")[model]
        assert metrics == {
            "skipped": "no annotations: skipped",
            "images": 6,
            "detections": len(found),
        }
    run_command([sys.executable, "-m", "dvc", "metrics", "show"], folder)
