import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.ops import roi_align

from stages.common.runtime.curves import Curve
from stages.common.runtime.storage import write_json, write_tensors
from stages.models.architectures.mask_rcnn.heads import RegionMeans
from stages.models.backbones.roi_align import PyramidPooling, pool_regions
from stages.models.detection import detector
from stages.models.detection.detector import (
    LossSettings,
    bounded_batches,
    load,
    save,
    to_unit_range,
)
from stages.models.detection.initial_weights import load_trunk
from stages.models.detection.params import ProposalLimits, TrainingParams, network_params
from stages.models.detection.paste_masks import paste_masks
from stages.models.detection.samples import label_images, read_annotations, training_sample
from stages.models.detection.supervision import Supervision
from stages.models.detection.text_classifier import TextClassifier, classification_loss
from stages.models.detection.training import make_schedule, train_detector
from tests.support.tiny_detector import (
    EMBEDDINGS,
    HOURGLASS,
    NETWORK,
    RESNETS,
    TRAINING,
    WITH_HOURGLASS,
    annotate,
    draw,
    make_image,
    predict,
    tiny_detector,
)
from tests.support.tiny_hourglass import labelled


def classifier(similarity: str, temperature: float, background: str) -> TextClassifier:
    model = TextClassifier(2, torch.tensor([[1.0, 0], [0, 1]]), similarity, temperature, background)
    model.projection.weight.data = torch.eye(2)
    return model


def test_dot_product_against_fixed_texts_with_the_zero_background():
    logits = classifier("dot", 0.5, "zero")(torch.tensor([[3.0, 4.0]]))
    assert torch.equal(logits, torch.tensor([[0.0, 6.0, 8.0]]))


def test_cosine_divides_by_both_lengths_and_learned_background_counts():
    model = classifier("cosine", 0.1, "learned")
    model.background.data = torch.tensor([0.0, -7.0])
    logits = model(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(logits, torch.tensor([[-8.0, 6.0, 8.0]]))


@pytest.mark.parametrize(("similarity", "length"), [("dot", 10.0), ("cosine", 1.0)])
def test_learned_background_begins_as_long_as_the_texts_where_lengths_count(similarity, length):
    texts = torch.tensor([[0.0, 8.0], [12.0, 0.0]])
    model = TextClassifier(2, texts, similarity, 1.0, "learned")
    assert float(model.background.detach().norm()) == pytest.approx(length)
    assert torch.equal(model.embeddings, texts)


def test_length_of_the_texts_counts_for_the_dot_product_and_not_for_the_cosine():
    features, texts = torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0, 0.0], [0.0, 5.0]])
    for similarity, expected in {"dot": [0.0, 30.0, 20.0], "cosine": [0.0, 0.6, 0.8]}.items():
        model = classifier(similarity, 1.0, "zero")
        model.begin_with(texts)
        torch.testing.assert_close(model(features), torch.tensor([expected]))


def test_a_restricted_vocabulary_leaves_classes_out_of_the_softmax():
    model, features = classifier("dot", 1.0, "zero"), torch.tensor([[3.0, 4.0]])
    assert torch.equal(model(features, [1]), torch.tensor([[0.0, 4.0]]))
    assert torch.equal(model(features, [1, 0]), torch.tensor([[0.0, 4.0, 3.0]]))


def test_background_counts_less_in_the_classification_loss():
    # Cross-entropy of equal logits is log 2 for each; of logits (0, log 3) and class: log 4/3.
    logits = torch.tensor([[0.0, 0.0], [0.0, np.log(3.0)]])
    loss = classification_loss(logits, torch.tensor([0, 1]), background_weight=0.2)
    assert loss.item() == pytest.approx((0.2 * np.log(2) + np.log(4 / 3)) / 1.2)


def test_projection_is_trained_and_texts_are_not():
    names = {name for name, _ in classifier("dot", 1.0, "learned").named_parameters()}
    assert names == {"projection.weight", "projection.bias", "background"}


