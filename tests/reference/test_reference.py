"""The stages agree with plain implementations of the same algorithms (tests/reference)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.activation.gradcam import token_activation
from stages.activation.rounds import iterate_masking
from stages.common.formats.images import normalise_pixels
from stages.common.geometry.activation_maps import enlarge_maps
from stages.common.geometry.box_coder import encode_boxes
from stages.common.geometry.boxes import pairwise_iou
from stages.common.geometry.masks import mask_iou
from stages.pseudo_boxes.select import choose_boxes
from stages.wspn.refine import refinement_targets
from stages.wspn.seeds import select_seeds
from tests.reference.activation import activation_maps, caption_activation
from tests.reference.boxes import choose_box
from tests.reference.masks import BACKGROUND, OBJECT, UNSEEDED, seed_labels, segment_crop
from tests.reference.seeds import choose_seeds, teach
from tests.support.boxes import random_boxes
from tests.support.images import disc_scene
from tests.support.small_albef import activation_params, random_images, small_albef, targets_of
from tests.support.tiny_wspn import SEED_PARAMS

CAPTIONS = [["a dog and a cup", "two cups near a hat"], ["a red hat", "a dog in the park"]]


def test_one_backward_for_all_captions_equals_one_for_each():
    model, tokenizer = small_albef()
    images = random_images(2)
    tokens = tokenizer.encode([c for group in CAPTIONS for c in group]).view(2, 2, -1)
    phi, score = token_activation(model, images, tokens, 0)
    for row in range(2):
        for column in range(2):
            expected, matching = caption_activation(model, images[row], tokens[row, column], 0)
            torch.testing.assert_close(phi[row, column], expected, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(score[row, column], matching, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", ["object", "image"])
@pytest.mark.parametrize(("union", "weigh_visible"), [("sum", True), ("max", True), ("sum", False)])
def test_batched_masking_equals_loops(scope, union, weigh_visible):
    model, tokenizer = small_albef()
    images = random_images(2)
    targets, *_ = targets_of(CAPTIONS, tokenizer)
    settings = activation_params(mask_scope=scope, union=union, weigh_visible=weigh_visible)
    maps, _ = iterate_masking(model, images, targets, settings)
    expected = activation_maps(model, images, targets, settings)
    assert maps.shape == expected.shape
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)


def test_integrals_choose_the_box_that_a_loop_over_pixels_chooses():
    generator = np.random.default_rng(0)
    maps = generator.random((3, 10, 15)).astype(np.float32)
    corners = np.sort(generator.uniform(-5, 65, (200, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0], corners[:, 1]], axis=1).astype(np.float32)
    boxes = np.rint(boxes)  # of whole pixels, as the loop has them
    best, scores = choose_boxes(maps, boxes, (40, 60), 0.5)
    for row, one in enumerate(enlarge_maps(maps, (40, 60))):
        index, score = choose_box(one, boxes)
        assert best[row] == index
        assert scores[row] == pytest.approx(score, rel=1e-2)


MIST = SEED_PARAMS.model_copy(update={"min_relative_score": 0.3})


@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 60),
    select=st.sampled_from(["mist", "oicr"]),
    top_fraction=st.floats(0.01, 1.0),
    max_iou=st.sampled_from([0.2, 0.25, 0.5, 1.0]),
    min_relative_score=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_all_seeds_at_once_are_those_of_a_loop(seed, count, **choice):
    # on whole pixels and with few scores, so that equal overlaps and equal scores do occur
    boxes = (random_boxes(seed, count) / 8).round() * 8
    overlaps = pairwise_iou(boxes, boxes)
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, (count, 3)).astype(np.float32) / 5
    settings = MIST.model_copy(update=choice)
    found = select_seeds(torch.from_numpy(scores), torch.from_numpy(boxes), settings)
    expected = [choose_seeds(own, overlaps, settings) for own in scores.T]
    assert [seeds.tolist() for seeds in found] == expected


@given(seed=st.integers(0, 2**31), count=st.integers(2, 80), chosen=st.floats(0, 1))
def test_seeds_that_overlap_by_just_the_limit_are_those_of_a_loop(seed, count, chosen):
    """Of boxes between the pixels, as proposals in a resized image are."""
    boxes = random_boxes(seed, count)
    overlaps = pairwise_iou(boxes, boxes)
    there = np.unique(overlaps[overlaps > 0])
    limit = float(there[int(chosen * (len(there) - 1))])
    scores = np.random.default_rng(seed).random((count, 2)).astype(np.float32)
    settings = MIST.model_copy(update={"max_iou": limit, "top_fraction": 1.0})
    found = select_seeds(torch.from_numpy(scores), torch.from_numpy(boxes), settings)
    expected = [choose_seeds(own, overlaps, settings) for own in scores.T]
    assert [seeds.tolist() for seeds in found] == expected


@pytest.mark.parametrize(
    "changes",
    [{}, {"neighbour_iou": 1.0, "power": 1.0, "top_fraction": 0.15}, {"select": "oicr"}],
    ids=["ours", "wetectron", "oicr"],
)
@pytest.mark.parametrize("named", [[1], [0, 2], [0, 1, 2, 3]])
def test_targets_of_all_scorings_are_those_of_a_loop(changes, named):
    # on whole pixels: overlaps are often equal, and the first seed counts
    boxes, labels = random_boxes(1, 150).round(), np.zeros(4, np.float32)
    labels[named] = 1
    scorings = np.random.default_rng(2).random((3, 150, 4)).astype(np.float32) ** 4
    settings = MIST.model_copy(update=changes)
    own = torch.from_numpy(boxes)
    targets = refinement_targets([*torch.from_numpy(scorings)], own, labels, settings, 0.5)
    for target, scores in zip(targets, scorings, strict=True):
        classes, weights, seed_boxes, overlap = teach(scores, boxes, labels, settings, 0.5)
        assert set(classes) <= {0, *(1 + place for place in named)} and len(set(classes)) > 1
        assert target.classes.tolist() == classes.tolist()
        assert target.weights.tolist() == weights.tolist()
        assert target.overlap.tolist() == overlap.tolist()
        assert torch.equal(target.offsets, encode_boxes(own, torch.from_numpy(seed_boxes)))


def test_official_seeds():
    active = np.zeros((30, 40), bool)
    active[12:18, 15:25] = True
    labels = seed_labels(active, 20, np.random.default_rng(0))
    assert (labels == BACKGROUND).sum() == 2 * 30 + 2 * 18  # a rectangle of 30 × 20
    rows, columns = np.nonzero(labels == OBJECT)
    assert active[rows, columns].all()
    assert labels[15, 20] == OBJECT
    assert (labels == UNSEEDED).any()
    nothing = seed_labels(np.zeros((30, 40), bool), 20, np.random.default_rng(0))
    assert (nothing == OBJECT).sum() > 50  # the disc of radius 5


def test_official_network_finds_a_disc():
    torch.manual_seed(0)
    image, activation, boxes, truth = disc_scene()
    left, top, right, bottom = boxes[0].astype(int)
    window = np.s_[top - 8 : bottom + 8, left - 8 : right + 8]
    labels = seed_labels(activation[0][window] > 0.5, 60, np.random.default_rng(0))
    crop = normalise_pixels(image[window][None])[0]
    mask, steps = segment_crop(crop, labels, steps=40)
    assert 1 <= steps <= 40
    assert mask_iou(mask, truth[window]) > 0.8
