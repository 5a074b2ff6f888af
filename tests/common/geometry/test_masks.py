"""Masks and their run-length encoding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.common.geometry.masks import (
    check_rle,
    decode_mask,
    encode_mask,
    encode_window,
    mask_box,
    mask_iou,
    pairwise_mask_iou,
)

two_masks = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30)))
def test_every_mask_is_a_right_rle_of_its_size_alone(mask):
    rle, shape = encode_mask(mask), mask.shape
    check_rle(rle, shape)
    assert (decode_mask(rle, shape) == mask).all()
    for size in ((shape[0] + 1, shape[1]), (shape[0], shape[1] + 1)):
        with pytest.raises(ValueError, match="not runs that add up"):
            check_rle(rle | {"size": list(size)}, size)


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.data(),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.integers(0, 2**31),
)
def test_a_window_is_encoded_as_the_whole_mask(height, width, data, filled, seed):
    left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    window = np.random.default_rng(seed).random((bottom - top, right - left)) < filled
    whole = np.zeros((height, width), bool)
    whole[top:bottom, left:right] = window
    assert encode_window(window, (left, top), (height, width)) == encode_mask(whole)


@given(two_masks)
def test_iou_is_the_same_of_masks_and_of_their_rle(masks):
    one, other = masks
    union = (one | other).sum()
    expected = (one & other).sum() / union if union else 0.0
    assert mask_iou(one, other) == expected
    found = pairwise_mask_iou([encode_mask(one)], [encode_mask(other)])
    if union:
        assert found[0, 0] == pytest.approx(expected)
    assert pairwise_mask_iou([], [encode_mask(one)]).shape == (0, 1)


def test_the_box_of_a_mask_is_tight():
    mask = np.zeros((6, 9), bool)
    assert mask_box(mask).tolist() == [0, 0, 0, 0]
    mask[2, 3] = mask[4, 7] = True
    assert mask_box(mask).tolist() == [3, 2, 8, 5]
