import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import stages.detector.__main__ as stage
from stages.common.runtime.checkpoints import Checkpoint, fingerprint
from stages.common.runtime.storage import read_json, write_json, write_tensors
from stages.models.detection import training_run
from stages.models.detection.detector import load
from stages.models.detection.samples import (
    batch_rows,
    label_images,
    read_annotations,
    training_sample,
)
from tests.support.resumed_training import check_that_it_resumes, read_training
from tests.support.tiny_detector import (
    annotate,
    change_params,
    learned_from,
    make_image,
    make_repository,
    tiny_detector,
)

LABELS = {3: 1, 5: 2}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    make_repository(tmp_path, {"steps": 6})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["detector"])
    monkeypatch.setattr(training_run, "STEPS_PER_ROW", 2)
    return tmp_path


def test_the_stage_trains_on_pseudo_annotations_and_reads_no_ground_truth(repository):
    Path("data/download/ground_truth/train.json").unlink()
    stage.main()
    metrics = json.loads(Path("data/detector/metrics.json").read_text())
    assert (metrics["images"], metrics["objects"]) == (4, 8)
    assert {name for name in metrics if name.startswith("loss_")} == {
        "loss_objectness",
        "loss_proposal_box",
        "loss_classification",
        "loss_box",
        "loss_mask",
    }
    assert not list(Path(".resume").glob("*"))
    trunk = load(Path("data/detector/model.safetensors")).backbone.trunk
    assert not torch.equal(
        trunk.stem[0][0].weight, tiny_detector().backbone.trunk.stem[0][0].weight
    )


def test_the_oracle_runs_through_the_same_code(repository, monkeypatch):
    arguments = "x --annotations data/download/ground_truth/train.json --output data/oracle"
    monkeypatch.setattr("sys.argv", arguments.split())
    stage.main()
    assert json.loads(Path("data/oracle/metrics.json").read_text())["images"] == 5


def test_the_oracle_learns_all_of_each_object_whatever_the_sources(repository, monkeypatch):
    arguments = "x --annotations data/download/ground_truth/train.json --output data/oracle"
    monkeypatch.setattr("sys.argv", arguments.split())
    stage.main()
    of_one_source = read_training("data/oracle")
    in_turn = learned_from("base_masks", "novel_boxes", box_grids=[2]) | {"draw": "in_turn"}
    change_params("detector", supervision=in_turn)
    stage.main()
    assert read_training("data/oracle") == of_one_source


def test_with_base_labels_alone_it_is_as_if_nobody_had_labelled_the_others(repository, monkeypatch):
    truth = Path("data/download/ground_truth/train.json")
    base_alone = read_json(truth)
    base_alone["annotations"] = [a for a in base_alone["annotations"] if a["category_id"] == 3]
    write_json(Path("base.json"), base_alone)
    written = []
    for path in (truth, Path("base.json")):
        words = f"x --annotations {path} --label-splits base --output data/base_only"
        monkeypatch.setattr("sys.argv", words.split())
        stage.main()
        written.append(read_training("data/base_only"))
        assert read_json(Path("data/base_only/metrics.json"))["objects"] == 5
    assert written[0] == written[1]
    # Of the softmax over all classes, novel ones among them, it is another model.
    monkeypatch.setattr("sys.argv", "x --annotations base.json --output data/base_only".split())
    stage.main()
    assert read_training("data/base_only") != written[0]
    classifier = load(Path("data/base_only/model.safetensors")).parts()["classifier"]
    assert len(classifier.embeddings) == 2


def test_a_killed_training_ends_with_the_same_bytes(repository, monkeypatch):
    check_that_it_resumes(monkeypatch)


def test_the_fingerprint_follows_settings_and_inputs(tmp_path):
    path = tmp_path / "input"
    path.write_text("a")
    first = fingerprint({"steps": 1}, [path])
    assert fingerprint({"steps": 1}, [path]) == first
    assert fingerprint({"steps": 2}, [path]) != first
    torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
    other = fingerprint({"steps": 1}, [path])
    torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
    assert other != first
    path.write_text("b")
    assert fingerprint({"steps": 1}, [path]) != first


