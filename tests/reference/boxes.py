"""The pseudo-box as the official code chooses it: a loop over proposals, a sum over pixels in each.

Source: Mask-free OVIS §3.2, b* = argmax Σ_b Φ / √|b|.
"""

import numpy as np


def choose_box(
    activation: np.ndarray, boxes_xyxy: np.ndarray, area_power: float = 0.5
) -> tuple[int, float]:
    """Return (index of the best box, its score); the first of equals wins.

    Args:
        activation: Φ float32 (H, W).
        boxes_xyxy: proposals (R, 4) in pixels, R >= 1.
        area_power: p of |b|^p.
    """
    best, best_score = 0, -1.0
    height, width = activation.shape
    for index, box in enumerate(boxes_xyxy):
        x0, y0, x1, y1 = (round(float(corner)) for corner in box)
        x0, x1 = min(max(x0, 0), width), min(max(x1, 0), width)
        y0, y1 = min(max(y0, 0), height), min(max(y1, 0), height)
        area = max((x1 - x0) * (y1 - y0), 1)
        score = activation[y0:y1, x0:x1].sum(dtype=np.float64) / area**area_power
        if score > best_score:
            best, best_score = index, score
    return best, float(best_score)
