"""Montages: frames of panels, words inside their panel, and equal bytes."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.drawing.montage import Row, draw_sheet, place_tags, write_png
from stages.common.drawing.panels import (
    GROUND,
    Panel,
    Tag,
    class_colour,
    paint_box,
    paint_mask,
    panel_box,
    show_heat,
    show_image,
)

SIDE = 120


def test_wide_image_is_centred_and_boxes_follow_it():
    image = np.zeros((30, 60, 3), np.uint8)
    panel = show_image(image, SIDE)
    assert panel.shape == (SIDE, SIDE, 3)
    assert (panel[30:90] == 0).all()  # twice as large: 60 rows of 120, 30 pixels of ground above
    assert (panel[:30] == GROUND).all() and (panel[90:] == GROUND).all()
    assert panel_box(np.array([0, 0, 60, 30]), (30, 60), SIDE).tolist() == [0, 30, 120, 90]


@given(st.integers(1, 300), st.integers(1, 300))
def test_every_image_fits_its_panel(height, width):
    image = np.full((height, width, 3), 7, np.uint8)
    panel = show_image(image, SIDE)
    shown = (panel == 7).all(axis=2)
    assert max(shown.any(axis=0).sum(), shown.any(axis=1).sum()) == SIDE


def test_mask_is_painted_where_it_lies():
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    mask = np.zeros((12, 12), bool)
    mask[3:9, 3:9] = True
    painted = paint_mask(pixels, mask, (200, 100, 0))
    assert (pixels == 0).all()
    assert painted[60, 60].tolist() == [90, 45, 0]
    assert (painted[:20] == 0).all()
    paint_box(painted, np.array([0, 0, 12, 12]), (12, 12), (200, 100, 0))
    assert painted[0, 60].tolist() == [200, 100, 0]


def test_heat_leaves_cold_places_recognisable():
    image = np.full((20, 20, 3), 100, np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 0] = 1.0
    panel = show_heat(image, heat, SIDE)
    assert panel[-1, -1].tolist() == [100, 100, 100]
    assert panel[5, 5, 0] > 180


def test_class_colours_differ():
    colours = {class_colour(index) for index in range(65)}
    assert len(colours) == 65
    near = [np.abs(np.subtract(class_colour(k), class_colour(k + 1))).max() for k in range(64)]
    assert min(near) > 60


@given(st.lists(st.tuples(st.floats(-50, 200), st.floats(-50, 200)), max_size=9))
def test_tags_stay_in_their_panel_and_apart(corners):
    tags = [Tag("boat", x, y, (0, 0, 0)) for x, y in corners]
    panel = Panel(np.zeros((SIDE, SIDE, 3), np.uint8), tags)
    places = list(place_tags(panel, [36.0] * len(tags)))
    assert len(places) == len(tags)
    for number, (x, y) in enumerate(places):
        assert 0 <= x <= SIDE - 36 and 0 <= y <= SIDE - 18
        for other_x, other_y in places[: number if number < 3 else 0]:  # three find room
            assert abs(x - other_x) >= 36 or abs(y - other_y) >= 18


@pytest.mark.parametrize("mark", ["", "base", "novel"])
def test_sheet_has_room_for_everything_and_equal_bytes(tmp_path, mark):
    tags = [Tag("a $5 cup ★", 10, 40, (255, 0, 0)), Tag("cup", 10, 40, (0, 0, 90))]
    panel = Panel(np.full((SIDE, SIDE, 3), 50, np.uint8), tags)
    rows = [Row([panel, Panel(panel.pixels)], "cup", mark, ["word " * 60, "last"])] * 2
    for name in ("one", "two"):
        sheet = draw_sheet("Title", "Subtitle", ["left", "right"], rows, 200)
        write_png(tmp_path / f"{name}.png", sheet)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert sheet.shape == (24 + 62 + 26 + 2 * SIDE + 10 + 24, 24 + 200 + 2 * SIDE + 10 + 24, 3)
    read = cv2.imread(str(tmp_path / "one.png"))[..., ::-1]
    assert (read == sheet).all()
    assert (sheet[-30, -30] == 50).all()  # pixels pasted as they are
    assert (sheet[:, 215:224] == 255).all()  # words end before the panels