@pytest.mark.parametrize("hw", [(16, 20), (80, 80)])
def test_pooling_by_matrix_products_equals_torchvision(hw):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, *hw, generator=generator, requires_grad=True)
    boxes = torch.rand(12, 4, generator=generator) * 90 - 5
    boxes[:, 2:] += boxes[:, :2].abs()
    image = torch.tensor([0] * 5 + [2] * 7)
    pooled = pool_regions(features, boxes, image, 4, 8, 4)
    regions = torch.cat([image[:, None].float(), boxes], 1)
    expected = roi_align(features, regions, 4, 1 / 8, 2, aligned=True)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)
    own, theirs = (torch.autograd.grad(x.square().sum(), features)[0] for x in (pooled, expected))
    torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-3)


def test_regions_come_from_the_level_of_their_size_and_keep_their_order():
    levels = {str(k): torch.full((2, 1, 32 >> k, 32 >> k), float(k)) for k in range(3)}
    pooling = PyramidPooling((4, 8, 16), True, 2, canonical_side=56)
    boxes = torch.tensor([[0.0, 0, 120, 120], [0, 0, 20, 20], [0, 0, 60, 60]])
    pooled = pooling(levels, [boxes, boxes[:0]], [(128, 128)] * 2)
    assert pooled[:, 0, 0, 0].tolist() == [2.0, 0.0, 1.0]
    assert pooling(levels, [boxes[:0]] * 2, [(128, 128)] * 2).shape == (0, 1, 2, 2)


@given(st.integers(0, 20), st.integers(0, 12), st.integers(1, 15), st.integers(1, 15))
def test_a_full_mask_fills_its_box_and_nothing_else(x, y, width, height):
    box = torch.tensor([[x, y, x + width, y + height]]).float()
    mask = paste_masks(torch.ones(1, 7, 7), box, (20, 30)).numpy()[0]
    expected = np.zeros((20, 30), bool)
    expected[y : y + height, x : x + width] = True
    assert np.array_equal(mask, expected)


def paste_over_the_whole_image(probabilities, boxes_xyxy, image_hw):
    """Return the masks by matrix products of all rows and columns of the image."""
    sides, edges = image_hw, (boxes_xyxy[:, 1::2], boxes_xyxy[:, ::2])
    cells, weights = probabilities.shape[1], []
    for pixels, ends in zip(sides, edges, strict=True):
        low, high = ends.unbind(1)
        position = (torch.arange(pixels) + 0.5 - low[:, None]) / (high - low)[:, None]
        cell = (position * cells - 0.5).clamp(0, cells - 1)
        weight = (1 - (cell[..., None] - torch.arange(cells)).abs()).clamp(min=0)
        weights.append(weight * ((position >= 0) & (position <= 1))[..., None])
    return weights[0] @ probabilities @ weights[1].transpose(1, 2) > 0.5


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(33, 300), st.integers(33, 300), st.sampled_from([14, 28]))
def test_masks_pasted_in_their_windows_are_those_of_the_whole_image(seed, height, width, cells):
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height]) * 1.0
    corners = torch.rand(5, 2, 2, generator=generator) ** 2 * size * 1.1 - 3
    low = corners.amin(1)
    boxes = torch.cat([low, torch.maximum(corners.amax(1), low + 0.02)], 1)
    probabilities = torch.rand(5, cells, cells, generator=generator)
    pasted = paste_masks(probabilities, boxes, (height, width))
    assert torch.equal(pasted, paste_over_the_whole_image(probabilities, boxes, (height, width)))


def test_a_pasted_mask_follows_its_cells():
    cells = torch.zeros(1, 2, 2)
    cells[0, :, 0] = 1.0
    mask = paste_masks(cells, torch.tensor([[2.0, 1.0, 10.0, 5.0]]), (6, 12)).numpy()[0]
    assert np.array_equal(np.argwhere(mask.any(0)).ravel(), [2, 3, 4, 5])
    assert np.array_equal(np.argwhere(mask.any(1)).ravel(), [1, 2, 3, 4])


