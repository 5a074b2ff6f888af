"""ResNet-50 under the detector: shapes, frozen stages, ImageNet weights, predictions."""

import hashlib
from itertools import chain

import numpy as np
import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import stages.detector.__main__ as stage
from stages.common.runtime.curves import Curve
from stages.common.runtime.params import read_section
from stages.common.runtime.storage import read_json, write_tensors
from stages.detector.params import DetectorParams
from stages.models.backbones.roi_align import first_centre
from stages.models.detection.backbones import whole_trunk
from stages.models.detection.detector import Detector, LossSettings, load, save, to_unit_range
from stages.models.detection.initial_weights import load_start, load_trunk
from stages.models.detection.params import (
    InferenceParams,
    StartParams,
    TrainingParams,
    network_params,
)
from stages.models.detection.predictor import load_predictor
from stages.models.detection.supervision import Supervision
from stages.models.detection.training import train_detector
from tests.support.tiny_detector import (
    EMBEDDINGS,
    INFERENCE,
    NETWORK,
    RESNETS,
    TRAINING,
    annotate,
    draw,
    make_repository,
    predict,
    tiny_detector,
)
from tests.support.tiny_predictor import write_predictor
from tests.support.train_in_parts import labelled_images

KINDS = tuple(RESNETS)
NO_FILE = {"weights": None, "sha256": None}


@pytest.fixture(scope="module")
def models() -> dict[str, Detector]:
    return {kind: tiny_detector(**changes) for kind, changes in RESNETS.items()}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Give a file as torchvision's, of random weights."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(resnet50(weights=None).state_dict(), path)
    return path


def start(kind: str, init: str, **imagenet) -> StartParams:
    content = {
        "architecture": "mask_rcnn",
        "init": init,
        "imagenet": NO_FILE | imagenet,
        "network": NETWORK | RESNETS.get(kind, {}),
        "training": TRAINING,
    }
    return StartParams.fitting(content).model_validate(content)


