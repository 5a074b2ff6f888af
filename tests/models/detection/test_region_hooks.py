"""A method adds a loss of regions or another head of them by a file that params.yaml names."""

import re
from pathlib import Path

import pytest
from torch import nn

import stages.detector.__main__ as detector
import stages.finetune.__main__ as finetune
from stages.common.runtime.curves import Curve
from stages.common.runtime.storage import read_json, read_tensors
from stages.models.detection.detector import LossSettings, build, load, save
from stages.models.detection.params import TrainingParams, network_params
from stages.models.detection.supervision import Supervision
from stages.models.detection.training import train_detector
from stages.preflight import problems
from tests.support.tiny_detector import (
    EMBEDDINGS,
    NETWORK,
    RESNETS,
    TRAINING,
    change_params,
    draw,
    make_repository,
    predict,
    tiny_detector,
)
from tests.support.train_in_parts import labelled_images

MODULE = "tests.support.region_hook"
PULL = {"name": "pull", "module": MODULE, "weight": 0.5}
LOSS = "detector.training.region_losses"
WEIGHTS = Path("data/detector/model.safetensors")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    make_repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stage"])


def test_both_are_named_in_params_and_go_with_the_weights(repository):
    change_params("detector", {"region_losses": [PULL]}, region_head=MODULE)
    change_params("finetune", {"region_losses": [PULL]})
    detector.main()
    finetune.main()
    for stage in ("detector", "finetune"):
        assert read_json(Path(f"data/{stage}/metrics.json"))["loss_pull"] > 0
        assert read_tensors(Path(f"data/{stage}/model.safetensors"))[1]["region_head"] == MODULE
    model = load(WEIGHTS)
    assert isinstance(model.regions.box_head[0], nn.Conv2d)
    assert len(predict(model, [draw(1)[0]], [[0, 1]])[0]) == 1


def test_a_further_loss_is_learned():
    params = {"steps": 40, "batch_size": 5, "learning_rate": 0.01, "colour_jitter": 0.0}
    pulled = []
    for weight in (0.0, 2.0):
        training = TRAINING | params | {"region_losses": [PULL | {"weight": weight}]}
        curve = Curve(every=1)
        train_detector(
            tiny_detector(),
            Supervision.of(labelled_images()),
            TrainingParams.model_validate(training),
            0,
            curve,
        )
        pulled.append(curve.last()["loss_pull"])
    assert pulled[1] < 0.8 * pulled[0]


def test_micro_batches_add_up_to_the_loss_of_the_batch(monkeypatch):
    rows = []
    for size in ("5", "2"):
        monkeypatch.setenv("OVIS_MICRO_BATCH", size)
        changes = {"steps": 2, "batch_size": 5, "frozen": ["trunk", "pyramid"]}
        training = TRAINING | changes | {"region_losses": [PULL]}
        params, curve = TrainingParams.model_validate(training), Curve(every=1)
        train_detector(tiny_detector(), Supervision.of(labelled_images()), params, 7, curve)
        rows.append(curve.state()["rows"])
    assert rows[1][0] == pytest.approx(rows[0][0], rel=1e-5)


@pytest.mark.parametrize("kind", RESNETS)
def test_every_backbone_takes_another_head(kind):
    params = network_params("mask_rcnn").model_validate(NETWORK | RESNETS[kind])
    model = build("mask_rcnn", params, EMBEDDINGS, MODULE)
    assert len(predict(model, [draw(1)[0]], [[0, 1]])[0]) == 1
    assert LossSettings(None, 1.0).region_losses == {}


@pytest.mark.parametrize(
    ("training", "changes", "message"),
    [
        ({"region_losses": [PULL | {"module": ".x"}]}, {}, f"{LOSS}.0.module: cannot import '.x'"),
        ({"region_losses": [PULL | {"module": ""}]}, {}, f"{LOSS}.0.module: cannot import ''"),
        (
            {"region_losses": [PULL, {"name": "push", "module": "no.such", "weight": 1.0}]},
            {},
            f"{LOSS}.1.module: cannot import 'no.such': No module named 'no'; name a module with",
        ),
        (
            {"region_losses": [PULL | {"module": "json"}]},
            {},
            f"{LOSS}.0.module: 'json' has no function region_loss; add it, or name another module",
        ),
        ({"region_losses": [PULL, PULL]}, {}, "each once, found \\['pull', 'pull'\\]"),
        (
            {"region_losses": [PULL | {"name": "box"}]},
            {},
            "other than objectness, .*found \\['box'\\]",
        ),
        (
            {"region_losses": [PULL]},
            {"architecture": "mask_rcnn_detectron2"},
            "this architecture takes none; set it to",
        ),
        ({}, {"region_head": "json"}, "detector.region_head: 'json' has no function region_head"),
        ({}, {"region_head": ""}, "detector.region_head: cannot import ''"),
        ({}, {"region_head": "no.such"}, "detector.region_head: cannot import 'no.such': .*; name"),
        (
            {},
            {"region_head": MODULE, "architecture": "mask_rcnn_detectron2"},
            "region_head: this architecture takes none",
        ),
    ],
)
def test_what_cannot_be_hooked_in_is_told_before_a_run(repository, training, changes, message):
    change_params("detector", training, **changes)
    (told,) = problems(["detector"])
    assert told.startswith("params.yaml: detector")
    assert re.search(message, told), told
    assert "\n" not in told
    with pytest.raises(ValueError, match=re.escape(told)):  # a stage alone says the same
        detector.main()


def test_finetuning_names_the_key_of_a_missing_hook(repository):
    save(WEIGHTS, tiny_detector())
    change_params("finetune", {"region_losses": [PULL | {"module": "no.such"}]})
    (told,) = problems(["finetune"])
    assert told.startswith("params.yaml: finetune.training.region_losses.0.module: cannot import")
    with pytest.raises(ValueError, match=re.escape(told)):
        finetune.main()


def test_a_stored_region_head_that_is_gone_names_file_and_header(tmp_path):
    model = tiny_detector()
    model.region_head = "no.such"
    save(tmp_path / "model.safetensors", model)
    with pytest.raises(ValueError, match=r"model\.safetensors: .* region_head: cannot import"):
        load(tmp_path / "model.safetensors")