def test_heads_do_not_know_classes():
    model = tiny_detector()
    features = {str(k): torch.zeros(1, 16, 16 >> k, 16 >> k) for k in range(3)}
    regions, deltas = model.regions.describe(features, [torch.rand(6, 4).cumsum(1)], [(64, 64)])
    assert (regions.shape, deltas.shape) == ((6, 32), (6, 4))
    assert model.regions.mask_head(torch.zeros(6, 16, 7, 7)).shape == (6, 1, 14, 14)


def test_ignored_boxes_are_neither_object_nor_background():
    model = tiny_detector()
    anchors = [torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40], [50, 0, 60, 10]])]
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [30, 30, 41, 40]]),
        "labels": torch.tensor([1, -1]),
    }
    assert model.proposals.assign_targets_to_anchors(anchors, [target])[0][0].tolist() == [1, -1, 0]
    _, labels = model.regions.assign_targets_to_proposals(
        anchors, [target["boxes"]], [target["labels"]]
    )
    assert labels[0].tolist() == [1, -1, 0]


def test_what_lies_in_a_crowd_is_no_background_and_an_object_in_it_is_one():
    model = tiny_detector()
    # An object in the crowd, one on the object, one beside the crowd, and one on its edge.
    boxes = [[40.0, 0, 50, 10], [20, 20, 30, 30], [70, 0, 80, 10], [54, 0, 64, 10]]
    target = {
        "boxes": torch.tensor([[20.0, 20, 30, 31], [0, 0, 60, 60]]),
        "labels": torch.tensor([1, -1]),
    }
    anchors, expected = [torch.tensor(boxes)], [-1, 1, 0, -1]
    assert model.proposals.assign_targets_to_anchors(anchors, [target])[0][0].tolist() == expected
    matched, labels = model.regions.assign_targets_to_proposals(
        anchors, [target["boxes"]], [target["labels"]]
    )
    assert labels[0].tolist() == expected and matched[0].tolist() == [0] * 4


def test_an_image_in_a_crowd_has_losses_of_0():
    model = tiny_detector().train()
    target = {
        "boxes": torch.tensor([[-200.0, -200, 300, 300]]),
        "labels": torch.tensor([-1]),
        "masks": torch.zeros((0, 64, 64), dtype=torch.uint8),
    }
    losses = model.losses([torch.rand(3, 64, 64)], [target], LossSettings(None, 1.0))
    sum(losses.values()).backward()
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def trained(tmp_path, steps: int, **changes):
    write_json(tmp_path / "truth.json", annotate([1, 2, 3, 4]))
    annotations = read_annotations(tmp_path / "truth.json", {3: 1, 5: 2}, [3, 5])
    images = label_images(
        map(make_image, (1, 2, 3, 4)), annotations, {3: 1, 5: 2}, tmp_path / "truth.json"
    )
    model, curve = tiny_detector(), Curve(every=10)
    params = TrainingParams.model_validate(TRAINING | {"steps": steps, "batch_size": 4} | changes)
    train_detector(model, Supervision.of(images), params, 0, curve)
    return model, curve


def test_four_images_are_learned(tmp_path):
    model, curve = trained(tmp_path, 80, learning_rate=0.01, colour_jitter=0.0)
    rows = curve.state()["rows"]
    for name in ("objectness", "classification", "mask"):
        assert rows[-1][f"loss_{name}"] < 0.6 * rows[0][f"loss_{name}"], name
    image, masks = draw(1)
    (every,), (novel,) = predict(model, [image], [[0, 1], [1]])
    assert every.scores[0] > 0.5 and every.labels[0] in (0, 1)
    found = masks[3 if every.labels[0] == 0 else 5]
    assert (every.masks[0] & found).sum() / (every.masks[0] | found).sum() > 0.5
    assert set(novel.labels.tolist()) == {1}


def test_a_training_that_diverges_stops_and_says_so(tmp_path):
    away = {"optimizer": {"kind": "sgd", "momentum": 0.9}, "gradient_clip": float("inf")}
    with pytest.raises(ValueError, match=r"losses of step \d+ are .*nan.*learning_rate"):
        trained(tmp_path, 20, learning_rate=1e6, **away)


