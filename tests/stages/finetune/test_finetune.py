import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import stages.finetune.__main__ as stage
from stages.common.geometry.masks import encode_mask
from stages.common.runtime.params import read_section
from stages.common.runtime.storage import read_json, write_json, write_tensors
from stages.finetune.params import FinetuneParams
from stages.finetune.unlabelled import add_detections
from stages.models.detection.detector import Prediction, load, save
from stages.models.detection.samples import label_images, read_annotations
from stages.preflight import problems
from tests.support.resumed_training import read_training
from tests.support.tiny_detector import (
    INFERENCE,
    TRAINING,
    annotate,
    change_params,
    make_image,
    make_repository,
    supervision,
    tiny_detector,
)

WEIGHTS = Path("data/finetune/model.safetensors")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    make_repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["finetune"])
    save(Path("data/detector/model.safetensors"), tiny_detector())


def base_only(tmp_path):
    path = tmp_path / "truth.json"
    write_json(path, annotate([1, 2]))
    annotations = read_annotations(path, {3: 1}, [3, 5, 9])
    return label_images(map(make_image, (1, 2)), annotations, {3: 1}, path)


def test_only_base_objects_are_learned_and_the_classifier_stays(repository):
    stage.main()
    metrics = json.loads(Path("data/finetune/metrics.json").read_text())
    assert (metrics["images"], metrics["objects"]) == (5, 5)
    before, after = tiny_detector().parts(), load(WEIGHTS).parts()
    for name, value in before["classifier"].state_dict().items():
        assert torch.equal(value, after["classifier"].state_dict()[name]), name
    assert not torch.equal(before["box_deltas"].weight, after["box_deltas"].weight)


def test_equal_inputs_give_equal_bytes(repository, monkeypatch):
    stage.main()
    monkeypatch.setattr("sys.argv", ["finetune", "--output", "data/again"])
    stage.main()
    assert read_training("data/again") == read_training("data/finetune")


def test_softmax_over_base_or_all_classes_gives_other_weights(repository):
    stage.main()
    base = WEIGHTS.read_bytes()
    change_params("finetune", vocabulary="all")
    stage.main()
    assert WEIGHTS.read_bytes() != base


def novel_and_base_detections() -> Prediction:
    boxes = np.array([[40, 4, 60, 24], [2, 40, 12, 60]], np.float32)
    masks = np.zeros((2, 64, 64), bool)
    masks[:, 10:20, 45:55] = True
    scores = np.array([0.9, 0.8], np.float32)
    return Prediction(boxes, np.array([1, 0]), scores, masks)


def test_certain_novel_detections_become_labels(repository, monkeypatch):
    found, asked = novel_and_base_detections(), []

    def predict(model, images, vocabularies, inference):
        asked.append(inference.score_threshold)
        return [[found] * len(images)]

    monkeypatch.setattr("stages.finetune.unlabelled.predict", predict)
    detections = INFERENCE | {"score_threshold": 0.6}
    change_params("finetune", vocabulary="all", unlabelled="detections", detections=detections)
    stage.main()
    assert set(asked) == {0.6}
    metrics = json.loads(Path("data/finetune/metrics.json").read_text())
    assert (metrics["images"], metrics["objects"]) == (5, 10)


def test_only_detections_of_unlabelled_novel_objects_count(tmp_path):
    entry, found = base_only(tmp_path)[0], novel_and_base_detections()
    changed = add_detections(entry, found, [0, 1], [1])
    assert changed.labels.tolist() == [2, 1]
    assert changed.boxes_xyxy[0].tolist() == [40, 4, 60, 24]
    assert len(changed.segmentations) == 2
    assert changed.segmentations[1] == entry.segmentations[0]
    on_top = replace(found, boxes_xyxy=np.repeat(entry.boxes_xyxy + 1, 2, 0))
    assert add_detections(entry, on_top, [0, 1], [1]).labels.tolist() == [1]
    empty = replace(found, masks=np.zeros_like(found.masks))
    assert add_detections(entry, empty, [0, 1], [1]).labels.tolist() == [1]