def one_image() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Give an image and its two objects as `Detector.losses` takes them."""
    image, masks = draw(1)
    boxes = [a["bbox"] for a in annotate([1])["annotations"]]
    target = {
        "boxes": torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.from_numpy(np.stack([masks[3], masks[5]]).astype(np.uint8)),
    }
    return [to_unit_range(image)], [target]


def test_a_pyramid_has_five_levels_of_which_regions_see_four(models):
    model = models["resnet50_fpn"]
    levels = model.backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels.values()] == [
        (1, 16, 16, 24),
        (1, 16, 8, 12),
        (1, 16, 4, 6),
        (1, 16, 2, 3),
        (1, 16, 1, 2),
    ]
    boxes = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 90, 60]])]
    regions, deltas = model.regions.describe(levels, boxes, [(64, 96)])
    assert (regions.shape, deltas.shape) == ((2, 32), (2, 4))


def test_c4_has_one_level_and_runs_its_last_stage_on_each_region(models):
    model = models["resnet50_c4"]
    levels = model.backbone(torch.zeros(2, 3, 64, 96))
    assert [tuple(level.shape) for level in levels.values()] == [(2, 1024, 4, 6)]
    boxes = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 90, 60]]), torch.tensor([[5.0, 5, 20, 20]])]
    sizes = [(64, 96)] * 2
    maps = model.regions.box_roi_pool(levels, boxes, sizes)
    assert maps.shape == (3, 2048, 2, 2)  # pooled to 4 by 4, then stride 2
    assert model.regions.mask_head(maps).shape == (3, 1, 4, 4)
    regions, deltas = model.regions.describe(levels, boxes, sizes)
    torch.testing.assert_close(regions, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert deltas.shape == (3, 4)


def test_training_lays_out_all_stages_of_c4_channels_last():
    """Its last stage has most of the work, and is no part of the backbone."""
    model, layouts = tiny_detector(**RESNETS["resnet50_c4"]), []
    for part in (model.backbone.trunk.layer3, model.region_stage):
        part.register_forward_hook(
            lambda *call: layouts.append(call[-1].is_contiguous(memory_format=torch.channels_last))
        )
    boxes, features = [torch.tensor([[0.0, 0, 40, 40]])], torch.randn(1, 1024, 4, 4)
    with torch.no_grad():
        before = model.regions.box_roi_pool({"0": features}, boxes, [(64, 64)])
    layouts.clear()
    one = TrainingParams.model_validate(TRAINING | {"steps": 1, "learning_rate": 1e-9})
    train_detector(model, Supervision.of(labelled_images()), one, 0, Curve(every=1))
    assert layouts == [True, True]
    with torch.no_grad():
        after = model.regions.box_roi_pool({"0": features}, boxes, [(64, 64)])
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * before.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_anchors_lie_where_cells_look_whatever_the_image_s_size(models, kind):
    backbone, proposals = models[kind].backbone, models[kind].proposals
    resize = GeneralizedRCNNTransform(
        96, 160, [0.5] * 3, [0.2] * 3, models[kind].transform.size_divisible
    )
    images, _ = resize([torch.zeros(3, 96, 160)])
    with torch.no_grad():
        levels = list(backbone(images.tensors).values())
    anchors = proposals.anchor_generator(images, levels)[0]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    per_cell = proposals.anchor_generator.num_anchors_per_location()
    for level, stride, count in zip(levels, backbone.level_strides, per_cell, strict=True):
        rows, columns = level.shape[-2:]
        own, centres = centres.split(
            [rows * columns * count, len(centres) - rows * columns * count]
        )
        last = torch.tensor([columns - 1, rows - 1]) * stride
        expected = last + first_centre(stride, backbone.central)
        torch.testing.assert_close(own[-1], expected.float(), atol=1, rtol=0)


def test_anchors_lie_on_their_levels(models):
    sides = {
        kind: [cell[0] for cell in model.proposals.anchor_generator.sizes]
        for kind, model in models.items()
    }
    assert sides["resnet50_fpn"] == [8.0, 16.0, 24.0, 32.0, 48.0]
    assert models["resnet50_c4"].proposals.anchor_generator.sizes == ((16.0, 32.0, 48.0),)
    assert models["resnet50_c4"].proposals.head.cls_logits.out_channels == 3
    wrong = NETWORK | {"backbone": RESNETS["resnet50_fpn"]["backbone"]}
    with pytest.raises(
        ValueError, match=r"anchor_sizes: has 3 sides, .* resnet50_fpn has 5 levels"
    ):
        network_params("mask_rcnn").model_validate(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_stages_get_no_gradient_and_statistics_stay(models, kind):
    model = models[kind].train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    seen = []
    count = model.regions.box_head.register_forward_pre_hook(lambda *inputs: seen.append(inputs))
    torch.manual_seed(0)
    losses = model.losses(*one_image(), LossSettings(None, 0.2))
    count.remove()
    assert len(seen) == 1  # the masks of C4 are made from the maps of the boxes
    sum(losses.values()).backward()
    trunk = whole_trunk(model.backbone.trunk, getattr(model.regions.box_roi_pool, "stage", None))
    for name, parameter in trunk.named_parameters():
        frozen = name.startswith(("conv1.", "layer1."))
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.isfinite().all(), name
    assert sum(name.endswith("weight") for name, _ in trunk.named_parameters()) == 53  # no norms
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("kind", KINDS)
def test_imagenet_weights_get_to_their_places(imagenet, models, kind):
    digest = hashlib.sha256(imagenet.read_bytes()).hexdigest()
    params = start(kind, "imagenet", weights=str(imagenet), sha256=digest)
    model = models[kind]
    assert load_start(model, params, imagenet, "detector") == [imagenet]
    weights = torch.load(imagenet, weights_only=True)
    own = model.state_dict()
    last = "regions.box_roi_pool.stage" if kind == "resnet50_c4" else "backbone.trunk.layer4"
    for place, name in (
        ("backbone.trunk.conv1.weight", "conv1.weight"),
        ("backbone.trunk.bn1.running_var", "bn1.running_var"),
        ("backbone.trunk.layer3.5.conv3.weight", "layer3.5.conv3.weight"),
        (f"{last}.0.downsample.0.weight", "layer4.0.downsample.0.weight"),
        (f"{last}.2.bn3.bias", "layer4.2.bn3.bias"),
    ):
        assert torch.equal(own[place], weights[name]), name
    assert not model.backbone.trunk.conv1.weight.requires_grad


def test_a_file_of_other_weights_is_refused_with_its_keys(imagenet, models, tmp_path):
    model, path = models["resnet50_c4"], tmp_path / "other.pth"
    weights = torch.load(imagenet, weights_only=True)
    weights["layer5.weight"] = weights.pop("layer4.2.conv3.weight")
    torch.save(weights, path)
    params = start("resnet50_c4", "imagenet", weights=str(path))
    with pytest.raises(ValueError, match=r"other\.pth: missing weights: layer4\.2\.conv3\.weight; u"
                                         r"nexpected weights: layer5\.weight"):  # fmt: skip
        load_start(model, params, path, "detector")
    params = start("resnet50_c4", "imagenet", weights=str(imagenet), sha256="0" * 64)
    with pytest.raises(ValueError, match=r"detector\.imagenet\.sha256"):
        load_start(model, params, path, "detector")
    params = start("resnet50_c4", "imagenet", weights=str(tmp_path / "none.pth"))
    with pytest.raises(
        FileNotFoundError, match=r"rpn\.imagenet\.weights: .*none\.pth is not there"
    ):
        load_start(model, params, path, "rpn")


@pytest.mark.parametrize(
    ("kind", "init", "message"),
    [
        ("resnet50_c4", "vlm", r"vlm has no weights for network\.backbone\.kind resnet50_c4"),
        ("trunk", "imagenet", r"no ImageNet weights for network\.backbone\.kind trunk"),
        ("resnet50_fpn", "imagenet", r"imagenet\.weights: is null, but init asks for it"),
        ("resnet50_fpn", "random", r"frozen_stages: would freeze random weights"),
    ],
)
def test_a_start_that_the_backbone_cannot_have_is_told(kind, init, message):
    with pytest.raises(ValueError, match=message):
        start(kind, init)


def test_a_pretrained_vision_language_model_has_no_trunk(tmp_path):
    path = tmp_path / "vlm.safetensors"
    write_tensors(path, {"visual.patch_embed.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"vlm\.safetensors: .*albef or blip.* detector\.init"):
        load_trunk(tiny_detector(), path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_detector_proposes_and_predicts_the_same(models, tmp_path, kind):
    model, path = models[kind].eval(), tmp_path / "model.safetensors"
    model.regions.score_thresh = 0.0
    save(path, model)
    again = load(path)
    again.regions.score_thresh = 0.0
    images = [draw(1)[0], np.zeros((50, 90, 3), np.uint8)]
    before, after = predict(model, images, [[0, 1], [1]]), predict(again, images, [[0, 1], [1]])
    assert len(before[0][0].scores) == 5
    for own, other in zip(chain(*before), chain(*after), strict=True):
        for name in ("boxes_xyxy", "labels", "scores", "masks"):
            assert np.array_equal(getattr(own, name), getattr(other, name)), name
    assert before[0][1].masks.shape[1:] == (50, 90)
    proposed = again.propose(to_unit_range(images[1]), InferenceParams.model_validate(INFERENCE))
    assert 0 < len(proposed) <= 10 and proposed[:, 2].max() <= 90


def test_the_stage_trains_one_from_imagenet_weights(imagenet, tmp_path, monkeypatch):
    make_repository(
        tmp_path,
        {"steps": 1, "optimizer": {"kind": "sgd", "momentum": 0.9}, "learning_rate": 0.0001},
        {
            "init": "imagenet",
            "imagenet": NO_FILE | {"weights": str(imagenet)},
            "network": NETWORK | RESNETS["resnet50_fpn"],
        },
    )
    monkeypatch.setattr("stages.models.detection.training_run.STEPS_PER_ROW", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["detector"])
    stage.main()
    assert np.isfinite(read_json(tmp_path / "data/detector/metrics.json")["loss_mask"])
    trained = load(tmp_path / "data/detector/model.safetensors").state_dict()
    weights = torch.load(imagenet, weights_only=True)
    for name, same in (("layer1.0.conv1.weight", True), ("layer2.0.conv1.weight", False)):
        assert torch.equal(trained[f"backbone.trunk.{name}"], weights[name]) == same
    assert torch.equal(trained["backbone.trunk.bn1.running_mean"], weights["bn1.running_mean"])


def test_a_predictor_takes_any_backbone(tmp_path):
    predictor = load_predictor(write_predictor(tmp_path, RESNETS["resnet50_c4"]))
    (found,) = predictor.predict([draw(1)[0]], ["cup", "hot dog"])
    assert set(found.labels.tolist()) <= {0, 1}


def test_an_unknown_key_of_a_backbone_names_those_of_its_kind(tmp_path):
    backbone = {"kind": "resnet50_c4", "frozen_stages": 2, "pyramid_width": 64}
    make_repository(tmp_path, {}, {"network": NETWORK | {"backbone": backbone}})
    with pytest.raises(
        ValueError, match=r"pyramid_width: .*allowed keys: \['frozen_stages', 'kind'\]"
    ):
        read_section("detector", DetectorParams, tmp_path / "params.yaml")


def test_embeddings_are_found_whatever_the_backbone(models):
    for model in models.values():
        kept = model.state_dict()["regions.box_predictor.classifier.embeddings"]
        assert torch.equal(kept, EMBEDDINGS)
