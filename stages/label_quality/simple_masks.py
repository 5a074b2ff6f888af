"""Simple masks and boxes, made without segmentation or proposal network, for comparison.

Masks, each within the box of a label: the filled box, its inscribed ellipse, the activation above
a threshold, and the most activated fraction of the pixels. Boxes: a square at the peak of the map
that chose the label's box. `stages.label_quality.summary` reports the best threshold, fraction and
side. They are chosen with the ground truth, which no method has, so the comparison favours the
simple masks and boxes.

Pixels are counted within the box only, because all these masks lie in it; no map is enlarged to the
whole image.

Shape legend: R labels of an image, S its objects, T thresholds, F fractions, L sides of squares,
h w cells of an activation map, n m pixels of a box. Frame: pixels of the image; pixel k is centred
on k + 0.5.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stages.common.formats.coco import Instances
from stages.common.geometry.boxes import clip_boxes, pairwise_iou
from stages.common.geometry.masks import decode_mask
from stages.label_quality.agreement import Columns
from stages.label_quality.params import LabelQualityParams

Count = int | np.signedinteger


@dataclass(frozen=True)
class LabelMaps:
    """The activation maps behind R labels, float32 (R, h, w) in [0, 1].

    Attributes:
        raw: the map after the last round.
        seeding: the blurred map that stage `pseudo_masks` takes its seeds from.
        choosing: the blurred map that stage `pseudo_boxes` chooses boxes by.
    """

    raw: np.ndarray
    seeding: np.ndarray
    choosing: np.ndarray


def measure_masks(
    labels: Instances,
    objects: Instances,
    maps: LabelMaps,
    image_hw: tuple[int, int],
    params: LabelQualityParams,
) -> Columns:
    """Return the IoU of the simple masks in the labels' boxes with the best object of the class.

    Args:
        labels: R pseudo-labels of one image.
        objects: its objects, without crowds.
        maps: the labels' activation maps.
        image_hw: the image's size.
        params: thresholds and fractions.

    Returns:
        filled_iou and ellipse_iou (R,); activation_iou (R, T), raw map above each threshold;
        fraction_iou (R, F), most activated fraction of the box's pixels in the seeding map.
    """
    shown = objects.select(np.isin(objects.category_ids, labels.category_ids))
    pixels = [decode_mask(segmentation, image_hw) for segmentation in shown.segmentations]
    thresholds = np.array(params.activation_thresholds, np.float32)
    fractions = np.array(params.activation_fractions)
    filled, ellipse = np.zeros(len(labels)), np.zeros(len(labels))
    by_threshold = np.zeros((len(labels), len(thresholds)))
    by_fraction = np.zeros((len(labels), len(fractions)))
    for row, (box_xyxy, category_id) in enumerate(
        zip(labels.boxes_xyxy, labels.category_ids, strict=True)
    ):
        window = _window(box_xyxy, image_hw)
        raw_order, raw = _sort_descending(_enlarge(maps.raw[row], image_hw, window))
        seeding_order, _ = _sort_descending(_enlarge(maps.seeding[row], image_hw, window))
        num_pixels = len(raw)
        # A threshold keeps the first pixels in this order, and so does a fraction.
        num_by_threshold = num_pixels - np.searchsorted(raw[::-1], thresholds, "right")
        num_wanted = np.maximum(np.rint(fractions * num_pixels), 1)
        num_by_fraction = num_wanted.clip(max=num_pixels).astype(int)
        inscribed = _ellipse(box_xyxy, window).ravel()
        for index in np.flatnonzero(shown.category_ids == category_id):
            inside = pixels[index][window].ravel()
            size = np.count_nonzero(pixels[index])
            filled[row] = max(filled[row], _iou(num_pixels, np.count_nonzero(inside), size))
            common = np.count_nonzero(inscribed & inside)
            ellipse[row] = max(ellipse[row], _iou(np.count_nonzero(inscribed), common, size))
            activation = _first_iou(inside[raw_order], num_by_threshold, size)
            by_threshold[row] = np.maximum(by_threshold[row], activation)
            fraction = _first_iou(inside[seeding_order], num_by_fraction, size)
            by_fraction[row] = np.maximum(by_fraction[row], fraction)
    return {
        "filled_iou": filled,
        "ellipse_iou": ellipse,
        "activation_iou": by_threshold,
        "fraction_iou": by_fraction,
    }


def measure_squares(
    labels: Instances,
    objects: Instances,
    choosing: Float[np.ndarray, "R h w"],
    image_hw: tuple[int, int],
    sides: list[float],
) -> Columns:
    """Return the IoU of squares at the peak of the map, and the sides of boxes and objects.

    Args:
        labels: R pseudo-labels of one image.
        objects: its objects, without crowds.
        choosing: the maps that chose the labels' boxes.
        image_hw: the image's size.
        sides: L sides of squares, as fractions of the image's longer side.

    Returns:
        square_iou (R, L), IoU of each square with the best object of the class; side (R,), square
        root of the area of the label's box, in pixels; true_side (R,), that of the object of the
        class that the box fits best, NaN if it overlaps none.
    """
    num_labels = len(labels)
    half = np.array(sides) * max(image_hw) / 2
    centres = np.array([peak(cells, image_hw) for cells in choosing]).reshape(num_labels, 1, 2)
    corners = [centres - half[:, None], centres + half[:, None]]
    squares = clip_boxes(np.concatenate(corners, axis=2).reshape(-1, 4), image_hw)
    same_class = labels.category_ids[:, None] == objects.category_ids[None, :]
    iou = pairwise_iou(squares, objects.boxes_xyxy).reshape(num_labels, len(sides), len(objects))
    own_iou = np.where(same_class, pairwise_iou(labels.boxes_xyxy, objects.boxes_xyxy), 0.0)
    true_side = np.full(num_labels, np.nan)
    fits = own_iou.max(axis=1, initial=0.0) > 0
    if fits.any():
        true_side[fits] = _sides(objects.boxes_xyxy)[own_iou[fits].argmax(axis=1)]
    return {
        "square_iou": np.where(same_class[:, None], iou, 0.0).max(axis=2, initial=0.0),
        "side": _sides(labels.boxes_xyxy),
        "true_side": true_side,
    }


def peak(cells: Float[np.ndarray, "h w"], image_hw: tuple[int, int]) -> tuple[float, float]:
    """Return (x, y) of a map's highest point, in pixels.

    In small images a cell is as large as a fifth of an object. The point is therefore refined
    within the highest cell, to the summit of the parabola through it and its neighbours.
    """
    place = np.unravel_index(cells.argmax(), cells.shape)
    row, column = (int(index) for index in place)
    y = (row + 0.5 + _summit(cells[:, column], row)) * image_hw[0] / cells.shape[0]
    x = (column + 0.5 + _summit(cells[row], column)) * image_hw[1] / cells.shape[1]
    return x, y


def _summit(values: np.ndarray, highest: int) -> float:
    """Return the offset of the parabola's summit from the highest value, in -0.5…0.5 cells."""
    if not 0 < highest < len(values) - 1:
        return 0.0
    before, at, after = (float(value) for value in values[highest - 1 : highest + 2])
    bend = before - 2 * at + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0


