"""The pseudo-box: the proposal that holds the most activation for its size.

Frame: maps cover the whole picture; boxes are corners in pixels.
Shape legend: T targets of one picture, R proposals, h w map cells, H W pixels.
"""

import cv2
import numpy as np


def binarise_otsu(maps: np.ndarray) -> np.ndarray:
    """Return maps (T, H, W) in [0, 1] cut at their Otsu thresholds, float32 0 or 1.

    The official code scores boxes by such maps; the paper by Φ itself.
    """
    levels = (maps * 255).astype(np.uint8)
    cut = [cv2.threshold(m, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1] for m in levels]
    return np.stack(cut).astype(np.float32)


def box_scores(maps: np.ndarray, boxes_xyxy: np.ndarray, area_power: float) -> np.ndarray:
    """Return Σ_b Φ / |b|^p of every map and box, float64 (T, R), by integral images.

    The sum runs over the pixels of the box rounded to the grid and cut to the picture; |b| is the
    area of that same box, at least one pixel.

    Source: Mask-free OVIS §3.2, b* = argmax Σ_b Φ / √|b|; the paper has p = 1/2.
    """
    count, height, width = maps.shape
    integral = np.zeros((count, height + 1, width + 1))
    integral[:, 1:, 1:] = maps.astype(np.float64).cumsum(1).cumsum(2)
    grid = np.rint(boxes_xyxy).astype(np.int64)
    x0, x1 = grid[:, 0].clip(0, width), grid[:, 2].clip(0, width)
    y0, y1 = grid[:, 1].clip(0, height), grid[:, 3].clip(0, height)
    inside = integral[:, y1, x1] - integral[:, y0, x1] - integral[:, y1, x0] + integral[:, y0, x0]
    area = np.maximum((x1 - x0) * (y1 - y0), 1)
    return inside / area**area_power


def choose_boxes(
    maps: np.ndarray, boxes_xyxy: np.ndarray, area_power: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best box of each map, its index (T,) and score (T,); the first of equals wins.

    Raises:
        ValueError: no box to choose from.
    """
    if len(boxes_xyxy) == 0:
        raise ValueError("there is no proposal to choose from")
    scores = box_scores(maps, boxes_xyxy, area_power)
    best = scores.argmax(1)
    return best, scores[np.arange(len(maps)), best]