@pytest.mark.usefixtures("true_bfloat16")
def test_bfloat16_trains_close_to_float32(tmp_path):
    losses = [trained(tmp_path, 10, precision=p)[1].last() for p in ("fp32", "bf16")]
    assert losses[0]["loss_classification"] != losses[1]["loss_classification"]
    assert losses[1] == pytest.approx(losses[0], rel=0.2, abs=0.05)


def test_predictions_are_in_the_frame_of_each_image():
    images = [np.zeros((50, 90, 3), np.uint8), np.zeros((33, 21, 3), np.uint8)]
    all_classes, none = predict(tiny_detector(), images, [[0, 1], [1]], score_threshold=0.0)
    for image, found in zip(images, all_classes, strict=True):
        assert found.masks.shape[1:] == image.shape[:2] and found.masks.dtype == bool
        assert 0 < len(found.masks) == len(found.boxes_xyxy) <= 5
        assert found.boxes_xyxy.dtype == np.float32 and found.labels.dtype == np.int64
        assert (found.boxes_xyxy[:, 2] <= image.shape[1] + 1e-3).all()
        assert (np.diff(found.scores) <= 0).all()
    assert all(set(found.labels.tolist()) == {1} for found in none)


def test_what_remains_is_chosen_in_inference():
    """Each setting acts, and the weights know none of them."""
    model, image = tiny_detector(), draw(1)[0]

    def found(**changes):
        usual = {"score_threshold": 0.0, "detections_per_image": 1000, "nms_iou": 1.0}
        return predict(model, [image], [[0, 1]], **usual | changes)[0][0]

    every = found()
    assert len(every.scores) == 2 * 10  # classes × proposals
    assert len(found(post_nms_top_n=4).scores) == 2 * 4
    assert len(found(pre_nms_top_n=1).scores) <= 2 * 3  # one of each level
    assert len(found(detections_per_image=3).scores) == 3
    assert len(found(nms_iou=0.1).scores) < len(every.scores)
    middle = float(np.median(every.scores))
    assert (found(score_threshold=middle).scores > middle).all()
    limits = ProposalLimits(pre_nms_top_n=50, post_nms_top_n=4)
    assert len(model.propose(to_unit_range(image), limits)) == 4


def test_large_images_are_held_one_at_a_time(monkeypatch):
    monkeypatch.setattr(detector, "MASK_BYTES", 5 * 100)
    sizes = [(10, 10), (10, 10), (10, 5), (30, 30), (1, 1), (1, 1), (1, 1), (1, 1)]
    batches = bounded_batches(sizes, lambda hw: hw, masks_per_image=2, most=3)
    assert list(batches) == [sizes[:3], sizes[3:4], sizes[4:7], sizes[7:]]


def test_an_image_without_detections_gives_empty_arrays():
    image = np.zeros((64, 64, 3), np.uint8)
    found = predict(tiny_detector(), [image], [[0]], score_threshold=0.999999)
    assert found[0][0].boxes_xyxy.shape == (0, 4)
    assert found[0][0].masks.shape == (0, 64, 64)


def test_a_saved_detector_predicts_the_same(tmp_path):
    model, path = tiny_detector(), tmp_path / "model.safetensors"
    save(path, model)
    images = [draw(1)[0], draw(2)[0]]
    before, after = predict(model, images, [[0, 1]]), predict(load(path), images, [[0, 1]])
    for own, other in zip(before[0], after[0], strict=True):
        for name in ("boxes_xyxy", "labels", "scores", "masks"):
            assert np.array_equal(getattr(own, name), getattr(other, name)), name


def test_other_files_are_no_detector(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"x\.safetensors: not a detector"):
        load(tmp_path / "x.safetensors")
    model = tiny_detector()
    facts = {"network": NETWORK | {"mask_head": NETWORK["mask_head"] | {"channels": 4}}}
    write_tensors(tmp_path / "y.safetensors", model.state_dict(), facts)
    with pytest.raises(ValueError, match=r"y\.safetensors: weights do not fit"):
        load(tmp_path / "y.safetensors")
    write_tensors(tmp_path / "z.safetensors", {}, {"network": NETWORK | {"older": 1}})
    with pytest.raises(ValueError, match=r"z\.safetensors: .* version of this code \(older: .*\);"):
        load(tmp_path / "z.safetensors")