def test_detections_need_the_novel_classes_in_the_softmax(repository):
    change_params("finetune", unlabelled="detections")
    with pytest.raises(ValueError, match=r"params\.yaml: finetune: .*set vocabulary to all"):
        stage.main()


def test_wrong_weights_of_losses_name_the_key_before_a_run_and_in_the_stage(repository):
    change_params("finetune", {"loss_weights": {}})
    (told,) = problems(["finetune"])
    assert told.startswith("params.yaml: finetune.training.loss_weights: expected objectness, ")
    assert told.endswith("found []; give a weight to each of them and to no other")
    with pytest.raises(ValueError, match=re.escape(told)):
        stage.main()


def test_sources_that_the_architecture_cannot_learn_from_are_told_before_a_run(repository):
    change_params("finetune", supervision=supervision("ground_truth", negatives="source"))
    (told,) = problems(["finetune"])
    assert told.startswith("params.yaml: finetune.supervision.sources: ground_truth: this archit")


def test_an_architecture_without_micro_batches_has_one_process(repository, monkeypatch):
    sizes = []
    monkeypatch.setattr(stage, "run_in_processes", lambda *given: sizes.append(given[2]))
    stage.start()
    facts = {"architecture": "mask_rcnn_detectron2", "network": {}}
    write_tensors(Path("data/detector/model.safetensors"), {}, facts)
    stage.start()
    assert sizes == [TRAINING["batch_size"], 1]


def test_an_unknown_source_is_named_even_without_a_name(repository):
    change_params("finetune", supervision=supervision(""))
    with pytest.raises(ValueError, match=r"finetune\.supervision\.sources: .*found \[''\]; to add"):
        stage.main()


def test_it_goes_on_with_pseudo_annotations_of_all_classes(repository, monkeypatch):
    options = "--annotations data/pseudo_labels/pseudo_annotations.json --label-splits base novel"
    monkeypatch.setattr("sys.argv", ["finetune", *options.split(), "--output", "data/longer"])
    Path("data/download/ground_truth/train.json").unlink()
    stage.main()
    metrics = read_json(Path("data/longer/metrics.json"))
    assert (metrics["images"], metrics["objects"]) == (4, 8)
    assert Path("data/longer/model.safetensors").exists()
    assert not WEIGHTS.exists()


def test_without_a_base_object_there_is_nothing_to_learn(repository):
    content = annotate([1])
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3]
    write_json(Path("data/download/ground_truth/train.json"), content)
    with pytest.raises(ValueError, match=r"train\.json: none of its 1 annotations"):
        stage.main()


def test_without_annotations_the_detector_stays_as_it_is(repository, capsys):
    truth = Path("data/download/ground_truth/train.json")
    write_json(truth, {"annotated": False, "annotations": []}, indent=None)
    stage.main()
    assert WEIGHTS.read_bytes() == stage.DETECTOR.read_bytes()
    output = WEIGHTS.parent
    assert read_json(output / "metrics.json") == {
        "skipped": "no annotations: skipped",
        "images": 0,
    }
    assert (output / "curve.csv").read_text() == "step\n"
    assert "its model is the detector's" in capsys.readouterr().out


def test_objects_without_outline_are_not_learned(repository):
    truth = Path("data/download/ground_truth/train.json")
    content = read_json(truth)
    empty = encode_mask(np.zeros((64, 64), bool))
    for entry in content["annotations"]:
        if entry["image_id"] != 2:
            entry["segmentation"] = empty
    write_json(truth, content)
    labels = {3: 1}
    annotations = read_annotations(truth, labels, [3, 5, 9])
    assert list(annotations.objects) == [2]
    assert annotations.skipped == {"box_under_a_pixel": [], "no_segmentation": []}


def test_ground_truth_is_not_weighed_by_scores_that_it_lacks(repository):
    params = read_section("finetune", FinetuneParams).model_dump()
    params["supervision"]["sources"][0]["weigh_by_score"] = True
    with pytest.raises(
        ValueError, match="ground_truth: has no scores; set weigh_by_score to false"
    ):
        FinetuneParams.model_validate(params)
