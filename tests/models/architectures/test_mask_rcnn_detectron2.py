"""Mask R-CNN of detectron2's parts beside that of torchvision's: same labels, same files."""

import importlib.util
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

import stages.detector.__main__ as detector
import stages.finetune.__main__ as finetune
from stages.common.runtime.curves import Curve
from stages.common.runtime.storage import read_tensors, write_json
from stages.models.detection.detector import LossSettings, load, save
from stages.models.detection.params import TrainingParams
from stages.models.detection.predictor import DETECTOR, load_predictor
from stages.models.detection.predictor import INFERENCE as INFERENCE_FILE
from stages.models.detection.samples import label_images, read_annotations
from stages.models.detection.supervision import Supervision
from stages.models.detection.training import train_detector
from tests.support.tiny_detector import (
    EMBEDDINGS,
    INFERENCE,
    NETWORK,
    RESNETS,
    TRAINING,
    annotate,
    change_params,
    draw,
    make_image,
    make_repository,
    predict,
    tiny_detector,
)
from tests.support.tiny_predictor import write_predictor

WEIGHTS = {name: Path(f"data/{name}/model.safetensors") for name in ("detector", "finetune")}
PACKAGE = "stages.models.architectures.mask_rcnn_detectron2"
INSTALL = "https://detectron2.readthedocs.io/tutorials/install.html"
FIELDS = ("boxes_xyxy", "labels", "scores", "masks")


def needs_detectron2(test):
    """Mark a test; warnings are those that detectron2 0.6 gives rise to in the torch of today."""
    absent = importlib.util.find_spec("detectron2") is None
    test = pytest.mark.skipif(absent, reason=f"no detectron2 here: {INSTALL}")(test)
    test = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")(test)
    test = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")(test)
    return pytest.mark.detectron2(test)


def tiny_network(embeddings: torch.Tensor = EMBEDDINGS, **changes: dict):
    return tiny_detector("mask_rcnn_detectron2", embeddings, **changes)


def twins(**changes: dict):
    """Return networks of both architectures with the same weights."""
    own, other = tiny_detector(**changes), tiny_network(**changes)
    with torch.no_grad():
        own.regions.box_predictor["deltas"].weight.mul_(0.1)  # as small as detectron2 begins
        pairs = [
            (own.backbone, other.backbone.network),
            (own.proposals.head.conv[0][0], other.proposals.rpn_head.conv),
            (own.proposals.head.cls_logits, other.proposals.rpn_head.objectness_logits),
            (own.proposals.head.bbox_pred, other.proposals.rpn_head.anchor_deltas),
            (own.parts()["classifier"], other.parts()["classifier"]),
            (own.parts()["box_deltas"], other.parts()["box_deltas"]),
            (own.regions.mask_head[-1], other.regions.mask_head.predictor),
        ]
        if own.region_stage is None:
            pairs.append((own.regions.box_head.fc6, other.regions.box_head.fc1))
            pairs.append((own.regions.box_head.fc7, other.regions.box_head.fc2))
            pairs.append((own.regions.mask_head[0], other.regions.mask_head.mask_fcn1))
        else:
            pairs.append((own.region_stage, other.region_stage))
        for source, target in pairs:
            target.load_state_dict(source.state_dict())
        # The same doubling of the size, written as a convolution and as a transposed one.
        double, deconv = own.regions.mask_head[-4], other.regions.mask_head.deconv
        double.bias.zero_()
        deconv.bias.zero_()
        outputs, inputs = deconv.weight.shape[1], deconv.weight.shape[0]
        deconv.weight.copy_(double.weight.view(outputs, 2, 2, inputs).permute(3, 0, 1, 2))
    return own, other


def labelled(tmp_path) -> list:
    path, labels = tmp_path / "truth.json", {3: 1, 5: 2}
    write_json(path, annotate([1, 2, 3, 4]))
    return label_images(
        map(make_image, (1, 2, 3, 4)), read_annotations(path, labels, [3, 5]), labels, path
    )


@pytest.fixture
def repository(tmp_path, monkeypatch):
    make_repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stage"])