def test_a_trunk_of_another_size_is_refused(tmp_path):
    wide = tiny_detector(backbone=NETWORK["backbone"] | {"width": 16}).backbone.trunk
    path = tmp_path / "vlm.safetensors"
    write_tensors(path, {f"trunk.{k}": v for k, v in wide.state_dict().items()})
    with pytest.raises(ValueError, match=r"vlm\.safetensors: its trunk does not fit .* vlm\.model"):
        load_trunk(tiny_detector(), path)


def test_learning_rate_warms_up_and_falls_to_a_fiftieth():
    params = TrainingParams.model_validate(TRAINING | {"steps": 100, "warmup_steps": 10})
    rates = [*map(make_schedule(params), range(100))]
    assert rates[0] == pytest.approx(0.0003)
    assert max(rates) < 0.003 and rates[9] == max(rates)
    assert rates[-1] == pytest.approx(0.02 * 0.003, rel=0.02)


def test_embeddings_are_kept_with_the_weights():
    kept = tiny_detector().state_dict()["regions.box_predictor.classifier.embeddings"]
    assert functional.mse_loss(kept, EMBEDDINGS).item() == 0


def test_frozen_parts_keep_weights_and_statistics(tmp_path):
    frozen = ["trunk", "proposals", "mask_head"]
    model, _ = trained(tmp_path, 2, frozen=frozen)
    before, after = tiny_detector().parts(), model.parts()
    for name, part in before.items():
        same = [
            torch.equal(value, after[name].state_dict()[key])
            for key, value in part.state_dict().items()
        ]
        assert all(same) if name in frozen else not all(same), name


@pytest.mark.parametrize("changes", [{}, *RESNETS.values()], ids=["trunk", *RESNETS])
def test_an_hourglass_learns_in_given_boxes_whatever_is_proposed(changes):
    model = tiny_detector(**changes | WITH_HOURGLASS).train()
    samples = [training_sample(p, np.random.default_rng(0), False, 0.0) for p in labelled()]
    images, targets = map(list, zip(*samples, strict=True))

    def losses() -> dict[str, float]:
        torch.manual_seed(0)
        with torch.no_grad():
            found = model.losses(images, targets, LossSettings(None, 1.0))
        return {name: loss.item() for name, loss in found.items()}

    before = losses()
    for weight in model.proposals.head.parameters():
        weight.data *= -20
    after = losses()
    assert after["mask"] == pytest.approx(before["mask"], rel=1e-4)
    assert after["box"] != pytest.approx(before["box"], rel=1e-2)


def test_the_instance_is_the_mean_of_the_region():
    level = torch.zeros(2, 3, 16, 16)
    level[0, 0, :, 8:], level[1, 2] = 1.0, 5.0  # the right half of the first image
    read = RegionMeans(PyramidPooling((4,), True, 4, canonical_side=56))
    boxes = [torch.tensor([[16.0, 16, 48, 48], [40, 8, 60, 60]]), torch.tensor([[0.0, 0, 9, 9]])]
    expected = torch.tensor([[0.5, 0, 0], [1.0, 0, 0], [0, 0, 5.0]])
    torch.testing.assert_close(read([level], boxes), expected)


def test_an_hourglass_needs_levels_that_it_can_normalise():
    narrow = {"backbone": NETWORK["backbone"] | {"pyramid_width": 12}}
    network_params("mask_rcnn").model_validate(NETWORK | narrow)
    with pytest.raises(ValueError, match=r"backbone\.pyramid_width: .* multiple of 8, found 12"):
        network_params("mask_rcnn").model_validate(NETWORK | narrow | WITH_HOURGLASS)
    deep = {"mask_head": {"kind": "hourglass", **HOURGLASS, "depth": 52}}
    with pytest.raises(ValueError, match=r"crop_side: expected a multiple of 32, .* found 16"):
        network_params("mask_rcnn").model_validate(NETWORK | deep)
