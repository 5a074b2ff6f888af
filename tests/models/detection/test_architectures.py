"""Whatever its architecture, a detector is trained and used through one interface."""

import re
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

import stages.detector.__main__ as detector
import stages.finetune.__main__ as finetune
from comparators.rpn.params import RpnParams
from stages.common.formats.images import write_images
from stages.common.runtime.devices import choose_device
from stages.common.runtime.params import read_section
from stages.common.runtime.processes import run_in_processes
from stages.common.runtime.storage import read_json, read_tensors, write_json
from stages.detector.params import DetectorParams
from stages.models import architectures
from stages.models.detection.detector import load, save
from stages.models.detection.params import network_params
from stages.models.detection.predictor import DETECTOR, load_predictor
from stages.preflight import problems
from tests.support.resumed_training import check_that_it_resumes
from tests.support.run_module import run_module
from tests.support.tiny_detector import (
    CATEGORIES,
    INFERENCE,
    NETWORK,
    WITH_HOURGLASS,
    annotate,
    change_params,
    draw,
    make_image,
    make_repository,
    predict,
    tiny_detector,
)
from tests.support.tiny_predictor import write_predictor
from tests.support.toy_detector import LOSSES, TOY, join, make_toy_repository, toy_detector

ROOT = Path(__file__).parents[3]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Give a repository whose detector is of the toy architecture."""
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__])
    join()
    make_toy_repository(tmp_path, steps=6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["detector"])
    monkeypatch.setattr("stages.models.detection.training_run.STEPS_PER_ROW", 1)


def test_another_architecture_trains_is_saved_and_trains_on(toy, monkeypatch):
    detector.main()
    tensors, facts = read_tensors(Path("data/detector/model.safetensors"))
    assert facts["architecture"] == "toy" and "texts.embeddings" in tensors
    losses = {k for k in read_json(Path("data/detector/metrics.json")) if k.startswith("loss_")}
    assert losses == {f"loss_{name}" for name in LOSSES}
    monkeypatch.setattr("sys.argv", ["finetune"])
    finetune.main()
    before, after = (load(Path(f"data/{k}/model.safetensors")) for k in ("detector", "finetune"))
    for name, part in after.parts().items():
        pairs = zip(before.parts()[name].parameters(), part.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (name == "heads"), name


def test_another_architecture_learns(toy):
    change_params("detector", {"steps": 150, "learning_rate": 0.01, "colour_jitter": 0.0})
    detector.main()
    (found,), _ = predict(
        load(Path("data/detector/model.safetensors")), [draw(1)[0]], [[0, 1], [1]]
    )
    assert found.scores[0] > 0.5
    mask = draw(1)[1][3 if found.labels[0] == 0 else 5]
    assert (found.masks[0] & mask).sum() / (found.masks[0] | mask).sum() > 0.4


def test_another_architecture_resumes_to_the_same_bytes(toy, monkeypatch):
    check_that_it_resumes(monkeypatch)


@pytest.mark.parametrize("parts", [("OVIS_PROCESSES", "2"), ("OVIS_MICRO_BATCH", "1")])
def test_another_architecture_trains_in_parts(toy, monkeypatch, parts):
    rows = []
    for number, variable in enumerate((None, parts)):
        changes = {"batch_size": 4, "steps": 3}
        if parts[0] == "OVIS_MICRO_BATCH":
            changes["frozen"] = ["trunk", "pyramid"]  # which have batch norms
        change_params("detector", changes)
        if variable:
            monkeypatch.setenv(*variable)
        output = Path(f"data/{number}")
        monkeypatch.setattr("sys.argv", ["detector", "--output", str(output)])
        device = choose_device("device")
        run_in_processes("tests.support.toy_detector", device, 8)
        rows.append(load(output / "model.safetensors").state_dict())
    for name, value in rows[1].items():
        torch.testing.assert_close(value, rows[0][name], rtol=1e-3, atol=1e-4, msg=name)


def test_another_architecture_is_evaluated(toy, monkeypatch):
    detector.main()
    evaluation = YAML(typ="safe").load(ROOT / "params.yaml")["evaluation"]
    evaluation["inference"] = INFERENCE | {"score_threshold": 0.0, "detections_per_image": 2}
    own = YAML(typ="safe").load(Path("params.yaml")) | {"evaluation": evaluation}
    YAML(typ="safe").dump(own, Path("params.yaml"))
    truth = annotate([6, 7]) | {"categories": CATEGORIES}
    write_json(Path("data/download/ground_truth/test.json"), truth)
    write_images(Path("data/download/images/test.parquet"), map(make_image, (6, 7)))
    monkeypatch.setattr("sys.argv", ["evaluation", "toy=data/detector/model.safetensors"])
    run_module("stages.evaluation")
    assert set(read_json(Path("data/evaluation/metrics.json"))["toy"]) >= {"generalized"}
    found = read_json(Path("data/evaluation/predictions_toy.json"))
    assert found["image_ids"] == [6, 7]
    assert [own["image_id"] for own in found["results"]] == [6, 6, 7, 7]


def test_another_architecture_predicts_with_any_names(toy, tmp_path):
    folder = write_predictor(tmp_path)
    embeddings = load(folder / DETECTOR).classifier.embeddings
    save(folder / DETECTOR, toy_detector(embeddings))
    (found,) = load_predictor(folder).predict([draw(1)[0]], ["dog", "cup", "wall"])
    assert found.masks.shape == (5, 64, 64)
    assert set(found.labels.tolist()) <= {0, 1, 2}


def test_an_architecture_has_the_methods_of_what_it_says_to_support(toy, monkeypatch):
    claimed = frozenset({"micro_batches", "proposals", "region_hooks"})
    monkeypatch.setattr(network_params("toy"), "supports", claimed)
    with pytest.raises(TypeError, match=r"proposals needs propose, region_hooks needs use_reg"):
        toy_detector(torch.eye(2, 8))


def test_an_architecture_without_region_proposals_is_no_rpn(toy):
    rpn = YAML(typ="safe").load(ROOT / "params.yaml")["rpn"]
    changes = TOY | {"training": rpn["training"] | {"loss_weights": LOSSES}}
    write_json(Path("params.yaml"), {"rpn": rpn | changes})
    with pytest.raises(ValueError, match=r"params\.yaml: rpn: .*toy has no region proposals"):
        read_section("rpn", RpnParams)


def test_the_default_architecture_is_that_of_weights_that_name_none(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, tiny_detector())
    assert set(read_tensors(path)[1]) == {"network"}
    assert load(path).architecture == "mask_rcnn"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    make_repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "jax"}, r"detector\.architecture: expected one of .*mask_rcnn, .*'jax'"),
        ({"engine": "torchvision"}, r"detector\.engine: torchvision: the key is architecture now"),
        (
            {"network": NETWORK | {"mask_head": NETWORK["mask_head"] | {"depth": 3}}},
            r"mask_head\.convolutions\.depth: .*allowed keys: \['channels', 'kind', 'layers', 'po",
        ),
        (
            {"architecture": "mask_rcnn_detectron2", "network": NETWORK | WITH_HOURGLASS},
            r"network\.mask_head: .*kind: hourglass is not built of .* to mask_rcnn$",
        ),
    ],
)
def test_a_wrong_architecture_is_told_by_file_and_key(repository, changes, message):
    change_params("detector", **changes)
    with pytest.raises(ValueError, match=rf"params\.yaml: .*{message}"):
        read_section("detector", DetectorParams)


@pytest.mark.parametrize("section", ["detector", "finetune"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("frozen", ["neck"], "training.frozen: expected some of trunk, .*, found \\['neck'\\]; "),
        ("loss_weights", {"box": 1.0}, "training.loss_weights: expected obj.*found \\['box'\\]; "),
        (
            "loss_weights",
            {},
            "training.loss_weights: expected obj.*found \\[\\]; give a weight to each",
        ),
    ],
)
def test_names_that_the_architecture_does_not_declare_are_refused(
    repository, section, key, value, message
):
    change_params(section, {key: value})
    (told,) = problems([section])
    assert f"params.yaml: {section}" in told
    assert re.search(message, told), told