def _window(box_xyxy: np.ndarray, image_hw: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and the columns of the image's pixels that are centred in the box."""
    spans = []
    for low, high, size in zip(box_xyxy[[1, 0]], box_xyxy[[3, 2]], image_hw, strict=True):
        first, last = np.ceil(low - 0.5), np.floor(high - 0.5)
        spans.append(slice(max(int(first), 0), max(min(int(last) + 1, size), 0)))
    return spans[0], spans[1]


def _enlarge(
    cells: np.ndarray, image_hw: tuple[int, int], window: tuple[slice, slice]
) -> np.ndarray:
    """Return a map (h, w) sampled bilinearly at the window's pixels (n, m)."""
    values = cells
    for axis in (0, 1):
        pixels = np.arange(window[axis].start, window[axis].stop) + 0.5
        place = (pixels * cells.shape[axis] / image_hw[axis] - 0.5).clip(0, cells.shape[axis] - 1)
        low = place.astype(int)
        high = np.minimum(low + 1, cells.shape[axis] - 1)
        weight = (place - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        values = values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
    return values


def _sort_descending(heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the descending order of the values (n, m), and the sorted values, (n m,) each."""
    values = heat.ravel()
    order = np.argsort(-values, kind="stable")
    return order, values[order]


def _ellipse(box_xyxy: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
    """Return which pixels of the window, bool (n, m), lie in the box's inscribed ellipse."""
    left, top, right, bottom = (float(side) for side in box_xyxy)
    rows = np.arange(window[0].start, window[0].stop) + 0.5
    columns = np.arange(window[1].start, window[1].stop) + 0.5
    y = (rows - (top + bottom) / 2) / max((bottom - top) / 2, 1e-9)
    x = (columns - (left + right) / 2) / max((right - left) / 2, 1e-9)
    return y[:, None] ** 2 + x[None, :] ** 2 <= 1


def _first_iou(inside: np.ndarray, counts: np.ndarray, size: Count) -> np.ndarray:
    """Return the IoU (K,) of an object with the first `counts` pixels of an order.

    Args:
        inside: bool (n m,), which of the ordered pixels belong to the object.
        counts: int (K,).
        size: number of the object's pixels, also outside the box.
    """
    common = np.concatenate([[0], np.cumsum(inside)])[counts]
    return common / np.maximum(counts + size - common, 1)


def _iou(pixels: Count, common: Count, size: Count) -> float:
    return common / max(pixels + size - common, 1)


def _sides(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return the square roots of the boxes' areas, (R,)."""
    return np.sqrt(np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1))
