import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.formats.categories import Category
from stages.common.geometry.boxes import pairwise_iou
from stages.common.runtime.curves import Curve
from stages.common.runtime.storage import read_tensors, write_json, write_tensors
from stages.models.proposals.base import class_scores, consensus
from stages.models.proposals.file import load_wspn, save_wspn
from stages.models.proposals.language import EVIDENCE_FEATURES, LanguageWspn
from stages.models.proposals.views import network_input
from stages.wspn.classify import image_label_loss, image_scores, train_class_part
from stages.wspn.examples import (
    ImageExample,
    annotated_labels,
    choose_images,
    image_labels,
    make_examples,
)
from stages.wspn.localise import (
    ObjectTargets,
    find_seeds,
    localisation_loss,
    object_targets,
    train_object_part,
)
from stages.wspn.params import ClassifyParams, LocaliseParams
from stages.wspn.seeds import select_seeds
from tests.support.boxes import WHOLE_AND_PART, random_boxes
from tests.support.images import noise_image
from tests.support.tiny_wspn import LANGUAGE_WSPN, SEED_PARAMS, tiny_wspn

CLASSIFY = ClassifyParams(
    epochs=2, batch_size=2, proposals_per_visit=6, learning_rate=0.01, weight_decay=0.0
)
LOCALISE = LocaliseParams(
    quality="overlap",
    quality_min_iou=0.1,
    regression_min_iou=0.4,
    regression_weight=0.5,
    epochs=2,
    batch_size=8,
    learning_rate=0.01,
    weight_decay=0.0,
)


def examples_of(model: LanguageWspn, count: int = 4) -> list[ImageExample]:
    boxes = {k: random_boxes(k, 12) for k in range(count)}
    labels = {k: np.array([k % 2, 1 - k % 2], np.float32) for k in range(count)}
    return list(make_examples(model, map(noise_image, range(count)), boxes, labels, 100, 0))


def test_image_score_and_loss_by_hand():
    # equal logits, 2 classes, 4 proposals: w = 1/2 · 1/4, p_c = 4 · 1/8 = 1/2
    scores = class_scores(torch.zeros(4, 2), torch.zeros(4, 2))
    assert torch.allclose(scores, torch.full((4, 2), 0.125))
    assert torch.allclose(image_scores(scores), torch.tensor([0.5, 0.5]))
    loss = image_label_loss(scores, torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(2 * math.log(2))


def test_a_class_beside_a_saturated_one_still_learns():
    classes = torch.tensor([[20.0, 0.0]] * 3, requires_grad=True)  # p of the second class: 2e-9
    scores = class_scores(classes, torch.zeros(3, 2))
    image_label_loss(scores, torch.tensor([1.0, 1.0])).backward()
    assert classes.grad[:, 1].sum().item() == pytest.approx(-1, rel=1e-3)


def test_the_two_softmaxes_run_in_different_directions():
    classes = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # 3/4, 1/4 and 1/2, 1/2
    detection = torch.tensor([[math.log(4), 0.0], [0.0, 0.0]])  # 4/5, 1/5 and 1/2, 1/2, by column
    expected = torch.tensor([[0.75 * 0.8, 0.25 * 0.5], [0.5 * 0.2, 0.5 * 0.5]])
    assert torch.allclose(class_scores(classes, detection), expected)


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 8), st.floats(0.1, 60))
def test_image_scores_are_probabilities(seed, proposals, classes, spread):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, proposals, classes, generator=generator) * spread
    p = image_scores(class_scores(*logits))
    assert ((p >= 0) & (p < 1)).all()
    assert torch.isfinite(image_label_loss(class_scores(*logits), torch.ones(classes)))


OVERLAPS = pairwise_iou(WHOLE_AND_PART, WHOLE_AND_PART)


def test_consensus_prefers_the_whole_to_the_part():
    scores = np.array([[0.0016], [0.0016], [0.0625], [0.0]])  # WSDDN likes the part
    agreed = consensus(scores, OVERLAPS, neighbour_iou=0.3, power=0.25)
    # fourth roots 0.2, 0.2, 0.5: the whole has 0.2 + 0.9 · 0.2, the part only itself
    assert agreed[:, 0] == pytest.approx([0.38, 0.38, 0.5, 0.0])
    agreed = consensus(scores, OVERLAPS, neighbour_iou=0.2, power=0.25)
    assert agreed[:, 0] == pytest.approx([0.505, 0.38 + 0.5 / 3.6, 0.5 + 0.05 + 0.2 / 3.6, 0.0])
    alone = consensus(scores, OVERLAPS, neighbour_iou=1.0, power=0.25)
    assert np.argmax(alone) == 2 and alone[0, 0] == pytest.approx(0.2)


