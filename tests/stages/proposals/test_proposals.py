import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.runtime.params import read_section
from stages.models.proposals.selective_search import SearchSettings, keep_usable, selective_search
from stages.proposals.params import ProposalsParams
from stages.proposals.search import proposal_table, search_images
from tests.support.images import png_image

SETTINGS = SearchSettings(
    mode="fast", longer_side=320, min_side=10.0, max_area_fraction=0.6, max_aspect=5.0
)


def draw_scene(seed: int) -> np.ndarray:
    """Two bright shapes on grey noise, RGB uint8 (96, 96, 3)."""
    generator = np.random.default_rng(seed)
    image = generator.integers(90, 110, (96, 96, 3)).astype(np.uint8)
    cv2.rectangle(image, (10, 12), (45, 50), (220, 40, 40), -1)
    cv2.circle(image, (70, 65), 18, (40, 60, 230), -1)
    return image


def iou(box, other):
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    inter = np.clip(sides, 0, None).prod()
    return inter / ((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - inter)


def test_both_shapes_are_found():
    boxes = selective_search(draw_scene(0), SETTINGS, 0, 1)
    for shape in (np.array([10, 12, 46, 51.0]), np.array([52, 47, 89, 84.0])):
        assert max(iou(box, shape) for box in boxes) > 0.8


def test_same_order_whatever_was_searched_before():
    first, second = draw_scene(0), draw_scene(1)
    alone = selective_search(second, SETTINGS, 0, 2)
    selective_search(first, SETTINGS, 0, 1)
    assert np.array_equal(selective_search(second, SETTINGS, 0, 2), alone)
    # another seed: the same boxes in another order
    other = selective_search(second, SETTINGS, 1, 2)
    assert not np.array_equal(other, alone)
    assert {tuple(box) for box in other} == {tuple(box) for box in alone}


# Python 3.12 and later warn of every fork beside BLAS threads, which the workers never use.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_number_of_processes_changes_nothing():
    images = [png_image(k, draw_scene(k)[..., ::-1]) for k in range(5)]
    tables = [proposal_table(search_images(images, SETTINGS, 0, n))[0] for n in (1, 2)]
    assert tables[0].equals(tables[1], check_metadata=True)
    assert tables[0]["image_id"].unique().to_pylist() == list(range(5))


def test_a_large_image_is_searched_small_and_mapped_back():
    image = cv2.resize(draw_scene(0), (960, 480), interpolation=cv2.INTER_NEAREST)
    boxes = selective_search(image, SETTINGS, 0, 1)
    shape = np.array([100, 60, 460, 255.0])
    assert max(iou(box, shape) for box in boxes) > 0.8
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 960 and boxes[:, 3].max() <= 480


def test_an_image_without_proposals_gets_the_whole_image():
    blank = np.full((40, 60, 3), 128, np.uint8)
    table, report = proposal_table(search_images([png_image(7, blank)], SETTINGS, 0, 1))
    assert report == {"images": 1, "proposals": 1, "whole_image_instead": [7]}
    assert table.to_pylist() == [{"image_id": 7, "x0": 0, "y0": 0, "x1": 60, "y1": 40}]


def test_filters_by_hand():
    boxes = np.array(
        [
            [0, 0, 20, 20],  # kept
            [0, 0, 9, 20],  # shorter side 9 < 10
            [5, 5, 25, 25],  # kept
            [0, 0, 20, 20],  # repetition
            [0, 0, 60, 11],  # aspect 5.45 > 5
            [0, 0, 80, 80],  # 0.64 of the image > 0.6
        ],
        np.float32,
    )
    assert np.array_equal(keep_usable(boxes, (100, 100), SETTINGS), boxes[[0, 2]])


@given(st.integers(0, 2**32 - 1))
def test_filters_keep_order_and_only_usable_boxes(seed):
    generator = np.random.default_rng(seed)
    corners = np.sort(generator.integers(0, 64, (50, 2, 2)), axis=1).astype(np.float32)
    boxes = corners.reshape(50, 4)
    kept = keep_usable(boxes, (64, 64), SETTINGS)
    rows = [tuple(box) for box in boxes]
    positions = [rows.index(tuple(box)) for box in kept]
    assert positions == sorted(set(positions))
    sides = kept[:, 2:] - kept[:, :2]
    assert (sides >= 10).all() and (sides.prod(1) <= 0.6 * 64 * 64).all()


def test_neutral_filters_keep_thin_and_image_wide_boxes():
    neutral = {"min_side": 2.0, "max_area_fraction": 1.0, "max_aspect": float("inf")}
    boxes = np.array([[0, 0, 427, 640], [3, 3, 5, 600], [3, 3, 4, 600]], np.float32)
    kept = keep_usable(boxes, (640, 427), SETTINGS.model_copy(update=neutral))
    assert np.array_equal(kept, boxes[:2])


def test_a_wrong_mode_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(
        "proposals: {mode: slow, longer_side: 320, min_side: 10.0, max_area_fraction: 0.6, "
        "max_aspect: 5.0}\n"
    )
    with pytest.raises(ValueError, match=r"proposals\.mode: .*'quality'.*found 'slow'"):
        read_section("proposals", ProposalsParams, path)
