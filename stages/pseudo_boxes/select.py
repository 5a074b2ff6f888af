"""The pseudo-box: the proposal with the most activation for its size.

Frame: maps cover the whole image; boxes are corners x0, y0, x1, y1 in pixels of the image.
Shape legend: T targets of one image, R proposals, h w map cells, H W pixels.
"""

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from stages.common.geometry.activation_maps import bounded_hw, enlarge_maps, integrate_boxes

LONGEST_BINARY = 320  # pixels of a binary map's longer side; the map's cells are far coarser


def binarise_otsu(
    maps: Float[np.ndarray, "T h w"], image_hw: tuple[int, int]
) -> Float32[np.ndarray, "T _ _"]:
    """Return maps in [0, 1] binarised at their Otsu thresholds, each value 0 or 1.

    Maps are first enlarged to the image's resolution, but to `LONGEST_BINARY` pixels at most. The
    official code scores boxes by binary maps (after a 5 × 5 blur), the paper by Φ itself.
    """
    enlarged = enlarge_maps(maps, bounded_hw(image_hw, LONGEST_BINARY))
    levels = (enlarged * 255).astype(np.uint8)
    cut = [cv2.threshold(m, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1] for m in levels]
    return np.stack(cut).astype(np.float32)


def box_scores(
    maps: Float[np.ndarray, "T h w"],
    boxes_xyxy: Float[np.ndarray, "R 4"],
    image_hw: tuple[int, int],
    area_power: float,
) -> Float64[np.ndarray, "T R"]:
    """Return Σ_b Φ / |b|^p of every map and box; sums and areas are in pixels.

    The sum is the exact integral of the bilinear map over the box clipped to the image; |b| is the
    area of the clipped box, at least one pixel.

    Source: Mask-free OVIS, pseudo bounding box generation: b* = argmax Σ_b Φ_t / √|b|, so p = 1/2.
    """
    height, width = image_hw
    boxes = np.clip(boxes_xyxy.astype(np.float64), 0, [width, height, width, height])
    area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1.0)
    return integrate_boxes(maps, boxes, image_hw) / area**area_power


def choose_boxes(
    maps: Float[np.ndarray, "T h w"],
    boxes_xyxy: Float[np.ndarray, "R 4"],
    image_hw: tuple[int, int],
    area_power: float,
) -> tuple[Int[np.ndarray, " T"], Float64[np.ndarray, " T"]]:
    """Return the index and the score of the best box of each map; of equal boxes, the first.

    Raises:
        ValueError: there are no boxes.
    """
    if len(boxes_xyxy) == 0:
        raise ValueError("there is no proposal to choose from")
    scores = box_scores(maps, boxes_xyxy, image_hw, area_power)
    best = scores.argmax(1)
    return best, scores[np.arange(len(maps)), best]