def test_without_neighbours_scores_enter_no_product_that_could_round():
    scores = torch.tensor([[0.5001], [0.5002], [0.5003]])
    rounding = torch.eye(3) * 0.9999  # stands for TF32, which only a GPU has
    assert torch.equal(consensus(scores, rounding, neighbour_iou=1.0, power=1.0), scores)


def seeds_of(scores: list[float], **changes) -> list[int]:
    """Return the seeds of one class among the first boxes of WHOLE_AND_PART."""
    usual = {"select": "mist", "top_fraction": 1.0, "max_iou": 0.2, "min_relative_score": 0.0}
    params = SEED_PARAMS.model_copy(update=usual | changes)
    boxes = torch.from_numpy(WHOLE_AND_PART[: len(scores)])
    (seeds,) = select_seeds(torch.tensor(scores)[:, None], boxes, params)
    return seeds.tolist()


def test_seed_selection_by_hand():
    scores = [0.5, 0.9, 0.4, 0.3]
    assert seeds_of(scores, select="oicr") == [1]
    # greedily: 1 first; 0 and 2 overlap it by 0.9 and 0.28; 3 is far away
    assert seeds_of(scores) == [1, 3]
    assert seeds_of(scores, top_fraction=0.75) == [1]
    assert seeds_of(scores, max_iou=0.3) == [1, 2, 3]
    # 0.3 is less than half of 0.9
    assert seeds_of(scores, min_relative_score=0.5) == [1]
    assert seeds_of(scores[:1], top_fraction=0.15) == [0]


def test_a_suppressed_candidate_suppresses_nobody():
    # IoU 0-1: 0.5, 1-2: 0.5, 0-2: 0.2
    boxes = torch.tensor([[0.0, 0, 12, 6], [4, 0, 16, 6], [8, 0, 20, 6]])
    scores = torch.tensor([[3.0, 1], [2, 2], [1, 3]])
    params = SEED_PARAMS.model_copy(update={"top_fraction": 1.0, "max_iou": 0.3})
    assert [seeds.tolist() for seeds in select_seeds(scores, boxes, params)] == [[0, 2], [2, 0]]


def test_localisation_loss_by_hand():
    targets = ObjectTargets(
        evidence=torch.zeros(2, 1),
        quality=torch.tensor([0.5, 0.0]),
        offsets=torch.tensor([[2.0, 0, 0, 0], [9.0, 9, 9, 9]]),
        has_quality=torch.tensor([True, False]),
        has_offsets=torch.tensor([True, False]),
    )
    losses = localisation_loss(torch.zeros(2), torch.zeros(2, 4), targets, regression_weight=3.0)
    assert losses["quality"].item() == pytest.approx(math.log(2) / 2)
    assert losses["regression"].item() == pytest.approx(3 * 1.5 / 2)  # smooth-L1(2) = 2 - 1/2


def example(boxes: np.ndarray) -> ImageExample:
    evidence = torch.zeros(len(boxes), EVIDENCE_FEATURES).half()
    return ImageExample(1, torch.ones(1), boxes, torch.zeros(len(boxes), 1).half(), evidence)


def test_far_proposals_teach_nothing_unless_objectness_is_asked_for():
    seeds = [np.array([0])]
    targets = object_targets([example(WHOLE_AND_PART)], seeds, LOCALISE)
    assert targets.quality.tolist() == pytest.approx([1.0, 0.9, 0.25])  # the far box is left out
    assert targets.has_offsets.tolist() == [True, True, False]
    assert torch.allclose(targets.offsets[0], torch.zeros(4))
    as_usual = LOCALISE.model_copy(update={"quality": "objectness"})
    targets = object_targets([example(WHOLE_AND_PART)], seeds, as_usual)
    assert targets.quality.tolist() == [1.0, 1.0, 0.0, 0.0] and targets.has_quality.all()


def test_image_labels_keep_base_classes_only():
    categories = [
        Category(1, "dog", "base", ("dog", "dogs")),
        Category(2, "hot dog", "novel", ("hot dog",)),
        Category(5, "cup", "base", ("cup", "cups")),
    ]
    captions = {4: ["two Cups", "a hot dog"], 9: ["a dog"], 10: ["the sky"]}
    base = [category.id for category in categories if category.split == "base"]
    labels = image_labels(captions, categories, base)
    assert {k: row.tolist() for k, row in labels.items()} == {4: [0, 1], 9: [1, 0], 10: [0, 0]}


