"""Boxes, the box coder, and recall@K."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.common.geometry.box_coder import decode_boxes, encode_boxes
from stages.common.geometry.boxes import (
    box_area,
    clip_boxes,
    pairwise_iou,
    xywh_to_xyxy,
    xyxy_to_xywh,
)
from stages.common.geometry.recall import NEVER, first_hits
from tests.support.boxes import box_mask, random_boxes

seeds = st.integers(0, 2**31)


def test_area_and_iou_by_hand():
    boxes = np.array([[0, 0, 4, 2], [3, 3, 1, 5], [2, 1, 2, 1]], np.float32)  # two are empty
    assert box_area(boxes).tolist() == [8, 0, 0]
    others = np.array([[2, 0, 6, 2], [4, 0, 6, 2], [2, 1, 2, 1]], np.float32)
    overlaps = pairwise_iou(boxes, others)
    assert overlaps[0] == pytest.approx([4 / 12, 0, 0])  # the second one touches it
    assert not overlaps[1:].any()


@given(seeds, seeds)
def test_iou_is_that_of_the_painted_pixels(seed, other):
    both = [random_boxes(k, 5).round() for k in (seed, other)]
    masks = [[box_mask(box, (64, 64)) for box in boxes] for boxes in both]
    expected = [[(m & o).sum() / (m | o).sum() for o in masks[1]] for m in masks[0]]
    np.testing.assert_allclose(pairwise_iou(*both), expected, rtol=1e-6)


@given(seeds)
def test_corners_and_sides_are_the_same_box(seed):
    boxes = random_boxes(seed, 5)
    np.testing.assert_allclose(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes, rtol=1e-6)
    assert xyxy_to_xywh(np.array([[1, 2, 4, 8]])).tolist() == [[1, 2, 3, 6]]


def test_clipped_boxes_keep_what_lies_in_the_image():
    boxes = np.array([[-1, -2, 5, 6], [1, 2, 9, 9], [20, 20, 30, 30]], np.float32)
    clipped = clip_boxes(boxes, (4, 8))
    assert clipped.tolist() == [[0, 0, 5, 4], [1, 2, 8, 4], [8, 4, 8, 4]]
    assert clipped.dtype == np.float32


def test_offsets_by_hand():
    box, target = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 25, 20]])
    # centre 5 → 15 in sides of 10, weighted by 10; width doubles, weighted by 5
    expected = torch.tensor([[10.0, 0.0, 5 * math.log(2), 0.0]])
    assert torch.allclose(encode_boxes(box, target), expected)


@given(st.integers(0, 2**31))
def test_decoding_inverts_encoding(seed):
    boxes = torch.from_numpy(random_boxes(seed, 10))
    shift = torch.from_numpy(random_boxes(seed + 1, 10)) - boxes
    targets = boxes + 0.3 * shift  # sides change by a factor below e
    near = ((targets[:, 2:] - targets[:, :2]) / (boxes[:, 2:] - boxes[:, :2])).log().abs()
    inside = (near < 1).all(1)
    decoded = decode_boxes(boxes, encode_boxes(boxes, targets), (64, 64))
    assert torch.allclose(decoded[inside], targets[inside], atol=1e-3)


@given(st.integers(0, 2**31))
def test_decoded_boxes_stay_in_the_image(seed):
    boxes = torch.from_numpy(random_boxes(seed, 10))
    offsets = torch.randn(10, 4, generator=torch.Generator().manual_seed(seed)) * 50
    decoded = decode_boxes(boxes, offsets, (64, 80))
    assert decoded.min() >= 0 and decoded[:, [0, 2]].max() <= 80 and decoded[:, [1, 3]].max() <= 64
    assert ((decoded[:, 2:] - decoded[:, :2]) >= 0.999).all()


def test_first_hits_of_ordered_boxes():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 10, 10], [0, 0, 10, 9], [12, 12, 14, 14]], np.float32)
    objects = np.array([[0, 0, 10, 10], [0, 0, 4, 5], [5, 5, 20, 20]], np.float32)
    assert first_hits(boxes, objects).tolist() == [2, 1, NEVER]
    assert first_hits(boxes[:0], objects).tolist() == [NEVER] * 3