def test_without_detectron2_the_error_names_its_install_page(repository, monkeypatch):
    change_params("detector", architecture="mask_rcnn_detectron2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, f"{PACKAGE}.network", raising=False)
    message = r"detector\.architecture: .*/tutorials/install\.html"
    with pytest.raises(ModuleNotFoundError, match=message):
        detector.main()


@needs_detectron2
@pytest.mark.parametrize("kind", ["trunk", "resnet50_fpn", "resnet50_c4"])
def test_the_same_weights_find_the_same_objects(kind):
    own, other = twins(**RESNETS.get(kind, {}))
    images, vocabularies = [draw(1)[0], draw(2)[0][:50]], [[0, 1], [1]]
    expected, found = (
        list(chain(*predict(x, images, vocabularies, score_threshold=0.0, nms_iou=0.3)))
        for x in (own, other)
    )
    for left, right in zip(expected, found, strict=True):
        assert len(left.scores) == 5
        assert np.array_equal(left.labels, right.labels)
        np.testing.assert_allclose(left.boxes_xyxy, right.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(left.scores, right.scores, atol=1e-5)
        assert (left.masks != right.masks).mean() < 1e-3


@needs_detectron2
@pytest.mark.parametrize(("vocabulary", "labels"), [(None, [1, 2, -1]), ([1], [1, 1, -1])])
def test_the_same_weights_have_the_same_losses(vocabulary, labels):
    """Every anchor and region is taken, so that no random sample differs."""
    proposals = NETWORK["proposals"] | {"anchors_per_image": 5000}
    heads = NETWORK["box_head"] | {"regions_per_image": 100}
    images, targets = [], []
    for image_id in (1, 2):
        image, masks = draw(image_id)
        corners = [np.argwhere(mask)[:, ::-1] for mask in masks.values()]
        boxes = [[*xy.min(0), *(xy.max(0) + 1)] for xy in corners] + [[0, 40, 20, 64]]
        images.append(torch.from_numpy(image).permute(2, 0, 1).float() / 255)
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor(labels),
                "masks": torch.from_numpy(np.stack(list(masks.values()))).to(torch.uint8),
            }
        )
    settings = LossSettings(vocabulary, 0.2)
    expected, found = (
        {k: v.item() for k, v in model.train().losses(images, targets, settings).items()}
        for model in twins(proposals=proposals, box_head=heads)
    )
    assert set(found) == set(TRAINING["loss_weights"])
    for name in ("classification", "box"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3), name
    # torchvision's goal is the fraction of a cell that the mask covers, detectron2's yes or no.
    assert found["mask"] == pytest.approx(expected["mask"], rel=0.02)
    # torchvision divides by the anchors that there are, detectron2 by those it was to sample.
    ratio = {name: found[name] / expected[name] for name in ("objectness", "proposal_box")}
    assert ratio["objectness"] == pytest.approx(ratio["proposal_box"], rel=1e-3)


@needs_detectron2
def test_what_lies_in_a_crowd_is_no_background_and_an_object_in_it_is_one():
    from detectron2.structures import Boxes, Instances

    model = tiny_network().train()
    target = Instances(
        (64, 64),
        gt_boxes=Boxes(torch.tensor([[20.0, 20, 30, 31], [0, 0, 60, 60]])),
        gt_classes=torch.tensor([0, -1]),
    )
    # An object in the crowd, one on the object, one beside the crowd, and one on its edge.
    boxes = torch.tensor([[40.0, 0, 50, 10], [20, 20, 30, 30], [70, 0, 80, 10], [54, 0, 64, 10]])
    (labels,), _ = model.proposals.label_and_sample_anchors([Boxes(boxes)], [target])
    assert labels.tolist() == [-1, 1, 0, -1]
    proposals = Instances((64, 64), proposal_boxes=Boxes(boxes))
    kept, objects = model.regions.without_ignored(proposals, target)
    assert kept.proposal_boxes.tensor.tolist() == boxes[1:3].tolist()
    assert objects.gt_classes.tolist() == [0]


@needs_detectron2
def test_heads_do_not_know_classes():
    model = tiny_network().eval()
    shapes = {name: tuple(p.shape) for name, p in model.regions.named_parameters()}
    assert shapes["box_predictor.bbox_pred.weight"] == (4, 32)
    assert shapes["mask_head.predictor.weight"] == (1, 8, 1, 1)
    assert not [name for name in shapes if "cls_score" in name]