def test_annotated_labels_by_hand(tmp_path):
    entries = [[{"image_id": 4, "category_ids": [9, 30]}], [{"image_id": 9, "category_ids": []}]]
    paths = [tmp_path / f"{shard}.json" for shard in (0, 1)]
    for path, own in zip(paths, entries, strict=True):
        write_json(path, own)
    labels = annotated_labels(paths, [9, 12, 30])
    assert {k: row.tolist() for k, row in labels.items()} == {4: [1, 0, 1], 9: [0, 0, 0]}


def test_images_are_chosen_whatever_their_order():
    chosen = choose_images(range(50), 10, seed=3)
    assert len(chosen) == 10 and chosen == choose_images(reversed(range(50)), 10, seed=3)
    assert chosen != choose_images(range(50), 10, seed=4)


def test_proposals_are_thinned_out_the_same_way_each_time():
    model, boxes = tiny_wspn(), {1: random_boxes(1, 30)}
    first, second = (
        next(make_examples(model, [noise_image(1)], boxes, {}, 8, 0)) for _ in range(2)
    )
    assert len(first.boxes_xyxy) == 8 and np.array_equal(first.boxes_xyxy, second.boxes_xyxy)
    assert first.labels.tolist() == [0, 0]


def test_boxes_follow_the_image_to_the_networks_size():
    pixels, scale = network_input(np.zeros((50, 200, 3), np.uint8), 128)
    assert tuple(pixels.shape) == (1, 3, 32, 128)
    assert scale.tolist() == pytest.approx([0.64] * 4)


def test_an_image_without_proposals_is_named():
    with pytest.raises(ValueError, match=r"image 8 \(8\.png\) has no row in data/proposals"):
        list(make_examples(tiny_wspn(), [noise_image(8)], {}, {}, 10, 0))


def test_no_label_at_all_is_an_error():
    model = tiny_wspn()
    unlabelled = [e._replace(labels=torch.zeros(2)) for e in examples_of(model)]
    with pytest.raises(ValueError, match="no training image has an image label"):
        train_class_part(model, unlabelled, CLASSIFY, 0, Curve(every=1))


def test_one_image_with_one_proposal_and_one_word_gives_finite_numbers():
    model = tiny_wspn()
    model.words = model.words[:1]
    boxes, labels = {1: random_boxes(1, 1)}, {1: np.array([1, 0], np.float32)}
    (one,) = make_examples(model, [noise_image(1)], boxes, labels, 9, 0)
    assert torch.isfinite(one.evidence).all() and len(one.evidence) == 1
    train_class_part(model, [one], CLASSIFY, 0, Curve(every=1))
    targets = object_targets([one], [np.array([0])], LOCALISE)
    train_object_part(model, targets, LOCALISE, 0, Curve(every=1), 0)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_the_same_seed_gives_the_same_weights_and_the_trunk_stays():
    trained = []
    for _ in range(2):
        model = tiny_wspn()
        before = {k: v.clone() for k, v in model.trunk.state_dict().items()}
        examples = examples_of(model)
        train_class_part(model, examples, CLASSIFY, 0, Curve(every=1))
        seeds = [find_seeds(model, e, SEED_PARAMS) for e in examples]
        targets = object_targets(examples, seeds, LOCALISE)
        curve = Curve(every=1)
        train_object_part(model, targets, LOCALISE, 0, curve, done=4)
        assert {"loss_quality", "loss_regression"} <= curve.last().keys()
        assert all(torch.equal(v, model.trunk.state_dict()[k]) for k, v in before.items())
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@settings(max_examples=5)
@given(st.permutations(range(12)))
def test_features_of_a_box_do_not_depend_on_its_neighbours(order):
    model = tiny_wspn()
    boxes = torch.from_numpy(random_boxes(0, 12))
    maps = model.feature_maps(network_input(noise_image(0).decode(), 64)[0])
    assert torch.equal(model.evidence(maps, boxes)[list(order)], model.evidence(maps, boxes[order]))


def test_weights_come_back_and_foreign_ones_are_refused(tmp_path):
    model, path = tiny_wspn(), tmp_path / "model.safetensors"
    save_wspn(path, model)
    loaded = load_wspn(path)
    assert loaded.config == LANGUAGE_WSPN
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    weights, facts = read_tensors(path)
    write_tensors(path, weights, {**facts, "class_hidden": 9})
    with pytest.raises(ValueError, match=r"model\.safetensors: not weights of this WSPN"):
        load_wspn(path)
