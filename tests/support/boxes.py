"""Boxes: random ones, some whose overlaps are known, and annotations that fill their boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.common.geometry.masks import encode_mask

# Four boxes: a whole object, the same a little shifted, its small part, and something far away.
WHOLE_AND_PART = np.array(
    [[0, 0, 20, 20], [0, 0, 20, 18], [0, 0, 10, 10], [40, 40, 60, 60]], np.float32
)  # IoU 0-1: 0.9, 0-2: 0.25, 1-2: 100 / 360 = 0.278


def random_boxes(seed: int, count: int, side: int = 64) -> np.ndarray:
    """Return boxes float32 (count, 4) xyxy in a square image, at least 10 pixels wide and high."""
    generator = np.random.default_rng(seed)
    corner = generator.uniform(0, side - 12, (count, 2))
    sides = generator.uniform(10, side - corner)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def box_mask(box_xyxy: Sequence[float], image_hw: tuple[int, int]) -> np.ndarray:
    """Return bool (H, W): what lies in a box of whole pixels."""
    x0, y0, x1, y1 = map(int, box_xyxy)
    pixels = np.zeros(image_hw, bool)
    pixels[y0:y1, x0:x1] = True
    return pixels


def box_annotation(
    category_id: int, box_xyxy: Sequence[int], image_hw: tuple[int, int], **more: Any
) -> dict[str, Any]:
    """Return an annotation in COCO's format whose mask is its box."""
    x0, y0, x1, y1 = box_xyxy
    return {
        "category_id": category_id,
        "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "segmentation": encode_mask(box_mask(box_xyxy, image_hw)),
        **more,
    }
