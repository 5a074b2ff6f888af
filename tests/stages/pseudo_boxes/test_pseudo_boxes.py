"""Stage boxes: the proposal that best holds the activation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.geometry.activation_maps import enlarge_maps, smooth_maps
from stages.pseudo_boxes.select import binarise_otsu, box_scores, choose_boxes


def test_score_is_sum_over_square_root_of_area():
    maps = np.zeros((1, 10, 10), np.float32)
    maps[0, 2:6, 2:6] = 1.0
    boxes = np.array([[2, 2, 6, 6], [0, 0, 10, 10], [3, 3, 5, 5], [7, 7, 9, 9]], np.float32)
    scores = box_scores(maps, boxes, (10, 10), 0.5)
    # Along an axis the map rises from 0 to 1 between the centres at 1.5 and 2.5: of the four pixels
    # 3.75 are in the box of four, and 4 in the whole.
    np.testing.assert_allclose(scores, [[3.75**2 / 4, 16 / 10, 4 / 2, 0]], atol=1e-9)
    best, score = choose_boxes(maps, boxes, (10, 10), 0.5)
    assert best.tolist() == [0]
    assert score.tolist() == pytest.approx([3.75**2 / 4])


def test_area_power_decides_between_tight_and_loose():
    maps = np.full((1, 10, 10), 0.2, np.float32)
    maps[0, 4:6, 4:6] = 1.0
    boxes = np.array([[4, 4, 6, 6], [0, 0, 10, 10]], np.float32)
    assert choose_boxes(maps, boxes, (10, 10), 0.0)[0].tolist() == [1]  # most activation in sum
    assert choose_boxes(maps, boxes, (10, 10), 1.0)[0].tolist() == [0]  # highest mean


def test_first_of_equal_boxes_wins():
    maps = np.ones((2, 8, 8), np.float32)
    boxes = np.array([[0, 0, 4, 4], [4, 4, 8, 8]], np.float32)
    assert choose_boxes(maps, boxes, (8, 8), 0.5)[0].tolist() == [0, 0]


def test_no_proposal_is_an_error():
    with pytest.raises(ValueError, match="no proposal"):
        choose_boxes(np.ones((1, 4, 4), np.float32), np.zeros((0, 4), np.float32), (4, 4), 0.5)


sides = st.tuples(st.integers(1, 400), st.integers(1, 400))


@settings(max_examples=50, deadline=None)
@given(
    sides,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.tuples(*[st.floats(-0.2, 1.2)] * 4), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
def test_the_integral_is_the_sum_over_a_fine_grid(image_hw, cells_hw, corners, seed):
    maps = np.random.default_rng(seed).random((2, *cells_hw)).astype(np.float32)
    fine = enlarge_maps(maps, (1000, 1000)).astype(np.float64)
    height, width = image_hw
    x0, y0, x1, y1 = np.array(corners).T
    low, high = np.stack([x0, y0], 1), np.stack([x1, y1], 1)
    fractions = np.concatenate([np.minimum(low, high), np.maximum(low, high)], 1)
    fractions = np.rint(fractions * 1000) / 1000  # boxes of whole fine pixels
    boxes = fractions * [width, height, width, height]
    grid = np.rint(fractions * 1000).astype(int).clip(0, 1000)
    expected = [
        [m[t:b, le:r].sum() * height * width / 1e6 for le, t, r, b in grid.tolist()] for m in fine
    ]
    found = box_scores(maps, boxes, image_hw, 0.0)
    np.testing.assert_allclose(found, expected, atol=2e-3 * height * width)


@pytest.mark.parametrize("factor", [1, 10, 47])
def test_the_same_box_is_chosen_whatever_the_size_of_the_photograph(factor):
    generator = np.random.default_rng(0)
    cells = generator.random((3, 16, 16)).astype(np.float32)
    corners = np.sort(generator.uniform(0, 128, (50, 2, 2)), axis=1)
    boxes = np.hstack([corners[:, 0], corners[:, 1] + 4])
    image_hw = (128 * factor, 128 * factor)
    maps = smooth_maps(cells, image_hw, 0.1)
    best, score = choose_boxes(maps, boxes * factor, image_hw, 0.5)
    small, small_score = choose_boxes(smooth_maps(cells, (128, 128), 0.1), boxes, (128, 128), 0.5)
    assert best.tolist() == small.tolist()
    np.testing.assert_allclose(score, small_score * factor)


def test_otsu_cuts_a_two_level_map():
    maps = np.full((1, 6, 6), 0.1, np.float32)
    maps[0, :3] = 0.9
    cut = binarise_otsu(maps, (60, 60))
    np.testing.assert_array_equal(cut[0, :, 0], [1] * 30 + [0] * 30)
    assert binarise_otsu(maps, (6000, 3000)).shape == (1, 320, 160)