def test_nothing_is_stored_without_a_name_or_before_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    for checkpoint in (Checkpoint(None, 0.0), Checkpoint("run", 60.0)):
        checkpoint.save(1, model, optimizer, None)
        assert checkpoint.restore(model, optimizer) is None
        checkpoint.remove()
    assert not Path(".resume").exists()


def test_an_unknown_category_names_file_and_fix(tmp_path):
    content = annotate([1])
    content["annotations"][0]["category_id"] = 77
    write_json(tmp_path / "labels.json", content)
    with pytest.raises(ValueError, match=r"labels\.json: category_id \[77\] not in .*categories"):
        read_annotations(tmp_path / "labels.json", LABELS, [3, 5, 9])


@pytest.mark.parametrize(
    ("source", "report"),
    [
        ("pseudo_masks", "data/pseudo_labels/report.json"),
        ("phrases", "data/phrase_labels/metrics.json"),
        ("base_masks", "the split in data/download/categories.json"),
    ],
)
def test_no_usable_annotation_names_file_and_what_tells_why(tmp_path, source, report):
    path = tmp_path / f"{source}.json"
    write_json(path, annotate([]))
    told = f"{path}: none of its 0 annotations has one of the 2 categories to learn; check {report}"
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        read_annotations(path, LABELS, [3, 5, 9])


def test_annotations_without_their_image_are_refused(tmp_path):
    path = tmp_path / "labels.json"
    write_json(path, annotate([1, 2]))
    annotations = read_annotations(path, LABELS, [3, 5, 9])
    with pytest.raises(ValueError, match=r"labels\.json: 1 annotated image_ids such as \[2\]"):
        label_images([make_image(1)], annotations, LABELS, path)


def test_broken_annotations_are_counted_and_too_many_are_fatal(tmp_path, capsys):
    content, path = annotate(list(range(1, 12))), tmp_path / "labels.json"
    content["annotations"][0]["bbox"][2] = 0.5
    write_json(path, content)
    annotations = read_annotations(path, LABELS, [3, 5, 9])
    assert annotations.skipped == {"box_under_a_pixel": [1], "no_segmentation": []}
    assert "annotations left out" in capsys.readouterr().err
    for annotation in content["annotations"][1:3]:
        annotation["segmentation"] = []
    write_json(path, content)
    with pytest.raises(ValueError, match=r"labels\.json: 3 of 22 .*unusable.*at most 5%"):
        read_annotations(path, LABELS, [3, 5, 9])


def test_crowds_are_ignored_and_have_no_mask(tmp_path):
    content, path = annotate([1]), tmp_path / "labels.json"
    content["annotations"][0]["iscrowd"] = 1
    write_json(path, content)
    annotations = read_annotations(path, LABELS, [3, 5, 9])
    (entry,) = label_images([make_image(1)], annotations, LABELS, path)
    assert entry.labels.tolist() == [2, -1]
    assert len(entry.segmentations) == 1


def test_a_mirrored_sample_keeps_boxes_on_their_masks(tmp_path):
    path = tmp_path / "labels.json"
    write_json(path, annotate([1]))
    annotations = read_annotations(path, LABELS, [3, 5, 9])
    (entry,) = label_images([make_image(1)], annotations, LABELS, path)
    plain, target = training_sample(entry, np.random.default_rng(0), False, 0.0)
    for seed in range(8):
        image, mirrored = training_sample(entry, np.random.default_rng(seed), True, 0.0)
        if not torch.equal(image, plain):
            break
    assert torch.equal(image, plain.flip(2))
    assert torch.equal(mirrored["masks"], target["masks"].flip(2))
    for box, mask in zip(mirrored["boxes"], mirrored["masks"], strict=True):
        columns = torch.where(mask.any(0))[0]
        assert (box[0], box[2]) == (columns[0], columns[-1] + 1)


def test_every_epoch_shows_every_image_once():
    rows = [row for step in range(5) for row in batch_rows(step, 4, 10, seed=3)]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]


def test_embeddings_of_other_classes_are_refused(repository):
    path = Path("data/vocabulary/embeddings.safetensors")
    write_tensors(path, {"embeddings": torch.eye(3, 8)})
    with pytest.raises(ValueError, match=r"embeddings\.safetensors: 3 embeddings for 2"):
        stage.main()
    assert read_json(Path("data/pseudo_labels/pseudo_annotations.json"))["annotations"]
