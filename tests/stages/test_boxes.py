"""Stage boxes: the proposal that best holds the activation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.boxes.select import binarise_otsu, box_scores, choose_boxes
from stages.common.activation_maps import pixel_maps


def test_score_is_sum_over_square_root_of_area():
    maps = np.zeros((1, 10, 10), np.float32)
    maps[0, 2:6, 2:6] = 1.0  # 16 pixels
    boxes = np.array([[2, 2, 6, 6], [0, 0, 10, 10], [2, 2, 4, 4], [7, 7, 9, 9]], np.float32)
    scores = box_scores(maps, boxes, 0.5)
    np.testing.assert_allclose(scores, [[16 / 4, 16 / 10, 4 / 2, 0]])
    best, score = choose_boxes(maps, boxes, 0.5)
    assert best.tolist() == [0]
    assert score.tolist() == [4.0]


def test_area_power_decides_between_tight_and_loose():
    maps = np.full((1, 10, 10), 0.2, np.float32)
    maps[0, 4:6, 4:6] = 1.0
    boxes = np.array([[4, 4, 6, 6], [0, 0, 10, 10]], np.float32)
    assert choose_boxes(maps, boxes, 0.0)[0].tolist() == [1]  # most activation in sum
    assert choose_boxes(maps, boxes, 1.0)[0].tolist() == [0]  # highest mean


def test_first_of_equal_boxes_wins():
    maps = np.ones((2, 8, 8), np.float32)
    boxes = np.array([[0, 0, 4, 4], [4, 4, 8, 8]], np.float32)
    assert choose_boxes(maps, boxes, 0.5)[0].tolist() == [0, 0]


def test_no_proposal_is_an_error():
    with pytest.raises(ValueError, match="no proposal"):
        choose_boxes(np.ones((1, 4, 4), np.float32), np.zeros((0, 4), np.float32), 0.5)


corners = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 1, max(c[1], c[3]) + 1)
)


@settings(max_examples=50, deadline=None)
@given(st.lists(corners, min_size=1, max_size=5), st.integers(0, 2**31))
def test_integral_image_equals_direct_sum(boxes, seed):
    maps = np.random.default_rng(seed).random((2, 13, 13)).astype(np.float32)
    boxes_xyxy = np.array(boxes, np.float32)
    expected = [
        [
            m[y0:y1, x0:x1].sum() / (max(1, (min(x1, 13) - x0) * (min(y1, 13) - y0))) ** 0.5
            for x0, y0, x1, y1 in boxes
        ]
        for m in maps
    ]
    np.testing.assert_allclose(box_scores(maps, boxes_xyxy, 0.5), expected, rtol=1e-5)


def test_otsu_cuts_a_two_level_map():
    maps = np.full((1, 6, 6), 0.1, np.float32)
    maps[0, :3] = 0.9
    np.testing.assert_array_equal(binarise_otsu(maps)[0, :, 0], [1, 1, 1, 0, 0, 0])


def test_pixel_maps_cover_the_picture_and_a_constant_map_is_zero():
    cells = np.stack([np.eye(4, dtype=np.float32), np.full((4, 4), 0.3, np.float32)])
    maps = pixel_maps(cells, (20, 30), 0.05)
    assert maps.shape == (2, 20, 30)
    assert maps[0].min() == 0.0
    assert maps[0].max() == 1.0
    assert (maps[1] == 0).all()
