"""The proposal network on an ImageNet backbone: regions, views, ranking and memory."""

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from stages.common.geometry.box_coder import decode_boxes
from stages.models.backbones.imagenet import freeze_stages
from stages.models.proposals.imagenet import ImagenetWspn, ImagenetWspnConfig, View
from stages.models.proposals.params import RankingSettings, ViewSettings
from stages.models.proposals.ranking import rank_proposals
from stages.models.proposals.views import view_input
from tests.support.boxes import random_boxes
from tests.support.images import noise_image
from tests.support.tiny_wspn import imagenet_wspn

ALONE = {"neighbour_iou": 1.0, "power": 1.0}
VIEWS = {"shorter_sides": [48, 64], "longer_side": 96, "flip": True}


@pytest.fixture(scope="module")
def network() -> ImagenetWspn:
    return imagenet_wspn()


def test_regions_in_parts_give_the_same_features_and_gradients():
    boxes = torch.from_numpy(random_boxes(5, 4))
    pixels, _ = view_input(noise_image(5).decode(), 64, 64, False)
    results = []
    for regions_at_once in (100, 3):
        model = imagenet_wspn(regions_at_once)
        features = model.region_features(model.feature_map(pixels), boxes)
        features.square().mean().backward()
        gradients = [model.trunk.conv1.weight.grad, model.trunk.layer4[2].conv3.weight.grad]
        with torch.no_grad():
            assert torch.equal(model.region_features(model.feature_map(pixels), boxes), features)
        results.append([features.detach(), *gradients])
    for whole, parts in zip(*results, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-5 * whole.abs().max())


def test_boxes_follow_a_view_by_hand():
    pixels, scale = view_input(np.zeros((50, 100, 3), np.uint8), 100, 999, True)
    assert pixels.shape == (1, 3, 100, 200) and scale.tolist() == [2.0] * 4
    box = torch.tensor([[10.0, 5, 30, 25]])
    plain, mirrored = (View(pixels, torch.from_numpy(scale), 200, flip) for flip in (False, True))
    assert plain.boxes(box).tolist() == [[20, 10, 60, 50]]
    assert mirrored.boxes(box).tolist() == [[140, 10, 180, 50]]
    limited, _ = view_input(np.zeros((50, 100, 3), np.uint8), 100, 120, False)
    assert limited.shape == (1, 3, 60, 120)


def test_views_of_a_mirrored_image_say_the_same(network):
    views = ViewSettings.model_validate(VIEWS)
    image, boxes = noise_image(6, 80).decode(), torch.from_numpy(random_boxes(6, 5, 80))
    mirrored = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([80, 0, 80, 0])
    here = network.extract_features(image, views)
    there = network.extract_features(np.ascontiguousarray(image[:, ::-1]), views)
    assert len(here.maps) == 4
    qualities, offsets = network.score_objects(here, boxes)
    turned_qualities, turned_offsets = network.score_objects(there, mirrored)
    assert torch.allclose(qualities, turned_qualities, atol=1e-4)
    assert offsets[:, 0].abs().max() > 1e-3
    sign = torch.tensor([-1.0, 1, 1, 1])
    assert torch.allclose(offsets, turned_offsets * sign, rtol=1e-3, atol=1e-4)
    scores = network.score_classes(here, boxes)
    assert scores.shape == (5, 2) and (scores > 0).all() and (scores.sum(1) < 1).all()