@needs_detectron2
def test_the_configuration_says_the_params_in_detectron2s_words():
    from stages.models.architectures.mask_rcnn_detectron2.config import make_config

    network = tiny_network()
    config = make_config(network.params, network.backbone, 2, 8)
    model = YAML(typ="safe").load(config.dump())["MODEL"]
    assert model["RPN"]["BATCH_SIZE_PER_IMAGE"] == NETWORK["proposals"]["anchors_per_image"]
    assert model["RPN"]["NMS_THRESH"] == NETWORK["proposals"]["nms_iou"]
    assert model["ROI_MASK_HEAD"]["CLS_AGNOSTIC_MASK"]


@needs_detectron2
def test_four_images_are_learned(tmp_path):
    model, curve = tiny_network(), Curve(every=10)
    changes = {"steps": 60, "batch_size": 4, "learning_rate": 0.01, "colour_jitter": 0.0}
    params = TrainingParams.model_validate(TRAINING | changes)
    train_detector(model, Supervision.of(labelled(tmp_path)), params, 0, curve)
    rows = curve.state()["rows"]
    for name in ("objectness", "classification", "mask"):
        assert rows[-1][f"loss_{name}"] < 0.7 * rows[0][f"loss_{name}"], name
    image, masks = draw(1)
    (every,), (novel,) = predict(model, [image], [[0, 1], [1]])
    assert every.scores[0] > 0.5
    mask = masks[3 if every.labels[0] == 0 else 5]
    assert (every.masks[0] & mask).sum() / (every.masks[0] | mask).sum() > 0.5
    assert set(novel.labels.tolist()) == {1}


@needs_detectron2
@pytest.mark.usefixtures("true_bfloat16")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_parts_stay_and_the_others_do_not(tmp_path, precision):
    frozen = ["trunk", "proposals", "classifier", "mask_head"]
    params = TrainingParams.model_validate(TRAINING | {"frozen": frozen, "precision": precision})
    model, before = tiny_network(), tiny_network().parts()
    train_detector(model, Supervision.of(labelled(tmp_path)), params, 0, Curve(every=2))
    for name, part in model.parts().items():
        pairs = zip(part.state_dict().values(), before[name].state_dict().values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (name in frozen), name


@needs_detectron2
def test_both_stages_train_it_and_its_weights_predict_the_same_again(repository, monkeypatch):
    change_params("detector", architecture="mask_rcnn_detectron2")
    detector.main()
    finetune.main()
    facts = {name: read_tensors(path)[1]["architecture"] for name, path in WEIGHTS.items()}
    assert facts == dict.fromkeys(WEIGHTS, "mask_rcnn_detectron2")
    first = WEIGHTS["detector"].read_bytes()
    monkeypatch.setattr("sys.argv", ["stage", "--output", "data/again"])
    detector.main()
    assert Path("data/again/model.safetensors").read_bytes() == first
    image = draw(1)[0]
    both = [predict(load(WEIGHTS["finetune"]), [image], [[0, 1]])[0][0] for _ in range(2)]
    for name in FIELDS:
        assert np.array_equal(*(getattr(found, name) for found in both)), name


@needs_detectron2
def test_texts_and_the_background_begin_as_in_torchvision():
    texts = EMBEDDINGS * 7
    dot = {"similarity": "dot", "temperature": 1.0, "background": "learned"}
    classifier = tiny_network(texts, classifier=dot).parts()["classifier"]
    assert torch.equal(classifier.embeddings, texts)
    length = float(texts.norm(dim=1).mean())
    assert float(classifier.background.detach().norm()) == pytest.approx(length)


@needs_detectron2
def test_a_predictor_takes_it_with_any_names(tmp_path):
    folder = write_predictor(tmp_path)
    embeddings = load(folder / DETECTOR).parts()["classifier"].embeddings
    save(folder / DETECTOR, tiny_network(embeddings))
    write_json(folder / INFERENCE_FILE, INFERENCE | {"score_threshold": 0.0})
    (found,) = load_predictor(folder).predict([draw(1)[0]], ["dog", "cup", "wall"])
    assert found.masks.shape == (5, 64, 64)
    assert set(found.labels.tolist()) <= {0, 1, 2}
