"""Montage of phrases: what was said, where the pointer was then, and the box that it gave."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from stages.common.drawing.montage import Row, draw_sheet
from stages.common.drawing.panels import Panel, Tag, class_colour, paint_box, panel_box, show_image
from stages.common.formats.categories import Category
from stages.common.formats.narratives import in_time
from stages.common.formats.tables import CORNERS
from stages.phrase_labels.summary import label_rows

SIDE = 300
WORDS = 330
GREY = (150, 150, 150)
WINDOW = (250, 60, 40)  # of the points that are taken


@dataclass(frozen=True)
class Example:
    """A phrase with a box, as a row of its table.

    Attributes:
        phrase: the row.
        image: RGB uint8 (H, W, 3).
        trace: the whole one, (P, 3).
    """

    phrase: dict[str, Any]
    image: np.ndarray
    trace: np.ndarray


def choose(table: pa.Table, number: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """Return at most `number` phrases of one thing, with class and box, each of another image."""
    rows = label_rows(table)
    rows = rows[~table["several"].to_numpy()[rows]]
    image_ids = table["image_id"].to_numpy()[rows]
    chosen: dict[int, int] = {}
    for place in random.permutation(len(rows)).tolist():
        if len(chosen) < number:
            chosen.setdefault(int(image_ids[place]), int(rows[place]))
    return table.take(pa.array([chosen[key] for key in sorted(chosen)], pa.int64())).to_pylist()


def draw_montage(
    examples: Sequence[Example], categories: Sequence[Category]
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the sheet, RGB, a row per example; a white sheet if there is none."""
    if not examples:
        return np.full((SIDE, SIDE, 3), 255, np.uint8)
    by_id = {category.id: (place, category) for place, category in enumerate(categories)}
    rows = []
    for example in examples:
        phrase = example.phrase
        place, category = by_id[phrase["category_id"]]
        start, end = phrase["seconds_from"], phrase["seconds_to"]
        lines = [
            f"“{phrase['sentence']}”",
            f"“{phrase['phrase']}”, {start:.1f} to {end:.1f} s: {phrase['points']} points",
        ]
        panels = [_whole_trace(example), _window(example, category.name, class_colour(place))]
        rows.append(Row(panels, category.name, category.split, lines))
    columns = ["the whole trace", "points in the phrase's time, and their box"]
    return draw_sheet(
        "Approximately localized phrases",
        "What people said while they pointed; red: where the pointer was when they named the thing",
        columns,
        rows,
        WORDS,
    )


def _whole_trace(example: Example) -> Panel:
    pixels = show_image(example.image, SIDE)
    _paint_trace(pixels, in_time(example.trace), example.image.shape[:2], GREY)
    _paint_trace(pixels, _own_points(example), example.image.shape[:2], WINDOW)
    return Panel(pixels)


def _window(example: Example, name: str, colour: tuple[int, int, int]) -> Panel:
    pixels, image_hw = show_image(example.image, SIDE), example.image.shape[:2]
    _paint_trace(pixels, _own_points(example), image_hw, WINDOW)
    box = np.array([example.phrase[corner] for corner in CORNERS], np.float32)
    paint_box(pixels, box, image_hw, colour)
    x, y, *_ = panel_box(box, image_hw, SIDE)
    return Panel(pixels, [Tag(name, x, y, colour)])


def _own_points(example: Example) -> np.ndarray:
    first = example.phrase["first_point"]
    return in_time(example.trace)[first : first + example.phrase["points"]]


def _paint_trace(
    pixels: np.ndarray, points: np.ndarray, image_hw: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """Draw points (P, 3), fractions of the image, as a line on its panel."""
    height, width = image_hw
    ends = [panel_box([x * width, y * height, 0, 0], image_hw, SIDE)[:2] for x, y, _ in points]
    line = np.rint(np.array(ends).reshape(-1, 2)).astype(np.int32)
    cv2.polylines(pixels, [line[:, None]], False, colour, 1, cv2.LINE_AA)
    for x, y in line.tolist():
        cv2.circle(pixels, (x, y), 2, colour, -1, cv2.LINE_AA)