@pytest.mark.parametrize("scored", ["box", "proposal"])
@pytest.mark.parametrize("score", ["quality", "classes"])
def test_ranked_boxes_lie_in_the_image(network, score, scored):
    settings = RankingSettings.model_validate(
        {
            "top_k": 6,
            "score": score,
            "agreement": ALONE,
            "scored": scored,
            "refinements": 1,
            "keep_proposals": False,
        }
        | {"nms_iou": [0.5], "views": {**VIEWS, "shorter_sides": [48]}}
    )
    boxes = random_boxes(7, 5, 80)
    found, scores = rank_proposals(network, noise_image(7, 80).decode(), boxes, settings)
    assert 1 <= len(found) == len(scores) <= 6 and (np.diff(scores) <= 0).all()
    assert found.min() >= 0 and found.max() <= 80 and (found[:, 2:] > found[:, :2]).all()
    as_they_were = settings.model_copy(update={"refinements": 0})
    found, _ = rank_proposals(network, noise_image(7, 80).decode(), boxes, as_they_were)
    assert {tuple(box) for box in found} <= {tuple(box) for box in boxes}


@pytest.mark.parametrize("score", ["quality", "classes"])
def test_one_pass_over_the_regions_scores_proposals_and_regresses_them(network, score, monkeypatch):
    settings = RankingSettings.model_validate(
        {"top_k": 9, "score": score, "agreement": ALONE, "scored": "proposal", "refinements": 1}
        | {"keep_proposals": False, "nms_iou": [1.0], "views": {**VIEWS, "shorter_sides": [48]}}
    )
    image, boxes = noise_image(7, 80).decode(), random_boxes(7, 5, 80)
    own = torch.from_numpy(boxes)
    features = network.extract_features(image, settings.views)
    qualities, offsets = network.score_objects(features, own)
    expected = decode_boxes(own, offsets, (80, 80))
    scores = network.score_classes(features, own).amax(1) if score == "classes" else qualities
    order = scores.argsort(descending=True)
    passes, pool = [], network.region_features

    def count(features, regions):
        passes.append(len(regions))
        return pool(features, regions)

    monkeypatch.setattr(network, "region_features", count)
    found, ranked = rank_proposals(network, image, boxes, settings)
    assert passes == [5] * len(features.maps)
    assert np.allclose(found, expected[order].numpy(), atol=1e-3)
    assert np.allclose(ranked, scores[order].numpy(), atol=1e-5)
    passes.clear()
    rank_proposals(network, image, boxes, settings.model_copy(update={"scored": "box"}))
    assert passes == [5] * 2 * len(features.maps)


GIB = 2**30
BUDGET = {"resnet50": 3 * GIB, "vgg16": 5 * GIB}  # as params.yaml says beside regions_at_once


def saved_bytes(model, compute) -> tuple[int, torch.Tensor]:
    """Return (bytes that `compute` keeps for its backward pass beside the weights, its result)."""
    weights = {StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[StorageWeakRef(tensor.untyped_storage())] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    sizes = [t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights]
    return sum(sizes), result


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16"])
def test_the_memory_of_a_large_image_is_within_the_stated_budget(backbone):
    """By the sizes of tensors, on a device without any memory: fp32, 4000 proposals."""
    with torch.device("meta"):
        model, at_once = (
            ImagenetWspn(ImagenetWspnConfig(backbone, list(range(65)), 3, 0.5, regions)).train()
            for regions in (128, 4000)
        )
        freeze_stages(model.trunk, 2)
        pixels, boxes = torch.zeros(1, 3, 1200, 2000), torch.zeros(4000, 4)
    weights = sum(p.numel() * 4 for p in model.parameters())  # and gradient, and momentum
    trunk, feature_map = saved_bytes(model, lambda: model.feature_map(pixels))
    part, _ = saved_bytes(model, lambda: model.region_features(feature_map, boxes[:128]))
    heads, features = saved_bytes(model, lambda: model.region_features(feature_map, boxes))
    widest = 2 * 1200 * 2000 * 64 * 4 // (1 if backbone == "vgg16" else 4)  # in, out of a layer
    assert features.shape == (4000, 4096 if backbone == "vgg16" else 2048)
    assert 3 * weights + trunk + 2 * part + heads + features.numel() * 4 + widest < BUDGET[backbone]
    whole, _ = saved_bytes(at_once, lambda: at_once.region_features(feature_map, boxes))
    assert heads + part < whole / 5
